"""Agents by the dozen in one process: the real collector, outbox and sender over a table that is made up.

Contract: a `SimulatedAgent` is all of an agent but the kernel. Its `SyntheticTable` holds so many flows that
all move in every read, and knows what it has handed over, so that sums can be compared with ClickHouse's.
`report` seals at once; with `collect` the collector reads and seals by its intervals. `Fleet` starts and ends
them together; they find servers by name at the addresses that `Fleet.addresses` holds at each look-up.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import random
import socket
from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

import numpy as np

from kubenetmon.agent.collector import Collector, CollectorConfig
from kubenetmon.agent.metered import ReadResult, SealedRecords, Totals
from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.agent.sender import Sender, SenderConfig
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_METRICS
from kubenetmon.proto import FlowArrays, Outcome
from kubenetmon.readiness import Readiness
from tests.bench import cluster

HOST = "kubenetmon-server"
"""The headless Service's name, as agents are told."""

MAX_RECORDS = 18_000
"""What one batch may hold of IPv4."""

_COUNTERS = ("original_packets", "original_bytes", "reply_packets", "reply_bytes")


class SyntheticTable:
    """What the collector takes for conntrack: `flows` flows of one node, all of which move in each read."""

    def __init__(self, node: int, flows: int) -> None:
        generator = np.random.default_rng(node)
        self._parts = [
            _arrays(node, min(MAX_RECORDS, flows - first), generator)
            for first in range(0, flows, MAX_RECORDS)
        ]
        self._reads = 0
        self.sealed_bytes = 0
        self.sealed_packets = 0
        self.sealed_records = 0

    async def read(self) -> ReadResult:
        """Every flow has moved once more."""
        self._reads += 1
        return ReadResult(
            **{field.name: 0 for field in dataclasses.fields(ReadResult)}  # type: ignore[arg-type]
        )

    async def report(self, begin: int, end: int, end_monotonic: float) -> list[SealedRecords]:
        """What has moved since the last time."""
        reads, self._reads = self._reads, 0
        sealed = [_times(part, reads) for part in self._parts if reads]
        for part in sealed:
            self.sealed_bytes += part.bytes
            self.sealed_packets += part.packets
            self.sealed_records += part.records
        return sealed

    def totals(self) -> Totals:
        """Nothing: the simulation looks at sums of its own."""
        return Totals(**{field.name: 0 for field in dataclasses.fields(Totals)})


def _arrays(node: int, records: int, generator: np.random.Generator) -> SealedRecords:
    arrays = cluster.batch(node, 1, 0, records, generator).ipv4
    assert arrays is not None
    return _sealed(arrays)


def _times(part: SealedRecords, reads: int) -> SealedRecords:
    if reads == 1:
        return part
    counters: dict[str, Any] = {
        name: (np.frombuffer(getattr(part.ipv4, name), "<u8") * np.uint64(reads)).tobytes()
        for name in _COUNTERS
    }
    return _sealed(dataclasses.replace(part.ipv4, **counters))


def _sealed(arrays: FlowArrays) -> SealedRecords:
    sums = {name: int(np.frombuffer(getattr(arrays, name), "<u8").sum()) for name in _COUNTERS}
    return SealedRecords(
        ipv4=arrays,
        ipv6=FlowArrays(),
        records=arrays.count,
        bytes=sums["original_bytes"] + sums["reply_bytes"],
        packets=sums["original_packets"] + sums["reply_packets"],
    )


class TimedOutbox(Outbox):
    """Notes in `settled` when each batch was sealed and when its commit was known, monotonic seconds; in
    `handed_back` the reason of each answer that says to send the batch again."""

    def __init__(
        self,
        node_name: str,
        *,
        metrics: Metrics,
        settled: list[tuple[float, float]],
        handed_back: list[str],
    ) -> None:
        super().__init__(node_name, metrics=metrics, clock=SYSTEM_CLOCK)
        self._settled, self._handed_back = settled, handed_back

    def settle(self, epoch: bytes, sequence: int, outcome: Outcome, reason: str) -> SealedBatch | None:
        batch = super().settle(epoch, sequence, outcome, reason)
        if batch is not None and outcome is Outcome.COMMITTED:
            self._settled.append((batch.sealed_at, SYSTEM_CLOCK.monotonic()))
        if batch is not None and outcome is Outcome.RETRY_LATER:
            self._handed_back.append(reason)
        return batch


