"""A server that watches another cluster's real API as well, asked from the command line."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.beds.kubernetes import Cluster
from tests.beds.server_process import Server

pytestmark = pytest.mark.apiserver


def eventually(condition: Callable[[], bool], within: float = 15.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, "did not come to hold in time"
        time.sleep(0.05)


def test_a_peers_pods_are_known_by_name_and_never_stand_in_the_way(cluster: Cluster, tmp_path: Path) -> None:
    cluster.create_node("green-1", address="192.0.2.10", zone="use1-az1")
    cluster.create_pod("payments", node="green-1", address="10.61.1.5")
    server = Server(
        tmp_path,
        clickhouse_enabled=False,
        peer_clusters={"green": {"kubeconfig": str(cluster.kubeconfig()), "region": "us-east-1"}},
    )

    def remote() -> dict[str, Any]:
        found: dict[str, Any] = server.explained("10.61.1.5")["as_remote"]
        return found

    with server.running():
        server.wait_ready()
        found = remote()
        assert {name: found[name] for name in ("pod", "zone", "cluster", "region", "connection_class")} == {
            "pod": "payments", "zone": "use1-az1", "cluster": "green", "region": "us-east-1",
            "connection_class": "INTER_REGION",
        }  # fmt: skip
        assert "in green" in server.explain("10.61.1.5:443")

        cluster.create_pod("orders", node="green-1", address="10.61.1.6")
        eventually(lambda: server.explained("10.61.1.6")["as_remote"]["pod"] == "orders")
        [checked] = server.explained("--check", "10.61.1.6")["check"]["objects"]
        assert (checked["cluster"], checked["name"], checked["verdict"]) == ("green", "orders", "same")
        cluster.delete_pod("payments")
        eventually(lambda: server.explained("10.61.1.5")["peers"]["green"][0]["until"] is not None)
        long_after = str(int(time.time()) + 3600)
        gone = server.explained("10.61.1.5", "--at", long_after)["as_remote"]
        assert (gone["rule"], gone["cluster"]) == ("private address", "UNKNOWN")
        assert remote()["pod"] == "payments", "for the grace time"

        cluster.kill_api_server()
        try:
            eventually(lambda: not server.checks()["peer cluster green"]["ok"])
            assert server.ready(), "a peer that is away gates nothing"
            assert server.explained("10.61.1.6")["as_remote"]["pod"] == "orders", "what is known stays known"
            assert "pod default/orders of green: no answer: " in server.explain("--check", "10.61.1.6")
        finally:
            cluster.start_api_server()
        eventually(lambda: bool(server.checks()["peer cluster green"]["ok"]), within=40)


def test_a_kubeconfig_of_a_peer_that_is_missing_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path, clickhouse_enabled=False, peer_clusters={"green": "/nowhere/kubeconfig"})
    status, said = server.outcome()
    assert status == 2
    assert "peer_clusters.green: there is no kubeconfig at /nowhere/kubeconfig" in said
    assert "Traceback" not in said
