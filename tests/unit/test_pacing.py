"""What agents are asked for: by the batches that come, and by how busy inserts keep the inserters."""

from __future__ import annotations

import pytest

from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.server.pacing import LONGEST, PacingConfig, ReportPacing


class Hand(Clock):
    """A clock moved by hand."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Bed:
    """Agents that do as they are asked, all of them through one server."""

    def __init__(self, agents: int, *, interval: int = 60, bears: float = 25, inserters: int = 20) -> None:
        self.clock = Hand()
        self.metrics = Metrics(catalogue.SERVER_METRICS)
        self.pacing = ReportPacing(PacingConfig(bears, inserters), metrics=self.metrics, clock=self.clock)
        self.agents, self.own = agents, interval
        self.wishes: list[int] = []

    def run(self, seconds: float, *, insert_takes: float = 0.05) -> int:
        """Let them report for a while; the last wish."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            interval = max(self.own, self.wish)
            # All within a tenth of their interval, as agents that seal at the minute do.
            for _ in range(self.agents):
                self.pacing.arrived(interval)
                self.pacing.inserted(insert_takes)
                self.clock.now += interval / 10 / self.agents
            self.wishes.append(self.pacing.wish())
            self.clock.now += interval * 0.9
        return self.wish

    @property
    def wish(self) -> int:
        return self.wishes[-1] if self.wishes else 0


@pytest.mark.parametrize(("agents", "asked"), [(10, 0), (1_000, 60), (2_000, 120), (5_000, 300)])
def test_the_wish_is_what_the_table_bears(agents: int, asked: int) -> None:
    bed = Bed(agents)
    assert bed.run(1800) == asked
    assert agents / max(60, asked) < 25


def test_it_settles_and_does_not_swing() -> None:
    bed = Bed(2_000)
    bed.run(1800)
    bed.wishes.clear()
    bed.pacing.wish()
    bed.wishes.append(bed.pacing.wish())
    bed.run(7200)
    assert len(set(bed.wishes)) == 1


def test_agents_that_are_gone_are_not_asked_for() -> None:
    bed = Bed(2_000)
    assert bed.run(1800) == 120
    bed.agents = 100
    assert bed.run(1800) <= 10


def test_slow_inserts_make_reports_rarer_until_they_are_quick_again() -> None:
    bed = Bed(100, interval=5, bears=40, inserters=4)
    assert bed.run(300, insert_takes=0.05) == 0
    slow = bed.run(300, insert_takes=0.25)  # 5 inserters' work for 4
    assert 10 <= slow <= 30
    assert bed.run(1200, insert_takes=0.25) == slow, "half as many inserts are few enough"
    assert bed.run(3600, insert_takes=0.05) == 0


def test_an_outage_is_no_pressure() -> None:
    """Inserts that waited half an hour for ClickHouse say nothing of what it bears."""
    bed = Bed(100)
    bed.run(600)
    before = bed.wish
    bed.clock.now += 1800
    for _ in range(20):
        bed.pacing.arrived(60)
        bed.pacing.inserted(1800)
    for _ in range(280):
        bed.pacing.arrived(1800)
        bed.pacing.inserted(0.2)
    assert bed.pacing.wish() <= 60
    assert bed.run(1800) == before


def test_no_wish_is_longer_than_agents_obey_and_the_metric_shows_it() -> None:
    bed = Bed(20_000)
    assert bed.run(1200) == LONGEST == 600
    assert bed.metrics.value(catalogue.SERVER_WISHED_INTERVAL) == 600
