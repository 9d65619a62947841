"""The table: printed, applied, checked and read, on the embedded engine and on a server."""

from __future__ import annotations

import random

import pytest

from kubenetmon.clickhouse.columns import COLUMNS, IPV6_COLUMNS
from kubenetmon.clickhouse.schema import SchemaOptions, _extensions, apply, check, ddl, read_table
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import Deduplication, Partition, TableSchema
from kubenetmon.errors import ConfigurationError, SchemaError
from tests.clickhouse.conftest import original_ddl

pytestmark = pytest.mark.chdb

DESCRIPTION = (
    "SELECT name, type, compression_codec, is_in_sorting_key, is_in_primary_key, is_in_partition_key "
    "FROM system.columns WHERE database = '{0}' AND table = '{1}' ORDER BY position"
)
TABLE = (
    "SELECT replaceRegexpOne(engine_full, 'SETTINGS.*', ''), sorting_key, primary_key, partition_key "
    "FROM system.tables WHERE database = '{0}' AND name = '{1}'"
)


@pytest.fixture
def engine(either: Sink) -> Sink:
    """Each test with the engine in this process and with a server over TCP."""
    return either


async def test_our_table_is_the_originals_and_a_window(engine: Sink, database: str) -> None:
    await engine.query(original_ddl(database, "original"))
    await apply(engine, SchemaOptions(database, "ours"))
    for question in (DESCRIPTION, TABLE):
        original = await engine.query(question.format(database, "original"))
        assert await engine.query(question.format(database, "ours")) == original
    assert len(COLUMNS) == 35
    assert (await read_table(engine, database, "ours")).deduplication.blocks == 100_000


async def test_what_is_printed_makes_the_table(engine: Sink, database: str) -> None:
    options = SchemaOptions(database, "printed", ipv6=True, ttl_days=7, deduplication_window=123)
    await engine.query(ddl(options).removesuffix(";\n"))
    assert await check(engine, options) == []
    assert await apply(engine, options) == []
    assert (await read_table(engine, database, "printed")).has_ipv6


def test_ddl_without_ttl_and_on_a_cluster() -> None:
    assert "TTL" not in ddl(SchemaOptions(ttl_days=0))
    text = ddl(SchemaOptions("d", "t", cluster="c"))
    assert "CREATE TABLE IF NOT EXISTS `d`.`t_local` ON CLUSTER `c`" in text
    assert "ENGINE = ReplicatedSummingMergeTree(" in text
    assert (
        "replicated_deduplication_window = 100000, replicated_deduplication_window_seconds = 604800" in text
    )
    assert "ENGINE = Distributed('c', 'd', 't_local', cityHash64(localNode))" in text


async def test_the_original_table_is_extended_once(engine: Sink, database: str) -> None:
    options = SchemaOptions(database, ipv6=True)
    await engine.query(original_ddl(database))
    problems = await check(engine, options)
    assert any("IPv6" in problem for problem in problems)
    assert any("0 blocks" in problem and "schema apply" in problem for problem in problems)
    done = await apply(engine, options)
    assert len(done) == 2
    assert await apply(engine, options) == []
    assert await check(engine, options) == []
    columns = await engine.query(DESCRIPTION.format(database, "network_flows_0"))
    assert [row[0] for row in columns if row[0].endswith("IPv6") and row[3]] == ["localIPv6", "remoteIPv6"]


async def test_apply_keeps_rows_columns_and_a_longer_window(engine: Sink, database: str) -> None:
    await engine.query(original_ddl(database))
    table = f"{database}.network_flows_0"
    await engine.query(f"ALTER TABLE {table} ADD COLUMN own String DEFAULT 'mine'")
    await engine.query(f"ALTER TABLE {table} MODIFY SETTING non_replicated_deduplication_window = 500000")
    await engine.query(f"INSERT INTO {table} (date, intervalStartTime, bytes) VALUES (today(), now(), 7)")
    assert await apply(engine, SchemaOptions(database)) == []
    assert await engine.query(f"SELECT own, sum(bytes) FROM {table} GROUP BY own") == [("mine", 7)]
    assert (await read_table(engine, database, "network_flows_0")).deduplication.blocks == 500_000


