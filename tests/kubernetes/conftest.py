"""The real Kubernetes API for this directory's tests, started once, emptied between tests."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import SERVER_METRICS
from kubenetmon.readiness import Readiness
from kubenetmon.server.inventory import Inventory
from kubenetmon.server.watcher import Watcher, WatcherConfig
from tests.beds.kubernetes import Cluster, running_cluster
from tests.beds.ports import free_port

IMPATIENT = WatcherConfig(
    shortest_pause=0.05, longest_pause=0.3, connect_timeout=3.0, read_timeout=3.0, file_poll_interval=0.05
)


class Follower:
    """A watcher at work and what it knows."""

    def __init__(self, config: WatcherConfig) -> None:
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

    def owner(self, address: str, at: float | None = None) -> str:
        """The pod at that address now, or at that Unix second."""
        known = self.inventory.snapshot()
        parsed = ipaddress.ip_address(address)
        moment = int(time.time() if at is None else at)
        if parsed.version == 4:
            endpoint = known.pods(4, np.array([int(parsed)], np.uint32), moment)[0]
        else:
            halves = [[int(parsed) >> 64, int(parsed) & (2**64 - 1)]]
            endpoint = known.pods(6, np.array(halves, np.uint64), moment)[0]
        return str(known.table.describe(endpoint).pod)

    def zone(self, address: str) -> str:
        """The zone of the pod at that address."""
        known = self.inventory.snapshot()
        endpoint = known.pods(4, np.array([int(ipaddress.IPv4Address(address))], np.uint32), int(time.time()))
        return str(known.table.describe(endpoint[0]).zone)

    def check(self) -> dict[str, Any]:
        """The check "kubernetes" of /ready."""
        checks: Any = self.readiness.report()["checks"]
        return dict(checks["kubernetes"])


class Gate:
    """A TCP forwarder in front of the API: it can refuse, hang, and pass."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.port = free_port()
        self.accepted = 0

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse connections and cut those there are."""
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hang(self) -> None:
        """Keep connections, pass nothing on, as when a firewall forgets them."""
        self._flowing.clear()

    def hang_those_open(self) -> None:
        """The same for the connections that there are; new ones pass."""
        self._flowing.clear()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self.accepted += 1
        self._writers |= {writer, upstream_writer}
        for source, sink in ((reader, upstream_writer), (upstream_reader, writer)):
            task = asyncio.create_task(self._pass(source, sink, self._flowing))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, flowing: asyncio.Event
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                await flowing.wait()
                sink.write(data)
                await sink.drain()
        sink.close()


async def eventually(condition: Callable[[], bool], within: float = 10.0) -> float:
    """Wait until it holds; returns the seconds that took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < within, "did not come to hold in time"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@pytest.fixture(autouse=True)
async def no_connection_outlives_its_test() -> AsyncIterator[None]:
    """Who cancels over TLS says goodbye for as long as the other side takes; the loop ends before that."""
    yield
    loop: Any = asyncio.get_running_loop()
    for transport in list(loop._transports.values()):
        transport.abort()
    await asyncio.sleep(0)


@asynccontextmanager
async def following(kubeconfig: Path, config: WatcherConfig = IMPATIENT) -> AsyncIterator[Follower]:
    """A watcher with that kubeconfig, running and not yet synced."""
    follower = Follower(replace(config, kubernetes_source=f"kubeconfig:{kubeconfig}"))
    task = asyncio.create_task(follower.watcher.run())
    try:
        yield follower
    finally:
        failed = task.done()
        await follower.watcher.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if failed:
            task.result()


@pytest.fixture(scope="session")
def running() -> Iterator[Cluster]:
    """The session's Kubernetes API."""
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def cluster(running: Cluster) -> Cluster:
    """The session's Kubernetes API without pods, nodes and services."""
    running.delete_all()
    return running


@pytest.fixture
async def gate(running: Cluster) -> AsyncIterator[Gate]:
    """An open forwarder to the session's Kubernetes API."""
    forwarder = Gate(running.port)
    await forwarder.open()
    yield forwarder
    await forwarder.close()
