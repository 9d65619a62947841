"""The ranges in use: where they come from, what happens when a source fails, and what operators are told."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.clock import SystemClock
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    RANGE_AGE,
    RANGE_PREFIXES,
    RANGE_REFRESHES,
    REMOTE_LABELER_ERRORS,
    SERVER_METRICS,
)
from kubenetmon.readiness import Readiness
from kubenetmon.server.ranges import PROVIDERS, RangeKeeper, RangesConfig
from kubenetmon.server.ranges.fetch import FetchConfig
from tests.beds.publisher import Publisher, file, running_publisher, slow, status

FILES = Path(__file__).parents[1] / "data" / "ranges"
BODIES = {name: (FILES / f"{name}.json").read_bytes() for name in PROVIDERS}


class HastyClock(SystemClock):
    """Days pass in a blink; `offset` moves the wall clock."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.offset = 0.0

    def time(self) -> float:
        return super().time() + self.offset

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.factor)


class Bed:
    """A keeper with everything it reports to."""

    def __init__(self, config: RangesConfig, clock: HastyClock | None = None) -> None:
        self.metrics = Metrics(SERVER_METRICS)
        self.readiness = Readiness()
        self.clock = clock or HastyClock()
        self.keeper = RangeKeeper(config, metrics=self.metrics, readiness=self.readiness, clock=self.clock)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.keeper.run())
        try:
            yield
            assert not task.done() or task.exception() is None
        finally:
            await self.keeper.stop()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():  # noqa: ASYNC110 (any state may be the condition)
                await asyncio.sleep(0.005)

    async def until_ready(self) -> None:
        await self.until(lambda: self.readiness.ready)

    def detail(self) -> str:
        """What is wrong."""
        return "" if self.check()["ok"] else str(self.check()["detail"])

    def check(self) -> dict[str, object]:
        checks = self.readiness.report()["checks"]
        assert isinstance(checks, dict)
        return dict(checks["cloud ranges"])

    def prefixes(self) -> dict[str, float]:
        return {name: self.metrics.value(RANGE_PREFIXES, provider=name) for name in PROVIDERS}


@pytest.fixture
async def publisher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Publisher]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with running_publisher() as publisher:
        yield publisher


def published(publisher: Publisher, etag: str = "") -> FetchConfig:
    """Everything is there, at fixed addresses."""
    urls = {name: publisher.publish(f"/{name}.json", file(body, etag)) for name, body in BODIES.items()}
    return FetchConfig(urls=urls, first_wait=0.01, timeout=5.0)


def directory_with(path: Path, *names: str) -> Path:
    path.mkdir(exist_ok=True)
    for name in names:
        shutil.copy(FILES / f"{name}.json", path / f"{name}.json")
    return path


async def test_a_directory_is_read_and_nothing_is_downloaded(publisher: Publisher, tmp_path: Path) -> None:
    fetch = published(publisher)
    directory = directory_with(tmp_path / "ranges", "aws", "google")
    bed = Bed(RangesConfig("aws", "us-west-2", directory, fetch=fetch))
    assert not bed.readiness.ready
    async with bed.running():
        await bed.until_ready()
        assert bed.detail() == ""
        assert bed.prefixes() == {"aws": 9, "gcp": 0, "google": 3, "azure": 0}
        assert bed.check()["detail"] == "12 prefixes, none of gcp, azure"
        found = bed.keeper.table.lookup(4, np.array([0xC6336401], np.uint32))
        assert bed.keeper.table.labels[found[0]] == ("aws", "us-west-2", "s3")
    assert publisher.requests.total() == 0


async def test_a_changed_file_is_read_again_and_a_bad_one_is_not_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = directory_with(tmp_path / "ranges", "aws")
    bed = Bed(RangesConfig("aws", "us-west-2", directory), HastyClock(0.001))
    async with bed.running():
        await bed.until_ready()
        before = bed.keeper.table
        one = {"ip_prefix": "192.0.2.0/24", "region": "us-west-2", "service": "S3"}
        for content, says in (
            ("", "is not JSON"),
            ('{"prefixes": []}', "holds no prefixes"),
            (json.dumps({"prefixes": [one]}), "1 prefixes and the copy in use 9: refused"),
        ):
            caplog.clear()
            (directory / "aws.json").write_text(content)
            await bed.until(lambda says=says: says in caplog.text)  # type: ignore[misc]
        assert bed.keeper.table is before
        assert bed.metrics.value(RANGE_REFRESHES, result="failed") >= 3
        assert bed.metrics.value(REMOTE_LABELER_ERRORS, type="get_cloud_ranges") >= 3

        directory_with(directory, "aws", "gcp", "azure")
        await bed.until(lambda: bed.prefixes()["azure"] == 6)
        await bed.until(lambda: bed.metrics.value(RANGE_REFRESHES, result="succeeded") >= 2)
        assert bed.detail() == ""


