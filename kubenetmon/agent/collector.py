"""The loop: reads the kernel's table often, seals a report seldom.

Contract: reads happen at the multiples of the collection interval, counted from the Unix epoch, one after
the other; a read that takes longer than the interval makes the next ones fall out, not queue. With the first
read in a new report interval (multiples again, so that 60 s means the UTC minute) the report is sealed into
the outbox. Its bounds are true: from where the report before ended to when this read began. While the outbox
is full nothing is sealed: counters go on counting, and the report after the outage covers all of it. Where
very many flows end, a report is sealed early, before they would have to be merged. A read that fails is
counted and tried again, less and less often; only missing privilege ends the process. `stop` makes one last
read and seals it, full outbox or not.
"""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass
from typing import Protocol

from kubenetmon.agent.metered import ReadResult, SealedRecords, Totals
from kubenetmon.agent.outbox import Outbox
from kubenetmon.clock import Clock
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    AGENT_AMBIGUOUS_IDENTITY,
    AGENT_EVENT_GAP,
    AGENT_EVENTS,
    AGENT_FLOWS,
    AGENT_FOREIGN_RESETS,
    AGENT_IGNORED,
    AGENT_IGNORED_REASONS,
    AGENT_MALFORMED,
    AGENT_MERGED,
    AGENT_NO_COUNTERS,
    AGENT_OBSERVED,
    AGENT_OFFLOADED,
    AGENT_PENDING,
    AGENT_REPORTED,
    AGENT_VANISHED,
    AGENT_WAITING,
    COLLECTION_DURATION,
    COLLECTOR_ERRORS,
    COLLECTOR_FLOWS,
    LAST_COLLECTION,
)
from kubenetmon.readiness import Readiness
from kubenetmon.waiting import first_of

logger = logging.getLogger(__name__)

CHECK = "conntrack"
"""The collector's name in /ready."""

LONGEST_REPORT_INTERVAL = 600
"""Seconds; a server may wish for reports up to this rare."""

_LONGEST_RETRY = 60.0
_REPEAT_SECONDS = 60.0
_EARLY = 0.1
"""Seconds that a timer may be early by."""

_CLOCK_TOLERANCE = 2
"""Seconds by which wall clock and elapsed time may differ before the clock counts as set."""


class Table(Protocol):
    """What the collector needs of `kubenetmon.agent.conntrack.Conntrack`."""

    async def read(self) -> ReadResult: ...

    async def report(self, begin: int, end: int, end_monotonic: float) -> list[SealedRecords]: ...

    def totals(self) -> Totals: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectorConfig:
    """Seconds; the report interval is not shorter than the collection interval."""

    collection_interval: float = 5.0
    report_interval: int = 60
    many_waiting: int = 20_000
    """Ended flows that wait to be sealed; from so many on the report is not waited for."""


