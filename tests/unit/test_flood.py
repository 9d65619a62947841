"""The memory budgets, the frame allowance and the pace."""

from __future__ import annotations

import asyncio

import pytest

from kubenetmon.server.flood import FrameAllowance, MemoryBudget, Pace, PeerBudgets


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


async def test_a_part_has_no_more_than_the_whole_has_left() -> None:
    whole = MemoryBudget(100)
    one, other = MemoryBudget(80, whole), MemoryBudget(80, whole)
    await one.reserve(80)
    waiting = asyncio.create_task(other.reserve(40))
    await asyncio.sleep(0)
    assert not waiting.done()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    assert (other.reserved, whole.reserved) == (0, 80)
    one.release(80)
    await other.reserve(40)
    assert (other.reserved, whole.reserved) == (40, 40)


async def test_who_waits_for_his_own_share_does_not_stand_in_the_others_way() -> None:
    budgets = PeerBudgets(100, per_address=50, per_connection=50)
    greedy, modest = budgets.open("192.0.2.1"), budgets.open("192.0.2.2")
    await greedy.reserve(50)
    waiting = [asyncio.create_task(budgets.open("192.0.2.1").reserve(50)) for _ in range(3)]
    await asyncio.sleep(0)
    async with asyncio.timeout(1):
        await modest.reserve(50)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert budgets.whole.reserved == 100


async def test_an_address_that_connects_anew_still_owes_what_it_holds() -> None:
    budgets = PeerBudgets(100, per_address=50, per_connection=50)
    first = budgets.open("192.0.2.1")
    await first.reserve(50)
    budgets.close("192.0.2.1")
    budgets.sweep()
    again = asyncio.create_task(budgets.open("192.0.2.1").reserve(1))
    await asyncio.sleep(0)
    assert not again.done()
    first.release(50)
    await again
    budgets.close("192.0.2.1")
    assert budgets.connections("192.0.2.1") == 0


def test_a_burst_passes_and_the_rest_waits_its_turn() -> None:
    pace = Pace(burst=3, per_second=2.0)
    assert [pace.wait(10.0) for _ in range(5)] == [0, 0, 0, 0.5, 1.0]
    assert pace.wait(11.0) == 0.5
    assert [pace.wait(100.0) for _ in range(4)] == [0, 0, 0, 0.5]