async def test_a_file_that_lost_the_own_region_is_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = directory_with(tmp_path / "ranges", "aws")
    bed = Bed(RangesConfig("aws", "us-west-2", directory), HastyClock(0.001))
    async with bed.running():
        await bed.until_ready()
        before = bed.keeper.table
        elsewhere = BODIES["aws"].replace(b"us-west-2", b"us-west-9")
        (directory / "aws.json").write_bytes(elsewhere)
        await bed.until(
            lambda: "holds nothing of the region us-west-2 and the copy in use does" in caplog.text
        )
        assert "if it is right, restart the server" in caplog.text
        assert bed.keeper.table is before
        assert bed.detail() == ""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("", "", "holds none of aws.json, gcp.json, google.json, azure.json; write them with"),
        ("aws.json", "", "aws.json is not JSON"),
        ("azure.json", '{"values": []}', "azure.json holds no prefixes"),
    ],
)
async def test_a_directory_that_cannot_be_used_ends_the_start(
    tmp_path: Path, name: str, content: str, says: str
) -> None:
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigurationError, match=says):
        await Bed(RangesConfig("aws", "us-west-2", tmp_path)).keeper.run()


async def test_an_unreadable_directory_ends_the_start(tmp_path: Path) -> None:
    (tmp_path / "aws.json").mkdir()
    with pytest.raises(ConfigurationError, match=r"aws\.json cannot be read"):
        await Bed(RangesConfig("aws", "us-west-2", tmp_path)).keeper.run()
    with pytest.raises(ConfigurationError, match="holds none of"):
        await Bed(RangesConfig("aws", "us-west-2", tmp_path / "missing")).keeper.run()


async def test_a_region_that_is_none_of_the_clouds_ends_the_start(tmp_path: Path) -> None:
    directory = directory_with(tmp_path / "ranges", "aws", "gcp")
    config = RangesConfig("aws", "us-central1", directory)
    with pytest.raises(ConfigurationError, match="region: 'us-central1' is none of the regions of aws;"):
        await Bed(config).keeper.run()


async def test_missing_ranges_of_the_own_cloud_are_told_and_do_not_hold_the_start(tmp_path: Path) -> None:
    directory = directory_with(tmp_path / "ranges", "gcp")
    bed = Bed(RangesConfig("aws", "us-west-2", directory))
    async with bed.running():
        await bed.until_ready()
        assert "the ranges of aws are missing" in bed.detail()


async def test_downloads_fill_the_cache_and_the_cache_starts_without_network(
    publisher: Publisher, tmp_path: Path
) -> None:
    cache = tmp_path / "not" / "yet" / "there"
    config = RangesConfig("aws", "us-west-2", None, cache, fetch=published(publisher, '"1"'))
    first = Bed(config)
    async with first.running():
        await first.until(lambda: min(first.prefixes().values()) > 0)
        await first.until(lambda: first.metrics.value(RANGE_REFRESHES, result="succeeded") == 4)
    assert publisher.requests.total() == 4

    for name in PROVIDERS:
        publisher.publish(f"/{name}.json", status(404))
    second = Bed(config)
    second.clock.offset = 3600.0
    async with second.running():
        await second.until_ready()
        assert len(second.keeper.table) == len(first.keeper.table)
        assert second.detail() == ""
        second.metrics.render()
        assert second.metrics.value(RANGE_AGE, provider="azure") == pytest.approx(3600, abs=30)
    assert publisher.requests.total() == 0


async def test_an_old_copy_is_used_at_once_and_asked_for_by_its_etag(
    publisher: Publisher, tmp_path: Path
) -> None:
    config = RangesConfig("aws", "us-west-2", None, tmp_path, fetch=published(publisher, '"1"'))
    first = Bed(config)
    async with first.running():
        await first.until(lambda: first.metrics.value(RANGE_REFRESHES, result="succeeded") == 4)
    second = Bed(config)
    second.clock.offset = 90_000.0
    async with second.running():
        await second.until(lambda: second.metrics.value(RANGE_REFRESHES, result="succeeded") == 4)
        second.metrics.render()
        assert second.metrics.value(RANGE_AGE, provider="gcp") < 30
        assert second.prefixes() == first.prefixes()
    notes = [json.loads((tmp_path / f"{name}.note").read_text()) for name in PROVIDERS]
    assert all(note["fetched_at"] > time.time() + 80_000 for note in notes)


