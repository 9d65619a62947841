"""One Submit stream of an original agent: Observations in, their number out.

Contract: observations are committed slice by slice while the stream goes on; the summary is sent after the
last one is in ClickHouse. What was received is committed however the stream ends (cancelled by the client,
cut by the network, stopped by us, or refused for a message that cannot be read): an original agent has
already reset the kernel's counters it reports, so that what is dropped here is lost for ever. The one
exception is the little that a stream may send unasked (16 kB), where it breaks off while it waits for memory
and more than a hundred others have done so before it: that is counted as ignored. What comes before the
handler reads is not received (record 28). A client that sends the stream again is counted twice; only Push is
exact.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from kubenetmon.errors import ProtocolError
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.model import FlowBatch
from kubenetmon.proto import EPOCH_BYTES, Outcome
from kubenetmon.server.flood import MemoryBudget
from kubenetmon.server.observations import (
    CompressedMessage,
    IdentitySource,
    Losses,
    ObservationDecoder,
    OversizeMessage,
)
from kubenetmon.server.push import reserve
from kubenetmon.server.receive_buffer import ReceiveBuffer, StreamStopped
from kubenetmon.server.verdict import Verdict

logger = logging.getLogger(__name__)

SLICE_OBSERVATIONS = 16384
"""Observations of one slice: each becomes one block of twice as many rows."""

SLICE_BYTES = 2 << 20
"""What a slice is taken to hold in memory: its columns (69 bytes a row, IPv6 117) and a message begun."""

READ_BYTES = 1 << 16

LEFT_BEHIND_OVERHEAD = 1 << 14
"""What is kept beside the bytes that a broken stream leaves behind: a task, a decoder without rows."""

MAX_OBSERVATION_BYTES = 1 << 16
"""An Observation takes some 150 bytes; this is what a stream may hold back of one without memory reserved."""


@dataclass(frozen=True, slots=True)
class SubmitLimits:
    """Seconds: `slice_age`, after which a slice is committed though it is not full; `message_timeout`, in
    which its first message must be whole. `in_flight`: slices of one stream that may be unsettled."""

    slice_age: float
    message_timeout: float
    in_flight: int


class SubmitStream:
    """Serves one stream; made for it and dropped with it."""

    def __init__(
        self,
        buffer: ReceiveBuffer,
        limits: SubmitLimits,
        *,
        spare: MemoryBudget,
        pace: Callable[[], Awaitable[None]],
        settle: Callable[[FlowBatch], Awaitable[Verdict]],
        spawn: Callable[[Any], asyncio.Task[None]],
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        """`spare`: for what streams leave behind that break off while they wait for memory."""
        self._buffer = buffer
        self._limits = limits
        self._memory = buffer.connection.memory
        self._spare = spare
        self._pace = pace
        self._settle = settle
        self._spawn = spawn
        self._metrics = metrics
        self._now = now
        self._decoder = ObservationDecoder(SLICE_OBSERVATIONS, MAX_OBSERVATION_BYTES)
        self._identities = IdentitySource(os.urandom(EPOCH_BYTES))
        self._slots = asyncio.Semaphore(limits.in_flight)
        self._settling: set[asyncio.Task[None]] = set()
        self._reserved = False
        self._slice_began = 0.0
        self._refusal = ""
        self.observations = 0

    async def run(self) -> int:
        """Serve the stream to its end; how many observations it held. Raises `GRPCError` when not all of them
        are in ClickHouse, or not all could be read."""
        try:
            refused = await self._receive()
            await self._finish()
        except asyncio.CancelledError:
            self._client_is_gone()
            raise
        if refused is not None:
            logger.warning(
                "Refused a Submit stream from %s: %s", self._buffer.connection.peer, refused.message
            )
            raise refused
        if self._refusal:
            raise GRPCError(Status.UNAVAILABLE, self._refusal)
        return self.observations

    async def _receive(self) -> GRPCError | None:
        """Read to the end; what the stream has to be refused for, if anything."""
        try:
            while True:
                if not self._reserved:
                    await self._buffer.arrival()
                    await reserve(self._memory, SLICE_BYTES, self._buffer)
                    self._reserved = True
                    self._slice_began = asyncio.get_running_loop().time()
                data = await self._read()
                if data is None:
                    await self._end_slice()
                elif data:
                    await self._decode(data)
                else:
                    break
        except GRPCError as error:
            return error
        except StreamStopped:
            await self._decode(self._buffer.rest())
            return GRPCError(Status.UNAVAILABLE, "the server is stopping; what it received is stored")
        except CompressedMessage as error:
            return GRPCError(Status.UNIMPLEMENTED, str(error))
        except OversizeMessage as error:
            return GRPCError(Status.RESOURCE_EXHAUSTED, str(error))
        except ProtocolError as error:
            return GRPCError(Status.INVALID_ARGUMENT, str(error))
        if self._decoder.has_rest:
            return GRPCError(Status.INVALID_ARGUMENT, "the stream ends within a message")
        return None

    async def _read(self) -> bytes | None:
        """Bytes of the stream, b"" at its end, None when the slice has waited long enough."""
        some = self._decoder.observations > 0
        allowed = self._limits.slice_age if some else self._limits.message_timeout
        try:
            async with asyncio.timeout_at(self._slice_began + allowed):
                return await self._buffer.take(READ_BYTES)
        except TimeoutError:
            if some:
                return None
            raise GRPCError(
                Status.DEADLINE_EXCEEDED, f"a message took longer than {allowed:g}s to arrive"
            ) from None

    async def _decode(self, data: bytes) -> None:
        while self._decoder.feed(data):
            await self._end_slice()
            data = b""

    async def _end_slice(self) -> None:
        """Hand the slice on; waits while too many of this stream are unsettled."""
        await self._slots.acquire()
        self._begin_commit()

    def _begin_commit(self) -> None:
        reserved, self._reserved = self._reserved, False
        task: asyncio.Task[None] | None = None
        try:
            task = self._spawn(self._commit(self._take_slice()))
        finally:
            if task is None:
                self._slots.release()
                if reserved:
                    self._memory.release(SLICE_BYTES)
        self._settling.add(task)
        task.add_done_callback(lambda done: self._settled(done, reserved))

    def _settled(self, task: asyncio.Task[None], reserved: bool) -> None:
        self._settling.discard(task)
        self._slots.release()
        if reserved:
            self._memory.release(SLICE_BYTES)

    async def _commit(self, batches: tuple[FlowBatch, ...]) -> None:
        for batch in batches:
            await self._pace()
            verdict = await self._settle(batch)
            if verdict.outcome is not Outcome.COMMITTED:
                self._refusal = verdict.reason

    async def _finish(self) -> None:
        """Commit the last slice and wait for all."""
        try:
            if self._decoder.observations:
                await self._end_slice()
            while self._settling:
                await asyncio.wait(self._settling)
        except ProtocolError as error:
            raise GRPCError(Status.INVALID_ARGUMENT, str(error)) from None
        finally:
            if self._reserved:
                self._reserved = False
                self._memory.release(SLICE_BYTES)

    def _client_is_gone(self) -> None:
        """What it sent is committed all the same, by a task of its own."""
        # Taken now: the buffer is emptied as soon as the stream's handler is left.
        rest = self._buffer.rest()
        kept = len(rest) + LEFT_BEHIND_OVERHEAD if rest and not self._reserved else 0
        if self._spare.take(kept):
            self._spawn(self._commit_what_arrived(rest, kept))
        else:
            self._lose(rest)

    async def _commit_what_arrived(self, rest: bytes, kept: int) -> None:
        """Whether or not a message was cut; `kept`: what `rest` takes while it waits for memory."""
        try:
            if kept:
                await self._memory.reserve(SLICE_BYTES)
                self._reserved = True
            await self._decode(rest)
        except (ProtocolError, GRPCError) as error:
            logger.warning("The rest of a broken Submit stream cannot be read: %s", error)
        finally:
            self._spare.release(kept)
        await self._finish()

    def _lose(self, rest: bytes) -> None:
        """Count what there is no room for: kept, it would let clients that break off grow the process."""
        try:
            with contextlib.suppress(ProtocolError):  # what came before it was decoded
                self._decoder.feed(rest)
            batches = self._take_slice()
        except ProtocolError:
            return
        lost = Losses(
            sum(map(len, batches)),
            sum(batch.total_packets() for batch in batches),
            sum(batch.total_bytes() for batch in batches),
        )
        self._count_losses("memory", lost)
        logger.warning(
            "A Submit stream from %s broke off while the server had no memory for it: %d observations of %d "
            "bytes are lost",
            self._buffer.connection.peer,
            lost.observations,
            lost.bytes,
        )

    def _take_slice(self) -> tuple[FlowBatch, ...]:
        """What was decoded so far; what cannot become part of a batch is counted. Raises `ProtocolError`."""
        taken = self._decoder.take(self._identities, self._now())
        self.observations += taken.observations
        self._count_losses("address", taken.bad_address)
        self._count_losses("protocol", taken.bad_protocol)
        return taken.batches

    def _count_losses(self, reason: str, losses: Losses) -> None:
        if not losses.observations:
            return
        for unit, amount in (("bytes", losses.bytes), ("packets", losses.packets)):
            self._metrics.add(catalogue.SERVER_RECEIVED, amount, unit=unit)
            self._metrics.add(catalogue.SERVER_IGNORED, amount, reason=reason, unit=unit)
        self._metrics.add(catalogue.SERVER_OBSERVATIONS, losses.observations, type="ignored")
        if reason == "address":
            self._metrics.add(catalogue.SERVER_ERRORS, losses.observations, type="parse_ip_failed")
