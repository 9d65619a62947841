"""The sender against a real gRPC server that misbehaves as its script says: nothing lost, nothing changed."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from kubenetmon.agent.schedule import Backoff
from kubenetmon.agent.sender import SenderConfig
from kubenetmon.metrics.catalogue import AGENT_BATCH_BYTES, AGENT_UNACKNOWLEDGED, COLLECTOR_ERRORS
from kubenetmon.proto import FlowBatch, Outcome
from tests.beds.collector_server import (
    COMMIT,
    CollectorServer,
    answer,
    commit_and_go_away,
    end_quietly,
    end_with_error,
    go_away,
    ignore,
    reset,
)
from tests.beds.proxy import TcpProxy
from tests.unit.sending import BEGIN, END, FAST, IMPATIENT, Bed, sending


@asynccontextmanager
async def sending_through_proxy(
    config: SenderConfig,
) -> AsyncIterator[tuple[CollectorServer, TcpProxy, Bed]]:
    async with (
        CollectorServer() as server,
        TcpProxy("127.0.0.1", server.port) as proxy,
        sending(proxy.port, config) as bed,
    ):
        yield server, proxy, bed


def pushing(**changes: float) -> SenderConfig:
    return replace(FAST, push=replace(FAST.push, **changes))  # type: ignore[arg-type]


async def test_batches_arrive_in_order_and_are_forgotten_when_committed() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        bed.seal(3)
        await bed.until_empty()
        bed.seal()
        await bed.until_empty()
        assert server.sequences() == [1, 2, 3, 4]
        assert {batch.epoch for batch in server.batches} == {bed.outbox.epoch}
        assert len(bed.outbox.epoch) == 16
        assert server.batches[0].node_name == "node-a"
        first = server.batches[0]
        assert (first.interval_start, first.interval_end) == (BEGIN, END)
        assert server.streams == 1
        assert (bed.count("sealed"), bed.count("committed")) == (4, 4)
        assert bed.metrics.value(AGENT_BATCH_BYTES, outcome="committed") == 4000
        assert bed.readiness.ready


async def test_a_batch_that_fills_a_message_passes() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        bed.seal(3, filler=1_000_000)
        await bed.until_empty()
        assert [len(batch.ipv4.protocol) for batch in server.batches if batch.ipv4] == [1_000_000] * 3


async def test_retry_later_keeps_the_batch_and_sends_the_same_bytes_again() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.extend(
            [answer(Outcome.RETRY_LATER, "busy"), COMMIT, answer(Outcome.RETRY_LATER, "busy")]
        )
        bed.seal(2)
        await bed.until_empty()
        assert server.sequences() == [1, 2, 1, 1]
        assert bytes(server.batches[0]) == bytes(server.batches[2]) == bytes(server.batches[3])
        assert server.streams == 1
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0


async def test_rejected_is_set_aside_loudly_and_the_rest_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.append(answer(Outcome.REJECTED, "columns of unequal length"))
        bed.seal(2)
        await bed.until_empty()
        assert (bed.count("rejected"), bed.count("committed")) == (1, 1)
        assert bed.metrics.value(AGENT_BATCH_BYTES, outcome="rejected") == 1000
        errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert len(errors) == 1
        assert "columns of unequal length" in errors[0]
        assert "1000 bytes" in errors[0]


async def test_an_answer_without_meaning_keeps_the_batch() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.append(answer(Outcome.UNSPECIFIED))
        bed.seal()
        await bed.until_empty()
        assert server.sequences() == [1, 1]


@pytest.mark.parametrize("fault", [ignore, reset, go_away, end_with_error, end_quietly])
async def test_after_a_fault_the_unanswered_go_out_again_under_their_identity(
    fault: object, caplog: pytest.LogCaptureFixture
) -> None:
    async with CollectorServer() as server, sending(server.port, IMPATIENT) as bed:
        server.script.extend([COMMIT, fault])  # type: ignore[list-item]
        bed.seal(3)
        await bed.until_empty()
        assert server.sequences()[0] == 1
        assert set(server.sequences()) == {1, 2, 3}
        assert server.sequences().count(2) == 2
        assert server.streams >= 2
        by_sequence: dict[int, set[bytes]] = {}
        for batch in server.batches:
            by_sequence.setdefault(batch.sequence, set()).add(bytes(batch))
        assert all(len(forms) == 1 for forms in by_sequence.values())
        assert bed.count("committed") == 3
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") >= 1
        if fault is end_with_error:
            assert "the server said RESOURCE_EXHAUSTED (scripted)" in caplog.text


async def test_an_ack_right_before_the_end_of_the_connection_counts() -> None:
    """As from a server that stops: grpclib gives nothing of a stream any more once it has read the end."""
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.extend([commit_and_go_away] * 3)
        for _ in range(3):
            bed.seal()
            await bed.until_empty()
        assert server.sequences() == [1, 2, 3]
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0


async def test_at_most_a_few_batches_are_in_flight() -> None:
    async with CollectorServer() as server, sending(server.port, pushing(in_flight=2)) as bed:
        server.script.extend([ignore, ignore])
        bed.seal(5)
        await server.until(2)
        await asyncio.sleep(0.1)
        assert server.sequences() == [1, 2]


async def test_an_ack_that_comes_twice_or_for_another_epoch_changes_nothing() -> None:
    async def twice(server: CollectorServer, stream: object, batch: FlowBatch) -> None:
        stranger = FlowBatch(epoch=b"x" * 16, sequence=1)
        for subject in (stranger, batch, batch):
            await COMMIT(server, stream, subject)  # type: ignore[arg-type]

    async with CollectorServer() as server, sending(server.port, IMPATIENT) as bed:
        server.script.extend([twice, ignore])  # type: ignore[list-item]
        bed.seal(2)
        await bed.until_empty()
        assert server.sequences() == [1, 2, 2]
        assert bed.count("committed") == 2


async def test_an_ack_that_cannot_be_read_ends_the_session_only() -> None:
    async def garbage(server: CollectorServer, stream: object, batch: FlowBatch) -> None:
        await stream._stream.send_data(b"\x00\x00\x00\x00\x03\xff\xff\xff")  # type: ignore[attr-defined]

    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.append(garbage)  # type: ignore[arg-type]
        bed.seal()
        await bed.until_empty()
        assert server.sequences() == [1, 1]


async def test_the_servers_wish_reaches_the_collector() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.append(answer(Outcome.COMMITTED, wish=120))
        bed.seal(2)
        await bed.until_empty()
        assert bed.wishes == [120, 0]


async def test_without_a_server_batches_wait_and_arrive_when_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = CollectorServer()
    await server.start()
    port = server.port
    await server.stop()
    async with sending(port) as bed:
        bed.seal(2)
        await asyncio.sleep(0.3)
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") >= 2
        assert not bed.readiness.ready
        assert "Connect" in caplog.text or "connect" in caplog.text
        bed.metrics.render()
        assert bed.metrics.value(AGENT_UNACKNOWLEDGED) == 2
        async with CollectorServer(port=port) as server:
            await bed.until_empty()
            assert server.sequences() == [1, 2]
            assert bed.readiness.ready


@pytest.mark.parametrize(
    ("config", "silence"),
    [
        pytest.param(IMPATIENT, 0.2, id="after the ack timeout"),
        pytest.param(
            replace(pushing(ping_after=0.1, ping_timeout=0.5), timeouts=replace(FAST.timeouts, answer=1.0)),
            1.0,
            id="long before the ack timeout where pings go unanswered",
        ),
    ],
)
async def test_a_half_open_connection_is_left(config: SenderConfig, silence: float) -> None:
    """The kernel at its other end may acknowledge every packet: only the process can say that it lives."""
    async with sending_through_proxy(config) as (server, proxy, bed):
        bed.seal()
        await bed.until_empty()
        proxy.to_client.dropping = True
        bed.seal()
        await server.until(2)
        await asyncio.sleep(silence)
        assert not bed.outbox.empty
        proxy.heal()
        await bed.until_empty(5)
        assert server.sequences()[:3] == [1, 2, 2]
        assert proxy.accepted >= 2


async def test_a_server_that_waits_for_clickhouse_and_answers_pings_is_not_left(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = pushing(ping_after=0.1, ping_timeout=5.0)
    async with sending_through_proxy(config) as (server, proxy, bed):
        server.script.append(answer(Outcome.COMMITTED, delay=1.5))
        bed.seal()
        await bed.until_empty()
        assert proxy.accepted == 1
        assert server.sequences() == [1]
        assert proxy.to_client.forwarded > 8 * 17, "pings went unanswered"
        assert not caplog.records


async def test_a_server_that_reads_nothing_is_left_too() -> None:
    async with sending_through_proxy(IMPATIENT) as (server, proxy, bed):
        proxy.to_upstream.stall()
        bed.seal(3, filler=900_000)
        await asyncio.sleep(0.5)
        assert not server.batches
        proxy.heal()
        await bed.until_empty()
        assert set(server.sequences()) == {1, 2, 3}


async def test_a_connection_cut_at_any_byte_loses_nothing() -> None:
    chance = random.Random(7)
    async with sending_through_proxy(FAST) as (server, proxy, bed):
        for _ in range(25):
            direction = chance.choice([proxy.to_upstream, proxy.to_client])
            direction.cut_after_bytes(chance.randrange(1, 400))
            bed.seal(2, filler=chance.choice([1, 5000]))
            await bed.until_empty()
        assert set(server.sequences()) == set(range(1, 51))
        assert bed.count("committed") == 50


async def test_a_server_that_ends_an_idle_stream_is_no_failure() -> None:
    async def commit_then_end(server: CollectorServer, stream: object, batch: FlowBatch) -> None:
        await COMMIT(server, stream, batch)  # type: ignore[arg-type]
        raise StopAsyncIteration

    async with CollectorServer() as server, sending(server.port) as bed:
        for _ in range(3):
            server.script.append(commit_then_end)  # type: ignore[arg-type]
            bed.seal()
            await bed.until_empty()
            await asyncio.sleep(0.02)
        assert server.sequences() == [1, 2, 3]
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0


async def test_the_address_is_drawn_anew_on_schedule_with_nothing_left_unanswered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with CollectorServer() as server, sending(server.port, pushing(longest_session=0.3)) as bed:
        server.script.extend([answer(Outcome.COMMITTED, delay=0.05)] * 30)
        for _ in range(15):
            bed.seal(2)
            await bed.until_empty()
        assert server.streams >= 3
        assert sorted(server.sequences()) == list(range(1, 31))
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0
        assert "datapoints over the last stream" in caplog.text


async def test_stopping_sends_what_waits_without_its_delay_and_returns_when_all_is_answered() -> None:
    async with CollectorServer() as server, sending(server.port, replace(FAST, jitter=3600.0)) as bed:
        bed.seal(3)
        await asyncio.sleep(0.05)
        assert not server.batches
        server.script.append(answer(Outcome.COMMITTED, delay=0.1))
        await asyncio.wait_for(bed.sender.stop(), 5)
        assert bed.outbox.empty
        assert server.sequences() == [1, 2, 3]
        assert not bed.task.done()


async def test_stopping_ends_a_long_backoff() -> None:
    server = CollectorServer()
    await server.start()
    await server.stop()
    async with sending(server.port, replace(FAST, backoff=Backoff(0.05, 3600.0))) as bed:
        bed.seal()
        await asyncio.sleep(0.1)
        bed.sender._schedule._backoff = Backoff(0.05, 0.05)
        async with CollectorServer(port=server.port) as back:
            await asyncio.wait_for(bed.sender.stop(), 5)
            assert back.sequences() == [1]


async def test_a_stop_cut_short_says_what_may_be_missing(caplog: pytest.LogCaptureFixture) -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        server.script.append(ignore)
        bed.seal()
        await server.until(1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(bed.sender.stop(), 0.1)
        assert "1 batches unacknowledged: 1000 metered bytes" in caplog.text


async def test_stopping_with_nothing_to_send_returns_at_once() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        await asyncio.wait_for(bed.sender.stop(), 1)
        assert not server.batches
    async with sending(1) as bed:
        await asyncio.wait_for(bed.sender.stop(), 1)


async def test_it_connects_before_there_is_anything_to_send() -> None:
    async with CollectorServer() as server, sending(server.port) as bed:
        async with asyncio.timeout(5):
            while not bed.readiness.ready:  # noqa: ASYNC110 - readiness is plain data
                await asyncio.sleep(0.01)
        bed.seal()
        await bed.until_empty()
        assert server.streams == 1


async def test_a_report_waits_for_its_turn() -> None:
    async with CollectorServer() as server, sending(server.port, replace(FAST, jitter=0.5)) as bed:
        delay = bed.sender._schedule._delay
        assert 0 < delay < 0.5
        bed.seal()
        began = asyncio.get_running_loop().time()
        await bed.until_empty()
        assert asyncio.get_running_loop().time() - began >= delay - 0.01
