"""Answers for many callers, at a bounded cost.

Contract: `Answering.get` runs a piece of work once for all that ask for the same at the same time, keeps what
came of it for a while, and lets few run at once. A caller that goes away changes nothing for the others. When
too many wait already `BusyError` is raised at once, `TimeoutError` for what takes too long. Memory: at most
`entries` answers of at most `entry_bytes` each. `close` cancels what runs.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass

from kubenetmon.clock import Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.waiting import retrieved


class BusyError(KubenetmonError):
    """Too many callers wait already."""


class TooLargeError(KubenetmonError):
    """The answer is larger than is kept or sent."""


@dataclass(frozen=True, slots=True)
class AnsweringConfig:
    """Seconds and bytes. `at_once`: pieces of work that run; `waiting`: those that may wait their turn."""

    at_once: int = 2
    waiting: int = 24
    timeout: float = 30.0
    entries: int = 32
    entry_bytes: int = 1 << 20


@dataclass(slots=True)
class _Kept:
    body: bytes
    until: float


class Answering:
    """Shares, bounds and keeps answers."""

    def __init__(self, config: AnsweringConfig, *, clock: Clock) -> None:
        self._config, self._clock = config, clock
        self._turns = asyncio.Semaphore(config.at_once)
        self._running: dict[Hashable, asyncio.Task[bytes]] = {}
        self._kept: OrderedDict[Hashable, _Kept] = OrderedDict()

    async def get(self, key: Hashable, keep: float, work: Callable[[], Awaitable[bytes]]) -> bytes:
        """What `work` returns, or an answer to the same `key` that is younger than `keep` seconds.

        Raises what `work` raises, `BusyError`, `TooLargeError` and `TimeoutError`.
        """
        kept = self._kept.get(key)
        if kept is not None and self._clock.monotonic() < kept.until:
            self._kept.move_to_end(key)
            return kept.body
        running = self._running.get(key)
        if running is None:
            if len(self._running) >= self._config.at_once + self._config.waiting:
                raise BusyError("too many questions are being answered; ask again in a moment")
            # Whoever still waits gets its error; where nobody does it is no news.
            running = retrieved(asyncio.create_task(self._run(key, keep, work), name=f"answer {key}"))
            self._running[key] = running
            running.add_done_callback(lambda _: self._running.pop(key, None))
        return await asyncio.shield(running)

    async def close(self) -> None:
        """Cancel what runs."""
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, key: Hashable, keep: float, work: Callable[[], Awaitable[bytes]]) -> bytes:
        async with asyncio.timeout(self._config.timeout), self._turns:
            body = await work()
        if len(body) > self._config.entry_bytes:
            raise TooLargeError(
                f"the answer has more than {self._config.entry_bytes >> 20} MiB: ask for less with a lower "
                "limit, or use kubenetmon ask"
            )
        self._kept[key] = _Kept(body, self._clock.monotonic() + keep)
        self._kept.move_to_end(key)
        while len(self._kept) > self._config.entries:
            self._kept.popitem(last=False)
        return body
