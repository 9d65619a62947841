"""Many connections, idle ones and ones that break off: they cost little, and the others are served."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import (
    SettingsFrame,
)

from kubenetmon.proto import PUSH_METHOD, SUBMIT_METHOD, FlowCollectorStub, Outcome
from tests.beds.receiving import SUBMIT_HEADERS, Rig, batch_message, framed, observation, running_receiver
from tests.end_to_end.hostile import (
    PREFACE,
    QUICK,
    StallWatch,
    assert_no_traceback,
    assert_serves,
    connected,
    raw_client,
    resident,
)

RECEIVER = QUICK


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
        connected(rig.port) as good,
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
