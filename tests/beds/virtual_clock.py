"""Time that passes only when a test says so.

Contract: `VirtualClock` is a `kubenetmon.clock.Clock`. `await clock.advance(seconds)` lets the time pass,
waking every sleeper at its moment, in order, with the other tasks run dry in between. `jump` moves the wall
clock alone, as an operator or NTP does.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools

_DRY_RUNS = 50
"""Rounds of the event loop that let every task run as far as it gets without time passing."""


class VirtualClock:
    """Starts at Unix second `start`."""

    def __init__(self, start: float = 1_800_000_000.0) -> None:
        self._wall_offset = start
        self._now = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def time(self) -> float:
        return self._wall_offset + self._now

    def monotonic(self) -> float:
        return self._now

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now + seconds, next(self._order), future))
        await future

    def jump(self, seconds: float) -> None:
        """Move the wall clock without time passing."""
        self._wall_offset += seconds

    async def advance(self, seconds: float) -> None:
        """Let so much time pass."""
        end = self._now + seconds
        await run_dry()
        while self._sleepers and self._sleepers[0][0] <= end:
            moment, _, future = heapq.heappop(self._sleepers)
            if future.done():
                continue
            self._now = max(self._now, moment)
            future.set_result(None)
            await run_dry()
        self._now = end
        await run_dry()


async def run_dry() -> None:
    """Let all other tasks go on until they wait for time or input."""
    for _ in range(_DRY_RUNS):
        await asyncio.sleep(0)
