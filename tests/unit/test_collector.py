"""The collecting loop on virtual time; only time and the ledger are replaced."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from kubenetmon.agent.collector import LONGEST_REPORT_INTERVAL, Collector, CollectorConfig
from kubenetmon.agent.conntrack import ConntrackError
from kubenetmon.agent.metered import ReadResult, SealedRecords, Totals
from kubenetmon.agent.outbox import Outbox
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    AGENT_IGNORED,
    AGENT_METRICS,
    AGENT_OBSERVED,
    AGENT_PENDING,
    AGENT_REPORTED,
    COLLECTION_DURATION,
    COLLECTOR_ERRORS,
    COLLECTOR_FLOWS,
    LAST_COLLECTION,
)
from kubenetmon.proto import FlowArrays, FlowBatch, Outcome
from kubenetmon.readiness import Readiness
from tests.beds.virtual_clock import VirtualClock, run_dry

START = 1_800_000_000.0  # a multiple of 60


class FakeTable:
    """A ledger in which each read finds 100 more bytes in one flow."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.reads: list[float] = []
        self.reading = 0
        self.takes = 0.0
        self.pending = 0
        self.reported = 0
        self.quiet = False
        self.waiting = 0
        self.resets = 0
        self.errors: list[KubenetmonError] = []

    async def read(self) -> ReadResult:
        self.reads.append(self.clock.time())
        assert self.reading == 0, "two reads at once"
        self.reading += 1
        try:
            await self.clock.sleep(self.takes)
            if self.errors:
                raise self.errors.pop(0)
        finally:
            self.reading -= 1
        if not self.quiet:
            self.pending += 100
        return ReadResult(1, 1, 0, self.takes, 0.0, 1, 1)

    async def report(self, begin: int, end: int, end_monotonic: float) -> list[SealedRecords]:
        assert self.reading == 0, "sealing waits for a read"
        if not self.pending:
            return []
        sealed = SealedRecords(FlowArrays(count=1), FlowArrays(), 1, self.pending, 1)
        self.reported += self.pending
        self.pending = 0
        return [sealed]

    def totals(self) -> Totals:
        zero = dict.fromkeys(Totals.__dataclass_fields__, 0)
        return Totals(
            **{
                **zero,
                "observed_bytes": self.reported + self.pending + 7,
                "reported_bytes": self.reported,
                "pending_bytes": self.pending,
                "ignored_loopback_bytes": 7,
                "waiting_flows": self.waiting,
                "foreign_resets": self.resets,
                "reported_flows": 3,
                "ignored_flows": 2,
            }
        )


class Bed:
    def __init__(self, config: CollectorConfig, start: float) -> None:
        self.clock = VirtualClock(start)
        self.table = FakeTable(self.clock)
        self.metrics = Metrics(AGENT_METRICS)
        self.readiness = Readiness()
        self.outbox = Outbox("node", metrics=self.metrics, clock=self.clock)
        self.collector = Collector(
            config,
            conntrack=self.table,
            outbox=self.outbox,
            metrics=self.metrics,
            readiness=self.readiness,
            clock=self.clock,
        )
        self.task: asyncio.Task[None] | None = None

    def intervals(self) -> list[tuple[int, int]]:
        parsed = [FlowBatch().parse(batch.message) for batch in self.outbox.waiting()]
        return [(batch.interval_start, batch.interval_end) for batch in parsed]

    def commit(self) -> None:
        for batch in self.outbox.waiting():
            self.outbox.settle(self.outbox.epoch, batch.sequence, Outcome.COMMITTED, "")


@asynccontextmanager
async def running(
    *, collection: float = 5.0, report: int = 60, start: float = START + 1, takes: float = 0.0
) -> AsyncIterator[Bed]:
    bed = Bed(CollectorConfig(collection_interval=collection, report_interval=report), start)
    bed.table.takes = takes
    bed.task = asyncio.create_task(bed.collector.run())
    await run_dry()
    try:
        yield bed
    finally:
        bed.task.cancel()
        await asyncio.gather(bed.task, return_exceptions=True)


