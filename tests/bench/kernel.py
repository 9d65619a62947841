"""What it costs to read the kernel's table: the floor of everything, and our ledger on top of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from tests.beds.injector import TCP, UDP, InjectionBed
from tests.bench.accounting import best
from tests.bench.line import Line, ratio_of

_ROUNDS = 6
_GROWTH_ROUNDS = 4
LINEAR = 1.25
"""How much dearer a flow may be among 250,000 than among 100,000: the processor's caches are the same."""


@dataclass(frozen=True, slots=True)
class Floor:
    """Processor seconds to receive one dump of so many flows and throw it away."""

    seconds: float
    flows: int

    @property
    def per_flow(self) -> float:
        """Processor seconds a flow."""
        return self.seconds / self.flows


def change_all(bed: InjectionBed, flows: int) -> None:
    """One packet in every one of so many flows, half of them TCP."""
    for protocol in (TCP, UDP):
        bed.send(protocol, 0, flows // 2, payload=100)


async def measure(bed: InjectionBed, flows: int) -> tuple[Floor, list[Line]]:
    """The receive floor, and reading with the ledger while every flow changes, over and over."""
    floor, per_flow = await _read(bed, flows, _ROUNDS)
    return floor, [
        Line(
            f"reading {flows:,} flows and what changed, CPU",
            ratio_of(per_flow, floor.per_flow),
            "1.50 x",
            "6 x",
            per_flow <= 1.5 * floor.per_flow,
        )
    ]


async def measure_growth(bed: InjectionBed, flows: int) -> list[Line]:
    """The cost per flow at 2.5 times the flows beside that at `flows`, both measured here."""
    many = flows * 5 // 2
    (_, few_cost), (floor, many_cost) = [await _read(bed, size, _GROWTH_ROUNDS) for size in (flows, many)]
    return [
        Line(
            f"reading {many:,} flows and what changed, CPU per flow",
            f"{many_cost / few_cost:.2f} x that of {flows:,} flows; {ratio_of(many_cost, floor.per_flow)}",
            f"{LINEAR:.2f} x",
            "",
            many_cost <= LINEAR * few_cost,
        )
    ]


async def _read(bed: InjectionBed, flows: int, rounds: int) -> tuple[Floor, float]:
    """The receive floor, and processor seconds a flow of reading with the ledger when all have changed.

    Each is the best of several runs, since a busy machine only ever adds, and each comes first every other
    time: who comes second finds the kernel's table in the processor's caches.
    """
    change_all(bed, flows)
    conntrack = Conntrack(ConntrackConfig())
    bed.node.call(conntrack.open)
    try:
        await conntrack.read()
        floors, reads = [], []
        for number in range(rounds):
            await asyncio.to_thread(change_all, bed, flows)
            if number % 2:
                floors.append((await conntrack.receive_floor()).cpu)
            result = await conntrack.read()
            if not number % 2:
                floors.append((await conntrack.receive_floor()).cpu)
            if result.changed < flows:
                raise RuntimeError(f"only {result.changed} of {flows} flows had changed: packets were lost")
            reads.append(result.cpu)
            conntrack.seal()
    finally:
        conntrack.close()
    return Floor(best(floors), flows), best(reads) / flows
