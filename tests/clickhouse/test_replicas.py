"""Replicated tables of the real engine, whose replicas share their memory of tokens in a real ZooKeeper."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, ddl
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.replication import Keeper, keeper
from tests.clickhouse.conftest import INSERT_SETTINGS, make_block
from tests.clickhouse.test_inserter import Running, quick
from tests.clickhouse.test_old_batches import SUM, a_report

pytestmark = [pytest.mark.chdb, pytest.mark.keeper]

ROWS = 10
CLEANING = "cleanup_delay_period = 1, cleanup_delay_period_random_add = 0, max_cleanup_delay_period = 1"


class Replicas:
    """Servers with a replica each of one table, and an inserter for each."""

    def __init__(self, directory: Path, keeper: Keeper, open_things: contextlib.AsyncExitStack) -> None:
        self.keeper = keeper
        self._directory, self._open = directory, open_things
        self.fronts: list[RunningFront] = []
        self.running: list[Running] = []

    async def add(self, window: int = 100_000, **options: object) -> Running:
        """One more, with these settings of the inserter; tokens beyond `window` are forgotten at once."""
        number = len(self.fronts) + 1
        self.fronts.append(await self._front(number))
        sink = self._sink(self.fronts[-1])
        wanted = SchemaOptions(table="flows", cluster="main", deduplication_window=window)
        # Nobody keeps a queue of statements for the cluster here.
        statement = ddl(wanted).split(";\n")[0].replace(" ON CLUSTER `main`", "")
        await sink.query(f"{statement}, {CLEANING}")
        if number > 1:
            for front in self.fronts:
                await self.ask(front, "SYSTEM STOP REPLICATION QUEUES flows_local")
        return await self.inserter(sink, **options)

    async def inserter(self, sink: TcpSink, **options: object) -> Running:
        """One more server of ours on a server of theirs."""
        self.running.append(Running(quick("default", table="flows_local", **options), sink))
        self._open.push_async_callback(self.running[-1].end)
        await self.running[-1].inserter.wait_schema()
        return self.running[-1]

    async def restart(self, number: int) -> None:
        """SIGKILL, and back on the same port; of the only replica."""
        port = self.fronts[number - 1].port
        await self.fronts[number - 1].kill()
        self.fronts[number - 1] = await self._front(number, "--port", str(port))

    async def _front(self, number: int, *options: str) -> RunningFront:
        config = self.keeper.config(self._directory / f"{number}.xml", f"replica-{number}")
        return await self._open.enter_async_context(
            clickhouse_front(
                self._directory / str(number), "--replica", "--engine-config", str(config), *options
            )
        )

    def _sink(self, front: RunningFront) -> TcpSink:
        return TcpSink(TcpConfig((front.endpoint,), tls=None, request_timeout=10, silence=5))

    async def ask(self, front: RunningFront, question: str) -> list[tuple[object, ...]]:
        sink = self._sink(front)
        answer = await sink.query(question)
        await sink.close()
        return list(answer)

    async def until(self, what: str, count: int) -> None:
        """Wait until the first server has counted so many."""
        async with asyncio.timeout(30):
            while (await self.fronts[0].command())[what] < count:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)

    async def sums(self) -> list[int]:
        """Bytes on each replica: what it took itself, for none fetches from another."""
        rows = [await self.ask(front, "SELECT sum(bytes) FROM flows_local") for front in self.fronts]
        return [int(str(row[0][0])) for row in rows]


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    with keeper(tmp_path / "keeper") as at_work:
        async with contextlib.AsyncExitStack() as open_things:
            yield Replicas(tmp_path, at_work, open_things)


async def test_a_batch_is_there_once_whichever_replica_takes_it(replicas: Replicas) -> None:
    one, other = await replicas.add(), await replicas.add()
    assert one.metrics.value(catalogue.EXACTLY_ONCE) == 1
    for number in range(6):
        first, second = (one, other) if number % 2 else (other, one)
        assert await first.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
        assert await second.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
    assert await replicas.sums() == [3 * ROWS, 3 * ROWS]
    await other.commit("another token", ROWS)
    assert await replicas.sums() == [3 * ROWS, 4 * ROWS], "it is the token that decides"


async def test_a_replica_killed_with_its_answer_on_the_way(replicas: Replicas) -> None:
    """The agent's next server knows another replica alone."""
    one, other = await replicas.add(), await replicas.add()
    await replicas.fronts[0].fault("after_commit", "stall", kind="insert", times=0)
    batches = [asyncio.create_task(one.commit(f"batch-{number}", ROWS)) for number in range(4)]
    await replicas.until("commits", 4)
    taken = await replicas.sums()
    await replicas.fronts[0].kill()
    for number in range(4):
        assert await other.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
    del replicas.fronts[0]
    assert (taken, await replicas.sums()) == ([4 * ROWS, 0], [0])
    for batch in batches:
        batch.cancel()


@pytest.mark.parametrize("at", ["query", "data", "before_commit", "after_commit"])
async def test_the_engine_killed_amid_an_insert_neither_loses_nor_doubles(
    replicas: Replicas, at: str
) -> None:
    running = await replicas.add()
    await running.commit("before", ROWS)
    await replicas.fronts[0].fault(at, "stall", kind="insert", times=0)
    batches = [asyncio.create_task(running.commit(f"batch-{number}", ROWS)) for number in range(3)]
    await replicas.until("faults", 1)
    await replicas.restart(1)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await replicas.sums() == [4 * ROWS]


