"""Room on the way into ClickHouse: whose turn it is, and the memory that blocks take.

Contract: plain data owned by the pipeline, no task, nothing to shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from kubenetmon.server.flood import MemoryBudget

_LEAST_ROOM = 32 << 10
"""Bytes that a batch counts at least, so that it never counts less than its message does (16 KiB and up to
105 bytes a record, where a block has 300). Then blocks that wait aside fill their memory before messages fill
the receiver's, and make room for others."""


class Places:
    """`turns` batches are encoded and tried at once; blocks take `memory` bytes at most."""

    def __init__(self, turns: int, memory: int) -> None:
        self._turns = asyncio.Semaphore(turns)
        self._memory = MemoryBudget(memory)

    @property
    def reserved(self) -> int:
        """Bytes taken now."""
        return self._memory.reserved

    @contextlib.asynccontextmanager
    async def take(self, size: int, *, yields: bool) -> AsyncIterator[Place]:
        """A turn and `size` bytes, or all there are; first come, first served.

        `yields`: whether the batch may leave unsettled.
        """
        room = min(max(size, _LEAST_ROOM), self._memory.limit)
        await self._turns.acquire()
        place = Place(self._turns, self._memory, yields)
        try:
            await self._memory.reserve(room)
            try:
                yield place
            finally:
                self._memory.release(room)
        finally:
            place.step_aside()


class Place:
    """What one batch takes; `yields`: whether it may leave unsettled, because its sender keeps it."""

    def __init__(self, turns: asyncio.Semaphore, memory: MemoryBudget, yields: bool) -> None:
        self._turns: asyncio.Semaphore | None = turns
        self._memory = memory
        self.yields = yields

    def step_aside(self) -> None:
        """Give the turn to another, for good; the memory stays. May be called again."""
        if self._turns is not None:
            self._turns.release()
            self._turns = None

    @property
    def wanted(self) -> bool:
        """Whether others wait for the memory, and the batch may go."""
        return self.yields and self._memory.contended
