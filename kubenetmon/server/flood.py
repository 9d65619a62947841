"""What one peer may take: memory for messages on their way, and attention.

Contract: plain data owned by the receiver, no task, nothing to shut down.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque


class MemoryBudget:
    """Bytes of messages that may be held at once, given out first come, first served.

    A message's memory is reserved before its sender is let to send it (HTTP/2 flow control does the waiting)
    and released when the batch is settled, so that neither many clients nor an outage of ClickHouse grow the
    process. A budget within another (`parent`) has no more than the other has left. A request that can never
    fit raises `ValueError`.
    """

    def __init__(self, limit: int, parent: MemoryBudget | None = None) -> None:
        self.limit = limit
        self.reserved = 0
        self._parent = parent
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def contended(self) -> bool:
        """Whether anyone waits."""
        return any(not turn.done() for _, turn in self._waiting)

    def take(self, size: int) -> bool:
        """Reserve at once or not at all, and never before who waits."""
        if self._waiting or self.reserved + size > self.limit:
            return False
        if self._parent is not None and not self._parent.take(size):
            return False
        self.reserved += size
        return True

    async def reserve(self, size: int) -> None:
        """Return once `size` bytes are ours; `release` them later."""
        if size > self.limit:
            raise ValueError(f"{size} bytes are more than the whole budget of {self.limit}")
        if self._waiting or self.reserved + size > self.limit:
            await self._turn(size)
        else:
            self.reserved += size
        if self._parent is not None:
            try:
                await self._parent.reserve(size)
            except BaseException:
                self._give_back(size)
                raise

    def release(self, size: int) -> None:
        """Give back what was reserved."""
        self._give_back(size)
        if self._parent is not None:
            self._parent.release(size)

    async def _turn(self, size: int) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(size)
            else:
                self._waiting = deque(item for item in self._waiting if item[1] is not turn)
                self._serve()
            raise

    def _give_back(self, size: int) -> None:
        self.reserved -= size
        self._serve()

    def _serve(self) -> None:
        while self._waiting and self.reserved + self._waiting[0][0] <= self.limit:
            size, turn = self._waiting.popleft()
            if turn.done():
                continue
            self.reserved += size
            turn.set_result(None)


class PeerBudgets:
    """The process's memory, of which no connection and no address can take all.

    A connection's budget is part of its address's, which is part of the whole. An address is remembered as
    long as anything of it is connected or held, so that connecting anew gains nothing.
    """

    def __init__(self, limit: int, *, per_address: int, per_connection: int) -> None:
        self.whole = MemoryBudget(limit)
        self.spare = MemoryBudget(limit // 8)
        """Beside it, and nobody's: for what has arrived and must not be lost for want of room."""
        self._per_address, self._per_connection = per_address, per_connection
        self._addresses: dict[str, MemoryBudget] = {}
        self._connections: Counter[str] = Counter()

    def connections(self, address: str) -> int:
        """Open now from that address."""
        return self._connections[address]

    def open(self, address: str) -> MemoryBudget:
        """The budget of a new connection; `close` it."""
        self._connections[address] += 1
        of_address = self._addresses.get(address)
        if of_address is None:
            of_address = self._addresses[address] = MemoryBudget(self._per_address, self.whole)
        return MemoryBudget(self._per_connection, of_address)

    def close(self, address: str) -> None:
        """The connection is gone; what it reserved is released when its batches are settled."""
        self._connections[address] -= 1

    def sweep(self) -> None:
        """Forget addresses of which nothing is left."""
        for address, budget in list(self._addresses.items()):
            if not self._connections[address] and not budget.reserved:
                del self._addresses[address], self._connections[address]


class Pace:
    """How fast one connection may bring batches: `burst` at once, then so many a second; the rest waits.

    Each batch becomes an insert, whatever its size, and a table bears only so many of them.
    """

    def __init__(self, *, burst: int, per_second: float) -> None:
        self._tolerance = burst / per_second
        self._gap = 1.0 / per_second
        self._due = 0.0

    def wait(self, now: float) -> float:
        """Count one batch at monotonic second `now`; after how many seconds it may come."""
        self._due = max(self._due, now) + self._gap
        return max(0.0, self._due - now - self._tolerance)


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
