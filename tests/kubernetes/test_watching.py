"""What the watcher sees of a real Kubernetes API, and what it keeps when that goes away."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import time
from dataclasses import replace

import pytest

from kubenetmon.metrics.catalogue import INVENTORY_OBJECTS, WATCH_RELISTS
from kubenetmon.server.inventory import InventoryConfig
from kubenetmon.server.kubernetes import ExpiredError, KubernetesClient, RefusedError
from kubenetmon.server.kubernetes_objects import Event, ObjectDecoder
from kubenetmon.server.kubernetes_source import Kubeconfig
from tests.beds.kubernetes import Cluster, running_cluster
from tests.kubernetes.conftest import IMPATIENT, Follower, Gate, eventually, following

pytestmark = pytest.mark.apiserver


def relists(follower: Follower, reason: str) -> float:
    return sum(
        follower.metrics.value(WATCH_RELISTS, kind=kind, reason=reason)
        for kind in ("pods", "nodes", "services")
    )


async def synced(follower: Follower) -> None:
    await eventually(lambda: bool(follower.check()["ok"]))


async def test_lists_all_pages_and_says_what_there_is(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(3):
        cluster.create_node(f"node-{number}", address=f"192.0.2.{number + 10}", zone=f"zone-{number}")
    for number in range(25):
        cluster.create_pod(f"pod-{number}", node=f"node-{number % 3}", address=f"10.1.0.{number + 1}")
    cluster.create_service("shop")
    caplog.set_level(logging.INFO)
    config = replace(IMPATIENT, page_size=4, cluster="paris")
    async with following(cluster.kubeconfig(), config) as follower:
        await synced(follower)
        assert follower.inventory.counts() == {"pods": 25, "nodes": 3, "services": 2}
        assert [follower.owner(f"10.1.0.{number + 1}") for number in range(25)] == [
            f"pod-{number}" for number in range(25)
        ]
        assert follower.zone("10.1.0.2") == "zone-1"
        follower.metrics.render()
        assert follower.metrics.value(INVENTORY_OBJECTS, kind="pods") == 25
    assert "There are currently 25 pods, 3 nodes and 2 services in the cluster paris" in caplog.messages


async def test_pod_created_moved_and_deleted_is_seen_within_a_second(cluster: Cluster) -> None:
    cluster.create_node("node-a", address="192.0.2.10", zone="zone-a")
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        cluster.create_pod("first", node="node-a")
        cluster.set_pod_status("first", "10.1.0.1,fd00::1")
        await eventually(lambda: follower.owner("10.1.0.1") == "first", within=1.0)
        assert follower.owner("fd00::1") == "first"
        assert follower.zone("10.1.0.1") == "zone-a"

        cluster.set_pod_status("first", "10.1.0.2")
        await eventually(lambda: follower.owner("10.1.0.2") == "first", within=1.0)

        before = time.time() - 1
        cluster.delete_pod("first")
        cluster.create_pod("second", node="node-a", address="10.1.0.2")
        await eventually(lambda: follower.owner("10.1.0.2", time.time() + 2) == "second", within=1.0)
        assert follower.owner("10.1.0.2", before) == "first"
        assert follower.inventory.counts()["pods"] == 1


async def test_pod_that_completed_or_uses_the_host_network_owns_nothing(cluster: Cluster) -> None:
    cluster.create_pod("job", node="node-a")
    cluster.set_pod_status("job", "10.1.0.1", phase="Succeeded")
    cluster.create_pod("agent", node="node-a", host_network=True)
    cluster.set_pod_status("agent", "192.0.2.10")
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        assert follower.owner("10.1.0.1") == ""
        assert follower.owner("192.0.2.10") == ""


async def test_pod_that_completes_while_watched_is_over_and_its_address_free(cluster: Cluster) -> None:
    cluster.create_pod("job", node="node-a", address="10.1.0.1")
    cluster.create_pod("done", node="node-a")
    cluster.set_pod_status("done", "10.1.0.3", phase="Failed")
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        assert follower.owner("10.1.0.1") == "job"
        assert follower.inventory.counts()["pods"] == 1, "pods that have ended are not asked for"
        cluster.set_pod_status("job", "10.1.0.1", phase="Succeeded")
        await eventually(lambda: follower.inventory.counts()["pods"] == 0, within=1.0)
        assert follower.owner("10.1.0.1") == "job", "for the grace time"
        cluster.create_pod("next", node="node-a", address="10.1.0.1")
        await eventually(lambda: follower.owner("10.1.0.1", time.time() + 2) == "next", within=1.0)


async def test_services_are_read_with_their_addresses(cluster: Cluster) -> None:
    cluster.create_service("shop")
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=3, read_timeout=3)
    try:
        body = await client.list_page("services", 1, "")
        page = ObjectDecoder(InventoryConfig()).page("services", body)
        assert sorted((known.name, len(known.ipv4)) for known in page.objects) == [
            ("kubernetes", 1),
            ("shop", 1),
        ]
        assert not page.continue_token
        changes = client.watch("services", page.resource_version, 2)
        assert await anext(changes) == []
        cluster.create_service("later")
        lines = [line async for some in changes for line in some]
        later = ObjectDecoder(InventoryConfig()).event("services", lines[0]).object
        assert later is not None
        assert (later.name, len(later.ipv4)) == ("later", 1)
    finally:
        await client.close()


async def test_api_that_sends_no_lists_as_streams_is_asked_for_pages(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=3, read_timeout=3)
    try:
        with pytest.raises(RefusedError, match="does not send the list of pods as events"):
            await anext(client.watch("pods", "", 5))
    finally:
        await client.close()
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        assert relists(follower, "start") == 3
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_nodes_come_change_and_go(cluster: Cluster) -> None:
    cluster.create_pod("early", node="node-a", address="10.1.0.1")
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        assert follower.zone("10.1.0.1") == ""
        cluster.create_node("node-a", address="192.0.2.10", pod_cidrs=("10.1.0.0/24",))
        cluster._merge("/api/v1/nodes/node-a", {"metadata": {"labels": {"topology.kubernetes.io/zone": "z"}}})
        await eventually(lambda: follower.zone("10.1.0.1") == "z", within=1.0)
        cluster.delete_node("node-a")
        await eventually(lambda: follower.inventory.counts()["nodes"] == 0, within=1.0)


async def test_watch_that_the_server_ends_goes_on_without_a_new_list(cluster: Cluster) -> None:
    async with following(cluster.kubeconfig(), replace(IMPATIENT, watch_timeout=1.0)) as follower:
        await synced(follower)
        for number in range(5):
            await asyncio.sleep(0.7)
            cluster.create_pod(f"pod-{number}", node="node-a", address=f"10.1.0.{number + 1}")
            newest = (f"10.1.0.{number + 1}", f"pod-{number}")
            await eventually(lambda newest=newest: follower.owner(newest[0]) == newest[1], within=1.0)  # type: ignore[misc]
        assert relists(follower, "start") == 3
        assert relists(follower, "expired") == relists(follower, "error") == 0


async def test_killed_and_restarted_api_server_takes_nothing_away(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.create_pod("kept", node="node-a", address="10.1.0.1")
    cluster.create_pod("doomed", node="node-a", address="10.1.0.2")
    async with following(cluster.kubeconfig()) as follower:
        await synced(follower)
        cluster.kill_api_server()
        await eventually(lambda: not follower.check()["ok"])
        assert "cannot reach the Kubernetes API" in follower.check()["detail"]
        assert follower.readiness.ready
        assert follower.owner("10.1.0.1") == "kept"
        await asyncio.to_thread(cluster.start_api_server)
        # What happens before the watcher is back is seen as well.
        cluster.delete_pod("doomed")
        cluster.create_pod("new", node="node-a", address="10.1.0.3")
        await eventually(lambda: follower.owner("10.1.0.3") == "new", within=5.0)
        await eventually(lambda: follower.inventory.counts()["pods"] == 2, within=5.0)
        await synced(follower)
        assert follower.owner("10.1.0.1") == "kept"
    assert not [record for record in caplog.records if record.exc_info]


async def test_expired_version_is_answered_with_a_list_that_empties_nothing() -> None:
    # Without its watch cache the API server asks etcd itself, so that compaction shows at once.
    with running_cluster("--watch-cache=false") as cluster:
        gate = Gate(cluster.port)
        await gate.open()
        cluster.create_pod("kept", node="node-a", address="10.1.0.1")
        cluster.create_pod("doomed", node="node-a", address="10.1.0.2")
        async with following(cluster.kubeconfig(port=gate.port)) as follower:
            await synced(follower)
            before = time.time()
            await gate.close()
            await eventually(lambda: not follower.check()["ok"])
            for number in range(5):
                cluster.create_pod(f"later-{number}", node="node-a", address=f"10.1.1.{number + 1}")
            cluster.delete_pod("doomed")
            cluster.compact()
            assert follower.owner("10.1.0.1") == "kept"
            await gate.open()
            await eventually(lambda: follower.inventory.counts()["pods"] == 6, within=5.0)
            await synced(follower)
            assert relists(follower, "expired") >= 1
            assert follower.owner("10.1.0.1") == "kept"
            assert follower.owner("10.1.0.2", before) == "doomed"
        await gate.close()


async def test_page_of_a_compacted_list_is_expired(cluster: Cluster) -> None:
    for number in range(3):
        cluster.create_pod(f"pod-{number}")
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=3, read_timeout=3)
    try:
        first = ObjectDecoder(InventoryConfig()).page("pods", await client.list_page("pods", 1, ""))
        assert len(first.objects) == 1
        cluster.create_pod("pod-3")
        cluster.compact()
        with pytest.raises(ExpiredError):
            await client.list_page("pods", 1, first.continue_token)
    finally:
        await client.close()


async def test_connection_that_hangs_is_given_up(cluster: Cluster, gate: Gate) -> None:
    cluster.create_pod("kept", node="node-a", address="10.1.0.1")
    config = replace(IMPATIENT, watch_timeout=1.0, read_timeout=0.5)
    async with following(cluster.kubeconfig(port=gate.port), config) as follower:
        await synced(follower)
        gate.hang()
        await eventually(lambda: not follower.check()["ok"], within=5.0)
        assert follower.owner("10.1.0.1") == "kept"
        await gate.close()
        fresh = Gate(cluster.port)
        fresh.port = gate.port
        await fresh.open()
        await synced(follower)
        await fresh.close()


async def test_idle_connection_is_probed_by_the_kernel(cluster: Cluster) -> None:
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=3, read_timeout=3)
    try:
        lines = client.watch("pods", cluster.resource_version(), 5)
        assert await anext(lines) == []
        table = await asyncio.to_thread(
            subprocess.check_output, ["ss", "-tnoH", "dport", "=", f":{cluster.port}"], text=True
        )
        assert "timer:(keepalive,1" in table
        await lines.aclose()
    finally:
        await client.close()


async def test_bookmarks_move_the_version_forward(cluster: Cluster) -> None:
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=3, read_timeout=3)
    decoder = ObjectDecoder(InventoryConfig())
    events: list[Event] = []
    try:
        # The API server sends one two seconds before it ends a watch.
        async for lines in client.watch("pods", cluster.resource_version(), 4):
            if not events:
                cluster.create_pod("pod")
                events.append(Event("STARTED", None, "", 0, ""))
            events += [decoder.event("pods", line) for line in lines]
    finally:
        await client.close()
    assert [event.type for event in events][:3] == ["STARTED", "ADDED", "BOOKMARK"]
    assert events[2].object is None
    assert int(events[2].resource_version) >= int(events[1].resource_version)
