"""What one peer may take: memory for messages on their way, and attention.

Contract: plain data owned by the receiver, no task, nothing to shut down.
"""

from __future__ import annotations

import asyncio
from collections import deque


class MemoryBudget:
    """Bytes of messages that the process holds at once, given out first come, first served.

    A message's memory is reserved before its sender is let to send it (HTTP/2 flow control does the waiting)
    and released when the batch is settled, so that neither many clients nor an outage of ClickHouse grow the
    process. A request that can never fit raises `ValueError`.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, size: int) -> None:
        """Return once `size` bytes are ours; `release` them later."""
        if size > self.limit:
            raise ValueError(f"{size} bytes are more than the whole budget of {self.limit}")
        if not self._waiting and self.reserved + size <= self.limit:
            self.reserved += size
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(size)
            else:
                self._waiting = deque(item for item in self._waiting if item[1] is not turn)
                self._serve()
            raise

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self.reserved -= size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.reserved + self._waiting[0][0] <= self.limit:
            size, turn = self._waiting.popleft()
            if turn.done():
                continue
            self.reserved += size
            turn.set_result(None)


class FrameAllowance:
    """How many HTTP/2 frames other than data a connection may send beyond what its bytes account for.

    Frames cost us far more than they cost their sender (rapid reset, CVE-2023-44487; floods of PING, SETTINGS
    and empty frames, CVE-2019-9512 to 9518). Every `bytes_per_frame` received pay for one frame, `burst` more
    are free, and `per_second` come back.
    """

    def __init__(self, now: float, *, burst: int, per_second: float, bytes_per_frame: int) -> None:
        self._left: float = burst
        self._burst = burst
        self._per_second = per_second
        self._bytes_per_frame = bytes_per_frame
        self._seen = now

    def spend(self, frames: int, size: int, now: float) -> bool:
        """Count frames of `size` bytes in all at monotonic second `now`; False: this is a flood."""
        earned = (now - self._seen) * self._per_second + size / self._bytes_per_frame
        self._seen = now
        self._left = min(self._burst, self._left + earned - frames)
        return self._left >= 0
