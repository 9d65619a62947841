"""The native protocol in front of the real engine, with faults on demand: what no server does when told to.

A fault at a named step of an insert, an exception behind other packets, TLS, inserts that are forgotten; for
all else there is a real server (`clickhouse_server`), whose refusals this one does not know.

Run as `python -m tests.beds.clickhouse_front --path DIR …`: it prints `{"port": …}` and then obeys JSON lines
on its input, answering each with one line. Speaks revision 54453 to any native client: hello, ping, queries,
INSERT with blocks, compressed (lz4, zstd) or not, TLS. Blocks go to the engine as FORMAT Native, byte for
byte, under the settings and the token that the client sent. Everything that is not a fault is the engine's
own answer, errors and codes included.

Commands: {"fault": {…}} adds a fault, {"heal": true} forgets all faults, {"listen": false|true} stops or
resumes to accept, {"drop": true} cuts all connections, {"certificate": FILE} shows another one; any command
answers with what was seen, `under_way` among it: inserts that clients wait for now. A fault has `at` (hello,
ping, query, sample, data, before_commit, after_commit), `do` (exception, drop, delay, stall) and perhaps
`code` and `message` (exception), `seconds` (delay), `bytes` (data: after so many), `times` (default 1, 0 for
ever), `behind_packets` (Progress, Log and ProfileEvents packets precede the exception) and `kind` (insert or
query: only for those).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import lz4.block
import zstandard
from clickhouse_cityhash.cityhash import CityHash128

from kubenetmon.clickhouse.deduplication_log import forget_tokens_without_part
from tests.beds.clickhouse_server import library
from tests.beds.engine_internals import Engine as Internals
from tests.beds.native_blocks import ScannedBlock, need, scan_block, string, varint
from tests.beds.replication import INTERSERVER_PORT

REVISION = 54453
_ROOT = Path(__file__).resolve().parents[2]
HELLO, DATA, EXCEPTION, PROGRESS, PONG, END_OF_STREAM, LOG, TABLE_COLUMNS, PROFILE_EVENTS = (
    0, 1, 2, 3, 4, 5, 10, 11, 14,
)  # fmt: skip
INSERT = re.compile(
    r"\s*INSERT\s+INTO\s+(?:TABLE\s+)?(?P<table>[^\s(]+(?:\.[^\s(]+)?)\s*(?P<columns>\(.*?\))?", re.I | re.S
)
_NAME = re.compile(r"\.? \([A-Z][A-Z0-9_]+\)\s*$")
"""What the engine adds to its words and a server does not say."""
RETURNS_ROWS = ("SELECT", "WITH", "SHOW", "DESCRIBE", "DESC", "EXISTS", "EXPLAIN")
Scanned = TypeVar("Scanned")


class EngineError(Exception):
    """What the engine said, with its code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class DropConnection(Exception):
    """A fault: this connection ends here."""


@dataclass
class Fault:
    at: str
    do: str
    code: int = 1000
    message: str = "the test says no"
    seconds: float = 0.0
    bytes: int = 0
    times: int = 1
    behind_packets: bool = False
    kind: str = ""


@dataclass
class Request:
    sql: str
    settings: dict[str, str]
    compressed: bool
    kind: str = "query"