async def test_whatever_is_applied_in_whatever_order_nothing_is_lost(engine: Sink, database: str) -> None:
    """A walk over the options: rows, columns, window and days only ever grow, and the second time is idle."""
    chance = random.Random(4)
    table = f"{database}.network_flows_0"
    await engine.query(original_ddl(database))
    columns: set[str] = set()
    window, days, total = 0, 90, 0
    for step in range(12):
        await engine.query(
            f"INSERT INTO {table} (date, intervalStartTime, localPort, bytes) "
            f"VALUES (today(), now(), {step}, 7)"
        )
        total += 7
        options = SchemaOptions(
            database,
            ipv6=chance.random() < 0.3,
            ttl_days=chance.choice([None, 0, 1, 90, 365]),
            deduplication_window=chance.choice([1, 100_000, 250_000]),
            fsync=chance.random() < 0.3,
        )
        await apply(engine, options)
        assert await apply(engine, options) == []
        found = await read_table(engine, database, "network_flows_0")
        assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(total,)]
        assert columns <= set(found.columns)
        assert found.deduplication.blocks >= max(window, options.deduplication_window)
        assert days == 0 or found.ttl_days == 0 or (found.ttl_days or 0) >= days
        assert (days != 0) or found.ttl_days == 0
        columns, window, days = set(found.columns), found.deduplication.blocks, found.ttl_days or 0
    assert len(columns) == 37


async def test_a_missing_column_is_named_and_added(engine: Sink, database: str) -> None:
    await engine.query(
        f"CREATE TABLE {database}.short (date Date, bytes UInt64) ENGINE = SummingMergeTree ORDER BY date"
    )
    with pytest.raises(SchemaError, match=r"lacks the columns intervalStartTime, .*schema apply"):
        await read_table(engine, database, "short")
    await apply(engine, SchemaOptions(database, "short"))
    await read_table(engine, database, "short")
    in_key = await engine.query(
        "SELECT count() FROM system.columns "
        f"WHERE database = '{database}' AND table = 'short' AND is_in_sorting_key"
    )
    assert in_key == [(33,)]


async def test_an_unknown_table_says_what_to_run(engine: Sink, database: str) -> None:
    with pytest.raises(SchemaError, match=r"does not exist.*kubenetmon schema apply"):
        await read_table(engine, database, "nothing")


async def test_a_column_of_an_unusable_type_is_named(engine: Sink, database: str) -> None:
    statement = original_ddl(database).replace(
        "bytes                  UInt64", "bytes                  UInt16"
    )
    await engine.query(statement)
    with pytest.raises(SchemaError, match=r"column bytes \(UInt16\).*too narrow"):
        await read_table(engine, database, "network_flows_0")


async def test_addresses_outside_the_sorting_key_are_not_used(engine: Sink, database: str) -> None:
    await engine.query(original_ddl(database))
    added = ", ".join(f"ADD COLUMN {column.name} IPv6" for column in IPV6_COLUMNS)
    await engine.query(f"ALTER TABLE {database}.network_flows_0 {added}")
    assert not (await read_table(engine, database, "network_flows_0")).has_ipv6


async def test_computed_columns_are_not_written(engine: Sink, database: str) -> None:
    await engine.query(original_ddl(database))
    table = f"{database}.network_flows_0"
    await engine.query(f"ALTER TABLE {table} ADD COLUMN gigabytes Float64 MATERIALIZED bytes / 1e9, "
                       "ADD COLUMN cluster String ALIAS localCluster")  # fmt: skip
    assert (
        not {"gigabytes", "cluster"} & (await read_table(engine, database, "network_flows_0")).columns.keys()
    )


