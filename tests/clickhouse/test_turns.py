"""Batches that ClickHouse does not take, and those behind them: pipeline and inserter over the engine.

A constraint on the table refuses the rows of one node until an operator drops it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import replace
from typing import TypeVar

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.health import ClickHouseHealth
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.sinks import ClickHouseError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import catalogue
from kubenetmon.model import BatchIdentity, FlowBatch
from kubenetmon.proto import Outcome
from kubenetmon.readiness import Readiness
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pacing import PacingConfig, ReportPacing
from kubenetmon.server.pipeline import Pipeline, PipelineConfig
from kubenetmon.server.places import Places
from kubenetmon.server.push import BATCH_OVERHEAD
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.rows import RowsConfig
from kubenetmon.server.unattributed import Unattributed
from kubenetmon.server.verdict import Verdict
from tests.beds.attribution import Flow, Tuple, batch_of
from tests.beds.clickhouse_front import RunningFront
from tests.beds.virtual_clock import VirtualClock
from tests.clickhouse.conftest import make_block
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

FLOW = Flow(
    6, Tuple("10.1.1.5", 40000, "203.0.113.9", 80, 3, 300), Tuple("203.0.113.9", 80, "10.1.1.5", 40000, 5, 50)
)
EACH = 350
Result = TypeVar("Result")
ROOM = 32 << 10
"""What a small batch takes of the memory for blocks."""


class NoRanges:
    """Nothing is known of any cloud."""

    table = RangeTable([])


class Rig:
    """A server's way from batches to the table, one insert at a time."""

    def __init__(self, running: Running, *, memory: int = 1 << 20) -> None:
        self.running = running
        cluster = Inventory(InventoryConfig())
        for name in ("good", "bad"):
            cluster.put_node(Node(name, "zone-1", 1, (), (), (Network(4, 0x0A010100, 24),)))
        self.pipeline = Pipeline(
            PipelineConfig(RowsConfig("test", "aws", "us-west-2", "blue"), 1, memory),
            cluster=cluster,
            ranges=NoRanges(),
            attributor=Attributor(AttributionConfig("aws", "us-west-2", "blue")),
            inserter=running.inserter,
            pacing=ReportPacing(PacingConfig(25, 1), metrics=running.metrics, clock=SYSTEM_CLOCK),
            metrics=running.metrics,
            clock=SYSTEM_CLOCK,
            unattributed=Unattributed(metrics=running.metrics),
        )
        self.handed_back = 0
        self.order: list[tuple[str, int]] = []

    def batch(self, node: str, sequence: int) -> FlowBatch:
        minute = int(time.time()) // 60 * 60
        identity = BatchIdentity(node, bytes(16), sequence)
        return replace(
            batch_of([FLOW], node), identity=identity, interval_start=minute - 60, interval_end=minute
        )

    async def once(self, node: str, sequence: int) -> Verdict:
        return await self.pipeline.process(self.batch(node, sequence), time.time())

    async def submitted(self, node: str, sequence: int) -> Verdict:
        """By an original agent, who keeps nothing."""
        return await self.pipeline.process(self.batch(node, sequence), time.time(), sender_keeps=False)

    async def sliced(self, sequence: int) -> Verdict:
        """By an original agent, a few seconds of a minute that other slices share."""
        batch = self.batch("good", sequence)
        at = batch.interval_start + 10
        batch = replace(batch, interval_start=at, interval_end=at)
        return await self.pipeline.process(batch, time.time(), sender_keeps=False)

    async def until_committed(self, node: str, sequence: int) -> None:
        """As an agent does."""
        while (verdict := await self.once(node, sequence)).outcome is not Outcome.COMMITTED:
            assert "others wait for its room" in verdict.reason
            self.handed_back += 1
            await asyncio.sleep(0.05)
        self.order.append((node, sequence))

    def start(
        self, work: Callable[[str, int], Coroutine[None, None, Result]], node: str, count: int
    ) -> list[asyncio.Task[Result]]:
        return [asyncio.create_task(work(node, sequence)) for sequence in range(1, count + 1)]

    def held(self) -> float:
        return self.running.metrics.value(catalogue.HELD_BATCHES)

    async def refuse_bad(self, check: str = "localNode != 'bad'") -> None:
        await self._alter(f"ADD CONSTRAINT only_good CHECK {check}")

    async def mend(self) -> None:
        await self._alter("DROP CONSTRAINT only_good")

    async def _alter(self, what: str) -> None:
        config = self.running.config
        await self.running.sink.query(f"ALTER TABLE {config.database}.{config.table} {what}")

    async def sums(self) -> dict[str, int]:
        config = self.running.config
        return dict(await self.running.sink.query(
            f"SELECT localNode, sum(bytes) FROM {config.database}.{config.table} GROUP BY localNode"
        ))  # fmt: skip


