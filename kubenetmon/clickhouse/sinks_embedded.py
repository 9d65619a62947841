"""The embedded engine: ClickHouse in this process, on a directory.

Contract: one process at a time holds a path (a lock file says who), and one engine per process: opening the
same path again shares it. Inserts run one at a time in a thread of their own; the event loop never waits for
the engine. `close` waits for what is in flight, then lets the engine go.

Killed in the middle of an insert nothing is lost or doubled: see `deduplication_log`, which is repaired at
every open. That repair is exact because inserts run one after another: when a part is missing for a token,
no later part can cover its block number.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.deduplication_log import forget_tokens_without_part
from kubenetmon.clickhouse.sinks import (
    ClickHouseError,
    ClickHouseUnreachableError,
    Settings,
    insert_statement,
    one_line,
)
from kubenetmon.clickhouse.table import literal
from kubenetmon.errors import ConfigurationError, MachineError
from kubenetmon.varint import varint

logger = logging.getLogger(__name__)

LOCK_NAME = "kubenetmon.lock"
_CODE = re.compile(r"Code: (\d+)\. ")
_RESULT_FORMAT = "JSONCompactEachRow"
_SESSION_SETTINGS: Settings = {"output_format_json_quote_64bit_integers": 0}

Returned = TypeVar("Returned")


class _Engine:
    """One open path: its lock, its connections and its threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users = 1
        self._lock_file = _locked(path)
        try:
            forget_tokens_without_part(path)
            with _chatter_logged():
                self._connect = _chdb_connection()
                self._insert_connection = self._connect(str(path))
                self._query_connection = self._connect(str(path))
            self._query_connection.query(f"SET {_assignments(_SESSION_SETTINGS)}")
        except RuntimeError as error:
            os.close(self._lock_file)
            raise MachineError(
                f"cannot open the embedded ClickHouse at {path}: {one_line(str(error))}"
            ) from None
        except BaseException:
            os.close(self._lock_file)
            raise
        self._leftovers = False
        self.insert_thread = ThreadPoolExecutor(1, "clickhouse-insert")
        self.query_thread = ThreadPoolExecutor(1, "clickhouse-query")

    def insert(self, database: str, table: str, block: Block, settings: Settings) -> None:
        """Runs in the insert thread.

        As a file in memory, because chdb's streaming insert returns as if all were well where the engine
        refuses the rows at their end (too many parts, a constraint, a view that throws, a quota).
        """
        with open(os.memfd_create("block", os.MFD_CLOEXEC), "wb", buffering=0) as file:
            _write_all(file.fileno(), varint(len(block.columns)) + varint(block.rows), block.body)
            self._insert_connection.query(
                f"{insert_statement(database, table, block)} FROM INFILE '/proc/self/fd/{file.fileno()}' "
                f"SETTINGS {_assignments(settings)} FORMAT Native"
            )

    def query(self, statement: str) -> list[tuple[Any, ...]]:
        """Runs in the query thread.

        chdb (26.9) gives the rows that a query had put out before it failed to the next one: a query of no
        use takes them.
        """
        if self._leftovers:
            self._query_connection.query("SELECT 1", _RESULT_FORMAT)
        self._leftovers = True
        lines = bytes(self._query_connection.query(statement, _RESULT_FORMAT).bytes()).split(b"\n")
        self._leftovers = False
        return [tuple(json.loads(line)) for line in lines if line]

    def close(self) -> None:
        """Blocks until both threads are done."""
        self.insert_thread.shutdown()
        self.query_thread.shutdown()
        self._insert_connection.close()
        self._query_connection.close()
        os.close(self._lock_file)


_engines: dict[Path, _Engine] = {}
_engines_guard = threading.Lock()