async def test_a_provider_that_fails_keeps_its_last_good_copy(
    publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = RangesConfig("aws", "us-west-2", None, tmp_path, refresh=30.0, fetch=published(publisher))
    bed = Bed(config, HastyClock(0.001))
    async with bed.running():
        await bed.until(lambda: min(bed.prefixes().values()) > 0)
        publisher.publish("/aws.json", status(403))
        publisher.publish("/gcp.json", file(b'{"prefixes": [{"ipv4Prefix": "192.0.2.0/24"}]}'))
        await bed.until(lambda: "HTTP 403" in caplog.text)
        await bed.until(lambda: "refused as cut off" in caplog.text)
        assert "The ranges of aws could not be refreshed, the copy in use stays" in caplog.text
        assert bed.prefixes() == {"aws": 9, "gcp": 3, "google": 3, "azure": 6}
        assert bed.readiness.ready
        assert bed.detail() == ""
    assert (tmp_path / "gcp.json").read_bytes() == BODIES["gcp"]


async def test_without_any_ranges_the_server_goes_on_and_says_so(
    publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fetch = published(publisher)
    for name in PROVIDERS:
        publisher.publish(f"/{name}.json", status(404))
    bed = Bed(RangesConfig("aws", "us-west-2", None, tmp_path, fetch=fetch), HastyClock(0.001))
    async with bed.running():
        await bed.until_ready()
        assert "no cloud ranges are loaded" in bed.detail()
        assert len(bed.keeper.table) == 0
        assert any(record.levelno == logging.WARNING for record in caplog.records)
        # Attempts go on, and their success mends it.
        for name, body in BODIES.items():
            publisher.publish(f"/{name}.json", file(body))
        await bed.until(lambda: bed.detail() == "" and min(bed.prefixes().values()) > 0)


async def test_start_up_does_not_wait_for_a_provider_that_hangs(publisher: Publisher) -> None:
    fetch = published(publisher)
    publisher.publish("/aws.json", slow(60.0, BODIES["aws"]))
    bed = Bed(RangesConfig("aws", "us-west-2", patience=0.3, fetch=fetch))
    async with bed.running():
        await bed.until_ready()
        assert "the ranges of aws are missing" in bed.detail()
        assert bed.prefixes()["azure"] == 6


async def test_a_region_unknown_to_late_ranges_is_told_but_ends_nothing(publisher: Publisher) -> None:
    fetch = published(publisher)
    publisher.publish("/aws.json", slow(0.5, BODIES["aws"]))
    bed = Bed(RangesConfig("aws", "nowhere-1", patience=0.05, fetch=fetch))
    async with bed.running():
        await bed.until(lambda: "region: 'nowhere-1' is none of the regions of aws" in bed.detail())
        assert bed.readiness.ready


@pytest.mark.parametrize("damage", ["body", "note", "missing note", "foreign body", "garbage note"])
async def test_a_damaged_cache_is_as_none(publisher: Publisher, tmp_path: Path, damage: str) -> None:
    config = RangesConfig("aws", "us-west-2", None, tmp_path, fetch=published(publisher, '"1"'))
    first = Bed(config)
    async with first.running():
        await first.until(lambda: first.metrics.value(RANGE_REFRESHES, result="succeeded") == 4)
    body, note = tmp_path / "aws.json", tmp_path / "aws.note"
    if damage == "body":
        body.write_bytes(body.read_bytes()[:-10])
    elif damage == "foreign body":
        body.write_bytes(BODIES["gcp"])
    elif damage == "missing note":
        note.unlink()
    else:
        note.write_bytes(b"\xff" if damage == "garbage note" else note.read_bytes()[:-10])
    publisher.publish("/aws.json", file(BODIES["aws"], '"1"'))
    second = Bed(config)
    async with second.running():
        await second.until(lambda: second.prefixes() == first.prefixes())
    assert publisher.requests["/aws.json"] == 1


async def test_a_cache_that_cannot_be_written_costs_only_a_warning(
    publisher: Publisher, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    config = RangesConfig("aws", "us-west-2", None, tmp_path / "file", fetch=published(publisher))
    bed = Bed(config)
    async with bed.running():
        await bed.until(lambda: min(bed.prefixes().values()) > 0 and bed.detail() == "")
    assert "could not be kept" in caplog.text
