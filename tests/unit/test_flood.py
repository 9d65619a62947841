"""The memory budget and the frame allowance."""

from __future__ import annotations

import asyncio

import pytest

from kubenetmon.server.flood import FrameAllowance, MemoryBudget


async def test_who_asks_first_is_served_first() -> None:
    budget = MemoryBudget(100)
    await budget.reserve(80)
    served: list[str] = []

    async def ask(name: str, size: int) -> None:
        await budget.reserve(size)
        served.append(name)

    large, small = asyncio.create_task(ask("large", 90)), asyncio.create_task(ask("small", 10))
    await asyncio.sleep(0)
    assert served == []
    budget.release(80)
    await asyncio.gather(large, small)
    assert served == ["large", "small"]
    assert budget.reserved == 100


async def test_who_gives_up_holds_nothing_and_blocks_no_one() -> None:
    budget = MemoryBudget(100)
    await budget.reserve(50)
    impatient = asyncio.create_task(budget.reserve(100))
    patient = asyncio.create_task(budget.reserve(50))
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert budget.reserved == 100
    budget.release(100)
    assert budget.reserved == 0


async def test_a_turn_given_to_one_cancelled_at_that_moment_comes_back() -> None:
    budget = MemoryBudget(100)
    await budget.reserve(100)
    waiting = asyncio.create_task(budget.reserve(60))
    await asyncio.sleep(0)
    budget.release(100)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert budget.reserved == 0


async def test_more_than_everything_is_an_error() -> None:
    with pytest.raises(ValueError):
        await MemoryBudget(100).reserve(101)


def test_bytes_pay_for_frames_and_floods_run_out() -> None:
    allowance = FrameAllowance(0.0, burst=100, per_second=10, bytes_per_frame=1000)
    assert all(allowance.spend(10, 10_000, 0.0) for _ in range(1000))
    assert allowance.spend(100, 0, 0.0)
    assert not allowance.spend(1, 0, 0.0)
    assert allowance.spend(5, 0, 1.0)
