"""What many callers of the page can cost: one piece of work for all, few at once, little kept."""

from __future__ import annotations

import asyncio

import pytest

from kubenetmon.report.page.answering import Answering, AnsweringConfig, BusyError, TooLargeError
from tests.beds.virtual_clock import VirtualClock


class Work:
    """Counts how often it is done, and how many at once."""

    def __init__(self, body: bytes = b"x") -> None:
        self.body, self.done, self.running, self.most = body, 0, 0, 0
        self.gate = asyncio.Event()

    async def __call__(self) -> bytes:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.gate.wait()
        finally:
            self.running -= 1
        self.done += 1
        return self.body


def _answering(clock: VirtualClock | None = None, **limits: float) -> Answering:
    return Answering(AnsweringConfig(**limits), clock=clock or VirtualClock())  # type: ignore[arg-type]


async def test_callers_of_the_same_share_one_piece_of_work_and_one_that_leaves_changes_nothing() -> None:
    answering, work = _answering(), Work()
    callers = [asyncio.create_task(answering.get("a", 30, work)) for _ in range(50)]
    await asyncio.sleep(0)
    callers[0].cancel()
    work.gate.set()
    assert await asyncio.gather(*callers[1:]) == [b"x"] * 49
    assert work.done == 1


async def test_an_answer_is_kept_for_a_while() -> None:
    clock = VirtualClock()
    answering, work = _answering(clock), Work()
    work.gate.set()
    await answering.get("a", 30, work)
    await clock.advance(29)
    await answering.get("a", 30, work)
    assert work.done == 1
    await clock.advance(2)
    await answering.get("a", 30, work)
    assert work.done == 2


async def test_few_run_at_once_and_too_many_are_refused_at_once() -> None:
    answering, work = _answering(at_once=2, waiting=3), Work()
    callers = [asyncio.create_task(answering.get(number, 30, work)) for number in range(5)]
    await asyncio.sleep(0.01)
    assert work.running == 2
    with pytest.raises(BusyError):
        await answering.get("one more", 30, work)
    work.gate.set()
    await asyncio.gather(*callers)
    assert (work.done, work.most) == (5, 2)


async def test_what_takes_too_long_ends_and_frees_its_place() -> None:
    answering, work = _answering(timeout=0.05, at_once=1), Work()
    with pytest.raises(TimeoutError):
        await answering.get("a", 30, work)
    assert work.running == 0
    work.gate.set()
    assert await answering.get("a", 30, work) == b"x"


async def test_failures_are_not_kept() -> None:
    answering = _answering()

    async def failing() -> bytes:
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await answering.get("a", 30, failing)


async def test_memory_is_bounded() -> None:
    answering = _answering(entries=4, entry_bytes=10)
    small, large = Work(b"x" * 10), Work(b"x" * 11)
    small.gate.set()
    large.gate.set()
    for number in range(20):
        await answering.get(number, 30, small)
    assert len(answering._kept) == 4
    with pytest.raises(TooLargeError):
        await answering.get("large", 30, large)
    assert len(answering._kept) == 4


async def test_close_cancels_what_runs() -> None:
    answering, work = _answering(), Work()
    caller = asyncio.create_task(answering.get("a", 30, work))
    await asyncio.sleep(0.01)
    await answering.close()
    assert work.running == 0
    with pytest.raises(asyncio.CancelledError):
        await caller
