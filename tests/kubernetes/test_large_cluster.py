"""Large clusters: known sooner than their JSON is read, and followed at little cost without a mistake.

One made up, a twentieth of what `python -m tests.bench --only watching` measures, with the same means; and
one of a real API server, as large as the time for tests allows.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import Iterator

import msgspec
import pytest

from kubenetmon.metrics.catalogue import WATCH_EVENTS, WATCH_RELISTS
from kubenetmon.server.inventory import Kind
from kubenetmon.server.kubernetes import KubernetesClient
from kubenetmon.server.kubernetes_source import Kubeconfig
from kubenetmon.server.watcher import WatcherConfig
from tests.beds.kubernetes import Cluster, running_cluster
from tests.beds.large_cluster import STEPS, LargeCluster
from tests.bench.watching import RATE, follow, published
from tests.kubernetes.conftest import eventually, following

PODS, NODES = 5000, 250
REAL_PODS, REAL_NODES, VISITS = 3000, 150, 500


@pytest.mark.slow
@pytest.mark.alone
def test_large_cluster_is_known_soon_and_followed_at_little_cost_without_a_mistake() -> None:
    with published(PODS, NODES, RATE) as port:
        measured = follow(port, PODS, NODES, 12.0)
    assert measured.synced_cpu <= 3 * measured.floor_cpu, "0.4 measured"
    assert measured.changes >= 0.8 * RATE * measured.followed
    assert measured.followed_cpu <= 0.2 * measured.followed, "0.05 measured"
    assert measured.checked > 5000
    assert measured.wrong == 0


@pytest.fixture(scope="module")
def stored() -> Iterator[tuple[Cluster, LargeCluster]]:
    """A real API server whose etcd holds thousands of pods."""
    made = LargeCluster(REAL_PODS, REAL_NODES)
    with running_cluster("--storage-media-type=application/json") as cluster:
        for kind in ("nodes", "pods"):
            cluster.store(made.stored(kind))
        yield cluster, made


async def read_all(cluster: Cluster) -> float:
    """CPU to read all pages and decode them into plain objects, with our own client."""
    client = KubernetesClient(Kubeconfig(str(cluster.kubeconfig())), connect_timeout=10, read_timeout=60)
    began, items = time.process_time(), 0
    kinds: tuple[Kind, ...] = ("nodes", "pods", "services")
    try:
        for kind in kinds:
            token = ""
            while True:
                page = msgspec.json.decode(await client.list_page(kind, 500, token))
                items += len(page["items"])
                token = page["metadata"].get("continue", "")
                if not token:
                    break
    finally:
        await client.close()
    assert items > REAL_PODS + REAL_NODES
    return time.process_time() - began


@pytest.mark.apiserver
@pytest.mark.slow
@pytest.mark.alone
async def test_thousands_of_pods_of_a_real_api_are_known_soon_and_followed_without_a_mistake(
    stored: tuple[Cluster, LargeCluster],
) -> None:
    cluster, made = stored
    floor = min([await read_all(cluster) for _ in range(2)])
    began = time.process_time()
    async with following(cluster.kubeconfig(), WatcherConfig()) as follower:
        await eventually(lambda: follower.readiness.ready, within=60.0)
        synced = time.process_time() - began
        assert follower.inventory.counts()["pods"] == REAL_PODS
        assert follower.inventory.counts()["nodes"] == REAL_NODES
        assert synced <= 3 * floor

        # Pod after pod is replaced by another at its address, as fast as etcd takes it, fifty at a time.
        for first in range(0, VISITS, 50):
            for step in range(len(STEPS)):
                lot = [visit * len(STEPS) + step for visit in range(first, first + 50)]
                await asyncio.to_thread(cluster.store, dict(map(made.stored_change, lot)))
        done = VISITS * len(STEPS)
        await eventually(lambda: follower.metrics.value(WATCH_EVENTS, kind="pods") >= done, within=30.0)
        at = time.time() + 2
        for number in range(VISITS + 50):
            address = str(ipaddress.IPv4Address(made.address(number)))
            assert follower.owner(address, at) == made.owner(number, done)
        assert follower.inventory.counts()["pods"] == REAL_PODS
        for reason, expected in (("start", 1), ("expired", 0), ("error", 0)):
            assert follower.metrics.value(WATCH_RELISTS, kind="pods", reason=reason) == expected
