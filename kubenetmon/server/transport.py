"""HTTP/2 connections of agents: grpclib with bounds.

Contract: `GrpcServer` owns the listening socket and the connections; the receiver owns the server, calls
`sweep` about once a second, and `close_all` at the end. Whatever a peer sends, an exception never leaves this
module: the connection is closed and one line is logged.

What is added to grpclib, and why:
- a receive buffer that hands out bytes in bulk, opens HTTP/2's windows by what memory was reserved for, and
  can be stopped between messages (grpclib's reads message by message, and takes an empty DATA frame for the
  end of the stream);
- neighbouring small DATA frames are joined before the HTTP/2 stack, which pays per frame, sees them (a Go
  client sends one per message);
- unknown frame types are ignored as RFC 9113 section 4.1 demands (grpclib raises);
- limits on connections, streams, frames that carry nothing, and unread replies;
- a maximum age, after which a connection ends in order: streams finish, then GOAWAY, then it closes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import h2.config
from grpclib.config import Configuration
from grpclib.const import Handler as RpcHandler
from grpclib.encoding.proto import ProtoCodec
from grpclib.protocol import EventsProcessor, H2Protocol
from grpclib.protocol import Stream as HttpStream
from grpclib.server import Handler, Server
from h2.connection import H2Connection
from h2.events import DataReceived, Event, UnknownFrameReceived
from h2.exceptions import H2Error
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, SettingsFrame

from kubenetmon._observations import ffi, lib
from kubenetmon.clock import Clock
from kubenetmon.server.doorway import Doorway
from kubenetmon.server.flood import FrameAllowance, MemoryBudget, Pace, PeerBudgets
from kubenetmon.server.receive_buffer import ReceiveBuffer
from kubenetmon.server.refusals import Refusals

logger = logging.getLogger(__name__)

PREFACE_BYTES = 24
"""Length of what an HTTP/2 client sends first (RFC 9113 section 3.4)."""

MAX_FRAME_BYTES = 1 << 16
"""The largest frame a peer may send: four times HTTP/2's default, since the stack's cost is by the frame."""

MAX_UNREAD_REPLIES = 1 << 20
"""Bytes a peer may leave unread before it is dropped."""

FIRST_REQUEST_WITHIN = 20.0
"""Seconds in which a new connection must bring a request that is accepted."""

GOAWAY_AFTER = 10.0
"""Seconds an aged connection may go on opening streams before it is told not to."""

ABORT_AFTER = 60.0
"""Seconds after which a connection that was asked to end is cut."""


def _size_in_words(self: Frame) -> str:
    return f"{self.body_len} bytes"


# h2 4.4 puts each frame that comes into words for a log that nobody keeps, its data in hexadecimal digits.
DataFrame._body_repr = _size_in_words  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What the server allows its peers; seconds and bytes."""

    max_connections: int
    max_connections_per_address: int
    max_streams_per_connection: int
    batch_burst: int
    batches_per_second: float
    max_connection_age: float
    window_bytes: int
    stream_window_bytes: int


class StreamHandler(Handler):
    """Turns HTTP/2 requests of one connection into calls of our RPCs."""

    connection: AgentConnection

    def accept(
        self, stream: HttpStream, headers: list[tuple[str, str]], release_stream: Callable[[], Any]
    ) -> None:
        """Begin a request. One without method or path is reset; binary metadata, of which we use none, is
        dropped, because grpclib answers what it cannot decode with a traceback."""
        names = {name for name, _ in headers}
        if not names >= {":method", ":path"}:
            release_stream()
            stream.reset_nowait()
            return
        buffer = ReceiveBuffer(self.connection, stream, self.connection.window)
        stream.buffer = buffer
        self.connection.streams.add(buffer)

        def release() -> None:
            if buffer in self.connection.streams:
                release_stream()
                self.connection.stream_ended(buffer)

        super().accept(stream, [item for item in headers if not item[0].endswith("-bin")], release)
        # Reset in the same read, the request's task ends before its first step and releases nothing.
        self._tasks[stream].add_done_callback(lambda _: release())

    def cancel(self, stream: HttpStream) -> None:
        """The peer reset the stream."""
        if stream in self._tasks:
            super().cancel(stream)


