"""Parts start in order, stop in reverse, and none ends unnoticed."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from kubenetmon.lifecycle import ComponentEndedError, Lifecycle


class Part:
    def __init__(self, name: str, log: list[str], *, stop_seconds: float = 0) -> None:
        self.name, self.log, self.stop_seconds = name, log, stop_seconds

    async def run(self) -> None:
        self.log.append(f"run {self.name}")
        await asyncio.Event().wait()

    async def stop(self) -> None:
        await asyncio.sleep(self.stop_seconds)
        self.log.append(f"stop {self.name}")


class Ending(Part):
    async def run(self) -> None:
        return


class Failing(Part):
    async def run(self) -> None:
        raise RuntimeError("broken")


async def test_a_signal_stops_parts_in_reverse_order() -> None:
    log: list[str] = []
    life = Lifecycle([Part("first", log), Part("second", log)], stop_deadline=5)
    asyncio.get_running_loop().call_later(0.05, os.kill, os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(life.run(), 5)
    assert log == ["run first", "run second", "stop second", "stop first"]


async def test_a_part_that_returns_is_an_error_with_its_name() -> None:
    log: list[str] = []
    life = Lifecycle([Part("healthy", log), Ending("watcher", log)], stop_deadline=5)
    with pytest.raises(ComponentEndedError, match="watcher ended by itself"):
        await asyncio.wait_for(life.run(), 5)
    assert "stop healthy" in log


async def test_what_a_part_raises_comes_out_after_the_others_have_stopped() -> None:
    log: list[str] = []
    life = Lifecycle([Part("healthy", log), Failing("broken", log)], stop_deadline=5)
    with pytest.raises(RuntimeError, match="broken"):
        await asyncio.wait_for(life.run(), 5)
    assert "stop healthy" in log


async def test_the_deadline_cuts_a_slow_stop_short() -> None:
    log: list[str] = []
    life = Lifecycle([Part("slow", log, stop_seconds=60)], stop_deadline=0.1)
    asyncio.get_running_loop().call_later(0.05, life.request_stop)
    await asyncio.wait_for(life.run(), 5)
    assert log == ["run slow"]


async def test_a_second_request_cuts_a_slow_stop_short() -> None:
    log: list[str] = []
    life = Lifecycle([Part("slow", log, stop_seconds=60)], stop_deadline=60)
    for delay in (0.05, 0.1):
        asyncio.get_running_loop().call_later(delay, life.request_stop)
    await asyncio.wait_for(life.run(), 5)
    assert log == ["run slow"]
