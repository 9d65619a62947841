"""One connection to a ClickHouse server: asynch's handshake, settings and packets, and a course of our own.

Contract: who holds a connection calls one request after the other, under a deadline of their own, and
`discard`s it after anything went wrong, cancellation included; a connection is never used again after that.
Beyond that deadline every packet read and every piece written has a limit of its own, in time and in size
(`received`).

Facts on asynch 0.4.0 that this goes around: `execute()` of an INSERT reads one packet after the data, so that
an exception behind a Progress, Log or ProfileEvents packet looks like success; its deadlines use
asyncio.wait_for, which in Python 3.11 may swallow a cancellation; its zstd needs a package of its own (so
frames are made and unpacked by `frames`). A question goes out with no setting that its caller does not name:
a user whose profile says `readonly = 1` may change none.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from asynch.errors import ServerException
from asynch.proto import connection as asynch_connection
from asynch.proto.protocol import ServerPacket

from kubenetmon.clickhouse.native import Piece
from kubenetmon.clickhouse.received import (
    Allowance,
    BoundedBlocks,
    BoundedFrames,
    BoundedReader,
    read_exception,
)
from kubenetmon.clickhouse.sinks import Settings
from kubenetmon.errors import ConfigurationError

_LATE_EXCEPTION_WAIT = 2.0
_BREATH_PACKETS = 64
_CLIENT_NAME = "kubenetmon"
_AsynchConnection: Any = asynch_connection.Connection
"""Untyped, because asynch's stubs leave out most of what is used here."""


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How to speak TLS; `ca`, `certificate` and `key` are PEM files, read at every connect."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    insecure_skip_verify: bool = False


class ServerConnection(_AsynchConnection):  # type: ignore[misc]
    """A connection that is not yet open.

    `credentials` are the user's name and password, `silence` the seconds that a packet may take to come, or a
    piece to go, `most_values` what one answer may have.
    """

    reader: Any

    def __init__(
        self,
        host: str,
        port: int,
        credentials: tuple[str, str],
        tls: ssl.SSLContext | None,
        compressed: bool,
        silence: float,
        most_values: int,
    ) -> None:
        super().__init__(
            host=host,
            port=port,
            user=credentials[0],
            password=credentials[1],
            database="",
            client_name=_CLIENT_NAME,
            connect_timeout=None,
            send_receive_timeout=None,
            sync_request_timeout=None,
            compression="lz4" if compressed else False,
            secure=tls is not None,
        )
        self._tls = tls
        self._silence = silence
        self._allowance = Allowance(most_values)
        self.credentials = credentials
        self.idle_since = 0.0

    def _get_ssl_context(self) -> ssl.SSLContext | None:
        return self._tls

    async def open(self) -> None:
        """Connect and shake hands; raises `ServerException` where the server refuses the user."""
        self._allowance.begin_message()
        await self._init_connection(*self.hosts[0])
        self.block_reader_raw = BoundedBlocks(self.reader, self.writer, self.context, self._allowance)
        # Let the kernel find out about a peer that is gone without a word.
        plain: socket.socket = self.writer.writer.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)

    def get_block_reader(self) -> BoundedBlocks:
        """asynch asks for it once the stream is there and nothing was read: the moment to bound it."""
        plain = BoundedReader(self.reader.reader, self._allowance)
        self.reader = plain
        source = BoundedFrames(plain, self._allowance) if self.compression else plain
        return BoundedBlocks(source, self.writer, self.context, self._allowance)

    async def read_exception(self, additional_message: str | None = None) -> ServerException:
        """What the server has to say, without what it wraps."""
        return await read_exception(self.reader)

    def log_block(self, block: Any) -> None:
        """Log lines of the server, which nobody asked for."""

    async def ping(self) -> bool:
        """Whether the server answers."""
        self._allowance.begin_message()
        return bool(await super().ping())

    def closed_by_peer(self) -> bool:
        """True when the end of the connection has been seen already."""
        return bool(self.writer.writer.transport.is_closing() or self.reader.reader.at_eof())

    async def discard(self) -> None:
        """Close at once, without waiting for the peer."""
        stream = self.writer.writer if self.writer is not None else None
        self.reset_state()
        if stream is not None:
            stream.transport.abort()

    async def begin(self, sql: str, settings: Settings) -> None:
        """Send a query; data or its end must follow."""
        self._allowance.begin_request()
        self.make_query_settings(settings)
        await self.send_query(sql)

    async def write(self, pieces: list[Piece]) -> None:
        """Write pieces no faster than the peer takes them."""
        stream = self.writer.writer
        for piece in pieces:
            async with asyncio.timeout(self._silence):
                stream.write(piece)
                await stream.drain()

    async def _packet(self) -> Any:
        if self._allowance.begin_packet() % _BREATH_PACKETS == 0:
            await asyncio.sleep(0)  # reading what is there already never lets others run
        async with asyncio.timeout(self._silence):
            return await self._receive_packet()

    async def read_sample_block(self) -> None:
        """Read up to the block that says which columns an INSERT takes; raises the server's exception."""
        while True:
            packet = await self._packet()
            if packet.type == ServerPacket.DATA:
                return
            if packet.type == ServerPacket.EXCEPTION:
                raise packet.exception
            if packet.type == ServerPacket.END_OF_STREAM:
                raise ConnectionError("the server ended the INSERT before it took the data")

    async def read_to_end(self, take: Callable[[Any], None] = lambda packet: None) -> None:
        """Read to END_OF_STREAM, handing packets to `take`; raises the server's exception."""
        while True:
            packet = await self._packet()
            if packet.type == ServerPacket.END_OF_STREAM:
                return
            if packet.type == ServerPacket.EXCEPTION:
                raise packet.exception
            take(packet)

    async def write_and_read_to_end(self, pieces: list[Piece]) -> None:
        """Listen while writing: a server that refuses in the middle of the data says why, then may close."""
        reading = asyncio.create_task(self.read_to_end())
        writing = asyncio.create_task(self.write(pieces))
        try:
            await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
            if not reading.done() and writing.exception() is not None:
                await asyncio.wait([reading], timeout=_LATE_EXCEPTION_WAIT)
            if not reading.done():
                writing.result()
            await reading
            if not writing.done():
                raise ConnectionError("the server ended the INSERT before it took all data")
            writing.result()
        finally:
            for task in (reading, writing):
                task.cancel()
            await asyncio.gather(reading, writing, return_exceptions=True)


def tls_context(config: TlsConfig) -> ssl.SSLContext:
    """The context that the files make now; raises `ConfigurationError` naming the key of a bad one."""
    try:
        context = ssl.create_default_context(cafile=config.ca or None)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"clickhouse_ca {config.ca}: {reason(error)}") from None
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.certificate:
        try:
            # An empty password, or OpenSSL would ask for one on the terminal.
            context.load_cert_chain(config.certificate, config.key or None, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"clickhouse_cert {config.certificate}: {reason(error)}") from None
    return context


def reason(error: BaseException) -> str:
    """Why a connection failed, in words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
