"""Submit, the original's RPC: answered once the rows are in, and stored however its stream ends."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import grpclib.client
import pytest
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from kubenetmon.metrics import catalogue
from kubenetmon.model import FlowBatch
from kubenetmon.proto import (
    SUBMIT_METHOD,
    FlowHandlerStub,
    Observation,
    ObservationSummary,
    Outcome,
)
from kubenetmon.server.submit import LEFT_BEHIND_OVERHEAD, SLICE_BYTES
from kubenetmon.server.verdict import Verdict
from tests.beds.proxy import TcpProxy
from tests.beds.receiving import Rig, framed, running_receiver
from tests.end_to_end.reporting import (
    QUICK,
    CoreClient,
    connected,
    current_observation,
    gated,
    submitting,
    until,
)

RECEIVER = QUICK


async def test_submit_answers_with_the_number_after_the_rows_are_in(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    gate = asyncio.Event()

    async def answer(batch: FlowBatch) -> Verdict:
        await gate.wait()
        return Verdict(Outcome.COMMITTED)

    rig.pipeline.answer = answer
    messages = [current_observation(i, node=f"node-{i % 2}") for i in range(500)]
    submitting = asyncio.create_task(FlowHandlerStub(channel).submit(messages))
    await until(lambda: rig.pipeline.batches)
    await asyncio.sleep(0.1)
    assert not submitting.done()
    gate.set()
    assert (await submitting).observation_count == 500
    assert sum(b.total_bytes() for b in rig.pipeline.batches) == sum(300 + 2 * i for i in range(500))
    assert {b.identity.node_name for b in rig.pipeline.batches} == {"node-0", "node-1"}


async def test_submit_is_committed_in_slices_with_identities_of_their_own(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    data = framed(bytes(current_observation())) * 40_000
    method = channel.request(
        SUBMIT_METHOD, grpclib.const.Cardinality.STREAM_UNARY, Observation, ObservationSummary
    )
    async with method as stream:
        await stream.send_request()
        for at in range(0, len(data), 1 << 16):
            await stream._stream.send_data(data[at : at + (1 << 16)])
        await stream.end()
        summary = await stream.recv_message()
    assert summary is not None
    assert summary.observation_count == 40_000
    assert rig.pipeline.records() == 40_000
    assert max(len(batch) for batch in rig.pipeline.batches) <= 16384
    assert len(set(rig.pipeline.identities())) == len(rig.pipeline.batches) >= 3
    await until(lambda: rig.receiver.memory_reserved == 0)


async def test_a_submit_stream_that_is_not_stored_fails(rig: Rig, channel: grpclib.client.Channel) -> None:
    async def answer(batch: FlowBatch) -> Verdict:
        return Verdict(Outcome.RETRY_LATER, "the server is stopping")

    rig.pipeline.answer = answer
    with pytest.raises(GRPCError) as caught:
        await FlowHandlerStub(channel).submit([current_observation()])
    assert caught.value.status is Status.UNAVAILABLE


async def test_what_came_on_a_broken_submit_stream_is_stored(rig: Rig) -> None:
    sent = threading.Event()

    def endless() -> Iterator[Observation]:
        for i in range(300):
            yield current_observation(i)
        sent.set()
        time.sleep(1)

    async with CoreClient(rig.port) as core:
        call = core.submit.future(endless())
        await asyncio.to_thread(sent.wait)
        await asyncio.sleep(0.3)
        call.cancel()
        await until(lambda: rig.pipeline.records() == 300)
    await until(lambda: rig.receiver.memory_reserved == 0)


async def test_what_came_on_a_cut_connection_is_stored(rig: Rig) -> None:
    async with TcpProxy("127.0.0.1", rig.port) as proxy, connected(proxy.port) as channel:

        async def slowly() -> AsyncIterator[Observation]:
            for i in range(100):
                yield current_observation(i)
            await asyncio.sleep(0.2)
            await proxy.cut()
            await asyncio.sleep(0.1)

        with pytest.raises((StreamTerminatedError, ConnectionError, GRPCError, RuntimeError)):
            await asyncio.wait_for(FlowHandlerStub(channel).submit(slowly()), 4)
        await until(lambda: rig.pipeline.records() == 100)


@pytest.mark.parametrize("how", ["the stream is reset", "the connection is cut"])
async def test_what_waits_behind_unsettled_slices_is_stored_when_the_stream_breaks(how: str) -> None:
    """Four slices wait for ClickHouse, a fifth for its turn, and what came after it was not read yet."""
    async with running_receiver(replace(QUICK, slice_age=0.05)) as rig:
        gate = gated(rig)
        async with submitting(rig) as stream:
            for number in range(1, 5):
                await stream.send_data(framed(bytes(current_observation(number))))
                await until(lambda: len(rig.pipeline.batches) == number)  # noqa: B023 - called at once
            await stream.send_data(framed(bytes(current_observation(5))))
            await asyncio.sleep(0.2)
            await stream.send_data(framed(*(bytes(current_observation(i)) for i in range(6, 9))))
            await until(lambda: rig.receiver.bytes_unread > 0)
            if how == "the stream is reset":
                await stream.reset()
            else:
                stream.connection._transport.abort()
            await until(lambda: rig.receiver.bytes_unread == 0)
        gate.set()
        await until(lambda: rig.pipeline.records() == 8)
        assert sum(batch.total_bytes() for batch in rig.pipeline.batches) == sum(
            300 + 2 * i for i in range(1, 9)
        )
        await until(lambda: rig.receiver.memory_reserved == 0)


async def test_streams_that_break_while_there_is_no_memory_are_stored_until_their_room_is_full() -> None:
    """One slice has all the memory: the little that streams may send unasked waits for it beside, up to an
    eighth, and what is beyond that is lost and told."""
    config = replace(QUICK, slice_age=0.05, memory_limit=SLICE_BYTES)
    async with running_receiver(config) as rig:
        gate = gated(rig)
        two = framed(*(bytes(current_observation(i)) for i in (2, 3)))
        async with submitting(rig) as stream:
            await stream.send_data(framed(bytes(current_observation(1))))
            await until(lambda: rig.pipeline.batches)
            room = (SLICE_BYTES // 8) // (len(two) + 2 + LEFT_BEHIND_OVERHEAD)
            for _ in range(room + 3):
                async with submitting(rig) as broken:
                    await broken.send_data(two + b"\0\0")
                    await until(lambda: rig.receiver.bytes_unread > 0)
                    await broken.reset()
                    await until(lambda: rig.receiver.bytes_unread == 0)
            assert SLICE_BYTES < rig.receiver.memory_reserved <= SLICE_BYTES * 9 // 8
            for unit, amount in (("bytes", 3 * (304 + 306)), ("packets", 3 * (7 + 9))):
                assert rig.metrics.value(catalogue.SERVER_RECEIVED, unit=unit) == amount
                assert rig.metrics.value(catalogue.SERVER_IGNORED, reason="memory", unit=unit) == amount
            gate.set()
            await until(lambda: rig.pipeline.records() == 1 + 2 * room)
        await until(lambda: rig.receiver.memory_reserved == 0)


async def test_a_slow_submit_stream_is_stored_while_it_goes_on() -> None:
    async with running_receiver(replace(QUICK, slice_age=0.2)) as rig, connected(rig.port) as channel:
        done = asyncio.Event()

        sent = 0

        async def slowly() -> AsyncIterator[Observation]:
            nonlocal sent
            while not done.is_set():
                yield current_observation()
                sent += 1
                await asyncio.sleep(0.05)

        submitting = asyncio.create_task(FlowHandlerStub(channel).submit(slowly()))
        await until(lambda: rig.pipeline.records() >= 5)
        assert len(rig.pipeline.batches) < 5
        done.set()
        assert (await submitting).observation_count == sent
