"""Both RPCs over real sockets: grpclib's client, and gRPC's C core in place of the original's Go agent."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import replace

import grpc
import grpclib.client
import pytest
import trustme
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.protocol import Stream as HttpStream

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
from kubenetmon.server.receiver import ReceiverConfig
from kubenetmon.server.submit import LEFT_BEHIND_OVERHEAD, SLICE_BYTES
from kubenetmon.server.verdict import Verdict
from tests.beds.proxy import TcpProxy
from tests.beds.receiving import SUBMIT_HEADERS, Rig, batch_message, framed, observation, running_receiver

QUICK = ReceiverConfig(stop_grace=2.0, message_timeout=1.0)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    async with running_receiver(QUICK) as running:
        yield running


@pytest.fixture
async def channel(rig: Rig) -> AsyncIterator[grpclib.client.Channel]:
    async with connected(rig.port) as channel:
        yield channel


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
