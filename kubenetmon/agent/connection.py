"""One connection to one server address: grpclib, seen as bytes, with one kind of error.

Contract: a `Connection` belongs to the sender, lives for one session and is closed by it. Messages come and
go serialised. Whatever fails (network, TLS, HTTP/2, gRPC status, a peer that breaks the protocol) is a
`ConnectionFailedError` whose text a log can show; `status` is the server's gRPC status where it gave one.
Every wait but that for acknowledgements has a limit.

grpclib has no compression, its keepalive is experimental (it closes by a ping it may not have sent) and a
GOAWAY ends its streams at once: hence own time limits, and the sender reconnects.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import socket
import ssl
import struct
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from grpclib.client import Channel, Stream
from grpclib.config import Configuration
from grpclib.const import Cardinality, Status
from grpclib.encoding.base import CodecBase
from grpclib.exceptions import GRPCError
from h2.events import PingAckReceived

from kubenetmon.clock import Clock
from kubenetmon.proto import EPOCH_BYTES, PUSH_METHOD, SUBMIT_METHOD, BatchAck, ObservationSummary
from kubenetmon.waiting import within

_Result = TypeVar("_Result")

_PREFIX = struct.Struct(">BI")
"""Before each gRPC message: compressed flag, length."""


class ConnectionFailedError(Exception):
    """The session is over. `status`: what the server said; None when it said nothing."""

    def __init__(self, message: str, status: Status | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that each step may take."""

    connect: float = 5.0
    """TCP and TLS."""
    answer: float = 15.0
    """The server's first answer to a request: one that a thousand agents connect to anew takes its time."""
    send: float = 120.0
    """Handing one message to the network: the server takes it as it has memory."""
    close: float = 5.0
    """An orderly end of the stream."""
    dead_peer: int = 10
    """Until the kernel gives up a peer that acknowledges no packet, idle connections included."""


@dataclass(frozen=True, slots=True)
class SubmitResult:
    """`accepted`: observations that the server confirms, or None: it may have taken any number of them."""

    accepted: int | None
    problem: str


class _PassThrough(CodecBase):
    """Bytes as they are: messages are serialised once, where they are sealed."""

    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        assert isinstance(message, bytes)
        return message

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class Connection:
    """A channel to one address and one stream at a time on it."""

    def __init__(
        self,
        address: str,
        port: int,
        *,
        server_name: str,
        tls: ssl.SSLContext | None,
        metadata: dict[str, str],
        timeouts: Timeouts,
        clock: Clock,
    ) -> None:
        self.address = address
        self.answered_ping_at = -math.inf
        """The clock's monotonic time of the last answer to `ping`."""
        self.timeouts, self._clock = timeouts, clock
        self._metadata = metadata
        self._channel = Channel(
            address,
            port,
            codec=_PassThrough(),
            ssl=tls,
            config=Configuration(ssl_target_name_override=server_name if tls is not None else None),
        )

    async def open(self) -> None:
        """Connect. Raises `ConnectionFailedError`, and is closed then."""
        try:
            await self.guard(self._open(), self.timeouts.connect, "connecting")
        except BaseException:
            self.close()
            raise

    async def push(self) -> PushStream:
        """Open Push and wait for the server's initial metadata: a server without Push has seen nothing then.

        Raises `ConnectionFailedError`, with status UNIMPLEMENTED where the server has no Push.
        """
        stream = self._request(PUSH_METHOD, Cardinality.STREAM_STREAM)
        await self.guard(_open(stream), self.timeouts.answer, "opening Push")
        return PushStream(stream, self)

    async def submit(self, frames: Iterable[bytes], *, timeout: float) -> SubmitResult:
        """Stream observations, already framed as gRPC messages and joined at will, by the original's Submit.

        Raises `ConnectionFailedError` only where the server has processed none of them for sure.
        """
        stream = self._request(SUBMIT_METHOD, Cardinality.STREAM_UNARY)
        begun = asyncio.Event()
        try:
            count = await self.guard(_submit(stream, frames, begun), timeout, "submitting")
        except ConnectionFailedError as error:
            if not begun.is_set() or error.status in _BEFORE_ANY_HANDLER:
                raise
            return SubmitResult(None, str(error))
        return SubmitResult(count, "")

    def ping(self) -> None:
        """Ask the peer's process, not only its kernel, for a sign of life (HTTP/2 PING); does not wait.

        Raises `ConnectionFailedError`. Not for the original's server: gRPC for Go ends connections that ping
        more often than each five minutes (grpc-go, keepalive.EnforcementPolicy).
        """
        protocol = self._channel._protocol
        try:
            if protocol is None or protocol.connection.is_closing():
                raise ConnectionResetError(errno.ECONNRESET, "the connection ended")
            protocol.connection._connection.ping(b"kubenetm")  # any 8 bytes
            protocol.connection.flush()
        except Exception as error:  # as in `guard`
            raise _failure("asking for a sign of life", error) from error

    def close(self) -> None:
        """Drop the connection; whatever waits on it fails."""
        self._channel.close()

    async def _open(self) -> None:
        protocol = await self._channel.__connect__()
        if protocol.connection.is_closing():
            raise ConnectionResetError(errno.ECONNRESET, "closed by the server at once")
        protocol.processor.processors[PingAckReceived] = self._ping_answered
        _notice_dead_peers(protocol.connection._transport.get_extra_info("socket"), self.timeouts.dead_peer)

    def _ping_answered(self, _: object) -> None:
        self.answered_ping_at = self._clock.monotonic()

    def _request(self, method: str, cardinality: Cardinality) -> Stream[bytes, bytes]:
        return self._channel.request(method, cardinality, bytes, bytes, metadata=self._metadata)

    async def guard(self, work: Coroutine[Any, Any, _Result], seconds: float, doing: str) -> _Result:
        """What `work` on this connection gives. Raises `ConnectionFailedError` whatever goes wrong."""
        try:
            return await within(self._clock, seconds, work)
        except TimeoutError as error:
            if error.errno is not None:  # the kernel's
                raise _failure(doing, error) from error
            raise ConnectionFailedError(f"{doing} took longer than {seconds:g}s") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ConnectionFailedError(f"{doing}: the connection ended") from None
        except Exception as error:  # grpclib lets h2's, ssl's and its own assertions through
            raise _failure(doing, error) from error


