"""Questions to an embedded engine that another process holds: HTTP over a Unix socket in its directory.

Contract: the process that holds the path runs `LocalQueries`; whoever may use the directory asks through
`LocalQuerySink`. Reading only: a statement that does not begin as one that reads is refused. The socket has
mode 0600 and goes at shutdown; one left by a killed process is replaced, since only the holder of the path's
lock makes it. `curl --unix-socket DIRECTORY/kubenetmon.sock -d 'SELECT 1' http://localhost/` works too.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector, web

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError, Settings, Sink
from kubenetmon.errors import KubenetmonError, MachineError

logger = logging.getLogger(__name__)

SOCKET_NAME = "kubenetmon.sock"
_READING = re.compile(r"\s*\(*\s*(SELECT|WITH|SHOW|DESCRIBE|EXPLAIN)\b", re.IGNORECASE)
_MAX_STATEMENT = 1 << 20
_AT_ONCE = 4
_CODE_HEADER = "X-ClickHouse-Exception-Code"


class LocalQueries:
    """Component that answers on the socket of an embedded engine's directory."""

    name = "local queries"

    def __init__(self, directory: Path, *, sink: Sink) -> None:
        self._directory = directory
        self._sink = sink
        self._turns = asyncio.Semaphore(_AT_ONCE)

    async def run(self) -> None:
        """Answer until cancelled. Where no socket can be made, say so and answer nobody."""
        application = web.Application(client_max_size=_MAX_STATEMENT)
        application.router.add_post("/", self._answer)
        runner = web.AppRunner(application, access_log=None, handle_signals=False)
        await runner.setup()
        try:
            with _socket_path(self._directory) as path:
                try:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(path)
                    before = os.umask(0o177)
                    try:
                        await web.UnixSite(runner, path).start()
                    finally:
                        os.umask(before)
                except OSError as error:
                    logger.warning(
                        "Questions cannot be asked while this process runs: %s/%s cannot be made (%s)",
                        self._directory,
                        SOCKET_NAME,
                        error.strerror,
                    )
                await asyncio.Event().wait()
        finally:
            await runner.cleanup()
            with contextlib.suppress(OSError):
                (self._directory / SOCKET_NAME).unlink()

    async def stop(self) -> None:
        """Nothing to finish: questions are welcome until the end."""

    async def _answer(self, request: web.Request) -> web.Response:
        statement = await request.text()
        if not _READING.match(statement):
            return web.Response(status=403, text="only statements that read are answered here")
        try:
            async with self._turns:
                rows = await self._sink.query(statement)
        except ClickHouseError as error:
            return web.Response(status=400, text=error.message, headers={_CODE_HEADER: str(error.code)})
        except KubenetmonError as error:
            return web.Response(status=503, text=str(error))
        body = await asyncio.to_thread(lambda: "".join(f"{json.dumps(row)}\n" for row in rows))
        return web.Response(text=body, content_type="application/x-ndjson")


class LocalQuerySink:
    """A `Sink` that only answers queries, through the process that holds an embedded engine's directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @property
    def address(self) -> str:
        return f"chdb:{self._directory}"

    @property
    def servers(self) -> int:
        """One engine."""
        return 1

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        del settings
        try:
            with _socket_path(self._directory) as path:
                async with (
                    ClientSession(
                        connector=UnixConnector(path), timeout=ClientTimeout(total=None, connect=10)
                    ) as session,
                    session.post("http://localhost/", data=io.BytesIO(sql.encode())) as response,
                ):
                    body = await response.text()
        except (ClientError, OSError, TimeoutError) as error:
            raise ClickHouseUnreachableError(f"{self.address}: {error}") from None
        if response.status == 400:
            raise ClickHouseError(int(response.headers.get(_CODE_HEADER, 0)), body)
        if response.status != 200:
            raise ClickHouseUnreachableError(f"{self.address}: {body[:200]}")
        return [tuple(json.loads(line)) for line in body.splitlines()]

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        raise MachineError(f"{self.address} is held by another process: it can be asked, not written to")

    async def ping(self) -> None:
        await self.query("SELECT 1")

    async def close(self) -> None:
        """Nothing is kept open."""


async def answers(directory: Path) -> bool:
    """True when a process holds the directory and answers questions."""
    if not (directory / SOCKET_NAME).is_socket():
        return False
    try:
        await LocalQuerySink(directory).ping()
    except KubenetmonError:
        return False
    return True


@contextlib.contextmanager
def _socket_path(directory: Path) -> Iterator[str]:
    """A path of the socket that is short enough for a Unix address, however deep the directory lies."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
