"""Makes the rollups of a table of flows, fills them, and keeps them equal to its rows.

Contract: `apply_rollups` may be run at any time, also while rows are inserted, and again: it makes what is
missing, fills days that rows know and rollups do not, and never drops a row. The views take rows whose
interval begins on a day that had not begun when they were made, so that no row is taken by both view and
filling; a day is filled beside the table and put into its place at once. Rows that arrive late for a day
before that are found, and the day filled again, by the next run.

On a cluster the views' own days are all that rollups have: a filling would have to run on every shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from kubenetmon.clickhouse.columns import COLUMNS
from kubenetmon.clickhouse.rollups import (
    COMMON_COLUMNS,
    CONNECTIONS_TYPE,
    DAY,
    HOUR,
    MINUTES_TYPE,
    SAME_NODE,
    Coverage,
    RollupNames,
    coverage_of,
    days_of_hours,
    minutes_by_hour,
    qualified,
    rows_by,
)
from kubenetmon.clickhouse.schema import LOCAL_SUFFIX, SchemaOptions, read_table
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import literal, quoted, window_settings

HOURLY_DAYS = 400
DAILY_DAYS = 1830
_AHEAD = 3600
"""Seconds that rows may be ahead of our clock."""
_VIEW_SUFFIX = "_view"
_FILLING_SUFFIX = "_filling"
_LOW_CARDINALITY = "LowCardinality(String)"
_MINUTE_KEY = ("cluster", "zone", "node", "namespace", "pod", "app")


def rollup_ddl(options: SchemaOptions, since: int = 0) -> list[str]:
    """The statements that make tables and views; the views take rows from `since` (Unix seconds) on."""
    names = RollupNames(options.table)
    statements = []
    comment = Coverage(0, since).comment()
    for name, columns, key, days, granularity in (
        (names.hourly, _row_columns(), _row_key(), HOURLY_DAYS, 8192),
        (names.daily, _row_columns(), _row_key(), DAILY_DAYS, 8192),
        (names.minutes, _minute_columns(), _minute_key(), HOURLY_DAYS, 1024),
    ):
        statements += _create_table(options, name, columns, key, days, granularity, comment)
    where = f"intervalStartTime >= toDateTime({since})" if since else ""
    for name, select in _selects(options, where).items():
        target = qualified(options.database, _storage(options, name))
        view = qualified(options.database, name + _VIEW_SUFFIX) + _on_cluster(options)
        statements.append(f"CREATE MATERIALIZED VIEW IF NOT EXISTS {view} TO {target} AS {select}")
    return statements


async def apply_rollups(sink: Sink, options: SchemaOptions, now: float) -> list[str]:
    """Make and fill; returns the statements that were run. Raises what the sink raises, and `SchemaError`
    where the table of flows is not there."""
    table = await read_table(sink, options.database, options.storage_table)
    options = _with_ipv6(options, table.has_ipv6)
    done: list[str] = []

    async def run(statement: str) -> None:
        await sink.query(statement)
        done.append(statement)

    coverage = await coverage_of(sink, options.database, options.table)
    if coverage is None or not await _has_views(sink, options):
        rows = qualified(options.database, options.storage_table)
        fresh = not await sink.query(f"SELECT 1 FROM {rows} LIMIT 1")
        today = int(now) - int(now) % DAY
        tomorrow = int(now + _AHEAD) // DAY * DAY + DAY
        coverage = Coverage(0, 0 if fresh else tomorrow)
        for statement in rollup_ddl(options, coverage.since):
            await run(statement)
        if fresh and await _days_to_fill(sink, options, RollupNames(options.table).hourly, tomorrow):
            # Rows came between the look and the views: the views have those that came after.
            for name in RollupNames(options.table).all:
                storage = qualified(options.database, _storage(options, name))
                await run(
                    f"DROP VIEW {qualified(options.database, name + _VIEW_SUFFIX)}{_on_cluster(options)}"
                )
                await run(f"TRUNCATE TABLE {storage}{_on_cluster(options)}")
            coverage = Coverage(0, tomorrow)
            for statement in rollup_ddl(options, coverage.since):
                await run(statement)
            await _set_coverage(run, options, coverage)
    for statement in await _views_without_ipv6(sink, options, coverage.since):
        await run(statement)
    if coverage.since == 0 or options.cluster:
        return done
    today = int(now) - int(now) % DAY
    before = min(today, coverage.since)
    for name, select in _selects(options, "{}").items():
        for day in await _days_to_fill(sink, options, name, before):
            whole = name == RollupNames(options.table).daily and await _hours_are_whole(sink, options, day)
            await _fill(run, options, name, _days_select(options) if whole else select, day)
    if before > coverage.before:
        await _set_coverage(run, options, Coverage(before, coverage.since))
    return done


def _selects(options: SchemaOptions, where: str) -> dict[str, str]:
    """Each rollup's SELECT from the table of flows under a condition."""
    source = qualified(options.database, options.storage_table)
    names = RollupNames(options.table)
    return {
        names.hourly: rows_by(HOUR, source, ipv6=options.ipv6, where=where),
        names.daily: rows_by(DAY, source, ipv6=options.ipv6, where=where),
        names.minutes: minutes_by_hour(source, where=where),
    }


