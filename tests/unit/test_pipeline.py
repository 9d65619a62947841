"""The pipeline: every batch settles once, and its bytes are accounted for."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from kubenetmon.clickhouse.attempts import Place
from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.evidence import Tracer
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.errors import SchemaError
from kubenetmon.metrics import Metrics, MetricSpec, catalogue
from kubenetmon.model import ARRAY_NAMES, BatchIdentity, FlowBatch
from kubenetmon.proto import Outcome
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.latecomers import Latecomers, LatecomersConfig
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pacing import PacingConfig, ReportPacing
from kubenetmon.server.pipeline import Pipeline, PipelineConfig
from kubenetmon.server.pods import Pod
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.rates import Rates
from kubenetmon.server.rows import RowsConfig
from kubenetmon.server.unattributed import KEPT, Unattributed
from kubenetmon.server.verdict import Verdict
from tests.beds.attribution import CASE_TIME, Flow, Tuple, batch_of

COMMITTED = Verdict(Outcome.COMMITTED)


def schema(*, ipv6: bool = True) -> TableSchema:
    columns = {column.name: column.type for column in SchemaOptions(ipv6=ipv6).columns}
    return TableSchema("default", "network_flows_0", columns)


@dataclass
class RecordingInserter:
    """Commits when told to."""

    table: TableSchema = field(default_factory=schema)
    blocks: dict[str, Block] = field(default_factory=dict)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    outcome: CommitOutcome = CommitOutcome.COMMITTED
    waiting: int = 0

    async def wait_schema(self) -> TableSchema:
        return self.table

    async def commit(
        self, block: Block, token: str, tracer: Tracer | None = None, place: Place | None = None
    ) -> CommitOutcome:
        assert token not in self.blocks, "inserted twice"
        self.blocks[token] = block
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        return self.outcome


@dataclass
class Ranges:
    table: RangeTable


def inventory() -> Inventory:
    cluster = Inventory(InventoryConfig())
    pods = (Network(4, 0x0A010100, 24), Network(6, 0xFD0000010001 << 80, 64))
    cluster.put_node(Node("node-a", "zone-1", 1, (0xAC14000A,), (), pods))
    pod = Pod("1", "default", "client", "node-a", "app", "", "", 1, 1, True, (0x0A010105,), ())
    cluster.put_pod(pod, CASE_TIME - 600)
    return cluster


def flow(source: str, destination: str, protocol: int = 6, size: int = 300) -> Flow:
    return Flow(
        protocol,
        Tuple(source, 40000, destination, 80, 3, size),
        Tuple(destination, 80, source, 40000, 5, 5000),
    )


OURS = flow("10.1.1.5", "203.0.113.9")
UDP = flow("10.1.1.5", "203.0.113.9", protocol=17)
NODE = flow("172.20.0.10", "203.0.113.9")
STRANGERS = flow("203.0.113.1", "203.0.113.2")
IPV6 = flow("fd00:1:1::5", "2001:db8::1")
MIXED = [OURS, UDP, NODE, STRANGERS, IPV6]


def batch(flows: list[Flow] = MIXED, sequence: int = 1) -> FlowBatch:
    return replace(batch_of(flows, "node-a"), identity=BatchIdentity("node-a", bytes(16), sequence))


@dataclass
class Rig:
    unattributed: Unattributed
    cluster: Inventory
    pipeline: Pipeline
    inserter: RecordingInserter
    ranges: Ranges
    metrics: Metrics
    rates: Rates

    async def until_inserting(self, batches: int = 1) -> None:
        async with asyncio.timeout(5):
            while self.inserter.waiting < batches:  # noqa: ASYNC110 - asked often, and only here
                await asyncio.sleep(0.001)

    def count(self, spec: MetricSpec, **labels: str) -> float:
        return self.metrics.value(spec, **labels)

    def bytes_by_fate(self) -> dict[str, float]:
        """Where received bytes are; the identity of the catalogue is checked."""
        found = {
            "committed": self.count(catalogue.SERVER_COMMITTED, unit="bytes"),
            "handed_back": self.count(catalogue.SERVER_HANDED_BACK, unit="bytes"),
            "pending": self.count(catalogue.SERVER_PENDING, unit="bytes"),
        }
        for reason in catalogue.SERVER_IGNORED_REASONS:
            found[reason] = self.count(catalogue.SERVER_IGNORED, reason=reason, unit="bytes")
        assert sum(found.values()) == self.count(catalogue.SERVER_RECEIVED, unit="bytes")
        return {fate: amount for fate, amount in found.items() if amount}


Build = Callable[..., Rig]


@pytest.fixture
async def build() -> AsyncIterator[Build]:
    made: list[Pipeline] = []

    def make(
        config: PipelineConfig | None = None,
        *,
        ready: bool = True,
        stores: bool = True,
        patience: float = 0.0,
    ) -> Rig:
        inserter, metrics = RecordingInserter(), Metrics(catalogue.SERVER_METRICS)
        ranges, unattributed = Ranges(RangeTable([])), Unattributed(metrics=metrics)
        cluster, rates = inventory(), Rates(clock=SYSTEM_CLOCK)
        if ready:
            inserter.gate.set()
        latecomers = Latecomers(
            LatecomersConfig(patience=patience, most_waiting=3, most_remembered=5),
            cluster=cluster,
            metrics=metrics,
            clock=SYSTEM_CLOCK,
        )
        pipeline = Pipeline(
            config or PipelineConfig(RowsConfig("test", "aws", "us-west-2", "blue")),
            cluster=cluster,
            ranges=ranges,
            attributor=Attributor(AttributionConfig("aws", "us-west-2", "blue", ipv6=True)),
            inserter=inserter if stores else None,
            pacing=ReportPacing(PacingConfig(25, 20), metrics=metrics, clock=SYSTEM_CLOCK),
            metrics=metrics,
            clock=SYSTEM_CLOCK,
            unattributed=unattributed,
            latecomers=latecomers if patience else None,
            rates=rates,
        )
        made.append(pipeline)
        return Rig(unattributed, cluster, pipeline, inserter, ranges, metrics, rates)

    yield make
    for pipeline in made:
        pipeline.close()


@pytest.mark.parametrize("stores", [True, False])
async def test_the_live_view_shows_a_batch_once_it_is_settled(build: Build, stores: bool) -> None:
    rig = build(stores=stores)
    await rig.pipeline.process(batch(), time.time())
    await rig.pipeline.process(batch(), time.time())  # sent again
    rows = {row["name"]: (row["sent"], row["received"]) for row in rig.rates.view("pod")["rows"]}
    assert rows == {"client": (5, 83), "": (5, 83)}  # the IPv6 end is a pod that nobody knows any more


async def test_the_live_view_does_not_show_what_was_handed_back(build: Build) -> None:
    rig = build()
    rig.inserter.outcome = CommitOutcome.HANDED_BACK
    await rig.pipeline.process(batch(), time.time())
    assert rig.rates.view("pod")["rows"] == []


async def test_a_batch_becomes_one_block_under_its_token(build: Build) -> None:
    rig = build()
    assert await rig.pipeline.process(batch(), time.time()) == COMMITTED
    ((token, block),) = rig.inserter.blocks.items()
    assert token == batch().identity.token
    assert block.rows == 4
    assert rig.bytes_by_fate() == {
        "committed": 10600, "udp": 5300, "node": 5300, "direction": 5300
    }  # fmt: skip
    observations = {
        what: rig.count(catalogue.SERVER_OBSERVATIONS, type=what)
        for what in ("labeled", "ignored", "enqueued", "dropped")
    }
    assert observations == {"labeled": 2, "ignored": 3, "enqueued": 2, "dropped": 0}


async def test_while_it_is_being_inserted_a_batch_is_pending(build: Build) -> None:
    rig = build(ready=False)
    processing = asyncio.create_task(rig.pipeline.process(batch(), time.time()))
    await rig.until_inserting()
    assert rig.bytes_by_fate() == {"pending": 26500}
    rig.inserter.gate.set()
    await processing
    assert "pending" not in rig.bytes_by_fate()


async def test_a_batch_sent_again_while_in_flight_joins_the_first(build: Build) -> None:
    rig = build(ready=False)
    first = asyncio.create_task(rig.pipeline.process(batch(), time.time()))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(rig.pipeline.process(batch(), time.time()))
    await asyncio.sleep(0.05)
    assert not second.done()
    rig.inserter.gate.set()
    assert [await first, await second] == [COMMITTED, COMMITTED]
    assert len(rig.inserter.blocks) == 1
    assert rig.bytes_by_fate()["duplicate"] == 26500


async def test_a_batch_sent_again_after_its_commit_is_not_inserted_again(build: Build) -> None:
    rig = build()
    for _ in range(3):
        assert await rig.pipeline.process(batch(), time.time()) == COMMITTED
    assert len(rig.inserter.blocks) == 1
    assert rig.bytes_by_fate()["duplicate"] == 2 * 26500


async def test_a_caller_that_goes_away_changes_nothing(build: Build) -> None:
    rig = build(ready=False)
    processing = asyncio.create_task(rig.pipeline.process(batch(), time.time()))
    await rig.until_inserting()
    processing.cancel()
    await asyncio.sleep(0.01)
    rig.inserter.gate.set()
    assert await rig.pipeline.process(batch(), time.time()) == COMMITTED
    assert len(rig.inserter.blocks) == 1
    assert rig.bytes_by_fate()["committed"] == 10600


async def test_what_the_inserter_hands_back_may_come_again(build: Build) -> None:
    rig = build()
    rig.inserter.outcome = CommitOutcome.HANDED_BACK
    assert (await rig.pipeline.process(batch(), time.time())).outcome is Outcome.RETRY_LATER
    assert rig.bytes_by_fate() == {"handed_back": 26500}
    rig.inserter.outcome = CommitOutcome.COMMITTED
    rig.inserter.blocks.clear()
    assert await rig.pipeline.process(batch(), time.time()) == COMMITTED
    assert rig.bytes_by_fate()["committed"] == 10600


async def test_what_the_operator_drops_is_counted_in_bytes_and_never_acked(build: Build) -> None:
    rig = build()
    rig.inserter.outcome = CommitOutcome.DROPPED
    verdict = await rig.pipeline.process(batch(), time.time())
    assert verdict.outcome is Outcome.REJECTED
    assert rig.bytes_by_fate() == {"dropped": 10600, "udp": 5300, "node": 5300, "direction": 5300}


async def test_what_the_table_cannot_tell_stays_with_the_agent(build: Build) -> None:
    rig = build()
    rig.inserter.outcome = CommitOutcome.UNDECIDED
    verdict = await rig.pipeline.process(batch(), time.time())
    assert verdict.outcome is Outcome.RETRY_LATER
    assert "/ready" in verdict.reason
    assert rig.bytes_by_fate() == {"handed_back": 26500}


async def test_where_all_is_ignored_nothing_is_inserted(build: Build) -> None:
    rig = build()
    assert await rig.pipeline.process(batch([UDP, STRANGERS]), time.time()) == COMMITTED
    assert await rig.pipeline.process(batch([], sequence=2), time.time()) == COMMITTED
    assert rig.inserter.blocks == {}
    assert rig.bytes_by_fate() == {"udp": 5300, "direction": 5300}


async def test_without_ipv6_columns_ipv6_is_ignored_and_counted(build: Build) -> None:
    rig = build()
    rig.inserter.table = schema(ipv6=False)
    assert await rig.pipeline.process(batch([OURS, IPV6]), time.time()) == COMMITTED
    assert rig.bytes_by_fate() == {"committed": 5300, "ipv6": 5300}


async def test_without_clickhouse_batches_are_attributed_counted_and_acked(build: Build) -> None:
    rig = build(stores=False)
    assert await rig.pipeline.process(batch(), time.time()) == COMMITTED
    assert rig.inserter.blocks == {}
    assert rig.bytes_by_fate() == {"disabled": 10600, "udp": 5300, "node": 5300, "direction": 5300}
    assert rig.count(catalogue.SERVER_OBSERVATIONS, type="labeled") == 2


async def test_what_cannot_be_processed_waits_at_the_agent(build: Build) -> None:
    rig = build()

    async def broken() -> TableSchema:
        raise SchemaError(
            "table default.network_flows_0 lacks the column bytes; run `kubenetmon schema apply`"
        )

    rig.inserter.wait_schema = broken  # type: ignore[method-assign]
    verdict = await rig.pipeline.process(batch(), time.time())
    assert verdict.outcome is Outcome.RETRY_LATER
    assert "lacks the column bytes" in verdict.reason
    assert rig.bytes_by_fate() == {"handed_back": 26500}


async def test_a_defect_costs_no_bytes(build: Build, caplog: pytest.LogCaptureFixture) -> None:
    rig = build()
    del rig.ranges.table
    assert (await rig.pipeline.process(batch(), time.time())).outcome is Outcome.RETRY_LATER
    assert rig.count(catalogue.SERVER_ERRORS, type="labeling_failed") == 1
    assert rig.bytes_by_fate() == {"handed_back": 26500}


async def test_only_so_many_batches_are_held_in_encoded_form(build: Build) -> None:
    config = PipelineConfig(RowsConfig("test", "aws", "us-west-2", "blue"), inserters=3)
    rig = build(config, ready=False)
    processing = [
        asyncio.create_task(rig.pipeline.process(batch(sequence=i), time.time())) for i in range(1, 11)
    ]
    await rig.until_inserting(3)
    await asyncio.sleep(0.05)
    assert len(rig.inserter.blocks) == 3
    rig.inserter.gate.set()
    assert await asyncio.gather(*processing) == [COMMITTED] * 10
    assert rig.bytes_by_fate()["committed"] == 10 * 10600


async def test_encoded_batches_take_so_much_memory_and_no_more(build: Build) -> None:
    large = batch(MIXED * 40)
    rows = RowsConfig("test", "aws", "us-west-2", "blue")
    config = PipelineConfig(rows, inserters=20, encoded_limit=2 * 300 * len(large))
    rig = build(config, ready=False)
    processing = [
        asyncio.create_task(rig.pipeline.process(batch(MIXED * 40, i), time.time())) for i in range(1, 11)
    ]
    await rig.until_inserting(2)
    await asyncio.sleep(0.05)
    assert len(rig.inserter.blocks) == 2
    rig.inserter.gate.set()
    assert await asyncio.gather(*processing) == [COMMITTED] * 10


async def test_the_event_loop_stays_free_while_a_large_batch_is_encoded(build: Build) -> None:
    rig = build()
    flows = [flow(f"10.1.{i % 2 + 1}.{i % 250}", f"203.0.{i % 200}.{i % 250}") for i in range(1000)]
    small = batch(flows)
    large = replace(
        small,
        ipv4=replace(
            small.ipv4,
            **{  # type: ignore[arg-type]
                name: np.tile(getattr(small.ipv4, name), 15) for name in ARRAY_NAMES
            },
        ),
    )
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.001)
            longest = max(longest, time.monotonic() - before)

    watching = asyncio.create_task(watch())
    assert await rig.pipeline.process(large, time.time()) == COMMITTED
    watching.cancel()
    assert longest < 0.25


async def test_what_finds_no_side_is_shown_by_cause_with_samples_and_no_more_than_a_few(build: Build) -> None:
    rig = build()
    for sequence in range(1, 41):
        flows = [flow("203.0.113.1", "203.0.113.2", size=10 * sequence + number) for number in range(9)]
        await rig.pipeline.process(batch([*flows, OURS], sequence), time.time())
    stranger = replace(batch([OURS]), identity=BatchIdentity("node-x", bytes(16), 1))
    await rig.pipeline.process(replace(stranger, ipv4=batch([STRANGERS]).ipv4), time.time())
    shown = json.loads(rig.unattributed.page({}).body)
    assert {cause: found["records"] for cause, found in shown.items()} == {
        "unknown_node": 1, "both_unknown": 360, "both_elsewhere": 0, "no_node": 0
    }  # fmt: skip
    assert len(shown["both_unknown"]["samples"]) == KEPT
    assert shown["unknown_node"]["samples"] == [
        {
            "time": "2025-11-24T16:01:00Z", "node": "node-x", "protocol": 6, "source": "203.0.113.1",
            "source_port": 40000, "destination": "203.0.113.2", "destination_port": 80, "bytes": 5300,
            "packets": 8,
        }
    ]  # fmt: skip
    newest_and_largest = max(flow["bytes"] for flow in shown["both_unknown"]["samples"])
    assert newest_and_largest == 5000 + 10 * 40 + 8
    assert sum(rig.count(catalogue.NO_SIDE, cause=cause, unit="bytes") for cause in shown) == rig.count(
        catalogue.SERVER_IGNORED, reason="direction", unit="bytes"
    )


async def test_a_batch_that_is_handed_back_leaves_no_trace_among_the_unattributed(build: Build) -> None:
    rig = build()
    rig.inserter.outcome = CommitOutcome.HANDED_BACK
    await rig.pipeline.process(batch(), time.time())
    assert json.loads(rig.unattributed.page({}).body)["both_unknown"]["records"] == 0


def latecomer(name: str, address: int) -> Pod:
    return Pod(name, "default", name, "node-a", "app", "", "", CASE_TIME, CASE_TIME, True, (address,), ())


@pytest.mark.parametrize("address", ["10.1.1.99", "198.51.100.99"], ids=["pod network", "elsewhere"])
async def test_a_batch_waits_for_a_pod_that_the_api_shows_a_moment_later(build: Build, address: str) -> None:
    rig = build(PipelineConfig(RowsConfig("test", "aws", "us-west-2", "blue"), inserters=1), patience=1.0)
    waiting = asyncio.create_task(rig.pipeline.process(batch([flow(address, "203.0.113.9")]), time.time()))
    await asyncio.sleep(0.05)
    assert await rig.pipeline.process(batch([OURS], 2), time.time()) == COMMITTED, "others go on meanwhile"
    assert not waiting.done()
    rig.cluster.put_pod(latecomer("late-pod", int(ipaddress.IPv4Address(address))), time.time())
    assert await asyncio.wait_for(waiting, 5) == COMMITTED
    assert b"late-pod" in rig.inserter.blocks[batch().identity.token].body
    assert rig.bytes_by_fate() == {"committed": 10600}
    assert rig.count(catalogue.LATE_ADDRESSES, outcome="known") == 1


@pytest.mark.alone
async def test_who_stays_unknown_is_waited_for_once(build: Build) -> None:
    rig = build(patience=0.3)
    unknown = [flow("10.1.1.99", "203.0.113.9"), IPV6, STRANGERS]
    began = time.monotonic()
    assert await rig.pipeline.process(batch(unknown), time.time()) == COMMITTED
    assert time.monotonic() - began >= 0.3
    assert rig.count(catalogue.LATE_ADDRESSES, outcome="unknown") == 4
    assert rig.bytes_by_fate() == {"committed": 10600, "direction": 5300}
    began = time.monotonic()
    for sequence in range(2, 6):
        await rig.pipeline.process(batch(unknown, sequence), time.time())
    assert time.monotonic() - began < 0.3
    assert rig.count(catalogue.LATE_ADDRESSES, outcome="unknown") == 4


@pytest.mark.alone
async def test_only_so_many_batches_wait_and_only_so_much_is_remembered(build: Build) -> None:
    rig = build(patience=0.5)
    began = time.monotonic()
    waiting = [
        asyncio.create_task(
            rig.pipeline.process(batch([flow(f"10.1.1.{100 + i}", "203.0.113.9")], i), time.time())
        )
        for i in range(1, 9)
    ]
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    assert time.monotonic() - began < 0.4
    assert await asyncio.gather(*waiting) == [COMMITTED] * 8
    assert rig.count(catalogue.LATE_ADDRESSES, outcome="unknown") == 3
    assert rig.bytes_by_fate() == {"committed": 8 * 5300}
