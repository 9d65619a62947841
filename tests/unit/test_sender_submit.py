"""Reporting to the original's server: gRPC's C core and protobuf's own classes judge our wire."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import struct
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.agent.metered import SealedRecords
from kubenetmon.agent.observations import frames
from kubenetmon.agent.schedule import Backoff
from kubenetmon.agent.state import SENT_BY_SUBMIT, SENT_OFFSET, StateDirectory, batch_name
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_BATCH_BYTES, AGENT_METRICS, COLLECTOR_ERRORS
from kubenetmon.proto import FlowArrays, FlowBatch, Observation, Outcome
from tests.beds.collector_server import CollectorServer, answer, ignore
from tests.beds.original_server import OriginalServer, compile_messages
from tests.beds.proxy import TcpProxy
from tests.unit.sending import BEGIN, FAST, sending

Row = tuple[int, tuple[int, int, int, int], tuple[int, int, int, int], tuple[int, int, int, int]]
"""Protocol, addresses, ports and counters in the order of the wire."""

# protobuf's generated code registers itself in a way that Python 3.12 and later warn of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:google")


@pytest.fixture(scope="module")
def messages(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return compile_messages(tmp_path_factory.mktemp("wire"))


def arrays(family: int, rows: list[Row]) -> FlowArrays:
    def addresses(index: int) -> bytes:
        if family == 4:
            return b"".join(struct.pack("<I", row[1][index]) for row in rows)
        return b"".join(row[1][index].to_bytes(16, "big") for row in rows)

    def column(part: int, index: int, form: str) -> bytes:
        return b"".join(struct.pack(form, row[part][index]) for row in rows)  # type: ignore[index]

    return FlowArrays(
        len(rows),
        bytes(row[0] for row in rows),
        *[addresses(index) for index in range(4)],
        *[column(2, index, "<H") for index in range(4)],
        *[column(3, index, "<Q") for index in range(4)],
    )


def random_rows(family: int, count: int, seed: int = 3) -> list[Row]:
    chance = random.Random(seed)
    bits = 32 if family == 4 else 128

    def four(limit: int) -> tuple[int, int, int, int]:
        return tuple(chance.randrange(limit) for _ in range(4))  # type: ignore[return-value]

    return [(chance.choice((6, 17)), four(1 << bits), four(1 << 16), four(1 << 40)) for _ in range(count)]


def expected(family: int, row: Row) -> tuple[object, ...]:
    form = ipaddress.IPv4Address if family == 4 else ipaddress.IPv6Address
    return (row[0], *[form(address) for address in row[1]], *row[2], *row[3])


def seen(observation: Any) -> tuple[object, ...]:
    """The same of a message of protobuf's or betterproto2's own classes."""

    def address(endpoint: Any) -> object:
        if hasattr(endpoint, "WhichOneof"):
            six = endpoint.WhichOneof("ip_addr") == "v6"
        else:
            six = endpoint.v6 is not None
        return ipaddress.IPv6Address(endpoint.v6) if six else ipaddress.IPv4Address(endpoint.v4)

    there, back = observation.flow.original, observation.flow.reply
    ends = (there.source, there.destination, back.source, back.destination)
    counters = (there.packets, there.bytes, back.packets, back.bytes)
    return (observation.flow.proto, *map(address, ends), *[end.port for end in ends], *counters)


def sealed(ipv4: list[Row], ipv6: list[Row]) -> SealedRecords:
    total = sum(row[3][1] + row[3][3] for row in ipv4 + ipv6)
    return SealedRecords(arrays(4, ipv4), arrays(6, ipv6), len(ipv4) + len(ipv6), total, 1)


async def test_every_record_arrives_as_the_original_would_have_sent_it(
    messages: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    four, six = random_rows(4, 2500), random_rows(6, 1100)
    async with OriginalServer(messages) as server, sending(server.port) as bed:
        bed.put(sealed(four, six))
        await bed.until_empty()
        observations = server.observations()
        assert {(one.node_name, one.timestamp) for one in observations} == {("node-a", BEGIN)}
        assert [seen(one) for one in observations] == [expected(4, row) for row in four] + [
            expected(6, row) for row in six
        ]
        assert bed.count("submitted") == 1
        assert bed.metrics.value(AGENT_BATCH_BYTES, outcome="submitted") == sum(
            row[3][1] + row[3][3] for row in four + six
        )
        assert "accepted 3600 datapoints over the last stream" in caplog.text
        assert bed.readiness.ready
        bed.put(sealed(random_rows(4, 10), []), sealed(random_rows(4, 20), []))
        await bed.until_empty()
        assert [len(stream) for stream in server.streams] == [3600, 10, 20]
        assert bed.metrics.value(COLLECTOR_ERRORS, type="send_failed") == 0


rows = st.tuples(
    st.sampled_from([6, 17, 0, 255]),
    st.tuples(*[st.integers(0, 2**32 - 1)] * 4),
    st.tuples(*[st.integers(0, 2**16 - 1)] * 4),
    st.tuples(*[st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 300))] * 4),
)


@given(
    st.lists(rows, max_size=5), st.lists(rows, max_size=5), st.text(max_size=300), st.integers(0, 2**64 - 1)
)
def test_the_encoder_agrees_with_a_protobuf_library(
    ipv4: list[Row], ipv6: list[Row], name: str, begin: int
) -> None:
    batch = FlowBatch(node_name=name, interval_start=begin, ipv4=arrays(4, ipv4), ipv6=arrays(6, ipv6))
    stream = b"".join(frames(bytes(batch)))
    found = []
    while stream:
        flag, length = struct.unpack_from(">BI", stream)
        assert flag == 0
        observation = Observation().parse(stream[5 : 5 + length])
        assert (observation.node_name, observation.timestamp) == (name, begin)
        found.append(seen(observation))
        stream = stream[5 + length :]
    assert found == [expected(4, row) for row in ipv4] + [expected(6, row) for row in ipv6]


async def test_a_submit_of_unknown_outcome_is_counted_and_not_repeated(
    messages: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    async with OriginalServer(messages) as server, sending(server.port) as bed:
        server.fail_after = 5
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        bed.put(sealed(random_rows(4, 20), []))
        await bed.until_empty()
        assert (bed.count("submit_unknown"), bed.count("submitted")) == (1, 1)
        assert [len(stream) for stream in server.streams] == [5, 20]
        assert "outcome of a Submit is unknown" in caplog.text


async def test_a_summary_that_never_comes_leaves_the_outcome_unknown(messages: ModuleType) -> None:
    async with (
        OriginalServer(messages) as server,
        sending(server.port, replace(FAST, submit_timeout=0.3)) as bed,
    ):
        server.hang = True
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        assert bed.count("submit_unknown") == 1


async def test_a_summary_that_does_not_add_up_leaves_the_outcome_unknown(messages: ModuleType) -> None:
    async with OriginalServer(messages) as server, sending(server.port) as bed:
        server.miscount = 1
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        assert bed.count("submit_unknown") == 1


async def test_a_refusal_before_any_handler_ran_is_repeated(messages: ModuleType) -> None:
    async with OriginalServer(messages) as server, sending(server.port) as bed:
        server.fail_after, server.status = 1, grpc.StatusCode.UNAUTHENTICATED
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        assert bed.count("submitted") == 1
        assert len(server.streams[-1]) == 10


async def test_a_refused_batch_is_not_taken_for_one_that_left(messages: ModuleType, tmp_path: Path) -> None:
    state = StateDirectory(tmp_path, metrics=Metrics(AGENT_METRICS))
    (tmp_path / batch_name(1)).write_bytes(bytes(SENT_OFFSET + 8))

    def mark() -> int:
        return (tmp_path / batch_name(1)).read_bytes()[SENT_OFFSET]

    patient = replace(FAST, backoff=Backoff(60.0, 60.0))
    async with OriginalServer(messages) as server, sending(server.port, patient, store=state) as bed:
        server.hang = True
        bed.put(sealed(random_rows(4, 10), []))
        async with asyncio.timeout(5):
            while not server.streams:  # noqa: ASYNC110 - the bed has no event
                await asyncio.sleep(0.01)
        assert mark() == SENT_BY_SUBMIT
    (tmp_path / batch_name(1)).write_bytes(bytes(SENT_OFFSET + 8))
    async with OriginalServer(messages) as server, sending(server.port, patient, store=state) as bed:
        server.fail_after, server.status = 1, grpc.StatusCode.UNAUTHENTICATED
        bed.put(sealed(random_rows(4, 10), []))
        async with asyncio.timeout(5):
            while not server.streams or mark() != 0:  # noqa: ASYNC110 - the bed has no event
                await asyncio.sleep(0.01)
        assert not bed.outbox.empty


async def test_a_connection_that_fails_before_anything_was_sent_is_repeated(messages: ModuleType) -> None:
    async with (
        OriginalServer(messages) as server,
        TcpProxy(server.host, server.port) as proxy,
        sending(proxy.port) as bed,
    ):
        proxy.refusing = True
        bed.put(sealed(random_rows(4, 10), []))
        await asyncio.sleep(0.2)
        assert bed.count("submit_unknown") == 0
        proxy.heal()
        await bed.until_empty()
        assert bed.count("submitted") == 1


async def test_a_process_that_ends_in_a_submit_counts_it_as_unknown(messages: ModuleType) -> None:
    async with OriginalServer(messages) as server, sending(server.port) as bed:
        server.hang = True
        bed.put(sealed(random_rows(4, 10), []))
        async with asyncio.timeout(5):
            while not server.streams:  # noqa: ASYNC110 - the bed has no event
                await asyncio.sleep(0.01)
        bed.task.cancel()
        await asyncio.gather(bed.task, return_exceptions=True)
        assert bed.count("submit_unknown") == 1


async def test_what_may_have_left_by_push_waits_for_a_server_that_has_push(
    messages: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    async with CollectorServer() as ours, OriginalServer(messages) as original:
        ours.script.append(ignore)
        async with (
            TcpProxy(ours.host, ours.port) as proxy,
            sending(proxy.port) as bed,
        ):
            bed.put(sealed(random_rows(4, 10), []))
            await ours.until(1)
            proxy.upstream = (original.host, original.port)
            await proxy.cut()
            bed.put(sealed(random_rows(4, 20), []))
            async with asyncio.timeout(5):
                while bed.count("submitted") < 1:  # noqa: ASYNC110 - the bed has no event
                    await asyncio.sleep(0.01)
            await asyncio.sleep(0.1)
            assert [len(stream) for stream in original.streams] == [20]
            assert [batch.sequence for batch in bed.outbox.waiting()] == [1]
            assert "wait for a server that has it" in caplog.text
            proxy.upstream = (ours.host, ours.port)
            ours.script.append(answer(Outcome.COMMITTED))
            await bed.until_empty()
            assert ours.sequences() == [1, 1]
            assert (bed.count("committed"), bed.count("submitted"), bed.count("submit_unknown")) == (1, 1, 0)


async def test_a_server_with_neither_is_named_as_such(caplog: pytest.LogCaptureFixture) -> None:
    async with CollectorServer(push=False) as server, sending(server.port) as bed:
        bed.put(sealed(random_rows(4, 10), []))
        await asyncio.sleep(0.2)
        assert not bed.outbox.empty
        assert "neither Push nor Submit" in caplog.text


async def test_a_server_that_learns_push_is_used_by_push_again(messages: ModuleType) -> None:
    async with (
        OriginalServer(messages) as original,
        CollectorServer() as ours,
        TcpProxy(original.host, original.port) as proxy,
        sending(proxy.port) as bed,
    ):
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        proxy.upstream = (ours.host, ours.port)
        bed.put(sealed(random_rows(4, 10), []))
        await bed.until_empty()
        assert (bed.count("submitted"), bed.count("committed")) == (1, 1)
