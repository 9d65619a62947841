"""Agents as the tests of the receiver play them: by grpclib, and by gRPC's C core."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable

import grpc
import grpclib.client
from grpclib.protocol import Stream as HttpStream

from kubenetmon.model import FlowBatch
from kubenetmon.proto import (
    PUSH_METHOD,
    SUBMIT_METHOD,
    BatchAck,
    FlowCollectorStub,
    Observation,
    ObservationSummary,
    Outcome,
)
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.server.receiver import ReceiverConfig
from kubenetmon.server.verdict import Verdict
from tests.beds.receiving import SUBMIT_HEADERS, Rig, batch_message, observation

QUICK = ReceiverConfig(stop_grace=2.0, message_timeout=1.0)


def current_batch(count: int = 10, **values: object) -> FlowBatchMessage:
    now = int(time.time())
    return batch_message(count, start=now - 60, end=now, **values)  # type: ignore[arg-type]


def current_observation(index: int = 0, **values: object) -> Observation:
    return observation(index, timestamp=int(time.time()), **values)  # type: ignore[arg-type]


async def push(channel: grpclib.client.Channel, messages: Iterable[FlowBatchMessage]) -> dict[int, BatchAck]:
    return {ack.sequence: ack async for ack in FlowCollectorStub(channel).push(messages)}


async def until(condition: object, timeout: float = 5.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not come true in time"
        await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[grpclib.client.Channel]:
    channel = grpclib.client.Channel("127.0.0.1", port)
    try:
        yield channel
    finally:
        channel.close()


class CoreClient:
    """gRPC's C core; its calls run in threads of their own."""

    def __init__(self, port: int, *options: tuple[str, int]) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=list(options))
        self.push = self.channel.stream_stream(
            PUSH_METHOD, request_serializer=bytes, response_deserializer=BatchAck.parse
        )
        self.submit = self.channel.stream_unary(
            SUBMIT_METHOD, request_serializer=bytes, response_deserializer=ObservationSummary.parse
        )

    async def __aenter__(self) -> CoreClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.channel.close)


def gated(rig: Rig) -> asyncio.Event:
    """ClickHouse answers once this is set."""
    gate = asyncio.Event()

    async def answer(batch: FlowBatch) -> Verdict:
        await gate.wait()
        return Verdict(Outcome.COMMITTED)

    rig.pipeline.answer = answer
    return gate


@contextlib.asynccontextmanager
async def submitting(rig: Rig) -> AsyncIterator[HttpStream]:
    """A Submit stream as HTTP/2 knows it: for who breaks it off."""
    async with connected(rig.port) as channel:
        protocol = await channel.__connect__()
        stream = protocol.processor.connection.create_stream()
        await stream.send_request(SUBMIT_HEADERS, _processor=protocol.processor)
        yield stream
