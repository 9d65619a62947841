"""What hostile peers can do to the receiver: nothing but lose their own connection.

After each attack a well-behaved agent on another connection is served, the event loop was never held up for
long, and the process holds no more memory than before.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import resource
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import grpclib.client
import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from kubenetmon.model import FlowBatch
from kubenetmon.proto import PUSH_METHOD, SUBMIT_METHOD, FlowCollectorStub, Outcome
from kubenetmon.server.push import ANSWER_OVERHEAD, BATCH_OVERHEAD
from kubenetmon.server.receiver import ReceiverConfig
from kubenetmon.server.verdict import Verdict
from tests.beds.receiving import SUBMIT_HEADERS, Rig, batch_message, framed, observation, running_receiver

QUICK = ReceiverConfig(stop_grace=2.0, message_timeout=0.5)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
LONGEST_STALL = 1.0
"""Seconds; generous, for this runs beside other work on few cores."""


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running_receiver(QUICK) as running:
        yield running


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


@contextlib.asynccontextmanager
async def connected(rig: Rig) -> AsyncIterator[grpclib.client.Channel]:
    channel = grpclib.client.Channel("127.0.0.1", rig.port)
    try:
        yield channel
    finally:
        channel.close()


async def assert_serves(rig: Rig) -> None:
    """A good agent gets its answer at once."""
    now = int(time.time())
    async with connected(rig) as channel, asyncio.timeout(3):
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


def assert_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    shown = [record for record in caplog.records if record.exc_info and record.levelno >= logging.INFO]
    assert not shown, shown[0].getMessage()


@pytest.mark.parametrize(
    "extra", [[("x-bin", "%%%")], [("grpc-timeout", "never")], [("x-\x80", "\xff")], [("connection", "x")]]
)
async def test_strange_headers_are_answered_or_refused(
    rig: Rig, extra: list[tuple[str, str]], caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_client(rig) as client:
        stream = await client.request(extra=extra)
        with contextlib.suppress(ConnectionError):
            await client.send(stream, framed(bytes(observation(timestamp=int(time.time())))), end=True)
        with contextlib.suppress(AssertionError, ConnectionError):
            await client.status(stream)
    await assert_serves(rig)
    assert_no_traceback(caplog)


async def test_a_request_without_path_is_reset(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async with raw_client(rig) as client:
        client.h2.send_headers(1, [(":method", "POST"), ("te", "trailers")])
        await client.flush()
        async with asyncio.timeout(3):
            while not any(isinstance(event, h2.events.StreamReset) for event in client.events):
                client.events += client.h2.receive_data(await client.reader.read(65536))
    await assert_serves(rig)
    assert_no_traceback(caplog)


async def test_unknown_frames_and_empty_data_mean_nothing(rig: Rig) -> None:
    async with raw_client(rig) as client:
        stream = await client.request()
        await client.raw(b"\0\0\x03\xee\0\0\0\0\0abc")
        await client.raw(DataFrame(stream, b""))
        data = framed(*(bytes(observation(i, timestamp=int(time.time()))) for i in range(3)))
        await client.send(stream, data[:50])
        await client.raw(DataFrame(stream, b""))
        await client.send(stream, data[50:], end=True)
        assert await client.status(stream) == "0"
    assert rig.pipeline.records() == 3


@pytest.mark.parametrize(
    ("path", "data", "status"),
    [
        (SUBMIT_METHOD, framed(b"\xff"), "3"),
        (SUBMIT_METHOD, framed(bytes(observation()))[:-1], "3"),
        (SUBMIT_METHOD, b"\0\xff\xff\xff\xff", "8"),
        (SUBMIT_METHOD, b"\1\0\0\0\1a", "12"),
        (SUBMIT_METHOD, b"\0\0", "3"),
        (SUBMIT_METHOD, b"", "0"),
        (PUSH_METHOD, framed(b"\xff"), "3"),
        (PUSH_METHOD, framed(b""), "3"),
        (PUSH_METHOD, b"\0\0\0", "3"),
        (PUSH_METHOD, framed(bytes(batch_message()))[:-1], "3"),
        (PUSH_METHOD, b"\0\xff\xff\xff\xff", "8"),
        (PUSH_METHOD, b"\1\0\0\0\1a", "12"),
        (PUSH_METHOD, b"", "0"),
        ("/grpc.FlowHandler/Nothing", b"", "12"),
    ],
)
async def test_bad_streams_get_a_status_and_the_connection_goes_on(
    rig: Rig, path: str, data: bytes, status: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with raw_client(rig) as client:
        stream = await client.request(path)
        await client.send(stream, data, end=True)
        assert await client.status(stream) == status
        again = await client.request()
        await client.send(again, framed(bytes(observation(timestamp=int(time.time())))), end=True)
        assert await client.status(again) == "0"
    assert_no_traceback(caplog)
    assert rig.receiver.memory_reserved == 0


async def test_before_memory_is_given_a_stream_holds_little(rig: Rig) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            client = await stack.enter_async_context(raw_client(rig))
            await client.receive()  # the server's settings
            for _ in range(3):
                stream = await client.request("/grpc.FlowHandler/Submit")
                assert client.h2.local_flow_control_window(stream) == 16384


@pytest.mark.parametrize(
    ("path", "beginning"),
    [
        (PUSH_METHOD, framed(bytes(batch_message(1000)))[:500]),
        (SUBMIT_METHOD, framed(bytes(observation()))[:50]),
    ],
)
async def test_a_message_that_does_not_come_is_given_up(rig: Rig, path: str, beginning: bytes) -> None:
    async with raw_client(rig) as client:
        stream = await client.request(path)
        await client.send(stream, beginning)
        await asyncio.sleep(0.1)
        assert rig.receiver.memory_reserved > 0
        assert await client.status(stream) == "4"
    assert rig.receiver.memory_reserved == 0


async def announce(client: RawClient, size: int = 1 << 20) -> int:
    """Begin a message of so many bytes and send no more of it; the stream."""
    stream = await client.request(PUSH_METHOD)
    await client.send(stream, b"\0" + size.to_bytes(4, "big") + b"x")
    return stream


async def test_slow_clients_do_not_keep_good_ones_waiting_for_memory() -> None:
    """Twenty connections of twenty addresses hold all there is, until their time is up."""
    async with (
        running_receiver(replace(QUICK, memory_limit=8 << 20)) as rig,
        contextlib.AsyncExitStack() as stack,
    ):
        for number in range(20):
            await announce(await stack.enter_async_context(raw_client(rig, f"127.0.1.{number + 1}")))
        await asyncio.sleep(0.1)
        assert rig.receiver.memory_reserved > 6 << 20
        await assert_serves(rig)
        async with asyncio.timeout(5):
            while rig.receiver.memory_reserved:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.05)


async def test_an_address_cannot_take_all_the_memory_however_it_connects() -> None:
    config = replace(QUICK, memory_limit=8 << 20, message_timeout=60.0)
    async with running_receiver(config) as rig:
        held = 0
        for _ in range(3):
            async with contextlib.AsyncExitStack() as stack:
                for _ in range(20):
                    client = await stack.enter_async_context(raw_client(rig, "127.0.0.9"))
                    await announce(client)
                await asyncio.sleep(0.1)
                held = max(held, rig.receiver.memory_reserved)
                async with StallWatch():
                    await assert_serves(rig)
        assert 3 << 20 <= held <= 4 << 20


async def test_a_connection_cannot_take_all_the_memory_of_its_address() -> None:
    config = replace(QUICK, memory_limit=16 << 20, message_timeout=60.0)
    async with running_receiver(config) as rig, raw_client(rig) as client:
        for _ in range(12):
            await announce(client)
        await asyncio.sleep(0.1)
        assert 3 << 20 <= rig.receiver.memory_reserved <= 4 << 20
        await assert_serves(rig)


async def test_empty_batches_cannot_be_piled_up() -> None:
    """Nothing can be stored, and a client goes on sending batches of a few bytes, over many streams."""
    config = replace(QUICK, memory_limit=4 << 20, message_timeout=60.0)
    async with (
        running_receiver(replace(config, batch_burst=10_000)) as rig,
        contextlib.AsyncExitStack() as stack,
    ):
        never = asyncio.Event()

        async def answer(batch: FlowBatch) -> Verdict:
            await never.wait()
            return Verdict(Outcome.COMMITTED)

        rig.pipeline.answer = answer
        now = int(time.time())
        for _ in range(20):
            client = await stack.enter_async_context(raw_client(rig))
            for _ in range(16):
                few = [batch_message(1, start=now - 60, end=now, epoch=os.urandom(16)) for _ in range(5)]
                await client.send(await client.request(PUSH_METHOD), framed(*map(bytes, few)))
        await asyncio.sleep(0.5)
        assert 100 <= len(rig.pipeline.batches) <= (2 << 20) // (16 << 10)
        never.set()


async def test_copies_of_a_batch_under_way_cannot_be_piled_up() -> None:
    """Each waits for its answer for as long as the first does, and is counted."""
    config = replace(QUICK, memory_limit=4 << 20, message_timeout=60.0, batch_burst=10_000)
    async with running_receiver(config) as rig, contextlib.AsyncExitStack() as stack:
        waiting = 0

        async def wait() -> Verdict:
            nonlocal waiting
            waiting += 1
            await asyncio.Event().wait()
            return Verdict(Outcome.COMMITTED)

        rig.pipeline.earlier = wait
        now = int(time.time())
        copy = bytes(batch_message(1, start=now - 60, end=now))
        for _ in range(20):
            client = await stack.enter_async_context(raw_client(rig, "127.0.0.9"))
            for _ in range(16):
                await client.send(await client.request(PUSH_METHOD), framed(*[copy] * 5))
        await asyncio.sleep(0.5)
        assert 200 <= waiting <= (2 << 20) // ANSWER_OVERHEAD
        assert rig.receiver.memory_reserved >= waiting * ANSWER_OVERHEAD
        rig.pipeline.earlier = None
        await assert_serves(rig)
    assert rig.receiver.memory_reserved == 0


async def test_a_copy_before_nonsense_in_one_frame_leaves_nothing_that_waits(rig: Rig) -> None:
    """The stream is refused before the task that answers the copy has begun."""
    never: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    async def wait() -> Verdict:
        return await asyncio.shield(never)

    rig.pipeline.earlier = wait
    copy = framed(bytes(batch_message(1, start=int(time.time()) - 60, end=int(time.time()))))
    async with raw_client(rig) as client:
        before = len(asyncio.all_tasks())
        for _ in range(10):
            stream = await client.request(PUSH_METHOD)
            await client.send(stream, copy + b"\0\xff\xff\xff\xff")
            assert await client.status(stream) == "8"
        await asyncio.sleep(0.05)
        assert len(asyncio.all_tasks()) == before
    assert rig.receiver.memory_reserved == 0


async def test_a_connection_brings_so_many_batches_and_no_more() -> None:
    """Each would become an insert; the others are not kept waiting."""
    config = replace(QUICK, batch_burst=20, batches_per_second=10.0)
    async with running_receiver(config) as rig, connected(rig) as greedy:
        now = int(time.time())
        messages = [batch_message(1, start=now - 60, end=now, epoch=os.urandom(16)) for _ in range(200)]

        async def push() -> None:
            async for _ in FlowCollectorStub(greedy).push(messages):
                pass

        pushing = asyncio.create_task(push())
        await asyncio.sleep(0.3)
        first = len(rig.pipeline.batches)
        assert first >= 20
        await asyncio.sleep(1.0)
        assert first + 5 <= len(rig.pipeline.batches) <= first + 15
        await assert_serves(rig)
        pushing.cancel()


async def test_memory_is_bounded_while_nothing_can_be_stored() -> None:
    """ClickHouse is away: 40 agents offer 40 MB, the server takes what its limit allows and waits."""
    config = replace(QUICK, memory_limit=8 << 20, address_share=1.0, message_timeout=20.0)
    async with running_receiver(config) as rig:
        gate = asyncio.Event()

        async def answer(batch: FlowBatch) -> Verdict:
            await gate.wait()
            return Verdict(Outcome.COMMITTED)

        rig.pipeline.answer = answer
        now = int(time.time())
        template = batch_message(15_000, start=now - 60, end=now)
        before = resident()

        async def agent(number: int) -> list[Outcome]:
            def messages() -> list:  # type: ignore[type-arg]
                template.node_name, template.sequence = f"node-{number}", 1
                return [template]

            async with connected(rig) as channel:
                return [ack.outcome async for ack in FlowCollectorStub(channel).push(messages())]

        agents = [asyncio.create_task(agent(i)) for i in range(40)]
        await asyncio.sleep(2)
        assert len(rig.pipeline.batches) == (8 << 20) // (len(bytes(template)) + BATCH_OVERHEAD)
        assert rig.receiver.memory_reserved <= 8 << 20
        assert rig.receiver.bytes_unread <= 40 * 65535
        rig.pipeline.batches.clear()
        gate.set()
        outcomes = await asyncio.gather(*agents)
        assert outcomes == [[Outcome.COMMITTED]] * 40
        del outcomes, agents
        rig.pipeline.batches.clear()
        # The clients of this test live in this process too and hold what was not taken.
        assert resident() - before < 120 << 20


async def test_a_thousand_idle_connections_cost_little() -> None:
    async with running_receiver(QUICK) as rig, contextlib.AsyncExitStack() as stack:
        await assert_serves(rig)
        before = resident()
        writers = []
        for _ in range(1000):
            _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(PREFACE + SettingsFrame(0).serialize())
            stack.callback(writer.close)
            writers.append(writer)
        async with asyncio.timeout(10):
            while rig.receiver.connections < 1000:  # noqa: ASYNC110 - the server has no event for it
                await asyncio.sleep(0.05)
        async with StallWatch():
            await assert_serves(rig)
        # Both ends are in this process.
        assert (resident() - before) / 1000 < 120_000


async def test_connections_beyond_the_limit_are_refused_and_the_others_served() -> None:
    async with (
        running_receiver(replace(QUICK, max_connections=10, address_share=1.0)) as rig,
        connected(rig) as good,
    ):
        now = int(time.time())
        messages = [batch_message(10, start=now - 60, end=now)]
        assert [ack.outcome async for ack in FlowCollectorStub(good).push(messages)] == [Outcome.COMMITTED]
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(30):
                _, writer = await asyncio.open_connection("127.0.0.1", rig.port)
                stack.callback(writer.close)
            await asyncio.sleep(0.1)
            assert rig.receiver.connections == 10
            assert [ack.outcome async for ack in FlowCollectorStub(good).push(messages)] == [
                Outcome.COMMITTED
            ]


async def test_an_address_cannot_take_all_the_connections() -> None:
    async with (
        running_receiver(replace(QUICK, max_connections=20)) as rig,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(30):
            _, writer = await asyncio.open_connection("127.0.0.1", rig.port, local_addr=("127.0.0.9", 0))
            stack.callback(writer.close)
        await asyncio.sleep(0.1)
        assert rig.receiver.connections == 10
        await assert_serves(rig)


async def test_a_client_that_reads_nothing_is_dropped(rig: Rig) -> None:
    async with raw_client(rig) as client:
        client.h2.update_settings({4: 0})  # no window for answers
        stream = await client.request(PUSH_METHOD)
        now = int(time.time())
        await client.send(stream, framed(bytes(batch_message(start=now - 60, end=now, epoch=os.urandom(16)))))
        await client.closed()
    assert len(rig.pipeline.batches) == 1
    await assert_serves(rig)


@pytest.mark.parametrize("path", [PUSH_METHOD, SUBMIT_METHOD, "/grpc.FlowHandler/Nothing"])
async def test_streams_reset_as_they_begin_leave_nothing(
    rig: Rig, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All in one write: the request is over before its task has begun."""
    async with raw_client(rig) as client:
        await client.receive()  # the server's settings
        for _ in range(30):
            stream = client.h2.get_next_available_stream_id()
            client.h2.send_headers(
                stream, [(name, path if name == ":path" else value) for name, value in SUBMIT_HEADERS]
            )
            client.h2.send_data(stream, b"\0\0\0\1\0" + b"x" * 9000)
            client.h2.reset_stream(stream)
            await client.flush()
            await asyncio.sleep(0.01)
            await client.receive()
        assert client.h2.outbound_flow_control_window == 65535
        assert rig.receiver.bytes_unread == 0
        await rig.receiver.stop()  # waits for streams that are open
        await client.closed()
    assert rig.receiver.memory_reserved == 0
    assert_no_traceback(caplog)


async def test_streams_given_up_leave_the_connections_window_as_it_was(rig: Rig) -> None:
    """Each is let to send a megabyte and sends a little, or sends all that it may and is never read."""
    data = framed(*(bytes(observation(i, timestamp=int(time.time()))) for i in range(5000)))
    async with raw_client(rig) as client:
        for round_ in range(30):
            stream = await client.request(PUSH_METHOD if round_ % 2 else "/grpc.FlowHandler/Nothing")
            await client.send(stream, b"\0" + (1 << 20).to_bytes(4, "big") + b"x" * 10_000)
            await asyncio.sleep(0.01)
            with contextlib.suppress(h2.exceptions.StreamClosedError):
                client.h2.reset_stream(stream)
            await client.flush()
            await client.receive()
        stream = await client.request()
        async with asyncio.timeout(5):
            while data:
                size = min(client.h2.local_flow_control_window(stream), client.h2.max_outbound_frame_size)
                if size:
                    await client.send(stream, data[:size])
                    data = data[size:]
                await client.receive()
        client.h2.end_stream(stream)
        await client.flush()
        assert await client.status(stream) == "0"
    assert rig.pipeline.records() == 5000
    assert rig.receiver.memory_reserved == 0
