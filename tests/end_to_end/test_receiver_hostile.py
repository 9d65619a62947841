"""What hostile peers can do to the receiver: nothing but lose their own connection, or get a status.

Floods, memory and connections have files of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from hyperframe.frame import (
    DataFrame,
)

from kubenetmon.proto import PUSH_METHOD, SUBMIT_METHOD
from tests.beds.receiving import Rig, batch_message, framed, observation
from tests.end_to_end.hostile import QUICK, assert_no_traceback, assert_serves, raw_client

RECEIVER = QUICK


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
