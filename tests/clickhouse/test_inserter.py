"""The inserter and a server, or the front where a fault is wanted: every block once, whatever fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from kubenetmon.clickhouse.inserter import CommitOutcome, Inserter, InserterConfig, StoppingError
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.metrics import catalogue
from kubenetmon.metrics.registry import Metrics
from kubenetmon.readiness import Readiness
from tests.beds.clickhouse_front import RunningFront
from tests.beds.clickhouse_server import ClickHouseServer
from tests.clickhouse.conftest import make_block

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]


class Running:
    """An inserter at work and what it shows."""

    def __init__(self, config: InserterConfig, sink: TcpSink) -> None:
        self.metrics = Metrics(catalogue.SERVER_METRICS)
        self.readiness = Readiness()
        self.sink = sink
        self.config = config
        self.inserter = Inserter(config, sink=sink, metrics=self.metrics, readiness=self.readiness)
        self._task = asyncio.create_task(self.inserter.run())

    def detail(self) -> str:
        checks = self.readiness.report()["checks"]
        assert isinstance(checks, dict)
        return str(checks["clickhouse"]["detail"])

    async def commit(self, token: str, rows: int = 10) -> CommitOutcome:
        table = await self.inserter.wait_schema()
        return await asyncio.wait_for(self.inserter.commit(make_block(table, rows), token), 60)

    async def total(self) -> int:
        rows = await self.sink.query(f"SELECT sum(bytes) FROM {self.config.database}.{self.config.table}")
        return int(rows[0][0])

    async def until(self, what: str) -> None:
        """Wait until readiness says so."""
        await self.eventually(lambda: what in self.detail())

    async def eventually(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds."""
        async with asyncio.timeout(30):
            while not condition():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self.sink.close()


@pytest_asyncio.fixture(loop_scope="module")
async def running(config: TcpConfig, remote_table: TableSchema) -> AsyncIterator[Running]:
    running = Running(quick(remote_table.database), TcpSink(replace(config, request_timeout=3)))
    yield running
    await running.end()


def quick(database: str, **options: object) -> InserterConfig:
    defaults = InserterConfig(
        database, "network_flows_0", first_delay=0.02, longest_delay=0.1, held_delay=0.3, schema_interval=0.2
    )
    return replace(defaults, **options)  # type: ignore[arg-type]


async def test_commits_and_says_so(running: Running) -> None:
    assert await running.commit("a") is CommitOutcome.COMMITTED
    assert await running.commit("a") is CommitOutcome.COMMITTED
    assert await running.commit("b") is CommitOutcome.COMMITTED
    assert await running.total() == 20
    assert running.readiness.ready
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1
    assert running.metrics.value(catalogue.WORKER_BATCHES, type="inserted") == 3
    assert running.metrics.value(catalogue.WORKER_ROWS, type="inserted") == 30


@pytest.mark.parametrize(
    "fault",
    [
        {"at": "before_commit", "do": "drop", "times": 3},
        {"at": "after_commit", "do": "drop", "times": 3},
        {"at": "after_commit", "do": "stall"},
        {"at": "data", "do": "drop", "bytes": 100},
        {"at": "before_commit", "do": "exception", "code": 252, "times": 3, "behind_packets": True},
        {"at": "after_commit", "do": "exception", "code": 319, "times": 2, "behind_packets": True},
        {"at": "query", "do": "exception", "code": 242, "times": 4, "kind": "insert"},
        {"at": "before_commit", "do": "exception", "code": 285, "times": 3},  # TOO_FEW_LIVE_REPLICAS
        {"at": "before_commit", "do": "exception", "code": 286, "times": 3},  # the quorum of another insert
        {"at": "after_commit", "do": "exception", "code": 999, "times": 3},  # KEEPER_EXCEPTION
        {"at": "sample", "do": "exception", "code": 159, "times": 2},
        {"at": "hello", "do": "drop", "times": 2},
    ],
    ids=lambda fault: "-".join(str(value) for value in fault.values()),
)
async def test_every_block_once_through_what_passes(
    front: RunningFront, running: Running, fault: dict[str, object]
) -> None:
    await running.commit("before")
    await front.command(fault=fault, drop=fault["at"] == "hello")
    outcomes = await asyncio.gather(*(running.commit(f"token-{number}") for number in range(4)))
    assert set(outcomes) == {CommitOutcome.COMMITTED}
    assert await running.total() == 50
    assert running.metrics.value(catalogue.INSERT_RETRIES) >= 1
    await running.until("network_flows_0 on")