async def _has_views(sink: Sink, options: SchemaOptions) -> bool:
    views = ", ".join(literal(name + _VIEW_SUFFIX) for name in RollupNames(options.table).all)
    rows = await sink.query(
        f"SELECT count() FROM system.tables WHERE database = {literal(options.database)} "
        f"AND name IN ({views})"
    )
    return bool(rows[0][0] == len(RollupNames(options.table).all))


async def _views_without_ipv6(sink: Sink, options: SchemaOptions, since: int) -> list[str]:
    """The statements that make views made before the IPv6 columns read them."""
    if not options.ipv6:
        return []
    where = f"intervalStartTime >= toDateTime({since})" if since else ""
    statements = []
    for name, select in _selects(options, where).items():
        made = await sink.query(
            "SELECT create_table_query FROM system.tables "
            f"WHERE database = {literal(options.database)} AND name = {literal(name + _VIEW_SUFFIX)}"
        )
        if made and "localIPv6" in select and "localIPv6" not in made[0][0]:
            view = qualified(options.database, name + _VIEW_SUFFIX) + _on_cluster(options)
            statements.append(f"ALTER TABLE {view} MODIFY QUERY {select}")
    return statements


async def _days_to_fill(sink: Sink, options: SchemaOptions, name: str, before: int) -> list[int]:
    """The days (Unix seconds) before a time of which the rows know more bytes than a rollup."""
    rows = qualified(options.database, options.storage_table)
    rollup = qualified(options.database, _storage(options, name))
    twice = f"1 + ({SAME_NODE} AND localNode != '')" if name.endswith("_minutes") else "1"
    found = await sink.query(
        f"SELECT toUInt32(day) * {DAY} FROM ("
        "SELECT toDate(intervalStartTime, 'UTC') AS day, "
        f"sum(bytes * ({twice})) AS known, toUInt64(0) AS rolled "
        f"FROM {rows} WHERE intervalStartTime < toDateTime({before}) GROUP BY day "
        "UNION ALL "
        f"SELECT date AS day, toUInt64(0) AS known, sum(bytes) AS rolled FROM {rollup} "
        f"WHERE date < toDate(toDateTime({before}), 'UTC') GROUP BY day"
        ") GROUP BY day HAVING sum(known) > sum(rolled) ORDER BY day"
    )
    return [int(row[0]) for row in found]


async def _hours_are_whole(sink: Sink, options: SchemaOptions, day: int) -> bool:
    """True when a day (Unix seconds) is whole in the rows by hour, which go sooner than those by day."""
    rows = qualified(options.database, options.storage_table)
    hourly = qualified(options.database, _storage(options, RollupNames(options.table).hourly))
    found = await sink.query(
        f"SELECT (SELECT sum(bytes) FROM {rows} WHERE {_within(day)}) = "
        f"(SELECT sum(bytes) FROM {hourly} WHERE {_within(day)})"
    )
    return bool(found[0][0])


def _days_select(options: SchemaOptions) -> str:
    hourly = qualified(options.database, _storage(options, RollupNames(options.table).hourly))
    return days_of_hours(hourly, where="{}")


def _within(day: int) -> str:
    return (
        f"date >= toDate(toDateTime({day}), 'UTC') - 1 AND date <= toDate(toDateTime({day}), 'UTC') + 1 "
        f"AND intervalStartTime >= toDateTime({day}) AND intervalStartTime < toDateTime({day + DAY})"
    )


