"""A peer cluster: read from a source of its own, shown, and never in the way."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.server.inventory import InventoryConfig
from kubenetmon.server.peers import PeerCluster, PeerConfig
from tests.bench import cluster


def peer_of(source: str, metrics: Metrics, readiness: Readiness) -> PeerCluster:
    config = PeerConfig("green", source, "aws", "us-east-1", "INTER_REGION", InventoryConfig())
    return PeerCluster(config, metrics=metrics, readiness=readiness, clock=SYSTEM_CLOCK)


async def test_a_peer_is_read_and_counted_beside_our_own(tmp_path: Path) -> None:
    objects = tmp_path / "green.json"
    objects.write_text(json.dumps(cluster.document()))
    metrics, readiness = Metrics(catalogue.SERVER_METRICS), Readiness()
    made = peer_of(f"file:{objects}", metrics, readiness)
    assert readiness.ready, "a peer gates nothing"
    assert b'kubenetmon_server_peer_followed{cluster="green"} 0' in metrics.render()
    task = asyncio.create_task(made.run())
    try:
        async with asyncio.timeout(10):
            while b'followed{cluster="green"} 1' not in metrics.render():  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    finally:
        task.cancel()
    now = made.peer()
    assert (now.name, now.region, now.connection_class) == ("green", "us-east-1", "INTER_REGION")
    address = np.array([cluster.pod_address(3, 4)], np.uint32)
    number = now.snapshot.pods(4, address, 2_000_000_000)[0]
    assert now.snapshot.table.describe(number).node == cluster.node_name(3)
    rendered = metrics.render()
    assert b'kubenetmon_server_peer_objects{cluster="green",kind="pods"} 5000' in rendered
    assert b'kubenetmon_server_peer_followed{cluster="green"} 1' in rendered
    assert b'kubenetmon_server_inventory_objects{kind="pods"} 0' in rendered


def test_a_kubeconfig_that_is_not_there_is_said_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match="there is no kubeconfig at /nowhere"):
        peer_of("kubeconfig:/nowhere", Metrics(catalogue.SERVER_METRICS), Readiness())
