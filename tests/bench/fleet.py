"""Many agents before one server, as fast as they may report: whether it keeps up, and what it costs.

Where processes have to wait for a processor, because others use the machine, times from seal to commit say
little of the server: then the server is judged by the share of a processor that it takes, and it is said.
What is compared with what the agents sealed is what the servers count as committed: ClickHouse keeps nothing
here. Its own sums are compared by `python -m tests.simulate` without `--discard`.
"""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.bench.line import Line
from tests.simulate.run import Figures, Plan, simulate

_STARVED = 0.25
"""Share of the time in which the server wanted a processor and had none, from which on times say little."""
_CORES_TO_KEEP_UP = 0.7
"""A server that needs less of one processor keeps up with what it gets, wherever it has one to itself."""


@dataclass(frozen=True, slots=True)
class _Load:
    plan: Plan
    work: str


_LOADS = (
    _Load(
        Plan(agents=50, flows=10_000, interval=5, seconds=40, discard=True), "50 agents x 10,000 flows, 5 s"
    ),
    _Load(
        Plan(agents=1_000, flows=2_000, interval=60, seconds=90, pods_per_node=5, discard=True),
        "1,000 agents x 2,000 flows, 60 s",
    ),
)


def measure(directory: Path) -> list[Line]:
    """Both loads against a ClickHouse that keeps nothing; raises `RuntimeError` where bytes are missing."""
    lines = []
    for number, load in enumerate(_LOADS):
        figures = asyncio.run(simulate(load.plan, directory / f"fleet-{number}", say=False))
        if not figures.exact:
            raise RuntimeError(
                f"{load.work}: {figures.sealed_bytes} bytes were sealed, {figures.stored_bytes} committed"
            )
        lines.append(_line(load, figures))
        print(f"{lines[-1].work}: {lines[-1].measured}", file=sys.stderr, flush=True)
    return lines


def _line(load: _Load, figures: Figures) -> Line:
    late = figures.wait(0.99)
    cores = figures.server_cpu / figures.seconds
    measured = f"{late:.1f} s; server {cores:.2f} cores, {figures.server_memory / 1e6:.0f} MB"
    reached = late <= load.plan.interval
    if figures.starved > _STARVED:
        measured += f" (waited for a processor {100 * figures.starved:.0f} % of its time: judged by cores)"
        reached = reached or cores <= _CORES_TO_KEEP_UP
    return Line(
        f"{load.work}: seal to commit, 99th percentile",
        measured,
        f"{load.plan.interval} s",
        "",
        reached,
    )
