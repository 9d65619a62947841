"""Waiting for work without leaving it behind."""

from __future__ import annotations

import asyncio

import pytest

from kubenetmon.waiting import to_the_end


async def test_who_is_cancelled_while_work_must_end_is_so_only_afterwards() -> None:
    go, ended = asyncio.Event(), []

    async def work() -> None:
        await go.wait()
        ended.append(True)

    waiting = asyncio.create_task(to_the_end(work()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    assert not waiting.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == [True]


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> int:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        await to_the_end(work())
