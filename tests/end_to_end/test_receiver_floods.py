"""Floods of frames, and garbage: they cost their sender the connection, and nobody else anything.

After each attack a well-behaved agent on another connection is served, the event loop was never held up for
long, and the process holds no more memory than before.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.beds.receiving import SUBMIT_HEADERS, Rig
from tests.end_to_end.hostile import PREFACE, QUICK, StallWatch, assert_no_traceback, assert_serves

RECEIVER = QUICK


async def attack(rig: Rig, data: bytes) -> None:
    """Send raw bytes on a connection of their own, read until the server is through with them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
    try:
        with contextlib.suppress(ConnectionError):
            writer.write(data)
            await writer.drain()
            writer.write_eof()
            async with asyncio.timeout(5):
                while await reader.read(65536):
                    pass
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def settings_flood() -> bytes:
    return SettingsFrame(0, {1: 4096}).serialize() * 20_000


def ping_flood() -> bytes:
    return PingFrame(0, b"12345678").serialize() * 20_000


def rapid_reset() -> bytes:
    encoder = h2.connection.H2Connection().encoder
    out = bytearray()
    for i in range(10_000):
        frame = HeadersFrame(2 * i + 1, encoder.encode(SUBMIT_HEADERS))
        frame.flags.add("END_HEADERS")
        out += frame.serialize() + RstStreamFrame(2 * i + 1, error_code=8).serialize()
    return bytes(out)


def empty_data_flood() -> bytes:
    encoder = h2.connection.H2Connection().encoder
    frame = HeadersFrame(1, encoder.encode(SUBMIT_HEADERS))
    frame.flags.add("END_HEADERS")
    return frame.serialize() + DataFrame(1, b"").serialize() * 50_000


def padding_flood() -> bytes:
    encoder = h2.connection.H2Connection().encoder
    headers = HeadersFrame(1, encoder.encode(SUBMIT_HEADERS))
    headers.flags.add("END_HEADERS")
    padded = DataFrame(1, b"", pad_length=200)
    padded.flags.add("PADDED")
    return headers.serialize() + padded.serialize() * 2_000


def endless_headers() -> bytes:
    encoder = h2.connection.H2Connection().encoder
    first = HeadersFrame(1, encoder.encode(SUBMIT_HEADERS))
    more = b"".join(
        ContinuationFrame(1, encoder.encode([(f"x-{i}", "y" * 1000)])).serialize() for i in range(2000)
    )
    return first.serialize() + more


def header_bomb() -> bytes:
    """One entry of the dynamic table, referred to thousands of times (a HPACK bomb)."""
    encoder = h2.connection.H2Connection().encoder
    block = encoder.encode([*SUBMIT_HEADERS, ("x", "y" * 3900)]) + b"\xbe" * 12_000
    frame = HeadersFrame(1, block)
    frame.flags.add("END_HEADERS")
    return frame.serialize()


def window_overflow() -> bytes:
    return WindowUpdateFrame(0, 2**31 - 1).serialize() * 3


def priority_flood() -> bytes:
    return b"".join(PriorityFrame(2 * i + 1, depends_on=0).serialize() for i in range(20_000))


def many_streams() -> bytes:
    encoder = h2.connection.H2Connection().encoder
    out = bytearray()
    for i in range(1000):
        frame = HeadersFrame(2 * i + 1, encoder.encode(SUBMIT_HEADERS))
        frame.flags.add("END_HEADERS")
        out += frame.serialize()
    return bytes(out)


ATTACKS: list[Callable[[], bytes]] = [
    settings_flood,
    ping_flood,
    rapid_reset,
    empty_data_flood,
    padding_flood,
    endless_headers,
    header_bomb,
    window_overflow,
    priority_flood,
    many_streams,
]


@pytest.mark.parametrize("make", ATTACKS, ids=lambda make: make.__name__)
async def test_floods_cost_their_sender_the_connection(
    rig: Rig, make: Callable[[], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    await assert_serves(rig)
    data = PREFACE + SettingsFrame(0).serialize() + make()
    async with StallWatch():
        await asyncio.gather(*(attack(rig, data) for _ in range(3)))
        await assert_serves(rig)
    await asyncio.sleep(0.05)
    assert rig.receiver.connections <= 1
    assert_no_traceback(caplog)


@pytest.mark.parametrize("prefix", [b"", PREFACE, PREFACE + SettingsFrame(0).serialize()])
async def test_garbage_costs_its_sender_the_connection(
    rig: Rig, prefix: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    generator = random.Random(7)
    async with StallWatch():
        for size in (1, 8, 9, 24, 100, 5000, 200_000):
            await attack(rig, prefix + generator.randbytes(size))
        await attack(rig, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await attack(rig, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500))
        await assert_serves(rig)
    assert_no_traceback(caplog)


async def test_random_frames_cost_their_sender_the_connection(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    generator = random.Random(11)
    async with StallWatch():
        for _ in range(150):
            out = bytearray(PREFACE + SettingsFrame(0).serialize())
            for _ in range(generator.randrange(1, 8)):
                body = generator.randbytes(generator.choice([0, 1, 4, 5, 6, 8, 40]))
                out += len(body).to_bytes(3, "big") + bytes(
                    [generator.randrange(12), generator.choice([0, 1, 4, 5, 8, 0x20, 255])]
                )
                out += generator.choice([0, 1, 2, 3, 2**31 - 1]).to_bytes(4, "big") + body
            await attack(rig, bytes(out))
        await assert_serves(rig)
    assert_no_traceback(caplog)
