"""One Push stream: batches out in order, a few unanswered at a time, until its time is over.

Contract: `PushSession.run` ends in order when the address should be drawn anew or everything is sent while
stopping, never while a batch is unanswered; otherwise it raises `ConnectionFailedError`, and what was
unanswered is still in the outbox. A server that ends an idle stream (its connections have a maximum age) is
no failure.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from kubenetmon.agent.connection import ConnectionFailedError, PushStream
from kubenetmon.agent.outbox import Outbox
from kubenetmon.agent.schedule import Schedule
from kubenetmon.clock import Clock
from kubenetmon.proto import BatchAck, Outcome
from kubenetmon.waiting import cancel_all, first_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PushConfig:
    """Durations are seconds."""

    in_flight: int = 4
    """Batches sent and not answered, at most."""
    ack_timeout: float = 120.0
    """The server answers a batch once ClickHouse holds it; beyond this another connection is tried. A host
    that is gone shows much earlier (`Timeouts.dead_peer`), and so does a process that stands still:"""
    ping_after: float = 5.0
    """With batches unanswered and nothing heard for so long, the server is asked for a sign of life,"""
    ping_timeout: float = 10.0
    """and left when it gives none within this."""
    longest_session: float = 300.0
    """After this, and up to a fifth earlier, another address is drawn."""
    close_timeout: float = 5.0


class PushSession:
    """Works on one open stream; made anew for each."""

    def __init__(
        self,
        config: PushConfig,
        *,
        stream: PushStream,
        outbox: Outbox,
        schedule: Schedule,
        clock: Clock,
        chance: random.Random,
        answered: Callable[[BatchAck], None],
    ) -> None:
        """`answered` is called for each ack of a batch that waited."""
        self.accepted_records = 0
        self._config, self._stream = config, stream
        self._outbox, self._schedule, self._clock = outbox, schedule, clock
        self._answered = answered
        self._deadlines: dict[int, float] = {}
        self._heard_at = self._pinged_at = clock.monotonic()
        self._end = clock.monotonic() + config.longest_session * chance.uniform(0.8, 1.0)

    async def run(self) -> None:
        """Send and take acks. Raises `ConnectionFailedError`."""
        reader = asyncio.create_task(self._read(), name="acknowledgements")
        try:
            await self._write(reader)
            if not reader.done():
                await self._stream.finish()
                await first_of(self._clock, self._config.close_timeout, reader)
        finally:
            await cancel_all(reader)

    async def _write(self, reader: asyncio.Task[None]) -> None:
        while True:
            self._outbox.changed.clear()
            now = self._clock.monotonic()
            if reader.done():
                return self._ended_by_server(reader)
            overdue = min(self._deadlines.values(), default=math.inf)
            if overdue <= now:
                raise ConnectionFailedError(
                    f"no acknowledgement within {self._config.ack_timeout:g}s: "
                    "the server or ClickHouse is slow or gone"
                )
            until_silent = self._listen(now)
            ending = now >= self._end or (self._schedule.hurry and self._outbox.empty)
            if ending and not self._deadlines:
                return None
            sends = not ending and len(self._deadlines) < self._config.in_flight
            batch = self._schedule.next_due(self._deadlines) if sends else None
            if batch is not None:
                self._outbox.leaves_by_push(batch)
                if not self._deadlines:
                    self._heard_at = now
                self._deadlines[batch.sequence] = now + self._config.ack_timeout
                await self._send(batch.message, reader)
                continue
            wakes = [overdue - now, until_silent]
            if not ending:
                wakes.append(self._end - now)
            if sends:
                wakes.append(_or_never(self._schedule.until_due(self._deadlines)))
            soonest = min(wakes)
            await first_of(self._clock, soonest if soonest < math.inf else None, reader, self._outbox.changed)

    def _listen(self, now: float) -> float:
        """Ping a server that owes answers and is silent; seconds until the next look.

        Raises `ConnectionFailedError` for one that answers no ping.
        """
        if not self._deadlines:
            return math.inf
        heard = max(self._heard_at, self._stream.answered_ping_at)
        if now < heard + self._config.ping_after:
            return heard + self._config.ping_after - now
        if self._pinged_at <= heard:
            self._pinged_at = now
            self._stream.ping()
        left = self._pinged_at + self._config.ping_timeout - now
        if left <= 0:
            raise ConnectionFailedError(
                f"no sign of life for {now - heard:.0f}s: the server stands still or its host is gone"
            )
        return left

    async def _send(self, message: bytes, reader: asyncio.Task[None]) -> None:
        """Hand over one batch, unless the stream ends first."""
        send = asyncio.create_task(self._stream.send(message))
        try:
            while not (send.done() or reader.done()):
                await first_of(self._clock, self._listen(self._clock.monotonic()), send, reader)
            if send.done():
                send.result()
        finally:
            await cancel_all(send)

    def _ended_by_server(self, reader: asyncio.Task[None]) -> None:
        if reader.cancelled():  # by grpclib, whose streams end so
            raise ConnectionFailedError("the connection ended")
        error = reader.exception()
        if isinstance(error, ConnectionFailedError):
            if self._deadlines or error.status is not None:
                raise error
        elif error is not None:
            raise error
        elif self._deadlines:
            raise ConnectionFailedError(
                f"the server ended the stream with {len(self._deadlines)} batches unanswered"
            )
        logger.debug("The server ended an idle stream")

    async def _read(self) -> None:
        try:
            while (ack := await self._stream.receive()) is not None:
                self._take(ack)
        finally:
            for ack in self._stream.left_over():
                self._take(ack)

    def _take(self, ack: BatchAck) -> None:
        batch = self._outbox.settle(ack.epoch, ack.sequence, ack.outcome, ack.reason)
        if batch is None:
            return  # answered already, over a connection that died behind the answer
        self._deadlines.pop(ack.sequence, None)
        self._heard_at = self._clock.monotonic()
        self._outbox.changed.set()
        if ack.outcome is Outcome.COMMITTED:
            self.accepted_records += batch.records
        if ack.outcome in (Outcome.COMMITTED, Outcome.REJECTED):
            self._schedule.settled(batch)
        else:
            pause = self._schedule.retry_later(batch)
            logger.warning(
                "The server asks to have batch %d again later (%s): sending it again in %.1fs",
                batch.sequence,
                ack.reason or "no reason given",
                pause,
            )
        self._answered(ack)


def _or_never(seconds: float | None) -> float:
    return math.inf if seconds is None else seconds