class SimulatedAgent:
    """One node's agent; tasks are the fleet's."""

    def __init__(
        self,
        node: int,
        flows: int,
        sender: SenderConfig,
        collector: CollectorConfig,
        settled: list[tuple[float, float]],
        handed_back: list[str],
    ) -> None:
        self.node_name = cluster.node_name(node)
        self.metrics = Metrics(AGENT_METRICS)
        self.readiness = Readiness()
        self.table = SyntheticTable(node, flows)
        self.outbox = TimedOutbox(
            self.node_name, metrics=self.metrics, settled=settled, handed_back=handed_back
        )
        self.collector = Collector(
            collector,
            conntrack=self.table,
            outbox=self.outbox,
            metrics=self.metrics,
            readiness=self.readiness,
            clock=SYSTEM_CLOCK,
        )
        self.wishes: list[int] = []
        self.sender = Sender(
            sender,
            outbox=self.outbox,
            metrics=self.metrics,
            readiness=self.readiness,
            clock=SYSTEM_CLOCK,
            wished_report_interval=self._wished,
            chance=random.Random(node),
        )

    async def report(self) -> None:
        """Read and seal now, whatever waits."""
        await self.table.read()
        end = int(SYSTEM_CLOCK.time())
        sealed = await self.table.report(end - 60, end, SYSTEM_CLOCK.monotonic())
        self.outbox.put(sealed, end - 60, end)

    def _wished(self, seconds: int) -> None:
        if seconds != (self.wishes[-1] if self.wishes else 0):
            self.wishes.append(seconds)
        self.collector.wish_report_interval(seconds)


class Fleet:
    """So many agents, of nodes number `first` and on."""

    def __init__(
        self,
        agents: int,
        *,
        flows: int,
        port: int,
        addresses: Sequence[str],
        sender: SenderConfig,
        collector: CollectorConfig | None = None,
        first: int = 0,
    ) -> None:
        self.addresses = list(addresses)
        """What the Service's name resolves to now."""
        self.settled: list[tuple[float, float]] = []
        """When each committed batch was sealed, and when its agent knew of the commit; monotonic seconds."""
        self.handed_back: list[str] = []
        """Why servers said to send a batch again, each time that one did."""
        self._port = port
        config = dataclasses.replace(sender, host=HOST, port=port)
        self.agents = [
            SimulatedAgent(
                node, flows, config, collector or CollectorConfig(), self.settled, self.handed_back
            )
            for node in range(first, first + agents)
        ]
        self._collecting = collector is not None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def truth(self) -> dict[str, tuple[int, int]]:
        """Bytes and packets that each node's agent has sealed."""
        return {
            agent.node_name: (agent.table.sealed_bytes, agent.table.sealed_packets)
            for agent in self.agents
            if agent.table.sealed_records
        }

    @property
    def waits(self) -> list[float]:
        """Seconds from seal to commit, of every batch."""
        return [settled - sealed for sealed, settled in self.settled]

    @property
    def records(self) -> int:
        """Sealed by all agents."""
        return sum(agent.table.sealed_records for agent in self.agents)

    @property
    def unanswered(self) -> int:
        """Batches that wait at the agents."""
        return sum(len(agent.outbox.waiting()) for agent in self.agents)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Agents send (and collect) until the end, when they are dropped as they are."""
        with _resolving(HOST, self.addresses), _connecting_from_nodes(self._port):
            for agent in self.agents:
                self._tasks.append(asyncio.create_task(agent.sender.run()))
                if self._collecting:
                    self._tasks.append(asyncio.create_task(agent.collector.run()))
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                outcomes = await asyncio.gather(*self._tasks, return_exceptions=True)
                self._tasks.clear()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def report(self, agents: Iterable[SimulatedAgent] | None = None) -> None:
        """Each of them (all) seals a report now."""
        for agent in agents if agents is not None else self.agents:
            await agent.report()

    async def stop_collecting(self) -> None:
        """Collectors seal what is left and end."""
        await asyncio.gather(*(agent.collector.stop() for agent in self.agents))

    async def drained(self, seconds: float = 60.0) -> None:
        """Return once every batch is answered for."""
        async with asyncio.timeout(seconds):
            while self.unanswered:
                self.check()
                await asyncio.sleep(0.05)

    def check(self) -> None:
        """Raise what ended an agent's task."""
        for task in self._tasks:
            if task.done():
                task.result()


@contextlib.contextmanager
def _resolving(name: str, addresses: list[str]) -> Any:
    """The running loop finds `name` at `addresses`, as the list stands at each look-up."""
    loop: Any = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def look_up(host: object, port: object, **options: object) -> object:
        if host != name:
            return await real(host, port, **options)
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    loop.getaddrinfo = look_up
    try:
        yield
    finally:
        del loop.getaddrinfo


@contextlib.contextmanager
def _connecting_from_nodes(port: int) -> Any:
    """The running loop connects to `port` from another loopback address each time, as nodes do."""
    loop: Any = asyncio.get_running_loop()
    real, numbers = loop.create_connection, itertools.count()

    async def connect(factory: Any, host: Any = None, to: Any = None, **options: Any) -> Any:
        if to == port:
            number = next(numbers) % 50_000
            options["local_addr"] = (f"127.1.{number // 250}.{number % 250 + 1}", 0)
        return await real(factory, host, to, **options)

    loop.create_connection = connect
    try:
        yield
    finally:
        del loop.create_connection
