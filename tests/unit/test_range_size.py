"""As many ranges as the providers publish: loaded quickly, kept small, and off the event loop."""

from __future__ import annotations

import asyncio
import json
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import SERVER_METRICS
from kubenetmon.readiness import Readiness
from kubenetmon.server.ranges import RangeKeeper, RangesConfig, RangeTable
from kubenetmon.server.ranges.parse import parse
from tests.beds.large_ranges import large_files


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    return large_files()


def loaded(files: dict[str, bytes]) -> RangeTable:
    return RangeTable([parse(provider, content, provider) for provider, content in files.items()])


@pytest.mark.alone
def test_all_ranges_cost_little_more_time_than_their_json(files: dict[str, bytes]) -> None:
    ratios = []
    for _ in range(3):
        began = time.process_time()
        for content in files.values():
            json.loads(content)
        floor = time.process_time() - began
        began = time.process_time()
        table = loaded(files)
        ratios.append((time.process_time() - began) / floor)
    assert len(table) > 58_000
    assert min(ratios) < 20, "10 to 13 measured; half a second was 24"


def test_all_ranges_fit_in_ten_megabytes(files: dict[str, bytes]) -> None:
    loaded(files)
    tracemalloc.start()
    try:
        ranges = [parse(provider, content, provider) for provider, content in files.items()]
        _, most_parsing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        table = RangeTable(ranges)
        kept, most_building = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(table) > 58_000
    assert kept < 5_000_000
    assert max(most_parsing, most_building) < 10_000_000


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.alone
def test_matching_a_prefix_costs_no_more_than_a_few_binary_searches(
    files: dict[str, bytes], family: int
) -> None:
    table = loaded(files)
    generator = np.random.default_rng(1)
    numbers = np.sort(generator.integers(0, 2**63, 60_000, dtype=np.uint64))
    wanted = generator.integers(0, 2**63, 200_000, dtype=np.uint64)
    if family == 4:
        addresses = generator.integers(11 << 24, 100 << 24, len(wanted)).astype(np.uint32)
    else:
        addresses = np.stack([wanted >> np.uint64(7) | np.uint64(0x26 << 56), wanted], axis=1)
    floors, matches = [], []
    for _ in range(5):
        began = time.process_time()
        numbers.searchsorted(wanted)
        floors.append(time.process_time() - began)
        began = time.process_time()
        table.lookup(4 if family == 4 else 6, addresses)
        matches.append(time.process_time() - began)
    assert min(matches) < 4 * min(floors), "1 to 2 measured"


@pytest.mark.alone
async def test_reading_all_ranges_does_not_hold_the_event_loop(
    files: dict[str, bytes], tmp_path: Path
) -> None:
    for provider, content in files.items():
        (tmp_path / f"{provider}.json").write_bytes(content)
    metrics, readiness = Metrics(SERVER_METRICS), Readiness()
    keeper = RangeKeeper(RangesConfig("aws", "region-1", tmp_path), metrics=metrics, readiness=readiness)
    began = time.monotonic()
    task = asyncio.create_task(keeper.run())
    longest = 0.0
    while not readiness.ready:
        before = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - before)
        assert not task.done()
    whole = time.monotonic() - began
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(keeper.table) > 58_000
    assert longest < whole / 3, f"held for {longest:.3f} s of {whole:.3f} s"