async def test_it_reads_at_once_and_then_at_the_multiples_of_the_interval_without_drift() -> None:
    async with running(start=START + 1.25, takes=0.4) as bed:
        await bed.clock.advance(3600)
        assert bed.table.reads[0] == START + 1.25
        assert bed.table.reads[1:] == [START + 5 * number for number in range(1, 721)]


async def test_a_read_longer_than_the_interval_skips_and_never_overlaps() -> None:
    async with running(takes=12.0) as bed:
        await bed.clock.advance(60)
        assert bed.table.reads == [START + second for second in (1, 15, 30, 45, 60)]


async def test_reports_are_sealed_at_the_turn_of_the_minute_with_true_bounds() -> None:
    async with running(start=START + 17.5, takes=0.1) as bed:
        await bed.clock.advance(150)
        assert bed.intervals() == [
            (int(START) + 17, int(START) + 60),
            (int(START) + 60, int(START) + 120),
        ]
        assert [batch.metered_bytes for batch in bed.outbox.waiting()] == [1000, 1200]


async def test_intervals_that_do_not_divide_each_other_both_hold() -> None:
    async with running(collection=7.0, report=20, start=START) as bed:
        await bed.clock.advance(41)
        assert bed.intervals() == [(int(START), int(START) + 20), (int(START) + 20, int(START) + 40)]
        first = START // 7 * 7 + 7
        assert bed.table.reads[1:4] == sorted([first, first + 7, START + 20, first + 14])[:3]


async def test_an_interval_without_traffic_makes_no_report_and_does_not_lengthen_the_next() -> None:
    async with running(start=START) as bed:
        bed.table.pending = 0
        bed.table.quiet = True
        await bed.clock.advance(61)
        bed.table.quiet = False
        await bed.clock.advance(60)
        assert bed.intervals() == [(int(START) + 60, int(START) + 120)]


async def test_while_the_outbox_is_full_nothing_is_sealed_and_the_next_report_covers_the_outage() -> None:
    async with running(start=START) as bed:
        await bed.clock.advance(601)
        assert len(bed.intervals()) == 3
        assert bed.outbox.full
        bed.commit()
        await bed.clock.advance(60)
        assert bed.intervals() == [(int(START) + 180, int(START) + 660)]
        assert sum(batch.metered_bytes for batch in bed.outbox.waiting()) == 100 * 12 * 8
        assert len(bed.table.reads) == 1 + 660 // 5


async def test_where_many_flows_end_a_report_is_sealed_early_while_the_outbox_has_room() -> None:
    async with running(start=START) as bed:
        bed.table.waiting = CollectorConfig().many_waiting
        await bed.clock.advance(60)
        assert bed.intervals() == [(int(START) + at, int(START) + at + 5) for at in (0, 5, 10)]
        bed.table.waiting -= 1
        bed.commit()
        await bed.clock.advance(5)
        assert bed.intervals() == []


async def test_stopping_reads_once_more_and_seals_even_into_a_full_outbox() -> None:
    async with running(start=START) as bed:
        await bed.clock.advance(302.5)
        assert bed.outbox.full
        reads = len(bed.table.reads)
        stop = asyncio.create_task(bed.collector.stop())
        await bed.clock.advance(0)
        assert stop.done()
        assert len(bed.table.reads) == reads + 1
        assert bed.intervals()[-1] == (int(START) + 180, int(START) + 302)
        assert bed.table.pending == 0


async def test_stopping_waits_for_a_read_that_runs() -> None:
    async with running(start=START, takes=1.0) as bed:
        await bed.clock.advance(5.5)
        stop = asyncio.create_task(bed.collector.stop())
        await bed.clock.advance(0.1)
        assert not stop.done()
        await bed.clock.advance(2)
        assert stop.done()
        assert bed.table.reads[-1] == START + 6
        assert sum(batch.metered_bytes for batch in bed.outbox.waiting()) == 300


async def test_a_stop_right_after_a_report_gives_an_interval_with_a_length() -> None:
    async with running(start=START) as bed:
        await bed.clock.advance(60)
        stop = asyncio.create_task(bed.collector.stop())
        await bed.clock.advance(0)
        assert stop.done()
        assert bed.intervals()[-1] == (int(START) + 60, int(START) + 61)


