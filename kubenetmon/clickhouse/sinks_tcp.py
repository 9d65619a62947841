"""A ClickHouse server over the native protocol, on asynch's connection.

Contract: asynch does the handshake, the settings and the reading of packets; the course of a request is ours:
every request reads to END_OF_STREAM, so that an exception behind Progress, Log or ProfileEvents packets is
seen; the whole of it runs under a deadline; and a connection on which anything went wrong, cancellation
included, is closed and never used again. Idle connections are kept, at most `max_idle_connections`, and
are asked for a pong before they are used again. `close` closes the idle ones; those in use close when their
request ends.

Facts on asynch 0.4.0 that this goes around: `execute()` of an INSERT reads one packet after the data; a pong
is not looked for behind other packets; zstd needs a package of its own (so frames are made by `frames` and
the server is asked to answer with lz4).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asynch.errors import ServerException
from asynch.proto import connection as asynch_connection
from asynch.proto.protocol import ServerPacket

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.frames import FRAME_BYTES, Compression, data_packet
from kubenetmon.clickhouse.sinks import (
    ClickHouseError,
    ClickHouseUnreachableError,
    Settings,
    insert_statement,
)
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import ConfigurationError

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9000
DEFAULT_TLS_PORT = 9440
_IDLE_BEFORE_PING = 1.0
_PONG_TIMEOUT = 5.0
_LATE_EXCEPTION_WAIT = 2.0
_CLIENT_NAME = "kubenetmon"


@dataclass(frozen=True, slots=True)
class TlsConfig:
    """How to speak TLS; `ca`, `certificate` and `key` are PEM files, read at every connect."""

    ca: str = ""
    certificate: str = ""
    key: str = ""
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Where and how to reach a server. Durations in seconds.

    `endpoints` are host:port, tried in turn. Files `username` and `password` in `credentials_dir` are read at
    every connect and win over `username` and `password`; a missing file is fine.
    """

    endpoints: tuple[str, ...]
    tls: TlsConfig | None = field(default_factory=TlsConfig)
    username: str = "default"
    password: str = field(default="", repr=False)
    credentials_dir: str = ""
    compression: Compression = "lz4"
    dial_timeout: float = 30.0
    request_timeout: float = 300.0
    max_idle_connections: int = 50


_AsynchConnection: Any = asynch_connection.Connection
"""Untyped, because asynch's stubs leave out most of what is used here."""


class _Connection(_AsynchConnection):  # type: ignore[misc]
    """asynch's connection with a TLS context of ours."""

    def __init__(self, tls: ssl.SSLContext | None, **options: Any) -> None:
        super().__init__(secure=tls is not None, **options)
        self._tls = tls
        self.idle_since = 0.0
        self.credentials = (options["user"], options["password"])

    def _get_ssl_context(self) -> ssl.SSLContext | None:
        return self._tls


