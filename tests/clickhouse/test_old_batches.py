"""Batches older than the table's memory of tokens, the table itself is asked."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest

from kubenetmon.clickhouse.block import Block, Coded, Column, Constant, Values, encode
from kubenetmon.clickhouse.evidence import Tracer
from kubenetmon.clickhouse.inserter import CommitOutcome, Inserter, InserterConfig
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseUnreachableError, Sink
from kubenetmon.clickhouse.sinks_tcp import TcpSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness

pytestmark = pytest.mark.chdb

HOUR_AGO = int(time.time()) // 60 * 60 - 3600
ROWS = 40


@pytest.fixture
def engine(either: Sink) -> Sink:
    """Each test with the engine in this process, without IPv6, and with a server over TCP, with it."""
    return either


class Rig:
    """An inserter on a table of its own; its blocks are of one node and minute."""

    def __init__(self, engine: Sink, database: str, **options: Any) -> None:
        self.engine, self.database = engine, database
        self.metrics, self.readiness = Metrics(catalogue.SERVER_METRICS), Readiness()
        config = InserterConfig(database, "network_flows_0", schema_interval=0.1, **options)
        self.inserter = Inserter(config, sink=engine, metrics=self.metrics, readiness=self.readiness)
        self.task = asyncio.create_task(self.inserter.run())

    async def commit(self, token: str, *, first_port: int = 0, seconds: int = 60) -> CommitOutcome:
        table = await self.inserter.wait_schema()
        block, tracer = a_report(table, first_port, seconds)
        return await asyncio.wait_for(self.inserter.commit(block, token, tracer), 20)

    async def total(self) -> int:
        return int((await self.engine.query(f"SELECT sum(bytes) FROM {self.database}.network_flows_0"))[0][0])

    def found(self, what: str) -> float:
        return self.metrics.value(catalogue.OLD_BATCHES, found=what)

    def old_batches(self) -> str:
        checks = self.readiness.report()["checks"]
        assert isinstance(checks, dict)
        return str(checks["old batches"])


def a_report(table: TableSchema, first_port: int, seconds: int, node: str = "node-a") -> tuple[Block, Tracer]:
    """What node-a moved in a minute an hour ago, over ROWS connections, one of them IPv6 where it can be.

    `node` is what the rows say.
    """
    columns: dict[str, Column] = {
        "date": Constant(HOUR_AGO // 86_400),
        "intervalStartTime": Constant(HOUR_AGO),
        "proto": Constant("tcp"),
        "direction": Coded(np.arange(ROWS) % 2, ["out", "in"]),
        "localNode": Constant(node),
        "localIPv4": Values(np.where(np.arange(ROWS) == 0, 0, 0x0A000001).astype(np.uint32)),
        "localPort": Values(np.arange(ROWS) // 2 + first_port),
        "remoteIPv4": Values(np.where(np.arange(ROWS) == 0, 0, 0x0A000002).astype(np.uint32)),
        "remotePort": Constant(443),
        "bytes": Values(np.arange(ROWS) + 100),
        "packets": Constant(1),
    }
    if table.has_ipv6:
        addresses = np.zeros((ROWS, 16), np.uint8)
        addresses[0] = [*b"\x20\x01\x0d\xb8" + bytes(6) + b"\xff\xff\x01\x02\x03\x04"]
        columns |= {"localIPv6": Values(addresses), "remoteIPv6": Values(addresses)}
    tracer = Tracer(columns, ROWS, node="node-a", interval_start=HOUR_AGO, interval_end=HOUR_AGO + seconds)
    return encode(columns, table, ROWS), tracer


SUM = sum(range(100, 100 + ROWS))


@pytest.fixture
async def rig(engine: Sink, database: str) -> AsyncIterator[Callable[..., Any]]:
    """Makes a table that remembers the tokens of two blocks, and an inserter on it."""
    made: list[Rig] = []

    async def make(window: int = 2, **options: Any) -> Rig:
        if not made:
            ipv6 = isinstance(engine, TcpSink)
            await apply(engine, SchemaOptions(database, ipv6=ipv6, deduplication_window=2))
            if window != 2:
                await engine.query(
                    f"ALTER TABLE {database}.network_flows_0 "
                    f"MODIFY SETTING non_replicated_deduplication_window = {window}"
                )
        made.append(Rig(engine, database, **options))
        await made[-1].inserter.wait_schema()
        return made[-1]

    yield make
    for one in made:
        one.task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await one.task


@contextlib.contextmanager
def an_answer_lost(rig: Rig) -> Iterator[None]:
    """The engine takes the first block, and nobody hears of it."""
    insert, lost = rig.engine.insert, []

    async def losing(*arguments: Any) -> None:
        await insert(*arguments)
        if not lost:
            lost.append(arguments)
            raise ClickHouseUnreachableError("the answer is lost")

    rig.engine.insert = losing  # type: ignore[method-assign]
    try:
        yield
    finally:
        del rig.engine.insert
    assert lost


async def push_tokens_out(rig: Rig, blocks: int = 4) -> None:
    """Blocks of other nodes, until the table has forgotten all tokens before."""
    table = await rig.inserter.wait_schema()
    columns = {"date": Constant(25_000), "intervalStartTime": Constant(25_000 * 86_400), "bytes": Constant(0),
               "packets": Constant(1)}  # fmt: skip
    for number in range(blocks):
        await rig.inserter.commit(encode(columns, table, 1), f"other-{number}")


async def test_a_batch_whose_token_is_forgotten_is_found_in_the_table(rig: Any) -> None:
    one = await rig()
    assert await one.commit("old") is CommitOutcome.COMMITTED
    await push_tokens_out(one)
    assert await one.commit("old") is CommitOutcome.COMMITTED
    assert await one.total() == SUM
    assert one.found("present") == 1


async def test_without_the_question_it_would_double(rig: Any) -> None:
    """The control: what keeps the batch above from doubling is the look at the table."""
    one = await rig()
    table = await one.inserter.wait_schema()
    block, _ = a_report(table, 0, 60)
    await one.inserter.commit(block, "old")
    await push_tokens_out(one)
    await one.inserter.commit(block, "old")
    assert await one.total() == 2 * SUM


async def test_parts_of_one_report_are_told_apart(rig: Any) -> None:
    one = await rig()
    for token, port in (("first", 0), ("second", 1000), ("first", 0), ("second", 1000), ("third", 2000)):
        assert await one.commit(token, first_port=port) is CommitOutcome.COMMITTED
        await push_tokens_out(one)
    assert await one.total() == 3 * SUM


async def test_what_the_table_cannot_tell_is_held_and_shown(rig: Any) -> None:
    one = await rig()
    await one.commit("first", seconds=5)
    await push_tokens_out(one)
    assert await one.commit("again", seconds=5) is CommitOutcome.UNDECIDED
    assert await one.total() == SUM
    assert "batch again" in one.old_batches()
    assert "clickhouse_undecided" in one.old_batches()
    assert one.found("undecided") == 1
    assert one.readiness.ready


async def test_what_is_held_is_still_held_when_its_agent_sends_it_again(rig: Any) -> None:
    one = await rig(window=0)
    with an_answer_lost(one):
        assert await one.commit("short", seconds=5) is CommitOutcome.UNDECIDED
    for _ in range(3):
        assert await one.commit("short", seconds=5) is CommitOutcome.UNDECIDED
    assert await one.total() == SUM


async def test_rows_that_another_replica_wrote_without_a_node_are_seen(rig: Any) -> None:
    one = await rig()
    table = await one.inserter.wait_schema()
    block, tracer = a_report(table, 0, 60, node="")
    assert await one.inserter.commit(block, "old", tracer) is CommitOutcome.COMMITTED
    await push_tokens_out(one)
    assert await one.commit("old") is CommitOutcome.UNDECIDED, "they could be another node's"
    assert await one.total() == SUM


async def test_an_answer_lost_after_a_look_is_the_tokens_to_decide(rig: Any) -> None:
    """The table could not tell any more; but what came since the look has left its token."""
    one = await rig(window=10)
    await push_tokens_out(one, 12)
    async with asyncio.timeout(20):
        while not one.inserter._target.remembers(0.0):  # noqa: ASYNC110 - until those have been counted
            await asyncio.sleep(0.01)
    with an_answer_lost(one):
        assert await one.commit("short", seconds=5) is CommitOutcome.COMMITTED
    assert await one.total() == SUM
    assert one.found("absent") == 1


@pytest.mark.parametrize(
    ("choice", "outcome", "total"),
    [("insert", CommitOutcome.COMMITTED, 2 * SUM), ("drop", CommitOutcome.DROPPED, SUM)],
)
async def test_the_operator_may_decide(rig: Any, choice: str, outcome: CommitOutcome, total: int) -> None:
    one = await rig(undecided=choice)
    await one.commit("first", seconds=5)
    await push_tokens_out(one)
    assert await one.commit("again", seconds=5) is outcome
    assert await one.total() == total
    assert one.metrics.value(catalogue.WORKER_BATCHES, type="dropped") == (choice == "drop")


async def test_a_table_without_a_window_still_takes_minute_reports_once(rig: Any) -> None:
    """The original's own table: nothing is promised, and yet a report that is there is found."""
    one = await rig(window=0)
    for _ in range(3):
        assert await one.commit("fresh") is CommitOutcome.COMMITTED
    assert await one.total() == SUM
    # Reports that share a minute cannot be told apart, and are not held up for that.
    for token in ("a", "b"):
        assert await one.commit(token, first_port=5000, seconds=5) is CommitOutcome.COMMITTED
    assert await one.total() == 3 * SUM
    assert one.metrics.value(catalogue.EXACTLY_ONCE) == 0