@pytest.mark.slow
async def test_the_engine_killed_at_random_neither_loses_nor_doubles(replicas: Replicas) -> None:
    running = await replicas.add()
    chance = random.Random(7)
    done = begun = 0

    async def work() -> None:
        nonlocal done, begun
        while not over.is_set():
            begun += 1
            await running.commit(f"batch-{begun}", ROWS)
            done += 1

    over = asyncio.Event()
    workers = [asyncio.create_task(work()) for _ in range(8)]
    amid = 0
    for _ in range(8):
        await asyncio.sleep(0.2 + chance.random())
        amid += (await replicas.fronts[0].command())["under_way"] > 0
        await replicas.restart(1)
    over.set()
    await asyncio.gather(*workers)
    assert amid >= 4, "few inserts were under way: little was tried"
    assert (done, await replicas.sums()) == (begun, [begun * ROWS])


async def test_a_batch_whose_token_the_keeper_has_forgotten_is_found_in_the_table(replicas: Replicas) -> None:
    running = await replicas.add(window=2)
    table = await running.inserter.wait_schema()
    block, tracer = a_report(table, 0, 60)
    assert await running.inserter.commit(block, "old", tracer) is CommitOutcome.COMMITTED
    for number in range(5):
        await running.commit(f"batch-{number}", ROWS)
    async with asyncio.timeout(30):  # the control: inserted again and blindly, one of those after it doubles
        while await replicas.sums() == [SUM + 5 * ROWS]:
            await running.sink.insert(
                "default", "flows_local", make_block(table, ROWS), "batch-0", INSERT_SETTINGS
            )
            await asyncio.sleep(0.2)
    assert await running.inserter.commit(block, "old", tracer) is CommitOutcome.COMMITTED
    assert await replicas.sums() == [SUM + 6 * ROWS]
    assert running.metrics.value(catalogue.OLD_BATCHES, found="present") == 1


@pytest.mark.parametrize("fault", ["killed", "standing still"])
async def test_a_keeper_that_is_away_is_waited_out(replicas: Replicas, fault: str) -> None:
    running = await replicas.add()
    await running.commit("before", ROWS)
    if fault == "killed":
        replicas.keeper.kill()
    else:
        replicas.keeper.stand_still(True)
    batches = [asyncio.create_task(running.commit(f"batch-{number}", ROWS)) for number in range(3)]
    await running.eventually(lambda: running.metrics.value(catalogue.INSERT_RETRIES) >= 1)
    assert not any(batch.done() for batch in batches)
    assert running.metrics.value(catalogue.HELD_BATCHES) == 0, "it may pass"
    if fault == "killed":
        replicas.keeper.start()
    else:
        replicas.keeper.stand_still(False)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await replicas.sums() == [4 * ROWS]


async def test_a_quorum_of_more_replicas_than_live_is_waited_for_with_nothing_stored(
    replicas: Replicas,
) -> None:
    quorum = {"insert_quorum": 2, "insert_quorum_timeout": 500}
    running = await replicas.add(settings=quorum)
    batch = asyncio.create_task(running.commit("batch", ROWS))
    await running.until("285")
    assert await replicas.sums() == [0]
    assert running.metrics.value(catalogue.HELD_BATCHES) == 0
    batch.cancel()
    without = await replicas.inserter(running.sink)
    assert await without.commit("batch", ROWS) is CommitOutcome.COMMITTED
    assert await replicas.sums() == [ROWS]


async def test_a_quorum_that_is_not_reached_stores_once_however_often_it_is_tried(replicas: Replicas) -> None:
    """The engine's own 319 says that the rows are on one replica, and its answer is not known."""
    quorum = {"insert_quorum": 2, "insert_quorum_timeout": 500}
    one, other = await replicas.add(settings=quorum), await replicas.add()
    batch = asyncio.create_task(one.commit("batch", ROWS))
    await one.until("319")
    await one.eventually(lambda: one.metrics.value(catalogue.INSERT_RETRIES) >= 3)
    assert not batch.done()
    assert await replicas.sums() == [ROWS, 0]
    batch.cancel()
    assert await other.commit("batch", ROWS) is CommitOutcome.COMMITTED
    assert await replicas.sums() == [ROWS, 0]


async def test_a_view_on_a_replicated_table_counts_once_too(replicas: Replicas) -> None:
    running = await replicas.add()
    daily = "ReplicatedSummingMergeTree('/clickhouse/tables/1/daily', '{replica}') ORDER BY day"
    for statement in (
        f"CREATE TABLE daily (day Date, b UInt64) ENGINE = {daily}",
        "CREATE MATERIALIZED VIEW to_daily TO daily AS "
        "SELECT date AS day, sum(bytes) AS b FROM flows_local GROUP BY day",
    ):
        await running.sink.query(statement)
    watching = await replicas.inserter(running.sink)
    assert watching.metrics.value(catalogue.EXACTLY_ONCE) == 0, "its window is ClickHouse's default"
    table = await watching.inserter.wait_schema()
    await running.sink.query(table.deduplication.remedy())
    await watching.eventually(lambda: watching.metrics.value(catalogue.EXACTLY_ONCE) == 1)
    await replicas.fronts[0].fault("after_commit", "drop", kind="insert", times=3)
    await asyncio.gather(*(watching.commit(f"batch-{number}", ROWS) for number in range(4)))
    assert watching.metrics.value(catalogue.INSERT_RETRIES) >= 3
    assert await replicas.sums() == [4 * ROWS]
    assert (await running.sink.query("SELECT sum(b) FROM daily"))[0][0] == 4 * ROWS