class EmbeddedSink:
    """A `Sink` on the embedded engine at a directory, which is made when missing.

    Construction opens the engine (half a second). Raises `MachineError` where chdb is not installed, the
    path is held by another process or the engine cannot open it; `ConfigurationError` for a path it cannot
    take.
    """

    def __init__(self, path: str | Path) -> None:
        if not str(path) or "?" in str(path):
            raise ConfigurationError(f"chdb:{path}: the path is empty or has a ? in it; name a directory")
        resolved = Path(path).absolute()
        with _engines_guard:
            engine = _engines.get(resolved)
            if engine is not None:
                engine.users += 1
            elif _engines:
                other = next(iter(_engines))
                raise MachineError(f"chdb:{path}: this process already holds {other}; use one path")
            else:
                engine = _engines[resolved] = _Engine(resolved)
        self._engine: _Engine | None = engine
        self._address = f"chdb:{path}"

    @property
    def address(self) -> str:
        return self._address

    @property
    def servers(self) -> int:
        return 1

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        engine = self._open_engine()
        statement = f"{sql} SETTINGS {_assignments(settings)}" if settings else sql
        return await self._in_thread(engine.query_thread, lambda: engine.query(statement))

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        engine = self._open_engine()
        if not block.rows:
            return
        all_settings = {
            **settings,
            "insert_deduplication_token": token,
            # One block of data stays one block, whatever its size.
            "max_insert_block_size": block.rows + 1,
            "input_format_parallel_parsing": 0,
        }
        await self._in_thread(
            engine.insert_thread, lambda: engine.insert(database, table, block, all_settings)
        )

    async def ping(self) -> None:
        await self.query("SELECT 1")

    async def close(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await asyncio.to_thread(_release, engine)

    def _open_engine(self) -> _Engine:
        if self._engine is None:
            raise ClickHouseUnreachableError(f"{self._address} is closed")
        return self._engine

    async def _in_thread(self, thread: ThreadPoolExecutor, work: Callable[[], Returned]) -> Returned:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        except RuntimeError as error:  # chdb raises nothing more specific, from any of its calls
            found = _CODE.search(str(error))
            if found is None:
                raise ClickHouseUnreachableError(f"{self._address}: {one_line(str(error))}") from None
            raise ClickHouseError(int(found[1]), str(error)[found.end() :]) from None


def _release(engine: _Engine) -> None:
    with _engines_guard:
        engine.users -= 1
        if engine.users == 0:
            engine.close()
            del _engines[engine.path]


def _chdb_connection() -> Callable[[str], Any]:
    try:
        from chdb.state.sqlitelike import Connection
    except ImportError:
        raise MachineError(
            "the embedded ClickHouse is not installed: pip install 'kubenetmon[embedded]'"
        ) from None
    return Connection


@contextlib.contextmanager
def _chatter_logged() -> Iterator[None]:
    """What the engine writes to standard error while it opens becomes a debug line.

    It has no logger then, and prints a stack trace where it cannot read cgroups, which harms nothing. The
    event loop waits meanwhile, so that no line of ours goes the same way.
    """
    with tempfile.TemporaryFile() as captured:
        real = os.dup(2)
        os.dup2(captured.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(real, 2)
            os.close(real)
            captured.seek(0)
            chatter = captured.read(65536).decode(errors="replace").strip()
            if chatter:
                logger.debug("The embedded ClickHouse said at its opening: %s", one_line(chatter))


def _locked(path: Path) -> int:
    try:
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise MachineError(f"chdb:{path} cannot be used: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
        os.close(descriptor)
        raise MachineError(f"chdb:{path} is in use by process {holder or 'unknown'}; stop it first") from None
    with contextlib.suppress(OSError):  # the number is for people; the lock itself is held
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _write_all(descriptor: int, *pieces: bytes) -> None:
    for piece in pieces:
        left = memoryview(piece)
        while left:
            left = left[os.write(descriptor, left) :]


def _assignments(settings: Settings) -> str:
    return ", ".join(f"{name} = {_setting(value)}" for name, value in settings.items())


def _setting(value: str | int) -> str:
    return literal(value) if isinstance(value, str) else str(int(value))
