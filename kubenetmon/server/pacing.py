"""How often agents should report, so that the table bears the inserts.

Contract: plain data on the event loop, no task. The pipeline says what arrives and how long inserts take;
the receiver puts `wish` into every acknowledgement. Agents keep to the longest of that and their own
interval, and nothing is lost by it but resolution in time.

Two things make the wish longer. Demand: a batch counts for as long after its arrival as the interval that it
covers, so that at any time every agent counts with the batches of one report, however often it reports and
however many agents seal at once. So many inserts have to go into one interval: divided by the inserts a
second that the table may have, they are the interval to ask for. It does not depend on what was asked for
before, and so does not swing. Pressure: where inserts keep nearly all inserters busy, the table bears less
than was thought, and the wish doubles until they do not; an outage is no pressure, inserts that never end
count for nothing.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass

from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics, catalogue

logger = logging.getLogger(__name__)

STEPS = (0, 5, 10, 15, 20, 30, 60, 120, 180, 300, 600)
"""Wishes in seconds: parts of a minute and whole minutes, because rows are by the minute."""

LONGEST = STEPS[-1]

_NEAR = 0.8
"""Share of what may be had from which on it counts as near."""
_RELAXED = 0.4
_PRESSURE_SECONDS = 60.0
_RELAX_SECONDS = 300.0
_LONGEST_INSERT = 30.0
"""A slower insert has waited for something else, and counts as this."""


@dataclass(frozen=True, slots=True)
class PacingConfig:
    """`inserts_per_second`: what the table may have of this server; `inserters`: how many run at once."""

    inserts_per_second: float
    inserters: int


class ReportPacing:
    """Watches demand and pressure; see the module."""

    def __init__(self, config: PacingConfig, *, metrics: Metrics, clock: Clock) -> None:
        self._config = config
        self._metrics = metrics
        self._clock = clock
        self._current = _Current(clock.monotonic())
        self._busy = _Decaying(_PRESSURE_SECONDS)
        self._floor = 0.0
        self._floor_since = clock.monotonic()
        self._wish = 0
        metrics.set(catalogue.SERVER_WISHED_INTERVAL, 0)

    def arrived(self, interval: float) -> None:
        """A batch that covers so many seconds is going to be inserted."""
        self._current.add(min(interval, LONGEST), self._clock.monotonic())

    def inserted(self, seconds: float) -> None:
        """An insert has kept an inserter busy for so long."""
        self._busy.add(min(seconds, _LONGEST_INSERT), self._clock.monotonic())

    def wish(self) -> int:
        """Seconds to ask for in an acknowledgement given now; 0: nothing."""
        now = self._clock.monotonic()
        self._current.expire(now)
        by_demand = self._current.batches / (_NEAR * self._config.inserts_per_second)
        self._relieve(now)
        wished = self._step(max(by_demand, self._floor))
        if wished != self._wish:
            self._say(wished, by_pressure=self._floor > by_demand)
            self._wish = wished
            self._metrics.set(catalogue.SERVER_WISHED_INTERVAL, wished)
        return wished

    def _relieve(self, now: float) -> None:
        """Raise or lower the floor by the inserters' load, no faster than its effect can be seen."""
        since = now - self._floor_since
        load = self._busy.rate(now) / self._config.inserters
        if load > _NEAR and since >= max(_PRESSURE_SECONDS, self._floor):
            self._floor = min(2.0 * max(self._floor, self._current.mean_interval), LONGEST)
            self._floor_since = now
        elif load < _RELAXED and self._floor and since >= _RELAX_SECONDS:
            self._floor = self._floor / 2.0 if self._floor > STEPS[1] else 0.0
            self._floor_since = now

    def _step(self, seconds: float) -> int:
        """The wish that is just long enough; the one before while it is hardly too long."""
        if seconds < STEPS[1]:
            return 0
        upper = next((step for step in STEPS if step >= seconds), LONGEST)
        if upper < self._wish and seconds > 0.9 * _below(self._wish):
            return self._wish
        return upper

    def _say(self, wished: int, *, by_pressure: bool) -> None:
        mean = self._current.mean_interval
        if wished <= mean and self._wish <= mean:
            return  # shorter than what agents do anyway
        why = (
            f"inserts keep the {self._config.inserters} inserters busy"
            if by_pressure
            else f"{self._current.batches / max(mean, 1.0):.0f} inserts a second are near or above the "
            f"{self._config.inserts_per_second:g} of clickhouse_inserts_per_second"
        )
        if wished > mean:
            logger.warning("Asking agents to report every %ds only: %s", wished, why)
        else:
            logger.info("Agents may report as often as they are set to again")


def _below(step: int) -> int:
    return STEPS[max(0, STEPS.index(step) - 1)]


class _Current:
    """The batches that arrived no longer ago than the interval that each covers."""

    def __init__(self, now: float) -> None:
        self.batches = 0
        self._seconds = 0
        self._second = int(now)
        self._ends: Counter[int] = Counter()
        self._lengths: Counter[int] = Counter()

    @property
    def mean_interval(self) -> float:
        """Of those; 0 when there are none."""
        return self._seconds / self.batches if self.batches else 0.0

    def add(self, interval: float, now: float) -> None:
        self.expire(now)
        length = max(1, round(interval))
        self.batches += 1
        self._seconds += length
        self._ends[self._second + length] += 1
        self._lengths[self._second + length] += length

    def expire(self, now: float) -> None:
        """Forget those whose time is over."""
        gone = range(self._second + 1, min(int(now), self._second + LONGEST) + 1)
        for second in gone:
            self.batches -= self._ends.pop(second, 0)
            self._seconds -= self._lengths.pop(second, 0)
        self._second = max(self._second, int(now))


class _Decaying:
    """A rate a second that forgets: what was added counts less the longer ago, by e in `seconds`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._sum = 0.0
        self._at = 0.0

    def add(self, amount: float, now: float) -> None:
        self._sum = self._sum * math.exp((self._at - now) / self._seconds) + amount
        self._at = now

    def rate(self, now: float) -> float:
        return self._sum * math.exp((self._at - now) / self._seconds) / self._seconds