class Collector:
    """Component; the one caller of the table's `read` and `seal`, which is open by then."""

    name = "collector"

    def __init__(
        self,
        config: CollectorConfig,
        *,
        conntrack: Table,
        outbox: Outbox,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock,
    ) -> None:
        self._config, self._conntrack, self._outbox = config, conntrack, outbox
        self._metrics, self._readiness, self._clock = metrics, readiness, clock
        self._report_interval = config.report_interval
        self._failures = 0
        self._stopping = asyncio.Event()
        self._finished = asyncio.Event()
        self._running = False
        self._unsealed_from = 0
        self._unsealed_from_monotonic = 0.0
        self._report_number = 0
        self._gap = 0
        self._resets = 0
        self._say_resets_from = -math.inf
        metrics.before_render(self._publish)

    async def run(self) -> None:
        """Collect until cancelled. Raises `MachineError` when reading conntrack is not permitted any more."""
        self._readiness.expect(CHECK, "waiting for the first read of conntrack")
        logger.info(
            "Reading conntrack every %gs, reporting every %ds as node %s",
            self._config.collection_interval,
            self._report_interval,
            self._outbox.node_name,
        )
        self._running = True
        if not self._unsealed_from:
            self._unsealed_from = int(self._clock.time())
            self._unsealed_from_monotonic = self._clock.monotonic()
        self._report_number = self._current_report(self._unsealed_from)
        await self._read()
        while not self._stopping.is_set():
            await self._until_next()
            if not self._stopping.is_set():
                await self._collect()
        await self._collect(last=True)
        self._finished.set()
        await asyncio.Event().wait()

    def resume(self, unsealed_from: int, monotonic: float) -> None:
        """Before `run`: an agent before has sealed up to this moment, by both clocks; 0: there was none."""
        self._unsealed_from, self._unsealed_from_monotonic = unsealed_from, monotonic

    async def stop(self) -> None:
        """Read once more and seal what is pending."""
        self._stopping.set()
        if self._running:
            await self._finished.wait()

    def wish_report_interval(self, seconds: int) -> None:
        """What a server asks for; it can only lengthen the interval, up to `LONGEST_REPORT_INTERVAL`."""
        wished = max(self._config.report_interval, min(seconds, LONGEST_REPORT_INTERVAL))
        if wished != self._report_interval:
            logger.info("Reporting every %ds from now on, as the server asks", wished)
            self._report_interval = wished
            self._report_number = self._current_report(self._clock.time())

    async def _until_next(self) -> None:
        """Until the next multiple of either interval, or `stop`."""
        retry = self._retry_pause()
        if retry is not None:
            await first_of(self._clock, retry, self._stopping)
            return
        now = self._clock.time()
        moment = min(
            _next_multiple(now, self._config.collection_interval), _next_multiple(now, self._report_interval)
        )
        await first_of(self._clock, moment - now, self._stopping)
        # Sleeping goes by another clock than the moment: wake up on the right side of it. Where the wall
        # clock was set back meanwhile, what is left is long, and we read now.
        while 0 < (left := moment - self._clock.time()) < _EARLY and not self._stopping.is_set():
            await first_of(self._clock, left, self._stopping)

    def _retry_pause(self) -> float | None:
        if not self._failures:
            return None
        interval = self._config.collection_interval
        return min(interval * 2.0 ** min(self._failures - 1, 20), max(interval, _LONGEST_RETRY))

    async def _collect(self, *, last: bool = False) -> None:
        began, began_monotonic = self._clock.time(), self._clock.monotonic()
        if not await self._read():
            return
        report = self._current_report(began)
        due = (
            report != self._report_number
            or self._conntrack.totals().waiting_flows >= self._config.many_waiting
        )
        if last or (due and not self._outbox.full):
            await self._seal(began, began_monotonic)
        self._report_number = report

    async def _read(self) -> bool:
        try:
            result = await self._conntrack.read()
        except MachineError:
            raise
        except (KubenetmonError, OSError) as error:
            self._failed(error)
            return False
        if self._failures:
            logger.info("Conntrack can be read again")
        self._failures = 0
        self._metrics.set(COLLECTION_DURATION, round(result.duration * 1e6))
        self._metrics.set(LAST_COLLECTION, int(self._clock.time()))
        self._readiness.passed(CHECK)
        self._say_gap()
        self._say_resets()
        return True

    def _say_gap(self) -> None:
        gap = self._conntrack.totals().gap_nanoseconds
        if gap > self._gap:
            logger.warning(
                "For %.1fs nobody heard which flows ended (no agent ran, or this one was stopped): "
                "what those moved after their last read is not metered",
                (gap - self._gap) / 1e9,
            )
        self._gap = gap

    def _say_resets(self) -> None:
        """At once, and again each `_REPEAT_SECONDS` while it goes on."""
        resets, now = self._conntrack.totals().foreign_resets, self._clock.monotonic()
        if resets > self._resets and now >= self._say_resets_from:
            logger.error(
                "Another process sets conntrack's counters to zero (%d so far), so that bytes go unmetered: "
                "end it; an agent of the original kubenetmon must not run beside this one",
                resets,
            )
            self._resets, self._say_resets_from = resets, now + _REPEAT_SECONDS

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._metrics.add(COLLECTOR_ERRORS, type="collection_failed")
        self._readiness.failed(CHECK, str(error))
        logger.warning("Reading conntrack failed, nothing is lost by that: %s", error)

    async def _seal(self, now: float, monotonic: float) -> None:
        """Seal what is pending; the report ends `now`, the same moment by both clocks."""
        begin = self._unsealed_from
        elapsed = monotonic - self._unsealed_from_monotonic
        if abs((now - begin) - elapsed) > _CLOCK_TOLERANCE:
            logger.warning("The wall clock was set by %.0fs", now - begin - elapsed)
            begin = max(0, int(now - elapsed))  # the length stays the true one
        end = max(int(now), begin + 1)
        try:
            records = await self._conntrack.report(begin, end, monotonic)
        except (KubenetmonError, OSError) as error:
            self._failed(error)
            return
        self._outbox.put(records, begin, end)
        self._unsealed_from, self._unsealed_from_monotonic = end, monotonic

    def _current_report(self, now: float) -> int:
        return int(now // self._report_interval)

    def _publish(self) -> None:
        """Copy the ledger's totals into the metrics, at each scrape."""
        if not self._running:
            return
        totals, put = self._conntrack.totals(), self._metrics.set
        put(COLLECTOR_FLOWS, totals.reported_flows, type="sent")
        put(COLLECTOR_FLOWS, totals.ignored_flows, type="ignored")
        for unit in ("bytes", "packets"):
            put(AGENT_OBSERVED, getattr(totals, f"observed_{unit}"), unit=unit)
            put(AGENT_REPORTED, getattr(totals, f"reported_{unit}"), unit=unit)
            put(AGENT_PENDING, getattr(totals, f"pending_{unit}"), unit=unit)
            for reason in AGENT_IGNORED_REASONS:
                put(AGENT_IGNORED, getattr(totals, f"ignored_{reason}_{unit}"), reason=reason, unit=unit)
        put(AGENT_FLOWS, totals.flows)
        put(AGENT_WAITING, totals.waiting_flows)
        put(AGENT_MERGED, totals.merged_flows)
        put(AGENT_EVENTS, totals.destroy_events)
        put(AGENT_EVENT_GAP, totals.gap_nanoseconds / 1e9)
        put(AGENT_AMBIGUOUS_IDENTITY, totals.ambiguous_identity)
        put(AGENT_FOREIGN_RESETS, totals.foreign_resets)
        put(AGENT_NO_COUNTERS, totals.without_counters)
        put(AGENT_OFFLOADED, totals.offloaded)
        put(AGENT_VANISHED, totals.vanished)
        put(AGENT_MALFORMED, totals.malformed + totals.truncated_events)


def _next_multiple(now: float, interval: float) -> float:
    """The first multiple of `interval` that is at least a millisecond after `now`."""
    moment = (now // interval + 1) * interval
    return moment if moment - now > 0.001 else moment + interval
