"""No peer can take the memory that others need, however it sends, stalls or repeats itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from dataclasses import replace

import pytest

from kubenetmon.model import FlowBatch
from kubenetmon.proto import PUSH_METHOD, SUBMIT_METHOD, FlowCollectorStub, Outcome
from kubenetmon.server.push import ANSWER_OVERHEAD, BATCH_OVERHEAD
from kubenetmon.server.verdict import Verdict
from tests.beds.receiving import Rig, batch_message, framed, observation, running_receiver
from tests.end_to_end.hostile import (
    QUICK,
    StallWatch,
    announce,
    assert_serves,
    connected,
    raw_client,
    resident,
)

RECEIVER = QUICK


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
    async with running_receiver(config) as rig, connected(rig.port) as greedy:
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

            async with connected(rig.port) as channel:
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
