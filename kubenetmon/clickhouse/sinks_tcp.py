"""A ClickHouse server over the native protocol.

Contract: a request runs under one deadline, each of its reads and writes under a shorter one, and reads to
END_OF_STREAM; a connection on which anything went wrong, cancellation included, is closed and never used
again. Of several servers the first that can be reached is used; one that fails, or says that it cannot now
(read-only, overloaded, no Keeper), goes to the end of the row. Idle connections are kept, at most
`max_idle_connections`, and asked for a pong before they are used again. Credentials and TLS files are read
at every connect; connections with other credentials than those are not used again. `close` closes the idle
ones; those in use close when their request ends.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from asynch.errors import ServerException
from asynch.proto.protocol import ServerPacket

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.connection import ServerConnection, TlsConfig, reason, tls_context
from kubenetmon.clickhouse.failures import needs_an_operator
from kubenetmon.clickhouse.frames import FRAME_BYTES, Compression, data_packet
from kubenetmon.clickhouse.native import Piece
from kubenetmon.clickhouse.sinks import (
    ClickHouseError,
    ClickHouseUnreachableError,
    Settings,
    insert_statement,
)
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import ConfigurationError

__all__ = ["TcpConfig", "TcpSink", "TlsConfig"]

logger = logging.getLogger(__name__)

DEFAULT_PORT = 9000
DEFAULT_TLS_PORT = 9440
_IDLE_BEFORE_PING = 1.0
_PONG_TIMEOUT = 5.0
_SHORTEST_SECRET = 4

MOST_VALUES = 2_000_000
"""Of one answer: far more than a server asks for."""


@dataclass(frozen=True, slots=True)
class TcpConfig:
    """Where and how to reach a server. Durations in seconds.

    `silence` is how long the server may leave a read or a write waiting, `most_values` what one answer may
    have (some 120 bytes each at most). `endpoints` are host:port, tried in turn. Files `username` and
    `password` in `credentials_dir` are read at every connect and win over `username` and `password`; a
    missing file is fine.
    """

    endpoints: tuple[str, ...]
    tls: TlsConfig | None = field(default_factory=TlsConfig)
    username: str = "default"
    password: str = field(default="", repr=False)
    credentials_dir: str = ""
    compression: Compression = "lz4"
    dial_timeout: float = 30.0
    request_timeout: float = 300.0
    silence: float = 60.0
    max_idle_connections: int = 50
    most_values: int = MOST_VALUES


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
        self._idle: list[ServerConnection] = []
        self._closed = False
        self._password = ""

    @property
    def address(self) -> str:
        return ",".join(self._config.endpoints)

    @property
    def servers(self) -> int:
        return len(self._hosts)

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = []

        def take(packet: Any) -> None:
            if packet.type == ServerPacket.DATA and packet.block.num_columns and packet.block.num_rows:
                rows.extend(tuple(_plain(value) for value in row) for row in packet.block.get_rows())

        async def request(connection: ServerConnection) -> None:
            await connection.begin(sql, settings or {})
            await connection.write(data_packet(0, 0, b"", self._config.compression))
            await connection.read_to_end(take)

        await self._request(request)
        return rows

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        if not block.rows:
            return
        compression = self._config.compression
        end = data_packet(0, 0, b"", compression)

        def encoded() -> list[Piece]:
            return data_packet(len(block.columns), block.rows, block.body, compression)

        # Compression releases the interpreter lock: a large block does not hold up the event loop.
        large = len(block.body) > FRAME_BYTES // 4 and compression != "none"
        packet = await asyncio.to_thread(encoded) if large else encoded()
        statement = f"{insert_statement(database, table, block)} FORMAT Native"
        before_rows = True

        async def request(connection: ServerConnection) -> None:
            nonlocal before_rows
            await connection.begin(statement, {**settings, "insert_deduplication_token": token})
            await connection.write(end)
            await connection.read_sample_block()
            before_rows = False
            await connection.write_and_read_to_end([*packet, *end])

        try:
            await self._request(request)
        except (ClickHouseError, ClickHouseUnreachableError) as error:
            error.before_rows = before_rows
            raise

    async def ping(self) -> None:
        async def request(connection: ServerConnection) -> None:
            if not await connection.ping():
                raise ConnectionError("no pong")

        await self._request(request)

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.discard()

    async def _request(self, work: Callable[[ServerConnection], Coroutine[Any, Any, None]]) -> None:
        host = self._hosts[0]
        try:
            async with asyncio.timeout(self._config.request_timeout):
                connection = await self._acquire()
                host = connection.hosts[0]
                try:
                    await work(connection)
                except BaseException:
                    await connection.discard()
                    raise
        except (ClickHouseError, ClickHouseUnreachableError, ConfigurationError):
            raise
        except ServerException as error:
            refused = ClickHouseError(int(error.code or 0), self._unquoted(str(error.message)))
            if not needs_an_operator(refused):
                await self._put_last(host)
            raise refused from None
        except TimeoutError:
            await self._put_last(host)
            limit = min(self._config.request_timeout, self._config.silence)
            raise ClickHouseUnreachableError(f"{self.address} did not answer within {limit:g}s") from None
        except Exception as error:  # noqa: BLE001 - asynch meets garbage with any exception at all
            await self._put_last(host)
            raise ClickHouseUnreachableError(f"{self.address}: {self._unquoted(reason(error))}") from None
        if self._closed or len(self._idle) >= self._config.max_idle_connections:
            await connection.discard()
        else:
            connection.idle_since = self._clock.monotonic()
            self._idle.append(connection)

    def _unquoted(self, said: str) -> str:
        """A server's words, without the password that it may repeat."""
        return said.replace(self._password, "…") if len(self._password) >= _SHORTEST_SECRET else said

    async def _put_last(self, host: tuple[str, int]) -> None:
        """To the end of the row, if it is the first still: many requests fail together."""
        if len(self._hosts) < 2:
            return
        if self._hosts[0] == host:
            self._hosts.append(self._hosts.pop(0))
        of_host = [connection for connection in self._idle if connection.hosts[0] == host]
        self._idle = [connection for connection in self._idle if connection.hosts[0] != host]
        for connection in of_host:
            await connection.discard()

    async def _acquire(self) -> ServerConnection:
        if self._closed:
            raise ClickHouseUnreachableError(f"{self.address} is closed")
        self._password = (credentials := self._credentials())[1]
        while self._idle:
            connection = self._idle.pop()
            fresh = connection.credentials == credentials and not connection.closed_by_peer()
            if fresh and self._clock.monotonic() - connection.idle_since < _IDLE_BEFORE_PING:
                return connection
            try:
                async with asyncio.timeout(_PONG_TIMEOUT):
                    if fresh and await connection.ping():
                        return connection
            except Exception:  # noqa: BLE001 - however it fails, it is of no use any more
                logger.debug("An idle connection to %s has died", self.address)
            except BaseException:
                await connection.discard()
                raise
            await connection.discard()
        return await self._connect(credentials)

    async def _connect(self, credentials: tuple[str, str]) -> ServerConnection:
        config = self._config
        tls = tls_context(config.tls) if config.tls else None
        reasons = []
        for host, port in tuple(self._hosts):
            compressed = config.compression != "none"
            connection = ServerConnection(
                host, port, credentials, tls, compressed, config.silence, config.most_values
            )
            try:
                async with asyncio.timeout(config.dial_timeout):
                    await connection.open()
            except BaseException as error:
                await connection.discard()
                if isinstance(error, ServerException) or not isinstance(error, Exception):
                    raise
                reasons.append(f"{host}:{port}: {reason(error)}")
            else:
                return connection
        raise ClickHouseUnreachableError(f"cannot connect to ClickHouse: {'; '.join(reasons)}")

    def _credentials(self) -> tuple[str, str]:
        directory = self._config.credentials_dir
        return (
            _secret(directory, "username", self._config.username),
            _secret(directory, "password", self._config.password),
        )


def _secret(directory: str, name: str, default: str) -> str:
    if not directory:
        return default
    try:
        return (Path(directory) / name).read_text("utf-8").strip("\r\n")
    except FileNotFoundError:
        return default
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{directory}/{name} cannot be read: {reason(error)}") from None


def _host_and_port(endpoint: str, default_port: int) -> tuple[str, int]:
    host, colon, port = endpoint.rpartition(":")
    if not colon or endpoint.endswith("]"):
        host, port = endpoint, str(default_port)
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigurationError(f"clickhouse_endpoint {endpoint!r} is not host:port")
    return host, int(port)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (int, float, str)):
        return value
    if isinstance(value, datetime.datetime):
        return str(value.replace(tzinfo=None))  # as ClickHouse writes it: the column's type names the zone
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(one) for one in value)
    if isinstance(value, dict):
        return {_plain(key): _plain(one) for key, one in value.items()}
    return str(value)