class Engine:
    """chdb on a directory, one connection in one thread."""

    def __init__(self, path: Path, config: str = "", *, replica: bool = False) -> None:
        from chdb.state.sqlitelike import Connection

        if replica:
            Internals(library()).lend_interserver(INTERSERVER_PORT)
        path.mkdir(parents=True, exist_ok=True)
        forget_tokens_without_part(path)
        self._connection = Connection(f"{path}?config-file={config}" if config else str(path))
        self._thread = ThreadPoolExecutor(1, "engine")

    async def query(self, sql: str, output: str = "Native") -> bytes:
        def work() -> bytes:
            try:
                return bytes(self._connection.query(sql, output).bytes())
            except RuntimeError:
                self._connection.query("SELECT 1", output)  # which takes what the failed one had put out
                raise

        return bytes(await self._run(work))

    async def insert(self, into: str, settings: str, block: ScannedBlock) -> None:
        """As a file in memory: chdb's streaming insert keeps the engine's late errors to itself."""

        def work() -> None:
            with open(os.memfd_create("block"), "wb") as file:
                file.write(_varint(len(block.columns)) + _varint(block.rows) + block.body)
                file.flush()
                self._connection.query(
                    f"{into} FROM INFILE '/proc/self/fd/{file.fileno()}' SETTINGS {settings} FORMAT Native"
                )

        await self._run(work)

    async def _run(self, work: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except RuntimeError as error:
            found = re.search(r"Code: (\d+)\. (.*)", str(error), re.S)
            raise EngineError(int(found[1]) if found else 1001, found[2] if found else str(error)) from None


class DiscardingEngine(Engine):
    """Answers questions; forgets rows. For who measures the client."""

    async def insert(self, into: str, settings: str, block: ScannedBlock) -> None:
        """Say that it is done."""


class Front:
    def __init__(self, engine: Engine, users: Mapping[str, str], tls: ssl.SSLContext | None) -> None:
        self.engine = engine
        self.users = users
        self.tls = tls
        self.faults: list[Fault] = []
        self.stats = {"connections": 0, "queries": 0, "inserts": 0, "commits": 0, "faults": 0}
        self.inserting: set[Session] = set()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self.tls)
        self.port = self._server.sockets[0].getsockname()[1]

    async def command(self, command: dict[str, Any]) -> dict[str, Any]:
        if "fault" in command:
            self.faults.append(Fault(**command["fault"]))
        if "certificate" in command and self.tls is not None:
            self.tls.load_cert_chain(command["certificate"])  # for handshakes from now on
        if command.get("heal"):
            self.faults.clear()
        if command.get("drop"):
            for writer in self._writers:
                writer.transport.abort()
        if command.get("listen") is False and self._server is not None:
            self._server.close()
            self._server = None
        if command.get("listen") is True and self._server is None:
            await self.listen()
        under_way = sum(not session.client_is_gone for session in self.inserting)
        return {**self.stats, "under_way": under_way}

    async def fault(self, at: str, session: Session, request: Request | None = None) -> None:
        """Do what a fault wants at this point, if there is one."""
        for fault in self.faults:
            if fault.at != at or (fault.kind and (request is None or fault.kind != request.kind)):
                continue
            if fault.times == 1:
                self.faults.remove(fault)
            fault.times -= fault.times > 0
            self.stats["faults"] += 1
            await self._do(fault, session, request)
            return

    async def _do(self, fault: Fault, session: Session, request: Request | None) -> None:
        if fault.do == "exception":
            if fault.behind_packets and request is not None:
                session.progress()
                session.log()
                session.profile_events()
            raise EngineError(fault.code, fault.message)
        if fault.do == "drop":
            raise DropConnection
        if fault.do == "delay":
            await asyncio.sleep(fault.seconds)
        if fault.do == "stall":
            await asyncio.sleep(3600)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.stats["connections"] += 1
        self._writers.add(writer)
        try:
            await Session(self, reader, writer).serve()
        except EOFError:
            # To drop what the client still sends resets it, and may take from it what it has yet to read.
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(1):
                    while await reader.read(1 << 16):
                        pass
        except (DropConnection, OSError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()


class Session:
    """One client's connection."""

    def __init__(self, front: Front, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._front = front
        self._reader = reader
        self._writer = writer
        self._raw = bytearray()
        self._plain = bytearray()  # what compressed frames held

    @property
    def client_is_gone(self) -> bool:
        """Whether it has closed its side; what it sent before may still be at work."""
        return self._reader.at_eof() or self._reader.exception() is not None

    async def serve(self) -> None:
        if not await self._hello():
            return
        while True:
            kind = await self._varint()
            if kind == 1:
                await self._query(await self._read_query())
            elif kind == 4:
                await self._front.fault("ping", self)
                await self._send(_varint(PONG))
            elif kind == 3:
                continue
            else:
                raise EOFError

    async def _hello(self) -> bool:
        if await self._varint() != HELLO:
            return False
        await self._string()
        for _ in range(3):
            await self._varint()
        await self._string()
        user, password = await self._string(), await self._string()
        try:
            await self._front.fault("hello", self)
            if self._front.users.get(user) != password:
                raise EngineError(516, f"{user}: Authentication failed. (AUTHENTICATION_FAILED)")
        except EngineError as error:
            await self._send_exception(error)
            return False
        await self._send(
            _varint(HELLO) + _string("ClickHouse") + _varint(26) + _varint(9) + _varint(REVISION)
            + _string("UTC") + _string("test front") + _varint(1)
        )  # fmt: skip
        return True

    async def _read_query(self) -> Request:
        await self._string()  # query id
        if await self._fixed(1) != b"\0":
            for _ in range(3):
                await self._string()
            await self._fixed(8)
            over_tcp = await self._fixed(1) == b"\1"  # else another engine passes an INSERT on
            if over_tcp:
                for _ in range(3):
                    await self._string()
                for _ in range(3):
                    await self._varint()
            await self._string()  # quota key
            await self._varint()  # distributed depth
            if over_tcp:
                await self._varint()  # patch
            if await self._fixed(1) != b"\0":
                await self._fixed(24)
                await self._string()
                await self._fixed(1)
            for _ in range(3):
                await self._varint()
        settings = {}
        while name := await self._string():
            await self._varint()
            settings[name] = await self._string()
        await self._string()  # interserver secret
        await self._varint()  # stage
        compressed = bool(await self._varint())
        return Request(await self._string(), settings, compressed)

    async def _query(self, request: Request) -> None:
        insert = INSERT.match(request.sql)
        is_insert = insert is not None and not re.search(
            r"\b(SELECT|WITH)\b", request.sql[insert.end() :], re.I
        )
        request.kind = "insert" if is_insert else "query"
        try:
            await self._front.fault("query", self, request)
            if insert is not None and is_insert:
                self._front.inserting.add(self)
                try:
                    await self._insert(request, insert)
                finally:
                    self._front.inserting.discard(self)
            else:
                await self._data(request)
                await self._ordinary(request)
        except EngineError as error:
            await self._send_exception(error)
        else:
            await self._send(_varint(END_OF_STREAM))

    async def _ordinary(self, request: Request) -> None:
        self._front.stats["queries"] += 1
        body = await self._front.engine.query(request.sql)
        if not request.sql.lstrip(" \n(").upper().startswith(RETURNS_ROWS):
            return
        buffer, position = bytearray(body), 0
        while position < len(buffer):
            block = _result(scan_block(buffer, position, info=False))
            await self._send_block(DATA, block.columns, block.rows, block.body, request.compressed)
            position = block.end
        await self._front.fault("after_commit", self, request)

    async def _insert(self, request: Request, insert: re.Match[str]) -> None:
        front = self._front
        front.stats["inserts"] += 1
        await self._data(request)  # the empty block that ends external tables
        listed = insert["columns"]
        source = f"(SELECT {listed[1:-1]} FROM {insert['table']})" if listed else insert["table"]
        described = await front.engine.query(f"DESCRIBE TABLE {source}", "JSONCompactEachRow")
        columns = [tuple(json.loads(line)[:2]) for line in described.splitlines()]
        await front.fault("sample", self, request)
        await self._send(
            _varint(TABLE_COLUMNS) + _string("") + _string("columns format version: 1\n0 columns:\n")
        )
        header = b"".join(_string(name) + _string(type_name) for name, type_name in columns)
        await self._send_block(DATA, columns, 0, header, request.compressed)
        for fault in front.faults:
            if fault.at == "data":
                await self._scan(_at_least(self._raw, fault.bytes))
                await front.fault("data", self, request)
                break
        blocks = []
        while (block := await self._data(request)).columns:
            if block.rows:
                blocks.append(block)
        await front.fault("before_commit", self, request)
        settings = {**request.settings, "max_insert_block_size": "10000000"}
        settings.pop("network_compression_method", None)
        clause = ", ".join(f"{name} = '{value}'" for name, value in settings.items())
        for block in blocks:
            await front.engine.insert(f"INSERT INTO {insert['table']} {listed or ''}", clause, block)
        front.stats["commits"] += 1
        self.profile_events()
        await front.fault("after_commit", self, request)

    async def _data(self, request: Request) -> ScannedBlock:
        kind = await self._varint()
        if kind != 2:
            raise EOFError
        await self._string()
        if not request.compressed:
            block = await self._scan(scan_block(self._raw, 0, info=True))
            del self._raw[: block.end]
            return block
        scan = scan_block(self._plain, 0, info=True)
        while True:
            try:
                next(scan)
            except StopIteration as done:
                del self._plain[: done.value.end]
                return done.value  # type: ignore[no-any-return]
            self._plain += await self._frame()

    async def _frame(self) -> bytes:
        await self._scan(_at_least(self._raw, 25))
        low, high, method, size, plain_size = struct.unpack_from("<QQBII", self._raw)
        await self._scan(_at_least(self._raw, 16 + size))
        content = bytes(self._raw[16 : 16 + size])
        del self._raw[: 16 + size]
        if CityHash128(content) != low << 64 | high:
            raise EngineError(40, "Checksum doesn't match. (CHECKSUM_DOESNT_MATCH)")
        if method == 0x82:
            return lz4.block.decompress(content[9:], uncompressed_size=plain_size)  # type: ignore[no-any-return]
        if method == 0x90:
            return zstandard.ZstdDecompressor().decompress(content[9:], max_output_size=plain_size)
        return content[9:]

    async def _scan(self, scan: Generator[None, None, Scanned]) -> Scanned:
        while True:
            try:
                next(scan)
            except StopIteration as done:
                return done.value  # type: ignore[no-any-return]
            received = await self._reader.read(1 << 18)
            if not received:
                raise EOFError
            self._raw += received

    async def _varint(self) -> int:
        number, end = await self._scan(varint(self._raw, 0))
        del self._raw[:end]
        return number

    async def _string(self) -> str:
        text, end = await self._scan(string(self._raw, 0))
        del self._raw[:end]
        return text

    async def _fixed(self, length: int) -> bytes:
        await self._scan(_at_least(self._raw, length))
        taken = bytes(self._raw[:length])
        del self._raw[:length]
        return taken

    async def _send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def _send_exception(self, error: EngineError) -> None:
        await self._send(
            _varint(EXCEPTION) + struct.pack("<i", error.code) + _string("DB::Exception")
            + _string(_NAME.sub("", str(error))) + _string("") + b"\0"
        )  # fmt: skip

    async def _send_block(
        self, kind: int, columns: list[Any], rows: int, body: bytes, compressed: bool
    ) -> None:
        block = b"\x01\x00\x02\xff\xff\xff\xff\x00" + _varint(len(columns)) + _varint(rows) + body
        if compressed:
            packed = lz4.block.compress(block, store_size=False)
            content = struct.pack("<BII", 0x82, len(packed) + 9, len(block)) + packed
            checksum = CityHash128(content)
            block = struct.pack("<QQ", checksum >> 64, checksum & (1 << 64) - 1) + content
        await self._send(_varint(kind) + _string("") + block)

    def progress(self) -> None:
        """One Progress packet: rows, bytes, rows in all, rows and bytes written."""
        self._writer.write(_varint(PROGRESS) + b"".join(map(_varint, (5, 500, 0, 5, 500))))

    def log(self) -> None:
        """One Log packet of one line; never compressed."""
        columns = [
            ("event_time", "DateTime", struct.pack("<I", 1_800_000_000)),
            ("event_time_microseconds", "UInt32", struct.pack("<I", 0)),
            ("host_name", "String", _string("front")),
            ("query_id", "String", _string("q")),
            ("thread_id", "UInt64", struct.pack("<Q", 7)),
            ("priority", "Int8", b"\x06"),
            ("source", "String", _string("test")),
            ("text", "String", _string("a line of log")),
        ]
        self._packet_of_columns(LOG, columns)

    def profile_events(self) -> None:
        """One ProfileEvents packet of one event; never compressed."""
        columns = [
            ("host_name", "String", _string("front")),
            ("current_time", "DateTime", struct.pack("<I", 1_800_000_000)),
            ("thread_id", "UInt64", struct.pack("<Q", 7)),
            ("type", "Enum8('increment' = 1, 'gauge' = 2)", b"\x01"),
            ("name", "String", _string("InsertedRows")),
            ("value", "Int64", struct.pack("<q", 5)),
        ]
        self._packet_of_columns(PROFILE_EVENTS, columns)

    def _packet_of_columns(self, kind: int, columns: list[tuple[str, str, bytes]]) -> None:
        body = b"".join(_string(name) + _string(type_name) + data for name, type_name, data in columns)
        head = b"\x01\x00\x02\xff\xff\xff\xff\x00" + _varint(len(columns)) + _varint(1)
        self._writer.write(_varint(kind) + _string("") + head + body)


def _at_least(buffer: bytearray, length: int) -> Generator[None, None, None]:
    yield from need(buffer, length)


def _result(scan: Generator[None, None, Scanned]) -> Scanned:
    try:
        next(scan)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise ValueError("the block is incomplete")


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(encoded) + bytes((number,))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return _varint(len(encoded)) + encoded


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--path", type=Path, required=True)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--engine-config", default="", help="a configuration of ClickHouse's own, in XML")
    parser.add_argument("--replica", action="store_true", help="take rows into Replicated tables")
    parser.add_argument("--certificate", default="")
    parser.add_argument("--client-ca", default="")
    parser.add_argument("--discard", action="store_true", help="say that rows are committed, keep none")
    parser.add_argument("--user", action="append", default=[], help="NAME:PASSWORD")
    arguments = parser.parse_args()
    tls = None
    if arguments.certificate:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(arguments.certificate)
        if arguments.client_ca:
            tls.load_verify_locations(arguments.client_ca)
            tls.verify_mode = ssl.CERT_REQUIRED
    users = dict(user.split(":", 1) for user in arguments.user) or {"default": ""}
    engine = DiscardingEngine if arguments.discard else Engine
    made = engine(arguments.path, arguments.engine_config, replica=arguments.replica)
    front = Front(made, users, tls)
    front.port = arguments.port
    await front.listen()
    print(json.dumps({"port": front.port}), flush=True)
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    while line := await reader.readline():
        print(json.dumps(await front.command(json.loads(line))), flush=True)


@dataclass
class RunningFront:
    """A front in a process of its own, as a test holds it."""

    port: int
    process: asyncio.subprocess.Process
    endpoint: str = field(init=False)

    def __post_init__(self) -> None:
        self.endpoint = f"127.0.0.1:{self.port}"

    async def command(self, **command: Any) -> dict[str, Any]:
        """Send one command and return the front's counters."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        await self.process.stdin.drain()
        answer: dict[str, Any] = json.loads(await asyncio.wait_for(self.process.stdout.readline(), 30))
        return answer

    async def fault(self, at: str, do: str, **options: Any) -> None:
        """Add a fault."""
        await self.command(fault={"at": at, "do": do, **options})

    async def kill(self) -> None:
        """SIGKILL."""
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@contextlib.asynccontextmanager
async def clickhouse_front(path: Path, *options: str) -> AsyncIterator[RunningFront]:
    """Start a front on an engine's directory; killed at the end, whatever happens."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.beds.clickhouse_front", "--path", str(path), *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        cwd=_ROOT,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), 60)
        if not line:
            raise RuntimeError("the ClickHouse front did not start")
        yield RunningFront(json.loads(line)["port"], process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        # The pipes' transports close with the loop's next turn.
        await asyncio.sleep(0)


if __name__ == "__main__":
    asyncio.run(main())
