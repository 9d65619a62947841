"""How connections and the receiver end: in order, and without losing what was sent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace

import grpclib.client
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from kubenetmon.model import FlowBatch
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.proto import (
    FlowCollectorStub,
    FlowHandlerStub,
    Observation,
    Outcome,
)
from kubenetmon.server.verdict import Verdict
from tests.beds.receiving import Rig, running_receiver
from tests.end_to_end.reporting import (
    QUICK,
    CoreClient,
    connected,
    current_batch,
    current_observation,
    until,
)

RECEIVER = QUICK


async def test_old_connections_end_after_the_answers() -> None:
    async with running_receiver(replace(QUICK, max_connection_age=0.5)) as rig:
        gate = asyncio.Event()

        async def answer(batch: FlowBatch) -> Verdict:
            await gate.wait()
            return Verdict(Outcome.COMMITTED)

        rig.pipeline.answer = answer
        async with connected(rig.port) as channel:
            acks: list[int] = []
            asked_again = asyncio.Event()

            async def messages() -> AsyncIterator[FlowBatchMessage]:
                yield current_batch(sequence=1)
                await asked_again.wait()

            async def collect() -> None:
                async for ack in FlowCollectorStub(channel).push(messages()):
                    acks.append(ack.sequence)  # noqa: PERF401 - looked at while it grows

            collecting = asyncio.create_task(collect())
            await asyncio.sleep(2)
            assert not collecting.done()
            gate.set()
            await until(lambda: acks == [1])
            await until(lambda: not rig.receiver.connections)
            collecting.cancel()


async def test_the_c_core_moves_to_a_new_connection_without_losing_a_stream() -> None:
    async with running_receiver(replace(QUICK, max_connection_age=1.0)) as rig:
        async with CoreClient(rig.port) as core:
            until_time = time.monotonic() + 5
            streams = 0
            while time.monotonic() < until_time:
                summary = await asyncio.to_thread(core.submit, iter([current_observation()] * 10))
                assert summary.observation_count == 10
                streams += 1
                await asyncio.sleep(0.05)
        assert rig.pipeline.records() == streams * 10
        assert rig.receiver.connections_accepted >= 2


async def test_stop_answers_what_is_in_flight_and_refuses_the_rest(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    gates = {1: asyncio.Event(), 2: asyncio.Event()}

    async def answer(batch: FlowBatch) -> Verdict:
        await gates[batch.identity.sequence].wait()
        return Verdict(Outcome.COMMITTED)

    rig.pipeline.answer = answer
    acks: dict[int, Outcome] = {}

    async def messages() -> AsyncIterator[FlowBatchMessage]:
        yield current_batch(sequence=1)
        yield current_batch(sequence=2)
        await asyncio.sleep(60)

    async def collect() -> None:
        async for ack in FlowCollectorStub(channel).push(messages()):
            acks[ack.sequence] = ack.outcome

    collecting = asyncio.create_task(collect())
    await until(lambda: len(rig.pipeline.batches) == 2)
    port = rig.port
    stopping = asyncio.create_task(rig.receiver.stop())
    await asyncio.sleep(0.1)
    with pytest.raises(OSError):
        await asyncio.open_connection("127.0.0.1", port)
    with pytest.raises(GRPCError) as caught:
        await FlowHandlerStub(channel).submit([current_observation()])
    assert caught.value.status is Status.UNAVAILABLE
    gates[1].set()
    await asyncio.wait_for(stopping, 5)
    await until(lambda: acks == {1: Outcome.COMMITTED, 2: Outcome.RETRY_LATER})
    collecting.cancel()


async def test_stop_stores_what_a_submit_stream_has_brought(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    async def messages() -> AsyncIterator[Observation]:
        for i in range(50):
            yield current_observation(i)
        await asyncio.sleep(60)

    submitting = asyncio.create_task(FlowHandlerStub(channel).submit(messages()))
    await asyncio.sleep(0.3)
    await asyncio.wait_for(rig.receiver.stop(), 5)
    assert rig.pipeline.records() == 50
    submitting.cancel()