async def _fill(run: object, options: SchemaOptions, name: str, select: str, day: int) -> None:
    """Put one day of one rollup in its place, made anew from the rows."""
    assert callable(run)
    rollup = qualified(options.database, name)
    filling = qualified(options.database, name + _FILLING_SUFFIX)
    partition = literal(datetime.fromtimestamp(day, UTC).strftime("%Y-%m-%d"))
    await run(f"DROP TABLE IF EXISTS {filling}")
    await run(f"CREATE TABLE {filling} AS {rollup}")
    await run(f"INSERT INTO {filling} {select.replace('{}', _within(day))}")
    await run(f"ALTER TABLE {rollup} REPLACE PARTITION {partition} FROM {filling}")
    await run(f"DROP TABLE {filling}")


async def _set_coverage(run: object, options: SchemaOptions, coverage: Coverage) -> None:
    assert callable(run)
    hourly = qualified(options.database, RollupNames(options.table).hourly)
    await run(f"ALTER TABLE {hourly} MODIFY COMMENT {literal(coverage.comment())}")


def _with_ipv6(options: SchemaOptions, ipv6: bool) -> SchemaOptions:
    import dataclasses

    return dataclasses.replace(options, ipv6=ipv6)


def _row_columns() -> list[str]:
    types = {column.name: column.type for column in COLUMNS}
    text = {"String": _LOW_CARDINALITY}
    return [
        *(f"{name} {text.get(types[name], types[name])}" for name in COMMON_COLUMNS),
        "localAddress IPv6",
        "remoteAddress IPv6",
        "portOpener Int8",
        "bytes SimpleAggregateFunction(sum, UInt64)",
        "packets SimpleAggregateFunction(sum, UInt64)",
        f"connections {CONNECTIONS_TYPE}",
    ]


def _row_key() -> list[str]:
    first = [
        "intervalStartTime",
        "direction",
        "connectionClass",
        "localApp",
        "remoteApp",
        "localPod",
        "remotePod",
    ]
    rest = [name for name in COMMON_COLUMNS if name not in first and name != "date"]
    return ["date", *first, *rest, "localAddress", "remoteAddress", "portOpener"]


def _minute_columns() -> list[str]:
    return [
        "date Date",
        "intervalStartTime DateTime",
        *(f"{name} {_LOW_CARDINALITY}" for name in _MINUTE_KEY),
        "sending Bool",
        "withinNode Bool",
        f"minutes {MINUTES_TYPE}",
        "bytes SimpleAggregateFunction(sum, UInt64)",
    ]


def _minute_key() -> list[str]:
    return [
        "date",
        # Of nodes and zones only what leaves them is asked for: that lies together.
        "withinNode",
        "node",
        "pod",
        "sending",
        "intervalStartTime",
        "cluster",
        "zone",
        "namespace",
        "app",
    ]


def _create_table(
    options: SchemaOptions,
    name: str,
    columns: Sequence[str],
    key: Sequence[str],
    days: int,
    granularity: int,
    comment: str,
) -> list[str]:
    listed = ",\n".join(f"    {column}" for column in columns)
    engine = "AggregatingMergeTree"
    arguments = ""
    if options.cluster:
        engine = "ReplicatedAggregatingMergeTree"
        arguments = "('/clickhouse/tables/{shard}/{database}/{table}', '{replica}')"
    storage = qualified(options.database, _storage(options, name))
    statements = [
        f"CREATE TABLE IF NOT EXISTS {storage}{_on_cluster(options)}\n(\n{listed}\n)\n"
        f"ENGINE = {engine}{arguments}\nPARTITION BY date\nORDER BY ({', '.join(key)})\n"
        f"TTL date + toIntervalDay({days})\n"
        f"SETTINGS index_granularity = {granularity}, ttl_only_drop_parts = 1, "
        f"{window_settings(engine, options.deduplication_window)}\nCOMMENT {literal(comment)}"
    ]
    if options.cluster:
        front = qualified(options.database, name) + _on_cluster(options)
        where = ", ".join(
            literal(one) for one in (options.cluster, options.database, _storage(options, name))
        )
        statements.append(
            f"CREATE TABLE IF NOT EXISTS {front}\n(\n{listed}\n)\nENGINE = Distributed({where})\n"
            f"COMMENT {literal(comment)}"
        )
    return statements


def _storage(options: SchemaOptions, name: str) -> str:
    return name + LOCAL_SUFFIX if options.cluster else name


def _on_cluster(options: SchemaOptions) -> str:
    return f" ON CLUSTER {quoted(options.cluster)}" if options.cluster else ""
