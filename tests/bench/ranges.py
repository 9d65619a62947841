"""The cloud ranges: what it costs to load all of them and to find addresses in them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from kubenetmon.demo.actors import python_environment
from kubenetmon.server.ranges import PROVIDERS, RangeTable
from kubenetmon.server.ranges.parse import NO_LABEL, ProviderRanges, parse
from kubenetmon.server.ranges.resolve import resolve
from kubenetmon.server.snapshot import Family
from tests.beds.large_ranges import large_files
from tests.bench.accounting import best
from tests.bench.line import Line, megabytes

_ADDRESSES = 200_000
_LEAST_PREFIXES = 40_000
"""Fewer are not the real ones: made-up files of their size are taken."""


def measure(directory: Path, scratch: Path) -> list[Line]:
    """Lines for the files in that directory, or for made-up ones where those are few."""
    files = {provider: (directory / f"{provider}.json").read_bytes() for provider in PROVIDERS}
    ranges, table, _ = _load(files)
    what = "real"
    if len(table) < _LEAST_PREFIXES:
        files, what = large_files(), "made-up"
    floors, loads = [], []
    for _ in range(5):
        began = time.process_time()
        for content in files.values():
            json.loads(content)
        floors.append(time.process_time() - began)
        ranges, table, seconds = _load(files)
        loads.append(seconds)
    for provider, content in files.items():
        (scratch / f"{provider}.json").write_bytes(content)
    grown = _growth(scratch)
    lines = [
        Line(
            f"{len(table):,} {what} prefixes loaded, CPU (decoding their JSON takes {best(floors):.2f} s)",
            f"{best(loads):.2f} s",
            "0.50 s",
            "-",
            best(loads) < 0.5,
        ),
        Line("the same, growth of a process", megabytes(grown), "10 MB", "-", grown < 10_000_000),
    ]
    for family in (4, 6):
        rate = _matches(ranges, table, 4 if family == 4 else 6)
        lines.append(
            Line(
                f"IPv{family} addresses matched a CPU second",
                f"{rate / 1e6:.1f} million",
                "5 million",
                "-",
                rate >= 5e6,
            )
        )
    return lines


def _load(files: dict[str, bytes]) -> tuple[list[ProviderRanges], RangeTable, float]:
    began = time.process_time()
    ranges = [parse(provider, content, provider) for provider, content in files.items()]
    table = RangeTable(ranges)
    return ranges, table, time.process_time() - began


def _matches(ranges: list[ProviderRanges], table: RangeTable, family: Family) -> float:
    """Addresses a CPU second, most of them within some prefix."""
    generator = np.random.default_rng(7)
    known = resolve(ranges, family, {NO_LABEL: 0})[0].tolist()
    picked = generator.integers(0, len(known), _ADDRESSES).tolist()
    moves = generator.integers(0, 5000, _ADDRESSES).tolist()
    numbers = [int.from_bytes(known[index][:-1]) + move for index, move in zip(picked, moves, strict=True)]
    if family == 4:
        addresses = np.array(numbers, np.uint64).astype(np.uint32)
    else:
        halves = [(number >> 64, number & (2**64 - 1)) for number in numbers]
        addresses = np.array(halves, np.uint64)
    times = []
    for _ in range(10):
        began = time.process_time()
        table.lookup(family, addresses)
        times.append(time.process_time() - began)
    return _ADDRESSES / best(times)


_GROWTH = """
import os, sys
from pathlib import Path
from kubenetmon.server.ranges import PROVIDERS, RangeTable
from kubenetmon.server.ranges.parse import parse
from tests.bench.accounting import memory_bytes
def load(directory):
    return [parse(name, (directory / f"{name}.json").read_bytes(), name) for name in PROVIDERS]
few, many = Path(sys.argv[1]), Path(sys.argv[2])
RangeTable(load(few))
before = memory_bytes(os.getpid())
ranges = load(many)
table = RangeTable(ranges)
print(memory_bytes(os.getpid()) - before)
"""


def _growth(scratch: Path) -> int:
    """Bytes by which a fresh process is larger with these ranges than before, its code being in memory."""
    few = Path(__file__).parents[1] / "data" / "ranges"
    result = subprocess.run(
        [sys.executable, "-c", _GROWTH, str(few), str(scratch)],
        env=python_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return int(result.stdout)