async def test_attempts_become_rarer_and_do_not_come_together(front: RunningFront, running: Running) -> None:
    """Else a ClickHouse with too much to do would have more to do for it."""
    patient = Running(
        replace(running.config, first_delay=0.1, longest_delay=0.5, held_delay=60), running.sink
    )
    await patient.inserter.wait_schema()
    await front.fault("query", "exception", code=252, kind="insert", times=0)
    tried: list[float] = []
    insert = running.sink.insert

    async def counting(*arguments: Any) -> None:
        tried.append(asyncio.get_running_loop().time())
        await insert(*arguments)

    running.sink.insert = counting  # type: ignore[method-assign]
    one = asyncio.create_task(patient.commit("one"))
    await asyncio.sleep(2.5)
    assert 4 <= len(tried) <= 12
    pauses = np.diff(tried)
    assert pauses[:2].mean() < pauses[-2:].mean()
    assert pauses[-1] >= 0.25
    tried.clear()
    many = [asyncio.create_task(patient.commit(f"many-{number}")) for number in range(10)]
    await asyncio.sleep(1.5)
    assert np.ptp(tried[-10:]) > 0.05, "all at once"
    await front.command(heal=True)
    assert set(await asyncio.gather(one, *many)) == {CommitOutcome.COMMITTED}
    assert await patient.total() == 110
    del running.sink.insert
    await patient.end()


async def test_as_many_inserts_at_once_as_there_are_workers_share_as_many_connections(
    front: RunningFront, running: Running
) -> None:
    four = Running(replace(running.config, workers=4), running.sink)
    await four.inserter.wait_schema()
    before = await front.command()
    await front.fault("before_commit", "delay", kind="insert", seconds=0.05, times=0)
    batches = [asyncio.create_task(four.commit(f"node-{number}")) for number in range(30)]
    most = 0
    while not all(batch.done() for batch in batches):
        most = max(most, (await front.command())["under_way"])
        await asyncio.sleep(0.005)
    assert 3 <= most <= 4
    assert (await front.command())["connections"] - before["connections"] <= 5
    assert await four.total() == 300
    await four.end()


async def test_an_outage_is_waited_out(front: RunningFront, running: Running) -> None:
    await running.commit("before")
    await front.command(listen=False, drop=True)
    waiting = [asyncio.create_task(running.commit(f"out-{number}")) for number in range(30)]
    await running.until("check clickhouse_endpoint")
    assert not any(task.done() for task in waiting)
    await front.command(listen=True)
    assert set(await asyncio.gather(*waiting)) == {CommitOutcome.COMMITTED}
    assert await running.total() == 310
    assert running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="0") > 0


async def test_a_random_token_per_attempt_would_double(front: RunningFront, running: Running) -> None:
    """The control: it is the repeated token that keeps a repeated insert from doubling."""
    await front.fault("after_commit", "drop", kind="insert")
    table = await running.inserter.wait_schema()
    block = make_block(table, 10)
    with contextlib.suppress(Exception):
        await running.sink.insert(table.database, table.table, block, "one", {"async_insert": 0})
    await running.sink.insert(table.database, table.table, block, "another", {"async_insert": 0})
    assert await running.total() == 20