@pytest_asyncio.fixture(loop_scope="module")
async def running(config: TcpConfig, remote_table: TableSchema) -> AsyncIterator[Running]:
    running = Running(quick(remote_table.database, workers=1), TcpSink(config))
    await running.inserter.wait_schema()
    yield running
    await running.end()


async def test_what_is_refused_keeps_no_turn(running: Running) -> None:
    rig = Rig(running)
    await rig.refuse_bad()
    refused = rig.start(rig.once, "bad", 5)
    await running.eventually(lambda: rig.held() == 5)
    await asyncio.wait_for(asyncio.gather(*rig.start(rig.until_committed, "good", 5)), 10)
    assert rig.order == [("good", sequence) for sequence in range(1, 6)]
    assert not any(task.done() for task in refused)
    assert "469" in running.detail()
    await rig.mend()
    assert set(await asyncio.gather(*refused)) == {Verdict(Outcome.COMMITTED)}
    assert await rig.sums() == {"good": 5 * EACH, "bad": 5 * EACH}
    rig.pipeline.close()


async def test_what_is_refused_makes_room_where_memory_is_full(running: Running) -> None:
    """Three times as many refused batches as there is room for; they take turns, and the others pass."""
    rig = Rig(running, memory=2 * ROOM)
    await rig.refuse_bad()
    refused = rig.start(rig.until_committed, "bad", 6)
    await running.eventually(lambda: rig.handed_back > 0)
    await asyncio.wait_for(asyncio.gather(*rig.start(rig.until_committed, "good", 5)), 20)
    assert not any(task.done() for task in refused)
    assert running.metrics.value(catalogue.SERVER_HANDED_BACK, unit="bytes") >= EACH
    await rig.mend()
    await asyncio.gather(*refused)
    assert await rig.sums() == {"good": 5 * EACH, "bad": 6 * EACH}
    rig.pipeline.close()


class Crowded:
    """Room that others wait for."""

    wanted = True

    def step_aside(self) -> None:
        """The turn is nobody's here."""


