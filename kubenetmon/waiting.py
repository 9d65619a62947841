"""Waiting for work under an injected clock, without leaving a task behind.

What is waited for runs in a task of its own: grpclib wakes the tasks inside a dead stream by cancelling
them, and a forever-task must not be cancelled by anyone but its owner.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from kubenetmon.clock import Clock

_Result = TypeVar("_Result")
_Future = TypeVar("_Future", bound=asyncio.Future[Any])


async def first_of(clock: Clock, seconds: float | None, *waits: asyncio.Future[Any] | asyncio.Event) -> None:
    """Return when any of `waits` is done or set, or after so many seconds (None: no limit).

    Futures are left as they are, done or not.
    """
    helpers: list[asyncio.Task[Any]] = []
    if seconds is not None:
        helpers.append(asyncio.create_task(clock.sleep(max(seconds, 0.0))))
    futures: list[asyncio.Future[Any]] = []
    for wait in waits:
        if isinstance(wait, asyncio.Event):
            helpers.append(asyncio.create_task(_wait_for(wait)))
        else:
            futures.append(wait)
    try:
        await asyncio.wait([*futures, *helpers], return_when=asyncio.FIRST_COMPLETED)
    finally:
        await cancel_all(*helpers)


async def within(clock: Clock, seconds: float, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` returns or raises; `TimeoutError` when it takes longer, and then it is cancelled."""
    task = asyncio.create_task(work)
    try:
        await first_of(clock, seconds, task)
        if not task.done():
            raise TimeoutError
        return task.result()
    finally:
        await cancel_all(task)


async def to_the_end(work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` returns or raises; who is cancelled meanwhile is so only when it has ended."""
    task = retrieved(asyncio.create_task(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def retrieved(future: _Future) -> _Future:
    """`future`, whose error is for those who await it and, where nobody does any more, no news.

    Without this asyncio logs a traceback when the one who waited behind a shield was cancelled.
    """
    future.add_done_callback(_retrieve)
    return future


async def cancel_all(*tasks: asyncio.Task[Any]) -> None:
    """Cancel what still runs and wait until it has ended; what it raises is dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


def _retrieve(future: asyncio.Future[Any]) -> None:
    if not future.cancelled():
        future.exception()