async def test_a_dropped_table_is_held_until_mended(
    running: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="kubenetmon")
    await running.commit("before")
    await running.sink.query(f"DROP TABLE {running.config.database}.network_flows_0 SYNC")
    held = [asyncio.create_task(running.commit(f"held-{number}")) for number in range(25)]
    await running.until("kubenetmon schema apply")
    await running.eventually(lambda: running.metrics.value(catalogue.HELD_BATCHES) == 25)
    assert running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="60") >= 25
    await apply(running.sink, SchemaOptions(running.config.database))
    assert set(await asyncio.gather(*held)) == {CommitOutcome.COMMITTED}
    assert await running.total() == 250
    await running.until("network_flows_0 on")
    assert running.metrics.value(catalogue.HELD_BATCHES) == 0
    complaints = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert 1 <= len(complaints) <= 4  # a line per kind of trouble, not per attempt
    assert 60 in {getattr(record, "clickhouse_code", None) for record in complaints}
    assert any("takes rows again" in record.message for record in caplog.records)


@pytest.mark.parametrize(("code", "remedy"), [(497, "grant"), (201, "quota"), (53, "schema print")])
async def test_what_an_operator_must_mend_is_shown(
    front: RunningFront, running: Running, code: int, remedy: str
) -> None:
    await running.inserter.wait_schema()
    await front.fault("query", "exception", code=code, times=0, kind="insert", message="no")
    held = asyncio.create_task(running.commit("held"))
    await running.until(remedy)
    assert str(code) in running.detail()
    await front.command(heal=True)
    assert await held is CommitOutcome.COMMITTED
    assert await running.total() == 10


async def test_a_refused_batch_is_dropped_only_where_the_operator_says_so(
    front: RunningFront, config: TcpConfig, remote_table: TableSchema
) -> None:
    options = quick(remote_table.database, drop_held_after=0.5, held_delay=0.1)
    running = Running(options, TcpSink(config))
    await running.inserter.wait_schema()
    await front.fault("query", "exception", code=117, times=0, kind="insert")
    assert await running.commit("refused") is CommitOutcome.DROPPED
    assert running.metrics.value(catalogue.WORKER_ROWS, type="dropped") == 10
    assert running.metrics.value(catalogue.INSERT_RETRIES) >= 2
    await front.command(heal=True)
    await running.end()


async def test_what_may_be_there_is_not_dropped(
    front: RunningFront, config: TcpConfig, remote_table: TableSchema
) -> None:
    options = quick(remote_table.database, drop_held_after=0.1, held_delay=0.1, first_delay=0.5)
    running = Running(options, TcpSink(config))
    await running.inserter.wait_schema()
    await front.fault("before_commit", "drop", kind="insert")
    in_doubt = asyncio.create_task(running.commit("in doubt"))
    await running.eventually(lambda: running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="0") > 0)
    await front.fault("query", "exception", code=117, times=4, kind="insert")
    assert await in_doubt is CommitOutcome.COMMITTED
    assert await running.total() == 10
    await running.end()


async def test_a_profile_that_switches_deduplication_off_changes_nothing(
    server: ClickHouseServer, remote_table: TableSchema
) -> None:
    """ClickHouse 26's `deduplicate_insert` wins over `insert_deduplicate`, which alone would double."""
    config = TcpConfig((server.endpoint,), tls=None, username="forgetful", password="forgets")
    running = Running(quick(remote_table.database), TcpSink(config))
    table = await running.inserter.wait_schema()
    for _ in range(2):
        await running.commit("ours")
    assert await running.total() == 10
    for _ in range(2):
        only = {"insert_deduplicate": 1, "async_insert": 0}
        await running.sink.insert(table.database, table.table, make_block(table, 10), "control", only)
    assert await running.total() == 30
    await running.end()


async def test_servers_that_share_no_memory_of_tokens_are_named(
    config: TcpConfig, remote_table: TableSchema
) -> None:
    several = replace(config, endpoints=(*config.endpoints, "127.0.0.1:1"))
    running = Running(quick(remote_table.database), TcpSink(several))
    await running.inserter.wait_schema()
    assert "is not replicated" in running.detail()
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 0
    await running.end()


async def test_blocks_of_other_writers_shorten_the_window(running: Running) -> None:
    table = await running.inserter.wait_schema()
    await running.sink.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 5")
    await running.until("network_flows_0 on")
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1
    for number in range(6):
        settings = {"async_insert": 0}
        await running.sink.insert(table.database, table.table, make_block(table, 1), f"x{number}", settings)
    await running.until("window of 5 blocks is too short")


