"""Run the world for so many minutes, watch it, and compare."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from kubenetmon.demo import network
from kubenetmon.demo.processes import Intervals, Role
from kubenetmon.errors import KubenetmonError
from tests.beds.metered_world import MeteredWorld, Movement, expected
from tests.bench.accounting import memory_bytes
from tests.soak import traffic
from tests.soak.memory import Memory

SAMPLE_SECONDS = 15.0
AGENT_GROWTH = 4_000_000
"""Bytes that an agent may gain after its warm-up."""
SERVER_GROWTH = 60_000_000
"""The same for the server, which holds a whole ClickHouse with its caches and merges."""
_DIFFERENCES_SHOWN = 20


class Soak:
    """One run over a started world."""

    def __init__(self, metered: MeteredWorld, seed: int) -> None:
        self._metered = metered
        self._seed = seed
        self._memory: dict[str, Memory] = {}

    def run(self, seconds: float) -> None:
        """Traffic and samples until the time is up, then traffic ends."""
        metered = self._metered
        metered.actors.begin(traffic.scripts(metered.world, self._seed))
        metered.actors.go()
        begin = time.monotonic()
        while (elapsed := time.monotonic() - begin) < seconds:
            self._sample(elapsed)
            metered.run_for(min(SAMPLE_SECONDS, seconds - elapsed))
        self._sample(time.monotonic() - begin)
        metered.end_traffic()

    def growing(self) -> list[str]:
        """A line for each process that has grown more than it may."""
        return [
            f"{memory.name} grew by {memory.growth() / 1e6:.1f} MB after its warm-up, "
            f"{self._limit(memory) / 1e6:.0f} MB are allowed"
            for memory in self._memory.values()
            if memory.growth() > self._limit(memory)
        ]

    def figures(self) -> str:
        """Peak and growth of each process."""
        return ", ".join(
            f"{memory.name} {memory.peak / 1e6:.0f} MB peak {memory.growth() / 1e6:+.1f} MB"
            for memory in self._memory.values()
        )

    def _sample(self, elapsed: float) -> None:
        for role in self._roles():
            memory = self._memory.setdefault(role.name, Memory(role.name))
            memory.add(elapsed, memory_bytes(role.process_id))
        tally = self._metered.actors.tally()
        sizes = ", ".join(
            f"{memory.name} {memory.samples[-1][1] / 1e6:.0f} MB" for memory in self._memory.values()
        )
        print(
            f"{elapsed:6.0f} s  {tally.connections:,} connections, {tally.exchanges:,} requests, "
            f"{tally.failures} failed  {sizes}",
            flush=True,
        )

    def _roles(self) -> list[Role]:
        server = self._metered.server
        return [*([server] if server is not None else []), *self._metered.agents.values()]

    @staticmethod
    def _limit(memory: Memory) -> int:
        return AGENT_GROWTH if "agent" in memory.name else SERVER_GROWTH


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the traffic runs (60)")
    parser.add_argument("--seed", type=int, default=1, help="of the sizes drawn (1)")
    options = parser.parse_args()
    network.require_machine()
    network.remove_leftovers()
    try:
        with tempfile.TemporaryDirectory(prefix=f"{network.own_prefix()}soak-") as directory:
            return _soak(Path(directory), options.minutes, options.seed)
    except KubenetmonError as error:
        print(f"the soak failed: {error}", file=sys.stderr)
        return 1
    finally:
        network.remove_own()


def _soak(directory: Path, minutes: float, seed: int) -> int:
    with MeteredWorld(directory, Intervals(collection=1, report=5)) as metered:
        metered.start()
        soak = Soak(metered, seed)
        soak.run(minutes * 60)
        flows = metered.finish()
        tally = metered.actors.tally()
        wanted, stored = expected(flows), metered.stored()
    problems = soak.growing()
    for unit, seen, found in zip(("bytes", "packets"), wanted, stored, strict=True):
        problems += _differences(unit, seen, found)
    for problem in problems:
        print(problem, file=sys.stderr)
    seen_bytes, stored_bytes = wanted[0].total(), stored[0].total()
    print(
        f"soak of {minutes:g} min, seed {seed}: {tally.connections:,} connections, "
        f"{tally.exchanges:,} requests, bytes seen {seen_bytes} stored {stored_bytes}; {soak.figures()}: "
        f"{'FAILED' if problems else 'passed'}"
    )
    return 1 if problems else 0


def _differences(unit: str, seen: Counter[Movement], found: Counter[Movement]) -> list[str]:
    wrong = [key for key in seen.keys() | found.keys() if seen[key] != found[key]]
    return [
        f"{' '.join(key)}: the counters saw {seen[key]} {unit}, ClickHouse has {found[key]}"
        for key in sorted(wrong)[:_DIFFERENCES_SHOWN]
    ]


if __name__ == "__main__":
    sys.exit(main())
