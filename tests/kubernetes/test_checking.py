"""What the server holds beside a real API that has gone on: the watch is held back, questions pass."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from kubenetmon.server.checking import CheckedCluster, Checker, CheckerConfig
from tests.beds.kubernetes import Cluster
from tests.kubernetes.conftest import IMPATIENT, Follower, Gate, eventually, following

pytestmark = pytest.mark.apiserver

PATIENT = replace(IMPATIENT, watch_timeout=60.0, read_timeout=30.0)
"""So that the watches that are held back are not given up."""


def checker(follower: Follower, seconds: float = 4.0) -> Checker:
    known = CheckedCluster("test", follower.inventory, follower.watcher)
    return Checker(CheckerConfig(seconds), [known])


async def checked(follower: Follower, address: str, seconds: float = 4.0) -> dict[str, Any]:
    found = await checker(follower, seconds).check(4, int(ipaddress.ip_address(address)), 0)
    [one] = found["objects"]
    return dict(one)


async def test_what_the_watch_has_not_brought_is_found_by_asking(cluster: Cluster, gate: Gate) -> None:
    cluster.create_node("node-a", address="192.0.2.10")
    for number, name in enumerate(("steady", "deleted", "replaced", "readdressed", "ended"), 1):
        cluster.create_pod(name, node="node-a", address=f"10.1.0.{number}")
    cluster.create_service("shop", address="198.18.0.77")
    before = cluster.request("GET", "/api/v1/namespaces/default/pods/replaced")["metadata"]["uid"]
    async with following(cluster.kubeconfig(port=gate.port), PATIENT) as follower:
        await eventually(lambda: follower.readiness.ready and follower.owner("10.1.0.5") == "ended")

        gate.hang_those_open()
        cluster.delete_pod("deleted")
        cluster.delete_pod("replaced")
        cluster.create_pod("replaced", node="node-b", address="10.1.0.3")
        cluster.set_pod_status("readdressed", "10.1.0.44")
        cluster.set_pod_status("ended", "10.1.0.5", phase="Succeeded")
        cluster.set_node_address("node-a", "192.0.2.11")
        cluster.delete_service("shop")

        assert (await checked(follower, "10.1.0.1"))["verdict"] == "same"
        for address in ("10.1.0.2", "198.18.0.77"):
            assert (await checked(follower, address))["verdict"] == "gone"
        after = cluster.request("GET", "/api/v1/namespaces/default/pods/replaced")["metadata"]
        replaced = await checked(follower, "10.1.0.3")
        assert replaced["differences"] == [f"another one has that name: uid {after['uid']}, here {before}"]
        assert replaced["resource_version"] == after["resourceVersion"]
        for address, difference in (
            ("10.1.0.4", "10.1.0.4 is not among its addresses (10.1.0.44)"),
            ("10.1.0.5", "phase Succeeded: a pod that has ended owns no address"),
            ("192.0.2.10", "192.0.2.10 is not among its addresses (192.0.2.11)"),
        ):
            assert (await checked(follower, address))["differences"] == [difference]
        assert follower.owner("10.1.0.2") == "deleted", "asking changes nothing"
        assert follower.owner("10.1.0.5") == "ended"


@pytest.mark.alone
async def test_an_api_that_hangs_is_waited_for_in_bounded_time_and_the_loop_goes_on(
    cluster: Cluster, gate: Gate
) -> None:
    cluster.create_pod("pod", node="node-a", address="10.1.0.1")
    async with following(cluster.kubeconfig(port=gate.port), PATIENT) as follower:
        await eventually(lambda: follower.readiness.ready)
        gate.hang()
        began = last = time.monotonic()
        longest = 0.0
        asking = asyncio.create_task(checked(follower, "10.1.0.1", 0.5))
        while not asking.done():
            await asyncio.sleep(0.005)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()
        assert (await asking)["because"] == "no answer within 0.5 s"
        assert time.monotonic() - began < 2.0
        assert longest < 0.25
        assert follower.check()["ok"], "asking is no trouble of the watch"


async def test_asking_again_and_again_leaves_nothing_behind(cluster: Cluster, gate: Gate) -> None:
    cluster.create_node("node-a", address="192.0.2.10")
    async with following(cluster.kubeconfig(port=gate.port), PATIENT) as follower:
        await eventually(lambda: follower.readiness.ready)
        asking = checker(follower)
        node, nobody = (int(ipaddress.ip_address(one)) for one in ("192.0.2.10", "192.0.2.99"))

        async def ask(times: int) -> int:
            for _ in range(times):
                await asyncio.gather(*[asking.check(4, address, 443) for address in (node, node, nobody)])
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await ask(50)
            opened = gate.accepted
            after = await ask(200)
        finally:
            tracemalloc.stop()
        assert after - before < 64 << 10
        assert gate.accepted == opened, "a connection serves many questions"