class _Processor(EventsProcessor):
    def __init__(self, handler: StreamHandler, connection: AgentConnection) -> None:
        super().__init__(handler, connection.connection)
        self._connection = connection

    def process(self, event: Event) -> None:
        if isinstance(event, UnknownFrameReceived):
            return
        if isinstance(event, DataReceived) and event.stream_id not in self.streams:
            # Sent to a request that was answered meanwhile.
            self._connection.balance_window(-(event.flow_controlled_length or 0))
            return
        super().process(event)


class AgentConnection(H2Protocol):
    """One peer's connection."""

    def __init__(self, handler: StreamHandler, server: GrpcServer) -> None:
        super().__init__(handler, server.grpclib_config, server.h2_config)
        self.streams: set[ReceiveBuffer] = set()
        self.peer = self.address = "?"
        self.carried_rpc = False
        self.window = server.limits.stream_window_bytes
        self.memory: MemoryBudget
        """This connection's, from when it is admitted."""
        self.pace = Pace(burst=server.limits.batch_burst, per_second=server.limits.batches_per_second)
        self._surplus = 0
        self._server = server
        self._clock = server.clock
        self._transport: asyncio.Transport | None = None
        self._preface_left = PREFACE_BYTES
        self._rest = b""
        now = self._clock.monotonic()
        self._allowance = FrameAllowance(now, burst=500, per_second=100.0, bytes_per_frame=512)
        # Spread over ±10 %, as gRPC servers do, so that agents do not all move at once.
        self._expires_at = now + server.limits.max_connection_age * random.uniform(0.9, 1.1)  # noqa: S311
        self._idle_at = now + FIRST_REQUEST_WITHIN
        self._drain_since: float | None = None
        self._told_to_go = False

    @property
    def draining(self) -> bool:
        """Whether the connection was asked to end."""
        return self._drain_since is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set up HTTP/2, or refuse where there are too many connections."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by class
        address = transport.get_extra_info("peername")
        if isinstance(address, tuple):
            self.peer, self.address = f"{address[0]}:{address[1]}", str(address[0])
        if not self._server.admit(self):
            transport.abort()
            return
        self._transport = transport
        super().connection_made(transport)
        self.processor = _Processor(cast(StreamHandler, self.handler), self)
        self._h2.update_settings(
            {
                SettingCodes.MAX_CONCURRENT_STREAMS: self._server.limits.max_streams_per_connection,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            }
        )
        # From the start: h2 applies the peer's acknowledgement only after the frames that came along with it.
        self._h2.max_inbound_frame_size = MAX_FRAME_BYTES
        self.connection.flush()
        # Past h2, which would hold peers to it before they know: it takes the acknowledgement of any settings
        # for that of all. A peer that sends before it has read this may leave `window_bytes` unread.
        transport.write(
            SettingsFrame(0, settings={SettingCodes.INITIAL_WINDOW_SIZE: self.window}).serialize()
        )

    def data_received(self, data: bytes) -> None:
        """Bytes from the peer: joined, counted, then given to the HTTP/2 stack."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        try:
            data, overhead = self._join(data)
            if not self._allowance.spend(overhead, len(data), self._clock.monotonic()):
                self.cut("sent a flood of HTTP/2 frames that carry nothing")
                return
            if data:
                super().data_received(data)
        except Exception as error:  # noqa: BLE001 - whatever hostile bytes bring about ends here
            self.cut(f"sent HTTP/2 that cannot be processed ({type(error).__name__})")
            return
        if not transport.is_closing() and transport.get_write_buffer_size() > MAX_UNREAD_REPLIES:
            self.cut("does not read its replies")

    def connection_lost(self, exc: BaseException | None) -> None:
        """The connection is gone: its requests are cancelled."""
        self._server.forget(self)
        if self._transport is not None:
            super().connection_lost(exc)
        self._transport = None

    def drain(self, *, everything: bool = False) -> None:
        """Ask streams that can to end in order, all of them when `everything`, then close."""
        if self._drain_since is None:
            self._drain_since = self._clock.monotonic()
        for buffer in list(self.streams):
            if everything or buffer in self._server.stoppable:
                buffer.stop()
        if not self.streams:
            self.say_goodbye()

    def stream_ended(self, buffer: ReceiveBuffer) -> None:
        """A request has been answered; the last one of an ending connection closes it."""
        self.streams.discard(buffer)
        self._server.stoppable.discard(buffer)
        if self.draining and not self.streams:
            self.say_goodbye()

    def open_window(self, stream: HttpStream, size: int) -> None:
        """Let the peer send so many bytes more on that stream."""
        if self.connection.is_closing() or stream.id is None:
            return
        with contextlib.suppress(H2Error):  # the stream was reset a moment ago
            self._h2.increment_flow_control_window(size, stream.id)
        self.balance_window(-size)
        self.connection.flush()

    def balance_window(self, surplus: int) -> None:
        """A stream has had so many bytes more of the connection's window than it used; less, if negative."""
        self._surplus += surplus
        if self._surplus < 0 and not self.connection.is_closing():
            with contextlib.suppress(H2Error):
                self._h2.increment_flow_control_window(-self._surplus)
            self._surplus = 0
            self.connection.flush()

    def say_goodbye(self) -> None:
        """GOAWAY without error, then close once it is sent."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        self._h2.close_connection()
        transport.write(self._h2.data_to_send())
        transport.close()

    def cut(self, reason: str) -> None:
        """Close at once, because of what the peer did."""
        if self._transport is not None:
            logger.warning("Closed the connection from %s: it %s", self.peer, reason)
            self._transport.abort()

    def abort(self) -> None:
        """Close at once and say nothing."""
        if self._transport is not None:
            self._transport.abort()

    def sweep(self, now: float) -> None:
        """What time demands of this connection at monotonic second `now`."""
        if not self.carried_rpc and now >= self._idle_at:
            self._server.turn_away(self)
            return
        if self._drain_since is None:
            if now >= self._expires_at:
                self.drain()
            return
        waited = now - self._drain_since
        if self._transport is None:
            return
        if waited >= ABORT_AFTER:
            self._transport.abort()
        elif waited < GOAWAY_AFTER or self._told_to_go or self._server.stopping:
            # A server that stops refuses new streams one by one: to grpclib's clients any GOAWAY is the end
            # of all streams, and they would not hear what is handed back to them.
            return
        elif not self._transport.is_closing():
            # Streams that run may finish, new ones go elsewhere (RFC 9113 section 6.8). h2 itself can only
            # send the GOAWAY that ends everything.
            self._told_to_go = True
            self._transport.write(GoAwayFrame(0, last_stream_id=2**31 - 1, error_code=0).serialize())

    @property
    def _h2(self) -> H2Connection:
        return self.connection._connection

    def _join(self, data: bytes) -> tuple[bytes, int]:
        """Whole frames of what has arrived, small DATA frames joined, and how many are not plain DATA."""
        head = b""
        if self._preface_left:
            head, data = data[: self._preface_left], data[self._preface_left :]
            self._preface_left -= len(head)
        if not data:
            return head, 0
        data = self._rest + data if self._rest else data
        output = bytearray(len(data))
        consumed, others = ffi.new("size_t *"), ffi.new("uint32_t *")
        written = lib.http2_join_data(
            ffi.from_buffer(data), len(data), ffi.from_buffer(output), MAX_FRAME_BYTES, consumed, others
        )
        self._rest = data[consumed[0] :]
        del output[written:]
        return head + output if head else bytes(output), int(others[0])


class GrpcServer(Server):
    """The listening socket and its connections."""

    def __init__(
        self,
        mapping: Mapping[str, RpcHandler],
        limits: TransportLimits,
        *,
        memory: PeerBudgets,
        clock: Clock,
        connections_changed: Callable[[], None],
        refusals: Refusals,
        doorway: Doorway | None = None,
    ) -> None:
        """`doorway`: does TLS before HTTP/2 begins; None: plain text."""
        config = Configuration(
            http2_connection_window_size=limits.window_bytes, http2_stream_window_size=limits.window_bytes
        )
        super().__init__([], codec=ProtoCodec(), config=config)
        self._mapping = dict(mapping)
        self.limits = limits
        self.memory = memory
        self.clock = clock
        self.connections: dict[AgentConnection, None] = {}
        """In the order they came."""
        self.stoppable: set[ReceiveBuffer] = set()
        self._connections_changed = connections_changed
        self._refusals = refusals
        self._doorway = doorway
        self.stopping = False
        """Whether it listens no more."""
        self.accepted = 0
        self._refused = 0

    @property
    def grpclib_config(self) -> Configuration:
        """With grpclib's defaults for servers."""
        return self._config

    @property
    def h2_config(self) -> h2.config.H2Configuration:
        """What the HTTP/2 stack is told."""
        return self._h2_config

    @property
    def port(self) -> int:
        """The port that is listened on."""
        assert self._server is not None
        sockets: Sequence[socket.socket] = self._server.sockets  # type: ignore[attr-defined]  # uvloop's too
        return int(sockets[0].getsockname()[1])

    def stop_listening(self) -> None:
        """No new connections; those that exist go on."""
        self.stopping = True
        if self._server is not None:
            self._server.close()

    def admit(self, connection: AgentConnection) -> bool:
        """Whether there is room for one more connection, of all and of its address's.

        Where there is none, the oldest that carried no request makes it: of its own address where that has
        all it may.
        """
        most_of_address = self.limits.max_connections_per_address
        address_is_full = self.memory.connections(connection.address) >= most_of_address
        if address_is_full or len(self.connections) >= self.limits.max_connections:
            self._make_room(connection.address if address_is_full else None)
        of_address = self.memory.connections(connection.address)
        if len(self.connections) >= self.limits.max_connections or of_address >= most_of_address:
            self._refused += 1
            if self._refused & (self._refused - 1) == 0:
                logger.warning(
                    "Refused %d connections so far, the last from %s: %d are open (%d may), of them %d from "
                    "that address (%d may)",
                    self._refused,
                    connection.peer,
                    len(self.connections),
                    self.limits.max_connections,
                    of_address,
                    most_of_address,
                )
            return False
        connection.memory = self.memory.open(connection.address)
        self.connections[connection] = None
        self.accepted += 1
        return True

    def _make_room(self, address: str | None) -> None:
        idle = (
            one
            for one in self.connections
            if not one.carried_rpc and (address is None or one.address == address)
        )
        oldest = next(idle, None)
        if oldest is not None:
            self.turn_away(oldest)

    def turn_away(self, connection: AgentConnection) -> None:
        """End a connection that does nothing."""
        self._refusals.count("idle", connection.peer, "it asked for nothing after connecting")
        self.forget(connection)
        connection.abort()

    def forget(self, connection: AgentConnection) -> None:
        """A connection is gone, if it was one of ours."""
        if connection not in self.connections:
            return
        del self.connections[connection]
        self.memory.close(connection.address)
        self.stoppable.difference_update(connection.streams)
        self._connections_changed()

    def stop_when_draining(self, buffer: ReceiveBuffer) -> None:
        """Mark a stream as one that loses nothing when reading is stopped between its messages."""
        buffer.connection.carried_rpc = True
        self._connections_changed()
        self.stoppable.add(buffer)
        if buffer.connection.draining:
            buffer.stop()

    def sweep(self) -> None:
        """Close what is too old or too slow to close by itself."""
        now = self.clock.monotonic()
        for connection in list(self.connections):
            connection.sweep(now)
        self.memory.sweep()

    async def close_all(self) -> None:
        """Cut every connection, wait for the requests' tasks to end."""
        if self._doorway is not None:
            self._doorway.close()
        for connection in list(self.connections):
            connection.say_goodbye()
        await asyncio.sleep(0)
        self.close()
        await self.wait_closed()

    def _protocol_factory(self) -> asyncio.Protocol:  # type: ignore[override]
        return self._connection() if self._doorway is None else self._doorway.enter(self._connection)

    def _connection(self) -> AgentConnection:
        self.__gc_step__()
        handler = StreamHandler(self._mapping, self._codec, self._status_details_codec, self.__dispatch__)
        self._handlers.add(handler)
        connection = AgentConnection(handler, self)
        handler.connection = connection
        return connection
