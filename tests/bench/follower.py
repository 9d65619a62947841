"""A watcher that is measured and checked: `python -m tests.bench.follower PORT PODS NODES SECONDS`.

It reads the cluster of `tests.beds.large_cluster` at that port: all its lists as they are (the floor), then
with a `Watcher`, twice each, then follows the changes for so many seconds, and takes a snapshot as often as
nodes that report every minute make a server take one. What the inventory says of pods is compared with what
must be, in between and outside of what is measured. The last line is JSON, see `Measured`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import aiohttp
import msgspec
import numpy as np
import uvloop

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import SERVER_METRICS, WATCH_EVENTS
from kubenetmon.readiness import Readiness
from kubenetmon.server.inventory import Inventory
from kubenetmon.server.watcher import Watcher, WatcherConfig
from tests.beds.large_cluster import STEPS, LargeCluster

_ROUNDS = 2
_CHECK_INTERVAL = 0.5
_REPORT_INTERVAL = 60.0
_SURE_SECONDS = 3
"""Before and behind a change of hands the second it happened in is anyone's."""


@dataclass(slots=True)
class Measured:
    """Times in seconds; `stall`: the longest that the event loop was held; addresses checked and wrong."""

    floor: float = float("inf")
    floor_cpu: float = float("inf")
    synced: float = float("inf")
    synced_cpu: float = float("inf")
    bytes_read: int = 0
    followed: float = 0.0
    followed_cpu: float = 0.0
    changes: int = 0
    snapshots: int = 0
    stall: float = 0.0
    checked: int = 0
    wrong: int = 0


class _Follower:
    def __init__(self, kubeconfig: Path) -> None:
        config = WatcherConfig(kubernetes_source=f"kubeconfig:{kubeconfig}")
        self.inventory = Inventory(config.inventory)
        self.metrics = Metrics(SERVER_METRICS)
        self.readiness = Readiness()
        self.watcher = Watcher(
            config,
            inventory=self.inventory,
            metrics=self.metrics,
            readiness=self.readiness,
            clock=SYSTEM_CLOCK,
        )

    @property
    def changes(self) -> int:
        """Of pods, read so far."""
        return int(self.metrics.value(WATCH_EVENTS, kind="pods"))


async def _read_all(port: int) -> int:
    """Every list, page by page, decoded into plain objects; returns the bytes."""
    size = 0
    async with aiohttp.ClientSession() as session:
        for kind, limit in (("nodes", "500"), ("pods", "500"), ("services", "0")):
            query = {"limit": limit}
            while True:
                async with session.get(f"http://127.0.0.1:{port}/api/v1/{kind}", params=query) as response:
                    body = await response.read()
                size += len(body)
                token = msgspec.json.decode(body)["metadata"].get("continue")
                if not token:
                    break
                query["continue"] = token
    return size


async def _begin(port: int) -> None:
    async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/begin"):
        pass


class _Checker:
    """Compares what the inventory says with what must be."""

    def __init__(self, cluster: LargeCluster, follower: _Follower, measured: Measured) -> None:
        self._cluster, self._follower, self._measured = cluster, follower, measured
        self._generator = np.random.default_rng(7)
        self._past: list[tuple[int, int]] = []

    def check(self) -> None:
        """The pods changed last and some others, now and some seconds ago."""
        now, changes = int(time.time()), self._follower.changes
        visited = changes // len(STEPS)
        recent = np.arange(max(0, visited - 300), visited + 2) % self._cluster.pods
        others = self._generator.integers(0, self._cluster.pods, 200)
        # A second on, so that what took over within this second does own it.
        self._compare(np.concatenate((recent, others)), changes, now + 1)
        self._past.append((now, changes))
        sure = [entry for entry in self._past if entry[0] <= now - 2 * _SURE_SECONDS]
        if len(sure) > 1:
            moment, then = sure[-1]
            before = [entry for entry in sure if entry[0] <= moment - _SURE_SECONDS]
            behind = next(entry for entry in self._past if entry[0] >= moment + _SURE_SECONDS)
            if before:
                # Whoever changed hands around that second is left out.
                unsure = range(before[-1][1] // len(STEPS), behind[1] // len(STEPS) + 1)
                numbers = np.arange(max(0, unsure.start - 300), unsure.stop + 300) % self._cluster.pods
                excluded = np.array(unsure) % self._cluster.pods
                self._compare(np.setdiff1d(numbers, excluded), then, moment)

    def _compare(self, numbers: np.ndarray, changes: int, at: int) -> None:
        snapshot = self._follower.inventory.snapshot()
        addresses = (self._cluster.address(0) + numbers).astype(np.uint32)
        owners = snapshot.table.column("pod", snapshot.pods(4, addresses, at)).each()
        for number, owner in zip(numbers.tolist(), owners, strict=True):
            self._measured.checked += 1
            self._measured.wrong += owner != self._cluster.owner(number, changes)


async def _measure(port: int, cluster: LargeCluster, seconds: float) -> Measured:
    measured = Measured()
    content = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench"}}],
        "clusters": [{"name": "bench", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
    }
    with tempfile.TemporaryDirectory(prefix="kubenetmon-bench-") as directory:
        kubeconfig = Path(directory) / "kubeconfig"
        kubeconfig.write_text(json.dumps(content))
        task: asyncio.Task[None] | None = None
        follower = _Follower(kubeconfig)
        for number in range(_ROUNDS):
            gc.collect()
            began, began_cpu = time.monotonic(), time.process_time()
            measured.bytes_read = await _read_all(port)
            measured.floor = min(measured.floor, time.monotonic() - began)
            measured.floor_cpu = min(measured.floor_cpu, time.process_time() - began_cpu)
            gc.collect()
            if number:
                follower = _Follower(kubeconfig)
            began, began_cpu = time.monotonic(), time.process_time()
            task = asyncio.create_task(follower.watcher.run())
            while not follower.readiness.ready:
                await asyncio.sleep(0.01)
                if task.done():
                    task.result()
            measured.synced = min(measured.synced, time.monotonic() - began)
            measured.synced_cpu = min(measured.synced_cpu, time.process_time() - began_cpu)
            if number < _ROUNDS - 1:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        assert task is not None
        if seconds:
            await _begin(port)
            await _follow(follower, cluster, seconds, measured)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    return measured


async def _follow(follower: _Follower, cluster: LargeCluster, seconds: float, measured: Measured) -> None:
    checker = _Checker(cluster, follower, measured)
    checker.check()
    await asyncio.sleep(0.5)
    began, first = time.monotonic(), follower.changes
    cpu, next_check = time.process_time(), began + _CHECK_INTERVAL
    while (before := time.monotonic()) < began + seconds:
        await asyncio.sleep(_REPORT_INTERVAL / cluster.nodes)
        measured.stall = max(measured.stall, time.monotonic() - before - _REPORT_INTERVAL / cluster.nodes)
        follower.inventory.snapshot()
        measured.snapshots += 1
        if time.monotonic() >= next_check:
            measured.followed_cpu += time.process_time() - cpu
            checker.check()
            cpu, next_check = time.process_time(), next_check + _CHECK_INTERVAL
    measured.followed_cpu += time.process_time() - cpu
    measured.followed = time.monotonic() - began
    measured.changes = follower.changes - first


def main() -> None:
    """Measure and print."""
    port, pods, nodes = map(int, sys.argv[1:4])
    measured = uvloop.run(_measure(port, LargeCluster(pods, nodes), float(sys.argv[4])))
    print(json.dumps(asdict(measured)), flush=True)


if __name__ == "__main__":
    main()
