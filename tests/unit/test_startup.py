"""The start-up check, with the kernel's answers given and time virtual."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from kubenetmon.agent.conntrack import ConntrackError
from kubenetmon.agent.metered import AccountingState, ReadResult
from kubenetmon.agent.startup import StartupConfig, check_accounting
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.readiness import Readiness
from tests.beds.virtual_clock import VirtualClock, run_dry

GOOD = AccountingState(1, 1, 1, 10, 1000, 10, 0)
OFF = AccountingState(0, 2, 0, 10, 1000, 0, 10)


class FakeTable:
    """A kernel that answers as told."""

    def __init__(self, state: AccountingState) -> None:
        self.state = state
        self.reads = 0
        self.errors: list[KubenetmonError] = []

    async def read(self) -> ReadResult:
        self.reads += 1
        if self.errors:
            raise self.errors.pop()
        return ReadResult(1, 1, 0, 0.0, 0.0, 1, 1)

    def accounting_state(self) -> AccountingState:
        return self.state


class Bed:
    def __init__(self, folder: Path, state: AccountingState, uptime: float, **settings: bool | float) -> None:
        self.clock = VirtualClock()
        self.table = FakeTable(state)
        self.readiness = Readiness()
        self.uptime = folder / "uptime"
        self.uptime.write_text(f"{uptime} 1.0\n")
        config = StartupConfig(directory=folder, uptime=self.uptime)
        self.task = asyncio.create_task(
            check_accounting(
                replace(config, **settings),  # type: ignore[arg-type]
                conntrack=self.table,
                readiness=self.readiness,
                clock=self.clock,
            )
        )


async def test_with_counters_it_passes_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bed = Bed(tmp_path, GOOD, uptime=1e6)
    await asyncio.wait_for(bed.task, 1)
    assert bed.readiness.ready
    assert not caplog.records


async def test_without_counters_on_a_node_long_up_it_says_what_to_set(tmp_path: Path) -> None:
    bed = Bed(tmp_path, OFF, uptime=301)
    with pytest.raises(MachineError) as refusal:
        await asyncio.wait_for(bed.task, 1)
    assert "none of the 10 tracked flows carries counters" in str(refusal.value)
    assert (
        "sysctl -w net.netfilter.nf_conntrack_acct=1 net.netfilter.nf_conntrack_events=1 "
        "net.netfilter.nf_conntrack_timestamp=1" in str(refusal.value)
    )
    assert "SKIP_CONNTRACK_SANITY_CHECK" in str(refusal.value)
    assert refusal.value.exit_code == 1


async def test_on_a_young_node_it_looks_again_until_counters_show(tmp_path: Path) -> None:
    bed = Bed(tmp_path, OFF, uptime=100)
    await bed.clock.advance(12)
    assert not bed.task.done()
    assert not bed.readiness.ready
    assert bed.table.reads == 3
    bed.table.state = GOOD
    await bed.clock.advance(5)
    assert bed.task.done()
    assert bed.readiness.ready
    bed.task.result()


async def test_on_a_young_node_it_gives_up_when_the_wait_is_over(tmp_path: Path) -> None:
    bed = Bed(tmp_path, OFF, uptime=299, uptime_wait=300.0)
    await run_dry()
    assert not bed.task.done()
    bed.uptime.write_text("300.5 1.0\n")
    await bed.clock.advance(1.0)
    with pytest.raises(MachineError):
        bed.task.result()


async def test_an_empty_table_that_will_be_counted_passes(tmp_path: Path) -> None:
    await Bed(tmp_path, replace(GOOD, with_counters=0), uptime=1e6).task
    await Bed(tmp_path, AccountingState(None, None, None, None, None, 0, 0), uptime=1e6).task


async def test_an_empty_table_that_will_not_be_counted_does_not(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="nf_conntrack_acct is 0"):
        await Bed(tmp_path, replace(OFF, without_counters=0), uptime=1e6).task


async def test_flows_from_before_accounting_do_not_stop_those_to_come(tmp_path: Path) -> None:
    await Bed(tmp_path, replace(GOOD, with_counters=0, without_counters=10), uptime=1e6).task


async def test_events_and_timestamps_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await Bed(tmp_path, replace(GOOD, events=2, timestamps=0), uptime=1e6).task
    assert "sysctl -w net.netfilter.nf_conntrack_events=1" in caplog.text
    assert "sysctl -w net.netfilter.nf_conntrack_timestamp=1" in caplog.text


async def test_it_can_be_skipped(tmp_path: Path) -> None:
    bed = Bed(tmp_path, OFF, uptime=1e6, skip=True)
    await bed.task
    assert bed.table.reads == 0


async def test_it_sets_the_sysctls_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("acct", "events", "timestamp"):
        (tmp_path / f"nf_conntrack_{name}").write_text("0\n")
    await Bed(tmp_path, GOOD, uptime=1e6).task
    assert (tmp_path / "nf_conntrack_acct").read_text() == "0\n"
    await Bed(tmp_path, GOOD, uptime=1e6, set_sysctls=True).task
    for name in ("acct", "events", "timestamp"):
        assert (tmp_path / f"nf_conntrack_{name}").read_text() == "1\n"


async def test_sysctls_that_cannot_be_set_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    await Bed(tmp_path, GOOD, uptime=1e6, set_sysctls=True).task
    assert "nf_conntrack_acct cannot be set to 1 here" in caplog.text


async def test_a_read_that_fails_is_tried_again(tmp_path: Path) -> None:
    bed = Bed(tmp_path, GOOD, uptime=10)
    bed.table.errors = [ConntrackError("busy")]
    await bed.clock.advance(6)
    assert bed.task.done()
    assert bed.table.reads == 2
