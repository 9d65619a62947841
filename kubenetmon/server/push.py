"""One Push stream: batches in, acknowledgements out.

Contract: `run` reads until the agent ends the stream or reading is stopped, keeps at most `in_flight` batches
unsettled, and answers each as it settles. A batch whose agent has gone is settled all the same; when it is
sent again, the copy is dropped at once and the answer to the first is awaited. The stream's own errors are
gRPC statuses; a batch that can never be accepted is REJECTED by name, and the stream goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpclib.server
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.exceptions import ProtocolError as GrpclibProtocolError
from h2.exceptions import H2Error

from kubenetmon.errors import ProtocolError
from kubenetmon.model import BatchIdentity, FlowBatch
from kubenetmon.proto import MAX_MESSAGE_BYTES, BatchAck, Outcome
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.server.decode import InconsistentBatch, decode_batch
from kubenetmon.server.flood import MemoryBudget
from kubenetmon.server.receive_buffer import ReceiveBuffer, StreamCut, StreamStopped
from kubenetmon.server.verdict import Verdict

logger = logging.getLogger(__name__)

PREFIX = struct.Struct(">BI")
"""Before each gRPC message: compressed flag, length (gRPC over HTTP/2, "Length-Prefixed-Message")."""

BATCH_OVERHEAD = 1 << 14
"""What an unsettled batch takes beside its message: tasks, arrays' heads, its answer. Counted, so that a
client cannot pile up empty batches."""

ANSWER_OVERHEAD = 1 << 13
"""What is kept, until its answer is sent, of a batch that takes no room itself. A copy of one that is being
settled may wait for its answer through an outage."""

PushRpc = grpclib.server.Stream[FlowBatchMessage, BatchAck]


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """Seconds a message or an answer may take, and batches unsettled in one stream."""

    message_timeout: float
    in_flight: int


class PushStream:
    """Serves one stream; made for it and dropped with it."""

    def __init__(
        self,
        rpc: PushRpc,
        buffer: ReceiveBuffer,
        limits: StreamLimits,
        *,
        pace: Callable[[], Awaitable[None]],
        wished_report_interval: Callable[[], int],
        join: Callable[[FlowBatch], Callable[[], Awaitable[Verdict]] | None],
        settle: Callable[[FlowBatch], Awaitable[Verdict]],
        spawn: Callable[[Any], asyncio.Task[None]],
        now: Callable[[], float],
        rejected: Callable[[], None],
    ) -> None:
        self._rpc = rpc
        self._buffer = buffer
        self._limits = limits
        self._memory = buffer.connection.memory
        self._pace = pace
        self._wished_report_interval = wished_report_interval
        self._join = join
        self._settle = settle
        self._spawn = spawn
        self._now = now
        self._rejected = rejected
        self._slots = asyncio.Semaphore(limits.in_flight)
        self._sending = asyncio.Lock()
        self._settling: set[asyncio.Task[None]] = set()
        self._joined: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve the stream to its end; raises `GRPCError` for what it must be refused for."""
        try:
            await self._serve()
        finally:
            # With the stream gone no one waits for these answers; what they wait for has tasks of its own.
            for task in self._joined:
                task.cancel()

    async def _serve(self) -> None:
        await self._rpc.send_initial_metadata()
        try:
            while await self._receive_one():
                pass
        except StreamStopped:
            pass
        except (StreamCut, ProtocolError) as error:
            text = "the stream ends within a message" if isinstance(error, StreamCut) else str(error)
            logger.warning("Refused a Push stream from %s: %s", self._buffer.connection.peer, text)
            raise GRPCError(Status.INVALID_ARGUMENT, text) from None
        # Answers still to come go out before the stream ends.
        if self._settling:
            await asyncio.wait(self._settling)

    async def _receive_one(self) -> bool:
        """Read one batch and begin to settle it; False at the end of the stream."""
        await self._slots.acquire()
        await self._pace()
        prefix = await self._buffer.exactly(PREFIX.size)
        if not prefix:
            return False
        compressed, length = PREFIX.unpack(prefix)
        if compressed:
            raise GRPCError(Status.UNIMPLEMENTED, "compressed messages are not supported")
        if length > MAX_MESSAGE_BYTES:
            raise GRPCError(
                Status.RESOURCE_EXHAUSTED, f"a message of {length} bytes is longer than {MAX_MESSAGE_BYTES}"
            )
        held = length + BATCH_OVERHEAD
        await reserve(self._memory, held, self._buffer)
        try:
            held -= self._begin_answer(await self._read_message(length), held)
            return True
        finally:
            self._memory.release(held)

    def _begin_answer(self, message: bytes, held: int) -> int:
        """Settle and answer in a task of its own; how many of the bytes held for the message it keeps."""
        try:
            batch = decode_batch(message, self._now())
        except InconsistentBatch as error:
            logger.warning("Rejected batch %s: %s", error.identity.token, error)
            self._rejected()
            self._begin(self._answer(error.identity, Verdict(Outcome.REJECTED, str(error))), ANSWER_OVERHEAD)
            return ANSWER_OVERHEAD
        earlier = self._join(batch)
        if earlier is None:
            self._begin(self._await_and_answer(batch.identity, partial(self._settle, batch)), held)
            return held
        self._joined.add(self._begin(self._await_and_answer(batch.identity, earlier), ANSWER_OVERHEAD))
        return ANSWER_OVERHEAD

    def _begin(self, answer: Coroutine[Any, Any, None], held: int) -> asyncio.Task[None]:
        """Answer in a task of its own, which gives back `held` bytes and the batch's place at its end."""
        task = self._spawn(answer)
        self._settling.add(task)
        task.add_done_callback(lambda done: self._settled(done, held))
        return task

    def _settled(self, task: asyncio.Task[None], held: int) -> None:
        self._settling.discard(task)
        self._joined.discard(task)
        self._memory.release(held)
        self._slots.release()

    async def _read_message(self, length: int) -> bytes:
        if not length:
            return b""
        try:
            async with asyncio.timeout(self._limits.message_timeout):
                message = await self._buffer.exactly(length)
        except TimeoutError:
            raise GRPCError(
                Status.DEADLINE_EXCEEDED,
                f"a message took longer than {self._limits.message_timeout:g}s to arrive",
            ) from None
        if not message:
            raise StreamCut
        return message

    async def _await_and_answer(
        self, identity: BatchIdentity, verdict: Callable[[], Awaitable[Verdict]]
    ) -> None:
        # Asked for here: a task that is cancelled before it begins leaves nothing behind.
        await self._answer(identity, await verdict())

    async def _answer(self, identity: BatchIdentity, verdict: Verdict) -> None:
        """Send the ack if the agent is still there; if not, it will ask again."""
        ack = BatchAck(
            epoch=identity.epoch,
            sequence=identity.sequence,
            outcome=verdict.outcome,
            reason=verdict.reason,
            wished_report_interval=self._wished_report_interval(),
        )
        http_stream = self._rpc._stream
        # The last two: grpclib on a connection that closed meanwhile, and uvloop's transport then.
        gone = (
            H2Error,
            GrpclibProtocolError,
            StreamTerminatedError,
            ConnectionError,
            AttributeError,
            RuntimeError,
        )
        with contextlib.suppress(*gone):
            async with self._sending:
                try:
                    async with asyncio.timeout(self._limits.message_timeout):
                        if http_stream.closable:
                            await self._rpc.send_message(ack)
                except TimeoutError:
                    self._buffer.connection.cut("does not read its answers")


async def reserve(memory: MemoryBudget, size: int, buffer: ReceiveBuffer) -> None:
    """Memory for what a client is about to send, however long it takes: to wait costs us nothing, and the
    client decides when to try another server. Raises `StreamStopped` when reading is ended meanwhile."""
    if memory.take(size):
        return
    reserving = asyncio.ensure_future(memory.reserve(size))
    stopped = asyncio.ensure_future(buffer.stopped())
    try:
        await asyncio.wait({reserving, stopped}, return_when=asyncio.FIRST_COMPLETED)
        if not reserving.done():
            raise StreamStopped
    except BaseException:
        if reserving.done() and not reserving.cancelled():
            memory.release(size)
        raise
    finally:
        reserving.cancel()
        stopped.cancel()
