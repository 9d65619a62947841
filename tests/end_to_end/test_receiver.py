"""Push, and what both RPCs share, over real sockets: grpclib's client, and gRPC's C core in place of Go's."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import grpc
import grpclib.client
import pytest
import trustme
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError

from kubenetmon.metrics import catalogue
from kubenetmon.model import FlowBatch
from kubenetmon.proto import (
    MAX_MESSAGE_BYTES,
    PUSH_METHOD,
    SUBMIT_METHOD,
    BatchAck,
    FlowCollectorStub,
    FlowHandlerStub,
    Observation,
    ObservationSummary,
    Outcome,
)
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.server.doorway import Doorway
from kubenetmon.server.push import ANSWER_OVERHEAD, BATCH_OVERHEAD
from kubenetmon.server.verdict import Verdict
from tests.beds.receiving import Rig, running_receiver
from tests.end_to_end.reporting import (
    QUICK,
    CoreClient,
    connected,
    current_batch,
    current_observation,
    push,
    until,
)

RECEIVER = QUICK


async def test_every_batch_is_answered_by_its_identity(rig: Rig, channel: grpclib.client.Channel) -> None:
    messages = [current_batch(100, ipv6=5, sequence=i) for i in range(1, 21)]
    acks = await push(channel, messages)
    assert {i: acks[i].epoch for i in acks} == {m.sequence: m.epoch for m in messages}
    assert {ack.outcome for ack in acks.values()} == {Outcome.COMMITTED}
    assert rig.pipeline.records() == 20 * 105
    assert rig.metrics.value(catalogue.SERVER_BATCHES, wire="push", outcome="committed") == 20
    await until(lambda: rig.receiver.memory_reserved == 0)


async def test_initial_metadata_comes_before_anything_is_sent(channel: grpclib.client.Channel) -> None:
    method = channel.request(PUSH_METHOD, grpclib.const.Cardinality.STREAM_STREAM, FlowBatchMessage, BatchAck)
    async with method as stream:
        await stream.send_request()
        await asyncio.wait_for(stream.recv_initial_metadata(), 2)
        await stream.end()


async def test_batches_settle_in_any_order_and_four_at_a_time(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    gates = {i: asyncio.Event() for i in range(1, 9)}

    async def answer(batch: FlowBatch) -> Verdict:
        await gates[batch.identity.sequence].wait()
        return Verdict(Outcome.COMMITTED)

    rig.pipeline.answer = answer
    order: list[int] = []

    async def collect() -> None:
        messages = [current_batch(sequence=i) for i in range(1, 9)]
        async for ack in FlowCollectorStub(channel).push(messages):
            order.append(ack.sequence)  # noqa: PERF401 - looked at while it grows

    collecting = asyncio.create_task(collect())
    await until(lambda: len(rig.pipeline.batches) == 4)
    await asyncio.sleep(0.1)
    assert len(rig.pipeline.batches) == 4
    gates[3].set()
    await until(lambda: order == [3])
    await until(lambda: len(rig.pipeline.batches) == 5)
    for gate in gates.values():
        gate.set()
    await collecting
    assert sorted(order) == list(range(1, 9))


async def test_copies_sent_again_while_the_first_is_unsettled_hold_little_memory(rig: Rig) -> None:
    """Not the batch: what it takes to answer them."""
    settled: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()

    async def wait() -> Verdict:
        return await asyncio.shield(settled)

    rig.pipeline.answer = lambda batch: wait()
    message = current_batch(10_000)
    waiting = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(10):
            channel = await stack.enter_async_context(connected(rig.port))
            waiting.append(asyncio.create_task(push(channel, [message])))
            await until(lambda: rig.pipeline.batches)
            rig.pipeline.earlier = wait
        first = len(bytes(message)) + BATCH_OVERHEAD
        await until(lambda: rig.receiver.memory_reserved == first + 9 * ANSWER_OVERHEAD)
        assert len(rig.pipeline.batches) == 1
        for task in waiting[:5]:
            task.cancel()
        await until(lambda: rig.receiver.memory_reserved == first + 5 * ANSWER_OVERHEAD)
        settled.set_result(Verdict(Outcome.COMMITTED))
        for task in waiting[5:]:
            assert (await task)[1].outcome is Outcome.COMMITTED
    await until(lambda: rig.receiver.memory_reserved == 0)


async def test_copies_whose_agent_has_gone_leave_nothing_that_waits(rig: Rig) -> None:
    """An agent asks again every two minutes, for as long as ClickHouse is away."""
    settled: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
    began = ended = 0

    async def wait() -> Verdict:
        nonlocal began, ended
        began += 1
        try:
            return await asyncio.shield(settled)
        finally:
            ended += 1

    rig.pipeline.earlier = wait
    for number in range(1, 11):
        async with connected(rig.port) as channel:
            asking = asyncio.create_task(push(channel, [current_batch()]))
            await until(lambda: began == number)  # noqa: B023 - called at once
            asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    await until(lambda: ended == 10)


async def test_acks_carry_the_wish_for_a_longer_report_interval() -> None:
    async with running_receiver(QUICK, wish=120) as rig, connected(rig.port) as channel:
        acks = await push(channel, [current_batch(sequence=i) for i in (1, 2)])
        assert {ack.wished_report_interval for ack in acks.values()} == {120}


async def test_retry_and_reason_reach_the_agent(rig: Rig, channel: grpclib.client.Channel) -> None:
    async def answer(batch: FlowBatch) -> Verdict:
        return Verdict(Outcome.RETRY_LATER, "ClickHouse is away")

    rig.pipeline.answer = answer
    (ack,) = (await push(channel, [current_batch()])).values()
    assert (ack.outcome, ack.reason) == (Outcome.RETRY_LATER, "ClickHouse is away")


async def test_a_batch_that_can_never_fit_is_rejected_and_the_stream_goes_on(
    rig: Rig, channel: grpclib.client.Channel
) -> None:
    bad = current_batch(sequence=1)
    assert bad.ipv4 is not None
    bad.ipv4.count = 11
    acks = await push(channel, [bad, current_batch(sequence=2)])
    assert acks[1].outcome is Outcome.REJECTED
    assert "ipv4.protocol has 10 bytes" in acks[1].reason
    assert acks[2].outcome is Outcome.COMMITTED
    assert rig.metrics.value(catalogue.SERVER_BATCHES, wire="push", outcome="rejected") == 1


async def test_a_batch_without_identity_ends_the_stream(rig: Rig, channel: grpclib.client.Channel) -> None:
    with pytest.raises(GRPCError) as caught:
        await push(channel, [current_batch(epoch=b"short")])
    assert caught.value.status is Status.INVALID_ARGUMENT
    assert "epoch" in str(caught.value.message)
    assert (await push(channel, [current_batch()]))[1].outcome is Outcome.COMMITTED


async def test_before_the_server_is_ready_batches_are_to_be_sent_again() -> None:
    async with running_receiver(QUICK, ready=False) as rig, connected(rig.port) as channel:
        assert (await push(channel, [current_batch()]))[1].outcome is Outcome.RETRY_LATER
        assert not rig.pipeline.batches
        submitting = asyncio.create_task(FlowHandlerStub(channel).submit([current_observation()]))
        await asyncio.sleep(0.2)
        assert not submitting.done()
        rig.readiness.passed("inventory")
        assert (await submitting).observation_count == 1


async def test_the_c_core_pushes_and_submits(rig: Rig) -> None:
    async with CoreClient(rig.port) as core:
        messages = [current_batch(15_000, sequence=i) for i in range(1, 6)]
        acks = await asyncio.to_thread(lambda: list(core.push(iter(messages))))
        assert {ack.sequence: ack.outcome for ack in acks} == dict.fromkeys(range(1, 6), Outcome.COMMITTED)
        observations = [current_observation(i) for i in range(2000)]
        summary = await asyncio.to_thread(core.submit, iter(observations))
        assert summary.observation_count == 2000
    assert rig.pipeline.records() == 75_000 + 2000


async def test_a_compressing_client_is_told_that_it_must_not(rig: Rig) -> None:
    async with CoreClient(rig.port, ("grpc.default_compression_algorithm", 2)) as core:
        for call, message in (
            (core.submit, current_observation(node="n" * 200)),
            (core.push, current_batch(1000)),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                await asyncio.to_thread(_finish, call, [message])
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def _finish(call: object, messages: list[object]) -> None:
    assert callable(call)
    result = call(iter(messages))
    if not isinstance(result, ObservationSummary):
        list(result)


async def test_an_oversize_message_is_refused_before_it_is_read(rig: Rig) -> None:
    async with CoreClient(rig.port) as core:
        huge = Observation(node_name="n" * (MAX_MESSAGE_BYTES + 1))
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(core.submit, iter([huge]))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            await asyncio.to_thread(_finish, core.push, [current_batch(20_000)])
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_agents_are_counted(rig: Rig, channel: grpclib.client.Channel) -> None:
    await push(channel, [current_batch()])
    assert rig.metrics.value(catalogue.SERVER_AGENTS) == 1
    channel.close()
    await until(lambda: rig.metrics.value(catalogue.SERVER_AGENTS) == 0)


async def test_agents_show_and_check_certificates() -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    authority.configure_trust(server_side)
    server_side.verify_mode = ssl.CERT_REQUIRED
    client_side = ssl.create_default_context()
    client_side.set_alpn_protocols(["h2"])
    authority.configure_trust(client_side)
    server_side.set_alpn_protocols(["h2"])
    async with running_receiver(
        QUICK, doorway=lambda refusals: Doorway(lambda: server_side, refusals)
    ) as rig:
        anonymous = grpclib.client.Channel("127.0.0.1", rig.port, ssl=client_side)
        with pytest.raises((OSError, StreamTerminatedError, GRPCError)):
            await push(anonymous, [current_batch()])
        anonymous.close()
        assert not rig.pipeline.batches
        certificate = authority.issue_cert("node-1")
        certificate.configure_cert(client_side)
        known = grpclib.client.Channel("127.0.0.1", rig.port, ssl=client_side)
        acks = await push(known, [current_batch(15_000, sequence=i) for i in range(1, 4)])
        assert len(acks) == 3
        known.close()
        credentials = grpc.ssl_channel_credentials(
            authority.cert_pem.bytes(),
            certificate.private_key_pem.bytes(),
            certificate.cert_chain_pems[0].bytes(),
        )
        core = grpc.secure_channel(f"127.0.0.1:{rig.port}", credentials)
        call = core.stream_unary(
            SUBMIT_METHOD, request_serializer=bytes, response_deserializer=ObservationSummary.parse
        )
        summary = await asyncio.to_thread(call, iter([current_observation()] * 100))
        assert summary.observation_count == 100
        await asyncio.to_thread(core.close)