async def test_a_failing_read_is_counted_shown_and_tried_again_less_and_less_often() -> None:
    async with running(start=START) as bed:
        bed.table.errors = [ConntrackError("busy")] * 3
        await bed.clock.advance(70)
        assert bed.metrics.value(COLLECTOR_ERRORS, type="collection_failed") == 3
        assert bed.table.reads[1:6] == [START + second for second in (5, 10, 20, 40, 45)]
        assert bed.readiness.report()["ready"]
        assert bed.intervals() == [(int(START), int(START) + 60)]


async def test_a_lost_permission_ends_the_component() -> None:
    async with running(start=START) as bed:
        bed.table.errors = [MachineError("not permitted")]
        await bed.clock.advance(5)
        assert bed.task is not None
        assert bed.task.done()
        with pytest.raises(MachineError, match="not permitted"):
            bed.task.result()


@pytest.mark.parametrize("jump", [3600.0, -3600.0])
async def test_a_wall_clock_that_is_set_leaves_lengths_true_and_reads_going(
    jump: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(start=START) as bed:
        await bed.clock.advance(62)
        bed.clock.jump(jump)
        await bed.clock.advance(120)
        lengths = [end - begin for begin, end in bed.intervals()]
        assert lengths[0] == 60
        assert lengths[1] <= 10  # the report that the jump ended
        assert sum(lengths) in range(118, 183)
        assert all(end - begin <= 62 for begin, end in bed.intervals())
        gaps = [after - before for before, after in zip(bed.table.reads, bed.table.reads[1:], strict=False)]
        assert sum(1 for gap in gaps if not 0 < gap <= 5) <= 1
        assert "The wall clock was set by" in caplog.text


async def test_a_server_may_wish_for_longer_reports_within_bounds(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with running(start=START) as bed:
        bed.collector.wish_report_interval(120)
        bed.collector.wish_report_interval(120)
        assert caplog.text.count("as the server asks") == 1
        await bed.clock.advance(121)
        assert bed.intervals() == [(int(START), int(START) + 120)]
        bed.collector.wish_report_interval(100_000)
        assert bed.collector._report_interval == LONGEST_REPORT_INTERVAL
        bed.collector.wish_report_interval(0)
        await bed.clock.advance(60)
        assert bed.intervals()[-1] == (int(START) + 120, int(START) + 180)
        bed.collector.wish_report_interval(1)
        assert bed.collector._report_interval == 60


async def test_metrics_show_the_conservation_identity_at_each_scrape() -> None:
    async with running(start=START, takes=0.25) as bed:
        await bed.clock.advance(63)
        bed.metrics.render()
        value = bed.metrics.value
        assert value(AGENT_OBSERVED, unit="bytes") == 1307
        assert value(AGENT_OBSERVED, unit="bytes") == (
            value(AGENT_REPORTED, unit="bytes")
            + value(AGENT_IGNORED, reason="loopback", unit="bytes")
            + value(AGENT_PENDING, unit="bytes")
        )
        assert value(COLLECTOR_FLOWS, type="sent") == 3
        assert value(COLLECTOR_FLOWS, type="ignored") == 2
        assert value(COLLECTION_DURATION) == 250_000
        assert value(LAST_COLLECTION) == int(START) + 60


async def test_resets_by_another_process_are_said_at_once_and_then_once_a_minute(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(start=START) as bed:
        await bed.clock.advance(60)
        assert "counters to zero" not in caplog.text
        bed.table.resets = 3
        await bed.clock.advance(5)
        assert caplog.text.count("counters to zero (3 so far)") == 1
        for _ in range(30):
            bed.table.resets += 1
            await bed.clock.advance(5)
        assert caplog.text.count("counters to zero") == 3
        await bed.clock.advance(3600)
        assert caplog.text.count("counters to zero") == 4, "the last of them, and then no more"


async def test_readiness_waits_for_the_first_read() -> None:
    async with running(start=START, takes=1.0) as bed:
        assert not bed.readiness.ready
        await bed.clock.advance(1.1)
        assert bed.readiness.ready


async def test_a_stop_before_it_runs_returns_at_once() -> None:
    await asyncio.wait_for(Bed(CollectorConfig(), START).collector.stop(), 1)
