"""Where our cloud ranges stand what the original's do not: both ask one publisher that fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.clock import SystemClock
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import RANGE_AGE, RANGE_REFRESHES, SERVER_METRICS
from kubenetmon.readiness import Readiness
from kubenetmon.server.ranges import PROVIDERS, RangeKeeper, RangesConfig, RangeTable
from kubenetmon.server.ranges.fetch import FetchConfig
from tests.beds.original_rules import OriginalRanges
from tests.beds.publisher import Publisher, file, running_publisher, status

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
FILES = Path(__file__).parents[1] / "data" / "ranges"
BODIES = {name: (FILES / f"{name}.json").read_bytes() for name in PROVIDERS}
S3 = 0xC6336401  # 198.51.100.1
NEW = 0xC6120001  # 198.18.0.1


class Rig:
    """The publisher, where it publishes, and an original that has not started."""

    def __init__(self, publisher: Publisher) -> None:
        self.publish = publisher.publish
        self.urls = {name: publisher.publish(f"/{name}.json", file(body)) for name, body in BODIES.items()}
        self.original = OriginalRanges(self.urls)
        self.metrics = Metrics(SERVER_METRICS)

    @contextlib.asynccontextmanager
    async def ours(self, cache: Path, refresh: float = 86_400.0) -> AsyncIterator[RangeKeeper]:
        fetch = FetchConfig(urls=self.urls, attempts=1, first_wait=0.01, timeout=5.0)
        config = RangesConfig("aws", "us-west-2", None, cache, refresh=refresh, patience=5000.0, fetch=fetch)
        readiness = Readiness()
        keeper = RangeKeeper(config, metrics=self.metrics, readiness=readiness, clock=HastyClock())
        task = asyncio.create_task(keeper.run())
        try:
            await until(lambda: readiness.ready)
            yield keeper
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


class HastyClock(SystemClock):
    """Days pass in a blink."""

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * 0.001)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (any state may be the condition)
            await asyncio.sleep(0.005)


@pytest.fixture
async def rig(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Rig]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with running_publisher() as publisher:
        yield Rig(publisher)


def cloud(table: RangeTable, address: int) -> str:
    return table.labels[int(table.lookup(4, np.array([address], np.uint32))[0])].cloud


async def test_a_provider_that_cannot_be_reached_at_the_start(rig: Rig, tmp_path: Path) -> None:
    rig.urls["gcp"] = "http://127.0.0.1:9/gcp.json"
    with pytest.raises(OSError, match="refused"):
        await asyncio.to_thread(rig.original.refresh)
    async with rig.ours(tmp_path) as ours:
        assert cloud(ours.table, S3) == "aws"
    # And again from the disk, when no provider is there any more.
    rig.urls.update(dict.fromkeys(PROVIDERS, "http://127.0.0.1:9/none.json"))
    async with rig.ours(tmp_path) as ours:
        assert cloud(ours.table, S3) == "aws"
    assert "| A provider that cannot be reached at the start | the server does not start |" in PAGE


async def test_a_refresh_that_fails_for_one_provider(rig: Rig, tmp_path: Path) -> None:
    await asyncio.to_thread(rig.original.refresh)
    async with rig.ours(tmp_path, refresh=30.0) as ours:
        await until(lambda: cloud(ours.table, S3) == "aws")
        # Google fails; Amazon has something new.
        rig.publish("/google.json", status(503))
        new = b'"prefixes": [{"ip_prefix": "198.18.0.0/24", "region": "us-west-2", "service": "EC2"},'
        rig.publish("/aws.json", file(BODIES["aws"].replace(b'"prefixes": [', new)))
        with pytest.raises(ValueError, match="Expecting value"):
            await asyncio.to_thread(rig.original.refresh)
        assert cloud(rig.original.table, NEW) == ""
        await until(lambda: cloud(ours.table, NEW) == "aws")
        before = RangeTable.lookup(rig.original.table, 4, np.arange(0xCB007100, 0xCB007200, dtype=np.uint32))
        after = ours.table.lookup(4, np.arange(0xCB007100, 0xCB007200, dtype=np.uint32))
        assert [rig.original.table.labels[one] for one in before] == [ours.table.labels[one] for one in after]
        rig.metrics.render()
        assert rig.metrics.value(RANGE_AGE, provider="google") > 0
    assert "| A refresh that fails for one provider | no provider is refreshed |" in PAGE


async def test_an_error_that_looks_like_a_file(rig: Rig, tmp_path: Path) -> None:
    await asyncio.to_thread(rig.original.refresh)
    async with rig.ours(tmp_path, refresh=30.0) as ours:
        await until(lambda: cloud(ours.table, S3) == "aws")
        rig.publish("/aws.json", status(404, '{"prefixes": []}'))
        await asyncio.to_thread(rig.original.refresh)
        assert cloud(rig.original.table, S3) == "", "all that was Amazon's is the internet now"
        failed = rig.metrics.value(RANGE_REFRESHES, result="failed")
        await until(lambda: rig.metrics.value(RANGE_REFRESHES, result="failed") > failed)
        assert cloud(ours.table, S3) == "aws"
    assert "| HTTP status, size and content of a file | not checked |" in PAGE
