"""One simulation: start, watch, stop, compare."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kubenetmon.agent.collector import CollectorConfig
from kubenetmon.agent.push import PushConfig
from kubenetmon.agent.schedule import Backoff
from kubenetmon.agent.sender import SenderConfig
from kubenetmon.metrics import catalogue
from tests.beds.fleet import Fleet
from tests.beds.site import Site, site
from tests.bench import cluster
from tests.bench.accounting import cpu_seconds, memory_bytes, starved_share

SAMPLE_SECONDS = 0.5
DRAIN_SECONDS = 1200.0
SAY_SECONDS = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is simulated. Seconds; `flows` of each agent all move in every interval of `interval` seconds.

    `time_scale`: the agents' own patience (acknowledgements, backoff) is divided by it, for an outage that
    stands for a longer one.
    """

    agents: int = 50
    flows: int = 10_000
    interval: int = 5
    seconds: float = 60.0
    outage: float = 0.0
    replicas: int = 1
    pods_per_node: int = 50
    time_scale: float = 1.0
    discard: bool = False
    """ClickHouse keeps no rows; what servers count as committed stands for what is stored."""

    @property
    def sender(self) -> SenderConfig:
        """The agents' sender as their environment makes it."""
        usual_push, usual_backoff = PushConfig(), Backoff()
        return SenderConfig(
            host="",
            port=0,
            jitter=min(self.interval / 6, 10.0),
            push=replace(usual_push, ack_timeout=usual_push.ack_timeout / self.time_scale),
            backoff=Backoff(usual_backoff.first / self.time_scale, usual_backoff.longest / self.time_scale),
        )


@dataclass(slots=True)
class Figures:
    """What came of it. CPU seconds of the servers together; memory of the largest server."""

    seconds: float = 0.0
    observations: int = 0
    inserts: int = 0
    server_cpu: float = 0.0
    clickhouse_cpu: float = 0.0
    agents_cpu: float = 0.0
    server_memory: int = 0
    held_memory: int = 0
    starved: float = 0.0
    """Share of the time in which a server wanted a processor and had to wait: what others took of it."""
    waits: list[float] = field(default_factory=list)
    wishes: set[int] = field(default_factory=set)
    drained_in: float = 0.0
    """Seconds from ClickHouse's return to the last acknowledgement; of an outage."""
    rows: int = 0
    bytes_on_disk: int = 0
    exact: bool = False
    stored_bytes: int = 0
    sealed_bytes: int = 0

    def wait(self, share: float) -> float:
        """Seconds from seal to commit that so large a share of the batches took at most."""
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan

    @property
    def per_observation(self) -> float:
        """The servers' processor seconds an observation."""
        return self.server_cpu / self.observations


def document(plan: Plan) -> dict[str, Any]:
    """The cluster that the servers know."""
    return cluster.document(nodes=plan.agents, pods_per_node=plan.pods_per_node)


async def simulate(plan: Plan, directory: Path, *, say: bool = True) -> Figures:
    """Run it; raises what makes it impossible, never for sums that differ (`Figures.exact`)."""
    figures = Figures()
    async with site(directory, discard=plan.discard) as running:
        objects = document(plan)
        for _ in range(plan.replicas):
            # Whether agents are asked to slow down is not what is measured here.
            running.replica(document=objects, clickhouse_inserts_per_second=1000).start()
        del objects
        for replica in running.replicas:
            await replica.wait_ready()
        fleet = Fleet(
            plan.agents,
            flows=plan.flows,
            port=running.port,
            addresses=running.addresses,
            sender=plan.sender,
            collector=CollectorConfig(collection_interval=plan.interval, report_interval=plan.interval),
        )
        processes = [replica.process_id for replica in running.replicas]
        before = [cpu_seconds(process) for process in processes]
        clickhouse = running.front.process.pid
        clickhouse_before = cpu_seconds(clickhouse)
        began, agents_before = time.monotonic(), time.process_time()
        async with fleet.running(), _watched(running, fleet, figures, say=say):
            if plan.outage:
                await asyncio.sleep(plan.seconds / 2)
                await _outage(running, plan.outage)
                returned = time.monotonic()
                await asyncio.sleep(plan.seconds / 2)
            else:
                await asyncio.sleep(plan.seconds)
            figures.seconds = time.monotonic() - began
            fleet.check()
            await fleet.stop_collecting()
            await fleet.drained(DRAIN_SECONDS)
            if plan.outage:
                figures.drained_in = _drained_in(fleet, returned)
            figures.server_cpu = sum(map(cpu_seconds, processes)) - sum(before)
            figures.agents_cpu = time.process_time() - agents_before
            figures.clickhouse_cpu = cpu_seconds(clickhouse) - clickhouse_before
        figures.observations = fleet.records
        figures.waits = fleet.waits
        figures.wishes = {wish for agent in fleet.agents for wish in agent.wishes}
        figures.starved = max(map(starved_share, processes))
        figures.server_memory = max(memory_bytes(process, "VmHWM") for process in processes)
        await _compare(running, fleet, figures, discard=plan.discard)
    return figures