async def test_a_view_on_the_table_counts_too(engine: Sink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    await engine.query(
        f"CREATE TABLE {database}.daily (day Date, b UInt64) ENGINE = SummingMergeTree ORDER BY day"
    )
    await engine.query(
        f"CREATE MATERIALIZED VIEW {database}.to_daily TO {database}.daily AS "
        f"SELECT date AS day, sum(bytes) AS b FROM {database}.network_flows_0 GROUP BY day"
    )
    table = await read_table(engine, database, "network_flows_0")
    assert table.own_window.blocks == 100_000
    assert table.deduplication.blocks == 0
    assert table.deduplication.remedy().startswith(f"ALTER TABLE `{database}`.`daily` MODIFY SETTING")
    assert any("`daily`" in finding for finding in await check(engine, SchemaOptions(database)))
    assert await apply(engine, SchemaOptions(database)) == [table.deduplication.remedy()]
    assert (await read_table(engine, database, "network_flows_0")).deduplication.blocks == 100_000
    assert await check(engine, SchemaOptions(database)) == []


async def test_views_on_what_views_fill_count_too(engine: Sink, database: str) -> None:
    """Behind a Null table, which keeps nothing, there are tables that do."""
    await apply(engine, SchemaOptions(database))
    for table, kind in (("passing", "Null"), ("last", "MergeTree ORDER BY b")):
        await engine.query(f"CREATE TABLE {database}.{table} (b UInt64) ENGINE = {kind}")
    for source, target in (("network_flows_0", "passing"), ("passing", "last")):
        column = "bytes AS b" if target == "passing" else "b"
        await engine.query(
            f"CREATE MATERIALIZED VIEW {database}.to_{target} TO {database}.{target} AS "
            f"SELECT {column} FROM {database}.{source}"
        )
    table = await read_table(engine, database, "network_flows_0")
    assert "`last`" in table.deduplication.remedy()
    await engine.query(table.deduplication.remedy())
    assert (await read_table(engine, database, "network_flows_0")).deduplication.blocks == 100_000


@pytest.mark.parametrize("own", [True, False], ids=["a target each", "one target"])
async def test_more_views_than_are_looked_at_are_said(engine: Sink, database: str, own: bool) -> None:
    await apply(engine, SchemaOptions(database))
    storage = "ENGINE = MergeTree ORDER BY b SETTINGS non_replicated_deduplication_window = 100000"
    await engine.query(f"CREATE TABLE {database}.target (b UInt64) {storage}")
    for number in range(51):
        where = storage if own else f"TO {database}.target"
        await engine.query(
            f"CREATE MATERIALIZED VIEW {database}.view_{number} {where} "
            f"AS SELECT bytes AS b FROM {database}.network_flows_0"
        )
    table = await read_table(engine, database, "network_flows_0")
    assert table.own_window.blocks == 100_000
    assert table.deduplication.blocks == 0
    assert "more than 50 materialized views" in table.deduplication.remedy()
    findings = await check(engine, SchemaOptions(database))
    assert any("more than 50 materialized views" in finding for finding in findings)
    await engine.query(f"DROP VIEW {database}.view_50 SYNC")
    table = await read_table(engine, database, "network_flows_0")
    assert table.deduplication.blocks == 100_000


async def test_names_are_quoted(engine: Sink) -> None:
    options = SchemaOptions("da`ta ba'se", "ta\\ble;--")
    try:
        assert len(await apply(engine, options)) == 2
        await read_table(engine, options.database, options.table)
    finally:
        await engine.query("DROP DATABASE `da\\`ta ba'se` SYNC")


@pytest.mark.parametrize(
    "options", [{"table": ""}, {"database": "a\nb"}, {"ttl_days": -1}, {"deduplication_window": 0}]
)
def test_impossible_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError):
        SchemaOptions(**options)  # type: ignore[arg-type]


async def kept_days(engine: Sink, database: str) -> int | None:
    return (await read_table(engine, database, "network_flows_0")).ttl_days


