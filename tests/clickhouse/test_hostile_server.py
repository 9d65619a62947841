"""A ClickHouse that means ill: whatever it sends is one line, costs little memory, and holds up nobody."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import lz4.block
import pytest
from clickhouse_cityhash.cityhash import CityHash128

from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.varint import varint
from tests.beds.pages import page
from tests.beds.server_process import Server

REVISION = 54453
INFO = b"\x01\x00\x02\xff\xff\xff\xff\x00"
FOREVER = 1 << 20
"""Repetitions of what never ends."""


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return varint(len(raw)) + raw


def hello(name: bytes = text("ClickHouse")) -> bytes:
    return b"\x00" + name + varint(26) + varint(9) + varint(REVISION) + text("UTC") + text("host") + varint(1)


def block(rows: int, *columns: tuple[str, bytes], number: int | None = None) -> bytes:
    described = b"".join(text("a") + text(kind) + values for kind, values in columns)
    return INFO + varint(len(columns) if number is None else number) + varint(rows) + described


def data(content: bytes) -> bytes:
    """A Data packet; what a query is answered with is not compressed unless asked for."""
    return b"\x01" + text("") + content


def frame(content: bytes, unpacked: int | None = None, method: int = 0x82) -> bytes:
    packed = lz4.block.compress(content, store_size=False)
    size = len(content) if unpacked is None else unpacked
    rest = struct.pack("<BII", method, len(packed) + 9, size) + packed
    checksum = CityHash128(rest)
    return struct.pack("<QQ", checksum >> 64, checksum & (1 << 64) - 1) + rest


def exceptions(number: int) -> bytes:
    one = struct.pack("<i", 60) + text("DB::Exception") + text("no") + text("") + b"\x01"
    return b"\x02" + one * number


ATTACKS: dict[str, tuple[bytes, str]] = {
    "an endless string": (b"\x02" + bytes(4) + varint(1 << 40) + bytes(48 << 20), "larger than any"),
    "an endless number": (b"\x80" * FOREVER, "a number that is none"),
    "a negative length": (data(block(3, ("String", b"\xff" * 9 + b"\x01" + bytes(99)))), ""),
    "endless progress": (b"\x03\x00\x00\x00\x00\x00" * FOREVER, "more than 100000 packets"),
    "exceptions without end": (exceptions(200_000), "exceptions within exceptions"),
    "a packet that there is not": (b"\x63" * 100, "Unknown packet 99"),
    "rows of nothing": (data(block(1 << 28, ("Nothing", b""))), "more than 2000000 values"),
    "rows without end": (data(block(60_000, ("UInt8", bytes(60_000)))) * 100, "more than 2000000 values"),
    "columns without end": (data(block(1, number=1 << 40)), "a block of 1099511627776 columns"),
    "a head without end": (data(b"\x07" * FOREVER), "without an end to its head"),
    "an array of half a billion": (
        data(block(1, ("Array(UInt8)", struct.pack("<Q", 1 << 29)))), "values of type Array(UInt8)"
    ),
    "a type as deep as a well": (
        data(block(1, ("Array(" * 100_000 + ")" * 100_000, bytes(99)))), "values of type Array(Array("
    ),
    "a dictionary larger than the column": (
        data(block(1, ("LowCardinality(String)", struct.pack("<QQQ", 1, 0x600, 1 << 40) + bytes(9 << 20)))),
        "more values than rows",
    ),
    "log lines": (b"\x0a" + text("") + block(1, ("String", text("x" * 1000))) + b"\x05", "answered"),
}  # fmt: skip
PACKED: dict[str, tuple[bytes, str]] = {
    "a frame that says four gigabytes": (data(frame(b"x" * 100, unpacked=0xFFFFFFFF)), "larger than any"),
    "a frame that unpacks to a hundred megabytes": (data(frame(bytes(100 << 20))), "larger than any"),
    "a frame of four gigabytes": (
        data(bytes(16) + struct.pack("<BII", 0x82, 0xFFFFFFFF, 9)), "larger than any"
    ),
    "a frame of another method": (data(frame(b"x", method=0x91)), "method 0x91"),
    "a damaged frame": (data(bytes(16) + frame(b"xyz" * 9)[16:]), "checksum does not match"),
    "a frame that does not unpack": (data(frame(b"abc" * 50, unpacked=7)), "does not unpack"),
    "a frame that says to be of zstd": (data(frame(b"abc" * 50, method=0x90)), "does not unpack"),
    "a frame that is not as long as it says": (data(frame(b"abc" * 50, method=0x02)), "does not unpack"),
}  # fmt: skip


@contextmanager
def hostile(answer: Callable[[], bytes], greeting: bytes | None = None) -> Iterator[int]:
    """A server that answers whatever it is asked with that, after its greeting; yields its port."""
    open_ones: list[socket.socket] = []

    def serve(connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            connection.recv(1 << 16)
            connection.sendall(hello() if greeting is None else greeting)
            connection.recv(1 << 16)
            connection.sendall(answer())
            while connection.recv(1 << 16):
                pass

    def listen() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                open_ones.append(connection)
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, daemon=True).start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            for connection in open_ones:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


async def outcome(port: int, compression: str) -> tuple[str, float]:
    """What a query comes to, and the longest that it kept the event loop."""
    sink = TcpSink(
        TcpConfig((f"127.0.0.1:{port}",), tls=None, dial_timeout=1, request_timeout=10, silence=3,
                  compression=compression)  # type: ignore[arg-type]
    )  # fmt: skip
    held = 0.0

    async def watch() -> None:
        nonlocal held
        while True:
            began = time.thread_time()
            await asyncio.sleep(0)
            held = max(held, time.thread_time() - began)

    watching = asyncio.create_task(watch())
    try:
        await sink.query("SELECT 1")
        said = "answered"
    except (ClickHouseUnreachableError, ClickHouseError) as error:
        said = str(error)
    finally:
        watching.cancel()
        await sink.close()
    return said, held


@pytest.mark.parametrize(("name", "compression"), [
    *((name, "none") for name in ATTACKS), *((name, "lz4") for name in PACKED)
])  # fmt: skip
async def test_whatever_it_sends_is_one_line_and_holds_up_nobody(name: str, compression: str) -> None:
    attack, says = (ATTACKS if compression == "none" else PACKED)[name]
    with hostile(lambda: attack) as port:
        said, held = await outcome(port, compression)
    assert says in said
    assert "\n" not in said
    assert len(said) < 300
    assert held < 1.0


@pytest.mark.parametrize(
    "greeting", [b"\x80" * FOREVER, hello(varint(1 << 40) + bytes(FOREVER)), b"\x00" * 9, b""]
)
async def test_a_greeting_that_is_none_is_one_line(greeting: bytes) -> None:
    with hostile(lambda: b"", greeting) as port:
        said, _ = await outcome(port, "lz4")
    assert said.startswith(("cannot connect to ClickHouse: 127.0.0.1:", f"127.0.0.1:{port}"))
    assert "\n" not in said


WORST = (
    "a type as deep as a well",
    "an array of half a billion",
    "exceptions without end",
    "rows without end",
)


@pytest.mark.slow
async def test_a_server_goes_on_before_the_worst_of_it(tmp_path: Path) -> None:
    """The real server asks again and again, and lives, answers and stays small."""
    given = 0

    def answer() -> bytes:
        nonlocal given
        given += 1
        return ATTACKS[WORST[given % len(WORST)]][0]

    with hostile(answer) as port:
        server = Server(tmp_path, clickhouse_endpoint=f"127.0.0.1:{port}", clickhouse_compression="none")
        with server.running() as process:
            deadline = time.monotonic() + 60
            while given <= len(WORST):
                assert time.monotonic() < deadline, given
                began = time.monotonic()
                await asyncio.to_thread(_alive, server.metrics_port)
                assert time.monotonic() - began < 10
                await asyncio.sleep(0.2)
            checks = await asyncio.to_thread(server.checks)
            peak = await asyncio.to_thread(_peak_megabytes, process.pid)
    assert not checks["clickhouse"]["ok"]
    assert len(checks["clickhouse"]["detail"]) < 400
    assert peak < 300


def _peak_megabytes(process: int) -> int:
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) >> 10


def _alive(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            assert page(port, "/live")[0] == 200
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