async def test_one_batch_that_is_refused_does_not_stop_the_others(
    front: RunningFront, running: Running
) -> None:
    await running.inserter.wait_schema()
    await front.fault("query", "exception", code=117, kind="insert")
    held = asyncio.create_task(running.commit("refused"))
    await running.until("117")
    for number in range(5):
        assert await running.commit(f"fine-{number}") is CommitOutcome.COMMITTED
    assert await held is CommitOutcome.COMMITTED
    assert await running.total() == 60


async def test_wrong_credentials_at_start_are_a_reason_not_an_exit(server: ClickHouseServer) -> None:
    config = TcpConfig((server.endpoint,), tls=None, username="forgetful", password="wrong")
    running = Running(quick("default"), TcpSink(config))
    await running.until("clickhouse_credentials_dir")
    assert "516 (AUTHENTICATION_FAILED)" in running.detail()
    assert not running.readiness.ready
    await running.end()


async def test_a_table_missing_at_start_is_waited_for(config: TcpConfig) -> None:
    running = Running(quick("made_later"), TcpSink(config))
    await running.until("kubenetmon schema apply")
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 0
    await apply(running.sink, SchemaOptions("made_later"))
    assert await running.commit("first") is CommitOutcome.COMMITTED
    await running.sink.query("DROP DATABASE made_later SYNC")
    await running.end()


async def test_a_short_window_is_shown_with_its_remedy(running: Running) -> None:
    table = await running.inserter.wait_schema()
    await running.sink.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 0")
    await running.until("MODIFY SETTING non_replicated_deduplication_window")
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 0


async def test_stop_ends_what_is_under_way_and_hands_back_the_rest(
    front: RunningFront, config: TcpConfig, remote_table: TableSchema
) -> None:
    running = Running(quick(remote_table.database, workers=2), TcpSink(config))
    await running.inserter.wait_schema()
    await front.fault("before_commit", "delay", seconds=0.3, times=2)
    tasks = [asyncio.create_task(running.commit(f"stop-{number}")) for number in range(6)]
    await asyncio.sleep(0.1)
    await asyncio.wait_for(running.inserter.stop(), 5)
    outcomes = [task.result() for task in tasks]
    assert sorted(outcome.value for outcome in outcomes) == ["committed"] * 2 + ["handed_back"] * 4
    assert await running.total() == 20
    assert await running.commit("late") is CommitOutcome.HANDED_BACK
    await running.end()


async def test_stop_hands_back_what_waits_and_what_is_held(
    front: RunningFront, config: TcpConfig, remote_table: TableSchema
) -> None:
    for code in (252, 60):
        running = Running(
            quick(remote_table.database, longest_delay=60, first_delay=60, held_delay=60), TcpSink(config)
        )
        await running.inserter.wait_schema()
        await front.fault("query", "exception", code=code, times=0, kind="insert")
        task = asyncio.create_task(running.commit("waiting"))
        await running.until(str(code))
        await asyncio.wait_for(running.inserter.stop(), 1)
        assert await task is CommitOutcome.HANDED_BACK
        await front.command(heal=True)
        await running.end()


async def test_stop_releases_who_waits_for_the_table(config: TcpConfig) -> None:
    running = Running(quick("nothing_there"), TcpSink(config))
    waiting = asyncio.create_task(running.inserter.wait_schema())
    await running.until("kubenetmon schema apply")
    await asyncio.wait_for(running.inserter.stop(), 1)
    with pytest.raises(StoppingError):
        await waiting
    await running.end()


async def test_a_cancelled_commit_leaves_nothing_behind(front: RunningFront, running: Running) -> None:
    await running.inserter.wait_schema()
    await front.fault("query", "exception", code=252, times=0, kind="insert")
    task = asyncio.create_task(running.commit("cancelled"))
    await running.until("252")
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await front.command(heal=True)
    await asyncio.wait_for(running.inserter.stop(), 1)
