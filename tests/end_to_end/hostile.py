"""Hostile peers of the receiver, and what shows that they do no harm."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import time
from collections.abc import AsyncIterator

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import (
    Frame,
)

from kubenetmon.proto import PUSH_METHOD, SUBMIT_METHOD, FlowCollectorStub, Outcome
from kubenetmon.server.receiver import ReceiverConfig
from tests.beds.receiving import SUBMIT_HEADERS, Rig, batch_message
from tests.end_to_end.reporting import connected

QUICK = ReceiverConfig(stop_grace=2.0, message_timeout=0.5)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LONGEST_STALL = 1.0
"""Seconds; generous, for this runs beside other work on few cores."""


class RawClient:
    """An HTTP/2 client that sends what it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(
            h2.config.H2Configuration(
                client_side=True, header_encoding="utf-8", validate_outbound_headers=False
            )
        )
        self.h2.initiate_connection()
        self.events: list[h2.events.Event] = []

    async def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())
        await self.writer.drain()

    async def request(self, path: str = SUBMIT_METHOD, extra: list[tuple[str, str]] | None = None) -> int:
        stream = self.h2.get_next_available_stream_id()
        headers = [(name, path if name == ":path" else value) for name, value in SUBMIT_HEADERS]
        self.h2.send_headers(stream, [*headers, *(extra or [])])
        await self.flush()
        return stream

    async def send(self, stream: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(stream, data, end_stream=end)
        await self.flush()

    async def raw(self, *frames: Frame | bytes) -> None:
        for frame in frames:
            self.writer.write(frame if isinstance(frame, bytes) else frame.serialize())
        with contextlib.suppress(ConnectionError):
            await self.writer.drain()

    async def status(self, stream: int) -> str:
        """The grpc-status of a stream, as soon as it comes."""
        async with asyncio.timeout(5):
            while True:
                for event in self.events:
                    if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                        headers = {str(name): str(value) for name, value in event.headers}
                        if event.stream_id == stream and "grpc-status" in headers:
                            return headers["grpc-status"]
                data = await self.reader.read(65536)
                assert data, "connection closed"
                self.events += self.h2.receive_data(data)
                await self.flush()

    async def receive(self) -> None:
        """Take in what the server has sent, if anything."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.01):
                self.events += self.h2.receive_data(await self.reader.read(65536))

    async def closed(self) -> None:
        """Return when the server has closed the connection."""
        async with asyncio.timeout(5):
            with contextlib.suppress(ConnectionError):
                while await self.reader.read(65536):
                    pass


@contextlib.asynccontextmanager
async def raw_client(rig: Rig, address: str = "127.0.0.1") -> AsyncIterator[RawClient]:
    reader, writer = await asyncio.open_connection("127.0.0.1", rig.port, local_addr=(address, 0))
    client = RawClient(reader, writer)
    try:
        yield client
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def assert_serves(rig: Rig) -> None:
    """A good agent gets its answer at once."""
    now = int(time.time())
    async with connected(rig.port) as channel, asyncio.timeout(3):
        async for ack in FlowCollectorStub(channel).push([batch_message(10, start=now - 60, end=now)]):
            assert ack.outcome is Outcome.COMMITTED


class StallWatch:
    """The longest time the event loop was late while this was open."""

    longest = 0.0

    async def __aenter__(self) -> StallWatch:
        self._task = asyncio.create_task(self._watch())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        assert self.longest < LONGEST_STALL

    async def _watch(self) -> None:
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.01)
            self.longest = max(self.longest, time.monotonic() - before - 0.01)


def resident() -> int:
    """Bytes of this process in memory now."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def assert_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    shown = [record for record in caplog.records if record.exc_info and record.levelno >= logging.INFO]
    assert not shown, shown[0].getMessage()


async def announce(client: RawClient, size: int = 1 << 20) -> int:
    """Begin a message of so many bytes and send no more of it; the stream."""
    stream = await client.request(PUSH_METHOD)
    await client.send(stream, b"\0" + size.to_bytes(4, "big") + b"x")
    return stream