async def test_ready_says_trouble_until_what_went_back_has_come_again_and_passed(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    rig = Rig(running)
    await rig.refuse_bad("localNode != 'node'")
    block = make_block(await running.inserter.wait_schema(), 1)
    for _ in range(2):
        outcome = await running.inserter.commit(block, "refused", None, Crowded())
        assert outcome is CommitOutcome.YIELDED
        until = time.monotonic() + 0.8  # the table is read again several times
        while time.monotonic() < until:
            assert "469" in running.detail()
            await asyncio.sleep(0.01)
    await rig.mend()
    assert await running.inserter.commit(block, "refused", None, Crowded()) is CommitOutcome.COMMITTED
    assert "469" not in running.detail()
    assert [one.message for one in caplog.records].count("ClickHouse takes rows again") == 1
    rig.pipeline.close()


async def test_what_went_back_and_never_comes_again_is_trouble_for_two_minutes_only() -> None:
    clock, readiness = VirtualClock(), Readiness()
    health = ClickHouseHealth("ch:9000", readiness=readiness, clock=clock)
    health.began_to_fail()
    health.failed(ClickHouseError(469, "violated"))
    health.went_back("gone")
    health.looked("as it should be")
    assert health.troubled
    await clock.advance(121)
    health.looked("as it should be")
    assert not health.troubled
    assert not health.came_again("gone")


async def test_what_nobody_else_keeps_stays(running: Running) -> None:
    rig = Rig(running, memory=2 * ROOM)
    await rig.refuse_bad()
    refused = rig.start(rig.submitted, "bad", 2)
    await running.eventually(lambda: rig.held() == 2)
    waiting = rig.start(rig.until_committed, "good", 1)
    await asyncio.sleep(1)  # three times as long as a refused batch waits
    assert not any(task.done() for task in refused)
    await rig.mend()
    assert set(await asyncio.gather(*refused)) == {Verdict(Outcome.COMMITTED)}
    await asyncio.gather(*waiting)
    assert await rig.sums() == {"good": EACH, "bad": 2 * EACH}
    rig.pipeline.close()


async def without_window(running: Running) -> None:
    """The table as the original makes it."""
    await running.sink.query(
        f"ALTER TABLE {running.config.database}.{running.config.table} "
        "MODIFY SETTING non_replicated_deduplication_window = 0"
    )
    await running.eventually(lambda: running.inserter.schema.deduplication.blocks == 0)  # type: ignore[union-attr]


@pytest.mark.parametrize("at", ["query", "sample", "before_commit"])
async def test_what_was_refused_before_it_was_stored_is_stored_on_a_table_without_a_window_too(
    front: RunningFront, running: Running, at: str
) -> None:
    """Slices of one minute cannot be told apart there, but there is nothing to tell: too many parts."""
    await without_window(running)
    rig = Rig(running)
    assert await rig.sliced(1) == Verdict(Outcome.COMMITTED)
    await front.fault(at, "exception", code=252, kind="insert", times=2)
    assert await rig.sliced(2) == Verdict(Outcome.COMMITTED)
    assert await rig.sums() == {"good": 2 * EACH}
    assert running.metrics.value(catalogue.INSERT_RETRIES) == 2
    rig.pipeline.close()


async def test_what_may_be_stored_and_nobody_keeps_is_counted(front: RunningFront, running: Running) -> None:
    await without_window(running)
    rig = Rig(running)
    await rig.sliced(1)
    await front.fault("after_commit", "drop", kind="insert")
    assert await rig.sliced(2) == Verdict(Outcome.COMMITTED)
    assert await rig.sums() == {"good": 2 * EACH}
    value = running.metrics.value
    assert value(catalogue.SERVER_IGNORED, reason="undecided", unit="bytes") == EACH
    assert value(catalogue.SERVER_COMMITTED, unit="bytes") == EACH
    assert value(catalogue.SERVER_HANDED_BACK, unit="bytes") == 0
    assert value(catalogue.SERVER_RECEIVED, unit="bytes") == 2 * EACH
    rig.pipeline.close()


async def test_what_fails_for_long_steps_aside_too(config: TcpConfig, remote_table: TableSchema) -> None:
    """By an error that may pass, but not soon, and not for all: as where one shard of several is away."""
    settings = {"allow_custom_error_code_in_throwif": 1}
    running = Running(quick(remote_table.database, workers=1, settings=settings), TcpSink(config))
    await running.inserter.wait_schema()
    rig = Rig(running)
    await rig.refuse_bad("NOT throwIf(localNode = 'bad', 'away', toInt16(279))")
    failing = rig.start(rig.once, "bad", 3)
    await running.until("279")
    await asyncio.wait_for(asyncio.gather(*rig.start(rig.until_committed, "good", 5)), 20)
    assert rig.held() == 0, "no operator is needed"
    assert not any(task.done() for task in failing)
    await rig.mend()
    assert set(await asyncio.gather(*failing)) == {Verdict(Outcome.COMMITTED)}
    assert await rig.sums() == {"good": 5 * EACH, "bad": 3 * EACH}
    rig.pipeline.close()
    await running.end()


async def test_stop_hands_back_what_waits_aside(running: Running) -> None:
    rig = Rig(running)
    await rig.refuse_bad()
    refused = rig.start(rig.once, "bad", 3)
    await running.eventually(lambda: rig.held() == 3)
    await asyncio.wait_for(running.inserter.stop(), 2)
    verdicts = await asyncio.wait_for(asyncio.gather(*refused), 2)
    assert set(verdicts) == {Verdict(Outcome.RETRY_LATER, "the server is stopping")}
    assert running.metrics.value(catalogue.SERVER_PENDING, unit="bytes") == 0
    rig.pipeline.close()


@pytest.mark.parametrize("records", [0, 1, 50, 100, 110, 1000, 18_000])
async def test_a_block_never_counts_less_than_its_message(records: int) -> None:
    """Else refused batches could fill the receiver's memory while none here waits for room."""
    places = Places(1, 64 << 20)
    message = BATCH_OVERHEAD + 105 * records
    async with places.take(300 * records, yields=True):
        assert places.reserved >= message
