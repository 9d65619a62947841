"""Rollups stand for the rows, whatever is sent again, comes late or was there before; views answer alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.columns import IPV6_COLUMNS
from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.rollups import DAY, Coverage, RollupNames, coverage_of
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from kubenetmon.report.views import apply_views, ddl, view_name
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import make_world
from tests.bench import rollups as bench
from tests.clickhouse.conftest import INSERT_SETTINGS, make_block, original_ddl

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

NOW = time.time()
TODAY = int(NOW) // DAY * DAY
SETTINGS = {**INSERT_SETTINGS, "deduplicate_blocks_in_dependent_materialized_views": 1}
NAMES = RollupNames("network_flows_0")
_numbers = iter(range(1000))


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("rollups"))
    yield opened
    asyncio.run(opened.close())


@pytest_asyncio.fixture(loop_scope="module")
async def database(sink: EmbeddedSink) -> AsyncIterator[str]:
    name = f"rollups_{next(_numbers)}"
    await sink.query(f"CREATE DATABASE {name}")
    yield name
    await sink.query(f"DROP DATABASE {name} SYNC")


async def sums(sink: EmbeddedSink, database: str) -> list[Any]:
    """Bytes by day of the rows, and of each rollup."""
    found = [
        await sink.query(
            "SELECT toString(toDate(intervalStartTime, 'UTC')) AS day, sum(bytes), sum(packets) "
            f"FROM {database}.network_flows_0 GROUP BY day ORDER BY day"
        )
    ]
    found += [
        await sink.query(
            f"SELECT toString(date) AS day, sum(bytes), sum(packets) FROM {database}.{name} "
            "GROUP BY day ORDER BY day"
        )
        for name in (NAMES.hourly, NAMES.daily)
    ]
    return found


async def test_a_batch_sent_again_counts_once_in_every_rollup(sink: EmbeddedSink, database: str) -> None:
    await apply(sink, SchemaOptions(database))
    await apply_rollups(sink, SchemaOptions(database), NOW)
    table = await read_table(sink, database, "network_flows_0")
    assert table.deduplication.blocks == 100_000
    for token in ("one", "two", "one", "one", "two"):
        block = make_block(table, 1000, day=TODAY // DAY, bytes_each=7)
        await sink.insert(database, "network_flows_0", block, token, SETTINGS)
    rows, hourly, daily = await sums(sink, database)
    assert rows == hourly == daily
    assert rows[0][1] == 2 * 1000 * 7
    minutes = await sink.query(f"SELECT sum(bytes) FROM {database}.{NAMES.minutes}")
    assert minutes == [(2 * 1000 * 7,)]


async def test_a_batch_whose_views_failed_is_whole_when_sent_again(sink: EmbeddedSink, database: str) -> None:
    await apply(sink, SchemaOptions(database))
    await apply_rollups(sink, SchemaOptions(database), NOW)
    table = await read_table(sink, database, "network_flows_0")
    block = make_block(table, 100, day=TODAY // DAY, bytes_each=3)
    # What a kill between the table's part and the views' leaves: the token is known to the table alone.
    for name in NAMES.all:
        await sink.query(f"DETACH TABLE {database}.{name}_view")
    await sink.insert(database, "network_flows_0", block, "token", SETTINGS)
    for name in NAMES.all:
        await sink.query(f"ATTACH TABLE {database}.{name}_view")
    await sink.insert(database, "network_flows_0", block, "token", SETTINGS)
    rows, hourly, daily = await sums(sink, database)
    assert rows == hourly == daily
    assert rows[0][1] == 300


async def test_days_from_before_are_filled_and_what_comes_late_is_found(
    sink: EmbeddedSink, database: str
) -> None:
    await sink.query(original_ddl(database))
    await sink.query(make_world(ours=False, begin=TODAY - 4 * DAY, minutes=4 * 1440 + 1).insert(
        f"{database}.network_flows_0"))  # fmt: skip
    await apply(sink, SchemaOptions(database))
    await apply_rollups(sink, SchemaOptions(database), TODAY + 1800)
    coverage = await coverage_of(sink, database, "network_flows_0")
    assert coverage == Coverage(TODAY, TODAY + DAY)
    rows, hourly, daily = await sums(sink, database)
    today = time.strftime("%Y-%m-%d", time.gmtime(TODAY))
    assert [row for row in rows if row[0] != today] == hourly == daily
    assert len(rows) > 3

    late = make_world(ours=False, begin=TODAY - 2 * DAY, minutes=600, seed=9, count=50)
    await sink.query(late.insert(f"{database}.network_flows_0"))
    tomorrow = make_world(ours=False, begin=TODAY + DAY, minutes=600, seed=7, count=50)
    await sink.query(tomorrow.insert(f"{database}.network_flows_0"))
    await apply_rollups(sink, SchemaOptions(database), TODAY + DAY + 60)
    coverage = await coverage_of(sink, database, "network_flows_0")
    assert coverage is not None
    assert coverage.complete
    rows, hourly, daily = await sums(sink, database)
    assert rows == hourly == daily
    assert await apply_rollups(sink, SchemaOptions(database), TODAY + DAY + 61) == []


async def test_a_day_that_no_rollup_has_is_answered_from_rows(sink: EmbeddedSink, database: str) -> None:
    await sink.query(original_ddl(database))
    world = make_world(ours=False, begin=TODAY - 2 * DAY, minutes=2 * 1440 + 600)
    await sink.query(world.insert(f"{database}.network_flows_0"))
    await apply_rollups(sink, SchemaOptions(database), TODAY + 1800)
    source = await read_source(sink, database, "network_flows_0")
    assert source.coverage is not None
    assert not source.coverage.complete
    scope = Scope(since=TODAY - 2 * DAY, until=TODAY + 2 * DAY, limit=0)
    answer = await ask(sink, QUESTIONS["classes"], scope, source)
    assert {(row["class"],): row["bytes"] for row in answer.records()} == world.summed(
        lambda one: (one.klass,)
    )
    raw = await read_source(sink, database, "network_flows_0", raw=True)
    for name in ("throughput", "openers", "top"):
        rows = (await ask(sink, QUESTIONS[name], scope, raw)).rows
        assert (await ask(sink, QUESTIONS[name], scope, source)).rows == rows


async def test_ipv6_that_is_added_later_is_told_apart(sink: EmbeddedSink, database: str) -> None:
    await apply(sink, SchemaOptions(database))
    await apply_rollups(sink, SchemaOptions(database), NOW)
    await apply(sink, SchemaOptions(database, ipv6=True))
    done = await apply_rollups(sink, SchemaOptions(database), NOW)
    assert [statement.split(" MODIFY QUERY")[0] for statement in done] == [
        f"ALTER TABLE `{database}`.`{name}_view`" for name in (NAMES.hourly, NAMES.daily)
    ]
    assert await apply_rollups(sink, SchemaOptions(database), NOW) == []
    assert {column.name for column in IPV6_COLUMNS} == {"localIPv6", "remoteIPv6"}
    world = make_world(ours=True, begin=TODAY, minutes=60)
    await sink.query(world.insert(f"{database}.network_flows_0"))
    addresses = f"SELECT DISTINCT toString(localAddress) FROM {database}.{NAMES.hourly}"
    assert {("fd00::1",), ("fd00::2",)} <= set(await sink.query(addresses))


async def test_views_are_the_answers_with_times_to_give(sink: EmbeddedSink, database: str) -> None:
    options = SchemaOptions(database, ipv6=True)
    await apply(sink, options)
    await apply_views(sink, options, NOW)
    world = make_world(ours=True, begin=TODAY - 3 * DAY, minutes=3 * 1440, count=250)
    await sink.query(world.insert(f"{database}.network_flows_0"))
    source = await read_source(sink, database, "network_flows_0")
    for since, until in (
        (TODAY - 3 * DAY + 4 * 3600 + 120, TODAY - 1800),  # two whole days, hours and minutes about them
        (TODAY - 2 * DAY - 5 * 3600, TODAY - 2 * DAY + 5 * 3600),  # hours, none of them a whole day
        (TODAY - 2 * DAY - 600, TODAY - 2 * DAY + 1200),
    ):
        scope = Scope(since=since, until=until, limit=0)
        times = f"since = '{_text(since)}', until = '{_text(until)}'"
        for name, question in QUESTIONS.items():
            answer = await ask(sink, question, scope, source)
            columns = [column.name for column in question.columns(question.by(scope))]
            view = f"{database}.{view_name('network_flows_0', name)}({times})"
            rows = await sink.query(f"SELECT {', '.join(columns)} FROM {view}")
            wanted = (row[: len(columns)] for row in answer.rows)
            assert sorted(rows, key=repr) == sorted(wanted, key=repr), (name, times)
            assert rows or until - since < DAY
        span = range(since, until)
        sums = world.summed(lambda one, span=span: ("",) if one.flow.start in span else None)
        for what in ("cost({}) WHERE own", "paths({})"):
            found = await sink.query(
                f"SELECT sum(bytes) FROM {database}.network_flows_0_{what.format(times)}"
            )
            assert found == [(sums[("",)],)]


async def test_what_is_printed_makes_rollups_and_views(sink: EmbeddedSink, database: str) -> None:
    options = SchemaOptions(database, ipv6=True)
    await apply(sink, options)
    for statement in ddl(options).split(";\n"):
        if statement.strip():
            await sink.query(statement)
    assert await coverage_of(sink, database, "network_flows_0") == Coverage(0, 0)


@pytest.mark.timeout(300)
async def test_over_thirty_days_rollups_answer_the_same(sink: EmbeddedSink) -> None:
    """The bench's table, a thousandth of it; how much quicker is for the bench to show."""
    try:
        await bench.make_rows(sink, 100_000, NOW)
        await bench.make_rollups(sink, NOW)
        measured = await bench.measure(sink, times=1)
    finally:
        for name in ("network_flows_0", *NAMES.all):
            await sink.query(f"DROP TABLE IF EXISTS default.{name} SYNC")
            await sink.query(f"DROP TABLE IF EXISTS default.{name}_view SYNC")
    assert [one.question for one in measured][: len(QUESTIONS)] == [f"ask {name}" for name in QUESTIONS]
    assert all(one.equal for one in measured), measured


def _text(at: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