async def test_rows_are_kept_longer_but_never_shorter(engine: Sink, database: str) -> None:
    await engine.query(original_ddl(database))
    await apply(engine, SchemaOptions(database))
    assert await kept_days(engine, database) == 90
    for days, kept in ((30, 90), (365, 365), (90, 365), (0, 0), (90, 0)):
        options = SchemaOptions(database, ttl_days=days)
        await apply(engine, options)
        assert await kept_days(engine, database) == kept
        assert await apply(engine, options) == []
    (finding,) = await check(engine, SchemaOptions(database, ttl_days=7))
    assert "keeps rows for ever, not for 7 days: if rows may go, ALTER TABLE" in finding
    await engine.query(finding.rpartition("if rows may go, ")[2])
    assert await kept_days(engine, database) == 7
    await engine.query(f"ALTER TABLE {database}.network_flows_0 MODIFY TTL date + toIntervalMonth(2)")
    assert await apply(engine, SchemaOptions(database, ttl_days=0)) == []
    assert await kept_days(engine, database) is None


async def test_the_disk_is_waited_for_where_wished(engine: Sink, database: str) -> None:
    options = SchemaOptions(database, fsync=True)
    await engine.query(original_ddl(database))
    await apply(engine, SchemaOptions(database))
    assert any("--fsync" in finding for finding in await check(engine, options))
    assert len(await apply(engine, options)) == 1
    assert await apply(engine, options) == await check(engine, options) == []
    assert (await read_table(engine, database, "network_flows_0")).fsync
    await engine.query(ddl(SchemaOptions(database, "new", fsync=True)).removesuffix(";\n"))
    assert (await read_table(engine, database, "new")).fsync


async def test_the_window_grows_with_what_the_table_has_seen(engine: Sink, database: str) -> None:
    """Blocks number themselves: a partition that has taken many an hour asks for a longer memory."""
    options = SchemaOptions(database)
    await apply(engine, options)
    table = f"{database}.network_flows_0"
    insert = (
        f"INSERT INTO {table} (date, intervalStartTime, bytes) SETTINGS max_block_size = 1, "
        "min_insert_block_size_rows = 1, max_insert_block_size = 1, max_insert_threads = 1, "
        "max_partitions_per_insert_block = 0 SELECT yesterday(), yesterday() + 1, 1 FROM numbers(200)"
    )
    await engine.query(insert)
    (partition,) = (await read_table(engine, database, "network_flows_0")).partitions
    assert partition.ended - partition.begun == 86_400
    assert partition.last_block - partition.first_block + 1 == 200
    # 200 a day are 1,750 a week with a margin: no more than a new table gets.
    assert await apply(engine, options) == []


def test_the_window_is_sized_from_the_rate_and_never_shortened() -> None:
    def found(blocks: int, a_day: int, engine: str = "SummingMergeTree", seconds: int = 0) -> TableSchema:
        window = Deduplication(blocks, seconds, "t", engine)
        columns = {column.name: column.type for column in COLUMNS}
        partitions = (Partition("p", 0, a_day - 1, 0, 86_400),)
        return TableSchema("d", "t", columns, engine, "", window, window, partitions=partitions)

    def settings(table: TableSchema) -> list[str]:
        return [one.partition("MODIFY SETTING ")[2] for one in _extensions(table, SchemaOptions("d", "t"))]

    plain = "non_replicated_deduplication_window = "
    assert settings(found(0, 10)) == [f"{plain}100000"]
    assert settings(found(0, 100_000)) == [f"{plain}880000"]
    assert settings(found(880_000, 100_000)) == settings(found(5_000_000, 100_000)) == []
    keeper = "replicated_deduplication_window = {}, replicated_deduplication_window_seconds = {}"
    replicated = "ReplicatedSummingMergeTree"
    assert settings(found(10_000, 10, replicated, 3600)) == [keeper.format(100_000, 604_800)]
    assert settings(found(500_000, 10, replicated, 3600)) == [keeper.format(500_000, 604_800)]
    assert settings(found(10_000, 10, replicated, 999_999)) == [keeper.format(100_000, 999_999)]
    assert settings(found(100_000, 10, replicated, 604_800)) == []