class PushStream:
    """An open Push. `send` and `receive` may run at the same time, in different tasks."""

    def __init__(self, stream: Stream[bytes, bytes], connection: Connection) -> None:
        self._stream, self._connection = stream, connection

    async def send(self, batch: bytes) -> None:
        """Hand one serialised `FlowBatch` to the network. Raises `ConnectionFailedError`."""
        connection = self._connection
        await connection.guard(self._stream.send_message(batch), connection.timeouts.send, "sending")

    async def receive(self) -> BatchAck | None:
        """The next acknowledgement, however long it takes; None when the server ended the stream in order.

        Runs in a task that does nothing else: grpclib cancels it when the stream dies. Raises
        `ConnectionFailedError`.
        """
        try:
            message = await self._stream.recv_message()
            if message is None:
                self._stream._maybe_raise()
                return None
            return _ack(message)
        except Exception as error:  # as in Connection.guard, and what a hostile peer sends
            raise _failure("waiting for acknowledgements", _said(self._stream, error)) from error

    def left_over(self) -> list[BatchAck]:
        """The acknowledgements that have come and that `receive` did not give, once it is given up: of a
        stream that has ended badly grpclib gives nothing any more, and a server that stops ends the
        connection right behind its last answers."""
        buffer = self._stream._stream.buffer
        chunks = [chunk.data for chunk in buffer._acked]
        while not buffer._unacked.empty():
            chunks.append(memoryview(buffer._unacked.get_nowait().data))
        data, start, acks = b"".join(chunks), 0, []
        with contextlib.suppress(Exception):  # what a hostile peer sends
            while start + _PREFIX.size <= len(data):
                _, length = _PREFIX.unpack_from(data, start)
                start += _PREFIX.size + length
                if start > len(data):
                    break
                acks.append(_ack(data[start - length : start]))
        return acks

    @property
    def answered_ping_at(self) -> float:
        """The clock's monotonic time of the last answer to `ping`; -inf before the first."""
        return self._connection.answered_ping_at

    def ping(self) -> None:
        """As `Connection.ping`."""
        self._connection.ping()

    async def finish(self) -> None:
        """Say that nothing more comes; the server ends the stream. Raises `ConnectionFailedError`."""
        connection = self._connection
        await connection.guard(self._stream.end(), connection.timeouts.close, "ending the stream")


def _notice_dead_peers(sock: socket.socket, seconds: int) -> None:
    """Have the kernel probe and time out (tcp(7)): the server may hold a batch far longer than a host that is
    gone should go unnoticed."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, max(1, seconds // 2))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, seconds // 6))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, seconds * 1000)


# Statuses that a gRPC server gives before a handler of the method has run.
_BEFORE_ANY_HANDLER = frozenset({Status.UNIMPLEMENTED, Status.UNAUTHENTICATED, Status.PERMISSION_DENIED})


async def _open(stream: Stream[bytes, bytes]) -> None:
    await stream.__aenter__()
    try:
        await stream.send_request()
        await stream.recv_initial_metadata()
    except Exception as error:
        raise _said(stream, error) from error


async def _submit(stream: Stream[bytes, bytes], frames: Iterable[bytes], begun: asyncio.Event) -> int:
    try:
        async with stream:
            await stream.send_request()
            # Below grpclib's public face: its send_message costs one HTTP/2 frame and one system call a
            # message, and an observation is some 80 bytes.
            with stream._wrapper:
                for joined in frames:
                    begun.set()
                    await stream._stream.send_data(joined)
            await stream.end()
            summary = await stream.recv_message()
    except Exception as error:
        raise _said(stream, error) from error
    if summary is None:
        raise ConnectionError("the server ended the stream without a summary")
    return ObservationSummary().parse(summary).observation_count


def _ack(message: bytes) -> BatchAck:
    ack = BatchAck().parse(message)
    if len(ack.epoch) != EPOCH_BYTES:
        raise ValueError("one came that cannot be read")
    return ack


def _said(stream: Stream[bytes, bytes], error: Exception) -> Exception:
    """The status that the server gave for the stream, else `error`: grpclib may notice first what followed
    the status (a reset), or what the answer lacks (some answer an unknown method without a content type)."""
    try:
        if stream._send_request_done:
            stream._maybe_raise()
    except GRPCError as status:
        return status
    return error


def _failure(doing: str, error: Exception) -> ConnectionFailedError:
    if isinstance(error, GRPCError):
        said = f" ({error.message})" if error.message else ""
        return ConnectionFailedError(f"{doing}: the server said {error.status.name}{said}", error.status)
    if isinstance(error, OSError) and error.strerror:
        return ConnectionFailedError(f"{doing}: {error.strerror}")
    return ConnectionFailedError(f"{doing}: {str(error) or type(error).__name__}")