async def _outage(running: Site, seconds: float) -> None:
    await running.front.command(listen=False, drop=True)
    await asyncio.sleep(seconds)
    await running.front.command(listen=True)


def _drained_in(fleet: Fleet, returned: float) -> float:
    """Until the last batch that waited at the return was committed."""
    waited = [settled for sealed, settled in fleet.settled if sealed < returned < settled]
    return max(waited, default=returned) - returned


@contextlib.asynccontextmanager
async def _watched(running: Site, fleet: Fleet, figures: Figures, *, say: bool) -> AsyncIterator[None]:
    watching = asyncio.create_task(_watch(running, fleet, figures, say=say))
    try:
        yield
    finally:
        watching.cancel()
        [outcome] = await asyncio.gather(watching, return_exceptions=True)
    if isinstance(outcome, Exception):
        raise outcome


async def _watch(running: Site, fleet: Fleet, figures: Figures, *, say: bool) -> None:
    began = said = time.monotonic()
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        fleet.check()
        for replica in running.replicas:
            metrics = await asyncio.to_thread(replica.metrics)
            figures.held_memory = max(figures.held_memory, int(metrics[catalogue.SERVER_HELD_MEMORY.name]))
        if say and time.monotonic() - said >= SAY_SECONDS:
            said = time.monotonic()
            sizes = ", ".join(
                f"{memory_bytes(replica.process_id) / 1e6:.0f} MB" for replica in running.replicas
            )
            print(
                f"{said - began:6.0f} s  {len(fleet.waits):,} batches committed, {fleet.unanswered} wait; "
                f"server {sizes}",
                file=sys.stderr,
                flush=True,
            )


async def _compare(running: Site, fleet: Fleet, figures: Figures, *, discard: bool) -> None:
    truth = fleet.truth
    figures.sealed_bytes = sum(moved for moved, _ in truth.values())
    figures.inserts = (await running.front.command())["commits"]
    if discard:
        committed = f'{catalogue.SERVER_COMMITTED.name}{{unit="bytes"}}'
        figures.stored_bytes = sum(int(replica.metrics()[committed]) for replica in running.replicas)
        figures.exact = figures.stored_bytes == figures.sealed_bytes
        return
    stored = await running.stored()
    figures.exact = stored == truth
    figures.stored_bytes = sum(moved for moved, _ in stored.values())
    [(rows, size)] = await running.sink.query(
        "SELECT sum(rows), sum(bytes_on_disk) FROM system.parts "
        "WHERE active AND database = 'default' AND table = 'network_flows_0'"
    )
    figures.rows, figures.bytes_on_disk = int(rows), int(size)


def render(plan: Plan, figures: Figures) -> str:
    """The figures for people, and for docs/capacity.md."""
    cores = os.cpu_count() or 1
    lines: Sequence[tuple[str, str]] = (
        ("agents x flows, interval", f"{plan.agents:,} x {plan.flows:,}, {plan.interval} s"),
        ("servers", f"{plan.replicas}"),
        ("ran for", f"{figures.seconds:.0f} s on {cores} cores"),
        ("observations a second", f"{figures.observations / figures.seconds:,.0f}"),
        ("inserts a second", f"{figures.inserts / figures.seconds:.1f}"),
        ("server CPU an observation", f"{figures.per_observation * 1e6:.2f} us"),
        ("server cores", f"{figures.server_cpu / figures.seconds:.2f}"),
        ("server waited for a processor", f"{100 * figures.starved:.0f} % of the time that it wanted one"),
        ("server memory at most", f"{figures.server_memory / 1e6:.0f} MB"),
        ("of it held for batches at most", f"{figures.held_memory / 1e6:.0f} MB"),
        ("ClickHouse cores (engine and front)", f"{figures.clickhouse_cpu / figures.seconds:.2f}"),
        ("cores of all agents and of watching them", f"{figures.agents_cpu / figures.seconds:.2f}"),
        ("seal to commit, median", f"{figures.wait(0.5):.2f} s"),
        ("seal to commit, 99th percentile", f"{figures.wait(0.99):.2f} s"),
        (
            "rows kept, bytes on disk a row",
            f"{figures.rows:,}, {figures.bytes_on_disk / figures.rows:.1f}" if figures.rows else "discarded",
        ),
        (
            "bytes sealed, bytes stored",
            f"{figures.sealed_bytes}, {figures.stored_bytes} ({'equal' if figures.exact else 'NOT equal'})",
        ),
    )
    if plan.outage:
        lines = (
            *lines,
            ("ClickHouse away for", f"{plan.outage:.0f} s"),
            ("last batch that waited was committed after", f"{figures.drained_in:.1f} s"),
        )
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"| {name.ljust(width)} | {value} |" for name, value in lines)
