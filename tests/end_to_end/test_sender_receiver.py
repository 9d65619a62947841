"""The agent's sender against the server's receiver: what is sealed is what is processed, whatever fails."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from kubenetmon.agent.metered import SealedRecords
from kubenetmon.metrics.catalogue import COLLECTOR_ERRORS
from kubenetmon.model import BatchIdentity, FlowBatch
from kubenetmon.proto import FlowArrays, Outcome
from kubenetmon.server.receiver import ReceiverConfig
from kubenetmon.server.verdict import Verdict
from tests.beds.proxy import TcpProxy
from tests.beds.receiving import random_arrays, running_receiver
from tests.unit.sending import FAST, Bed, sending


def records(count: int, seed: int) -> SealedRecords:
    ipv4, ipv6 = random_arrays(count, 4, seed), random_arrays(count // 3, 6, seed)
    metered = sum(
        int.from_bytes(column[at : at + 8], "little")
        for arrays in (ipv4, ipv6)
        for column in (arrays.original_bytes, arrays.reply_bytes)
        for at in range(0, len(column), 8)
    )
    return SealedRecords(ipv4, ipv6, ipv4.count + ipv6.count, metered, 1)


def expect_identities(bed: Bed, count: int) -> set[BatchIdentity]:
    return {BatchIdentity("node-a", bed.outbox.epoch, sequence) for sequence in range(1, count + 1)}


async def test_every_batch_is_processed_with_the_bytes_that_were_sealed() -> None:
    async with running_receiver() as rig, sending(rig.port) as bed:
        sealed = [records(count, count) for count in (1, 9, 300, 9_000)]
        for part in sealed:
            bed.put(part)
            await bed.until_empty()
        assert [batch.total_bytes() for batch in rig.pipeline.batches] == [part.bytes for part in sealed]
        assert [len(batch) for batch in rig.pipeline.batches] == [part.records for part in sealed]
        assert rig.pipeline.identities() == sorted(
            expect_identities(bed, 4), key=lambda identity: identity.sequence
        )
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0


async def test_connections_cut_anywhere_lose_nothing_and_change_nothing() -> None:
    chance = random.Random(11)
    async with (
        running_receiver() as rig,
        TcpProxy("127.0.0.1", rig.port) as proxy,
        sending(proxy.port) as bed,
    ):
        sealed = {}
        for number in range(20):
            direction = chance.choice([proxy.to_upstream, proxy.to_client])
            direction.cut_after_bytes(chance.randrange(1, 3000))
            part = records(chance.choice([1, 30]), number)
            sealed[number + 1] = part.bytes
            bed.put(part)
            await bed.until_empty()
        assert set(rig.pipeline.identities()) == expect_identities(bed, 20)
        assert {(batch.identity.sequence, batch.total_bytes()) for batch in rig.pipeline.batches} == set(
            sealed.items()
        )


async def test_a_server_that_hands_back_gets_the_batch_again() -> None:
    answers = [Verdict(Outcome.RETRY_LATER, "stopping"), Verdict(Outcome.COMMITTED)]

    async def hand_back(batch: FlowBatch) -> Verdict:
        return answers.pop(0)

    async with running_receiver() as rig, sending(rig.port) as bed:
        rig.pipeline.answer = hand_back
        bed.put(records(5, 5))
        await bed.until_empty()
        assert len(rig.pipeline.batches) == 2
        assert bed.count("committed") == 1


async def test_connections_that_grow_too_old_for_the_server_are_no_failure() -> None:
    config = replace(ReceiverConfig(), max_connection_age=0.3)
    async with running_receiver(config) as rig, sending(rig.port) as bed:
        for number in range(12):
            bed.put(records(3, number))
            await bed.until_empty()
            await asyncio.sleep(0.1)
        assert set(rig.pipeline.identities()) == expect_identities(bed, 12)
        assert bed.count("committed") == 12


async def test_a_server_that_stops_and_comes_back_elsewhere_is_found() -> None:
    async with (
        running_receiver() as first,
        running_receiver() as second,
        TcpProxy("127.0.0.1", first.port) as proxy,
        sending(proxy.port) as bed,
    ):
        bed.put(records(3, 1))
        await bed.until_empty()
        proxy.upstream = ("127.0.0.1", second.port)
        await asyncio.wait_for(first.receiver.stop(), 10)
        bed.put(records(3, 2))
        await bed.until_empty()
        assert [identity.sequence for identity in second.pipeline.identities()] == [2]


async def test_stop_does_not_wait_for_who_waits_for_memory() -> None:
    """While ClickHouse is slow all memory is given out; an agent that queues for it is let go at once."""
    async with running_receiver(ReceiverConfig(memory_limit=2 << 20)) as rig, sending(rig.port) as bed:
        gate = asyncio.Event()

        async def answer(batch: FlowBatch) -> Verdict:
            await gate.wait()
            return Verdict(Outcome.COMMITTED)

        rig.pipeline.answer = answer
        bed.put(*[records(9_000, number) for number in range(4)])
        async with asyncio.timeout(10):
            while len(rig.pipeline.batches) < 2:  # noqa: ASYNC110 - the pipeline has no event
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        assert len(rig.pipeline.batches) == 2, "there is no memory for more"
        stopping = asyncio.create_task(rig.receiver.stop())
        await asyncio.sleep(0.3)
        gate.set()
        await asyncio.wait_for(stopping, 3)
        async with asyncio.timeout(5):
            while bed.count("committed") < 2:  # noqa: ASYNC110 - nor have metrics
                await asyncio.sleep(0.01)
        assert len(bed.outbox.waiting()) == 2


async def test_a_malformed_batch_is_rejected_and_the_next_one_passes() -> None:
    async with running_receiver() as rig, sending(rig.port) as bed:
        torn = SealedRecords(FlowArrays(count=2, protocol=b"\x06"), FlowArrays(), 2, 77, 1)
        bed.put(torn, records(3, 1))
        await bed.until_empty()
        assert (bed.count("rejected"), bed.count("committed")) == (1, 1)


async def test_a_stopping_agent_drains_into_the_server() -> None:
    async with running_receiver() as rig, sending(rig.port, replace(FAST, jitter=3600.0)) as bed:
        bed.put(*[records(100, number) for number in range(6)])
        await asyncio.wait_for(bed.sender.stop(), 10)
        assert len(rig.pipeline.batches) == 6