class TcpSink:
    """A `Sink` on a ClickHouse server.

    Construction is inert; raises `ConfigurationError` for bad endpoints.
    """

    def __init__(self, config: TcpConfig, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self._config = config
        self._clock = clock
        default_port = DEFAULT_TLS_PORT if config.tls else DEFAULT_PORT
        self._hosts = [_host_and_port(endpoint, default_port) for endpoint in config.endpoints]
        if not self._hosts:
            raise ConfigurationError("clickhouse_endpoint is empty; give host:port or chdb:PATH")
        self._idle: list[_Connection] = []
        self._closed = False

    @property
    def address(self) -> str:
        return ",".join(self._config.endpoints)

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []

        def take(packet: Any) -> None:
            if packet.type == ServerPacket.DATA and packet.block.num_columns and packet.block.num_rows:
                rows.extend(tuple(_plain(value) for value in row) for row in packet.block.get_rows())

        async def request(connection: _Connection) -> None:
            await _begin(connection, sql, settings or {})
            await _write(connection, data_packet(0, 0, b"", self._config.compression))
            await _read_to_end(connection, take)

        await self._request(request)
        return rows

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        if not block.rows:
            return
        compression = self._config.compression
        end = data_packet(0, 0, b"", compression)

        def encoded() -> list[bytes]:
            return data_packet(len(block.columns), block.rows, block.body, compression)

        # Compression releases the interpreter lock: a large block does not hold up the event loop.
        large = len(block.body) > FRAME_BYTES // 4 and compression != "none"
        packet = await asyncio.to_thread(encoded) if large else encoded()
        statement = f"{insert_statement(database, table, block)} FORMAT Native"

        async def request(connection: _Connection) -> None:
            await _begin(connection, statement, {**settings, "insert_deduplication_token": token})
            await _write(connection, end)
            await _read_sample_block(connection)
            await _write_and_read_to_end(connection, [*packet, *end])

        await self._request(request)

    async def ping(self) -> None:
        async def request(connection: _Connection) -> None:
            if not await connection.ping():
                raise ConnectionError("no pong")

        await self._request(request)

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await _discard(connection)

    async def _request(self, work: Callable[[_Connection], Any]) -> None:
        try:
            async with asyncio.timeout(self._config.request_timeout):
                connection = await self._acquire()
                try:
                    await work(connection)
                except BaseException:
                    await _discard(connection)
                    raise
        except (ClickHouseError, ClickHouseUnreachableError, ConfigurationError):
            raise
        except ServerException as error:
            raise _server_error(error) from None
        except TimeoutError:
            raise ClickHouseUnreachableError(
                f"{self.address} did not answer within {self._config.request_timeout:g}s"
            ) from None
        except Exception as error:  # noqa: BLE001 - asynch meets garbage with any exception at all
            raise ClickHouseUnreachableError(f"{self.address}: {_reason(error)}") from None
        if self._closed or len(self._idle) >= self._config.max_idle_connections:
            await _discard(connection)
        else:
            connection.idle_since = self._clock.monotonic()
            self._idle.append(connection)

    async def _acquire(self) -> _Connection:
        if self._closed:
            raise ClickHouseUnreachableError(f"{self.address} is closed")
        credentials = self._credentials()
        while self._idle:
            connection = self._idle.pop()
            fresh = connection.credentials == credentials and not _closed_by_peer(connection)
            if fresh and self._clock.monotonic() - connection.idle_since < _IDLE_BEFORE_PING:
                return connection
            try:
                async with asyncio.timeout(_PONG_TIMEOUT):
                    if fresh and await connection.ping():
                        return connection
            except Exception:  # noqa: BLE001 - however it fails, it is of no use any more
                logger.debug("An idle connection to %s has died", self.address)
            except BaseException:
                await _discard(connection)
                raise
            await _discard(connection)
        return await self._connect(credentials)

    async def _connect(self, credentials: tuple[str, str]) -> _Connection:
        config = self._config
        tls = _tls_context(config.tls) if config.tls else None
        reasons = []
        for host, port in self._hosts:
            connection = _Connection(
                tls,
                host=host,
                port=port,
                user=credentials[0],
                password=credentials[1],
                database="",
                client_name=_CLIENT_NAME,
                # The deadlines are ours: asynch's use asyncio.wait_for, which in Python 3.11 may swallow a
                # cancellation.
                connect_timeout=None,
                send_receive_timeout=None,
                sync_request_timeout=None,
                compression=False if config.compression == "none" else "lz4",
            )
            try:
                async with asyncio.timeout(config.dial_timeout):
                    await connection._init_connection(host, port)
            except BaseException as error:
                await _discard(connection)
                if isinstance(error, ServerException) or not isinstance(error, Exception):
                    raise
                reasons.append(f"{host}:{port}: {_reason(error)}")
                continue
            _watch_for_silence(connection)
            return connection
        raise ClickHouseUnreachableError(f"cannot connect to ClickHouse: {'; '.join(reasons)}")

    def _credentials(self) -> tuple[str, str]:
        directory = self._config.credentials_dir
        return (
            _secret(directory, "username", self._config.username),
            _secret(directory, "password", self._config.password),
        )


async def _begin(connection: _Connection, sql: str, settings: Settings) -> None:
    # The answer's compression is a setting of the server; asynch reads lz4 without further packages.
    connection.make_query_settings({"network_compression_method": "LZ4", **settings})
    await connection.send_query(sql)


async def _write(connection: _Connection, pieces: list[bytes]) -> None:
    stream = connection.writer.writer
    for piece in pieces:
        stream.write(piece)
        await stream.drain()


async def _read_sample_block(connection: _Connection) -> None:
    while True:
        packet = await connection._receive_packet()
        if packet.type == ServerPacket.DATA:
            return
        if packet.type == ServerPacket.EXCEPTION:
            raise packet.exception
        if packet.type == ServerPacket.END_OF_STREAM:
            raise ConnectionError("the server ended the INSERT before it took the data")


async def _read_to_end(connection: _Connection, take: Callable[[Any], None]) -> None:
    while True:
        packet = await connection._receive_packet()
        if packet.type == ServerPacket.END_OF_STREAM:
            return
        if packet.type == ServerPacket.EXCEPTION:
            raise packet.exception
        take(packet)


async def _write_and_read_to_end(connection: _Connection, pieces: list[bytes]) -> None:
    """Listen while writing: a server that refuses in the middle of the data says why and then may close."""
    reading = asyncio.create_task(_read_to_end(connection, lambda packet: None))
    writing = asyncio.create_task(_write(connection, pieces))
    try:
        await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
        if not reading.done() and writing.exception() is not None:
            await asyncio.wait([reading], timeout=_LATE_EXCEPTION_WAIT)
        if not reading.done():
            writing.result()
        await reading
    finally:
        for task in (reading, writing):
            task.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)


def _closed_by_peer(connection: _Connection) -> bool:
    stream = connection.writer.writer
    return bool(stream.transport.is_closing() or connection.reader.reader.at_eof())


async def _discard(connection: _Connection) -> None:
    """Close at once, without waiting for the peer."""
    stream = connection.writer.writer if connection.writer is not None else None
    connection.reset_state()
    if stream is not None:
        stream.transport.abort()


def _watch_for_silence(connection: _Connection) -> None:
    """Let the kernel find out about a peer that is gone without a word."""
    plain: socket.socket = connection.writer.writer.get_extra_info("socket")
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)


def _tls_context(config: TlsConfig) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=config.ca or None)
    except OSError as error:
        raise ConfigurationError(f"clickhouse_ca {config.ca}: {_reason(error)}") from None
    if config.insecure_skip_verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if config.certificate:
        try:
            context.load_cert_chain(config.certificate, config.key or None)
        except OSError as error:
            raise ConfigurationError(f"clickhouse_cert {config.certificate}: {_reason(error)}") from None
    return context


def _secret(directory: str, name: str, default: str) -> str:
    if not directory:
        return default
    try:
        return (Path(directory) / name).read_text("utf-8").strip("\r\n")
    except FileNotFoundError:
        return default
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{directory}/{name} cannot be read: {_reason(error)}") from None


def _host_and_port(endpoint: str, default_port: int) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        host, port = endpoint, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"clickhouse_endpoint {endpoint!r} is not host:port")
    return host, int(port)


def _server_error(error: ServerException) -> ClickHouseError:
    while error.nested is not None:
        error = error.nested
    return ClickHouseError(int(error.code or 0), str(error.message))


def _reason(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(one) for one in value)
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return str(value)
