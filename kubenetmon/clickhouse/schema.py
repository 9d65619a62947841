"""The table: its DDL, how it is made or extended, and what it is now.

Contract: `ddl` is pure. `apply` may be run at any time on any table, also one that is being inserted into: it
creates what is missing, lengthens the deduplication window (that of its views' targets too) and the time that
rows are kept, and never drops, renames, retypes or shortens anything.
`read_table` says what the server will insert into, or raises `SchemaError` with one line that names the
command that mends it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

from kubenetmon.clickhouse.block import encode
from kubenetmon.clickhouse.columns import (
    COLUMNS,
    IPV6_COLUMNS,
    PRIMARY_KEY,
    SORTING_KEY,
    SUMMED,
    ColumnSpec,
)
from kubenetmon.clickhouse.deduplication import read_deduplication, read_partitions
from kubenetmon.clickhouse.on_cluster import TIMEOUT_EXCEEDED, not_finished
from kubenetmon.clickhouse.sinks import ClickHouseError, Sink
from kubenetmon.clickhouse.table import LEAST_WINDOW, TableSchema, literal, quoted, window_settings
from kubenetmon.clickhouse.window import blocks_of_a_week, past_rate
from kubenetmon.errors import ConfigurationError, SchemaError

logger = logging.getLogger(__name__)

LOCAL_SUFFIX = "_local"
_MOST_TARGETS = 20
DEFAULT_TTL_DAYS = 90
_OUR_TTL = re.compile(r" TTL intervalStartTime \+ toIntervalDay\((\d+)\)(?: SETTINGS|$)")
_FSYNC = "fsync_after_insert = 1, fsync_part_directory = 1"


@dataclass(frozen=True, slots=True)
class SchemaOptions:
    """What the table should be.

    With `cluster` the rows lie in a Replicated table named `table` + `_local` on every shard, behind a
    Distributed table named `table`. `deduplication_window` is in blocks, one a batch (one agent that reports
    each minute sends 10,080 a week); a table that is filled faster gets what its own rate makes in a week.
    `ttl_days` 0 keeps rows for ever, None is 90 days for a new table and no change of another. `fsync` makes
    every insert wait for the disk.
    """

    database: str = "default"
    table: str = "network_flows_0"
    cluster: str = ""
    ipv6: bool = False
    ttl_days: int | None = None
    deduplication_window: int = LEAST_WINDOW
    fsync: bool = False

    def __post_init__(self) -> None:
        for key, value in (("database", self.database), ("table", self.table)):
            if not value or any(ord(character) < 32 for character in value):
                raise ConfigurationError(f"clickhouse_{key} {value!r} is not a name")
        if (self.ttl_days or 0) < 0 or self.deduplication_window < 1:
            raise ConfigurationError(
                "the days of the TTL cannot be negative, and a deduplication window holds at least one block"
            )

    @property
    def columns(self) -> tuple[ColumnSpec, ...]:
        """The columns wanted, in order."""
        return COLUMNS + IPV6_COLUMNS if self.ipv6 else COLUMNS

    @property
    def sorting_key(self) -> tuple[str, ...]:
        """The sorting key wanted, in order."""
        return SORTING_KEY + tuple(column.name for column in IPV6_COLUMNS) if self.ipv6 else SORTING_KEY

    @property
    def storage_table(self) -> str:
        """The table that holds the rows."""
        return self.table + LOCAL_SUFFIX if self.cluster else self.table


def ddl(options: SchemaOptions) -> str:
    """The statements that make the table, each ended by a semicolon and a line break."""
    return "".join(f"{statement};\n" for statement in _create_statements(options))


async def apply(sink: Sink, options: SchemaOptions) -> list[str]:
    """Create or extend the table; returns the statements that were run, [] when nothing was to do.

    Raises `SchemaError` where the table is of a kind that cannot be extended or servers of the cluster are
    down, and what the sink raises.
    """
    done: list[str] = []

    async def run(statement: str) -> None:
        try:
            await sink.query(statement)
        except ClickHouseError as error:
            if options.cluster and error.code == TIMEOUT_EXCEEDED:
                raise SchemaError(await not_finished(sink, options.cluster, statement, error)) from error
            raise
        done.append(statement)

    databases = "SELECT 1 FROM system.databases WHERE name = "
    if not await sink.query(databases + literal(options.database)):
        await run(f"CREATE DATABASE IF NOT EXISTS {quoted(options.database)}{_on_cluster(options)}")
    storage = await _describe(sink, options.database, options.storage_table)
    front = await _describe(sink, options.database, options.table)
    if front is not None and front.engine == "Distributed" and not options.cluster:
        raise SchemaError(
            f"{front} is a Distributed table: name its cluster (kubenetmon schema apply --cluster NAME)"
        )
    creates = _create_statements(options)
    if storage is None:
        await run(creates[0])
    else:
        for statement in _extensions(storage, options):
            await run(statement)
    if options.cluster:
        if front is None:
            await run(creates[1])
        elif front.engine != "Distributed":
            raise SchemaError(f"{front} exists and is no Distributed table: choose another clickhouse_table")
        else:
            added = [column for column in options.columns if column.name not in front.columns]
            if added:
                await run(f"{_alter(options, options.table)} {_add_columns(added, codecs=False)}")
    for _ in range(_MOST_TARGETS):
        storage = await _describe(sink, options.database, options.storage_table)
        if storage is None or storage.deduplication == storage.own_window:
            break
        weakest, wanted = storage.deduplication, _window(storage, options)
        if weakest.obstacle or weakest.holds(wanted):
            break
        await run(weakest.remedy(wanted, _on_cluster(options)))
    return done


async def read_table(sink: Sink, database: str, table: str) -> TableSchema:
    """The table as it is now.

    Raises `SchemaError` when it is not there, lacks a column or has one of a type that cannot be written.
    """
    found = await _describe(sink, database, table)
    if found is None:
        raise SchemaError(
            f"the table {database}.{table} does not exist on {sink.address} or may not be seen: "
            "run `kubenetmon schema apply`, or grant INSERT and SELECT on it"
        )
    missing = [column.name for column in COLUMNS if column.name not in found.columns]
    if missing:
        raise SchemaError(
            f"the table {found} lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}: "
            "run `kubenetmon schema apply`"
        )
    known = {column.name: column.sample() for column in COLUMNS + IPV6_COLUMNS}
    encode(known, found, 1)
    return found


async def check(sink: Sink, options: SchemaOptions) -> list[str]:
    """What `apply` with these options would mend, a line each; [] when all is well."""
    try:
        found = await read_table(sink, options.database, options.table)
    except SchemaError as error:
        return [str(error)]
    problems = []
    if options.ipv6 and not found.has_ipv6:
        problems.append(f"the table {found} does not keep IPv6: run `kubenetmon schema apply --ipv6`")
    weakest, wanted = found.deduplication, _window(found, options)
    if not weakest.holds(wanted):
        own = found.own_window == weakest and found.engine.endswith("MergeTree")
        remedy = "run `kubenetmon schema apply`" if own else weakest.remedy(wanted, _on_cluster(options))
        problems.append(
            f"the table {found} remembers the tokens of {weakest.blocks} blocks"
            f"{f' for {weakest.seconds} s' if weakest.seconds else ''}, not of {wanted} for a week, beyond "
            f"which a batch sent again could count twice: {remedy}"
        )
    storage = found
    if options.cluster:
        storage = await _describe(sink, options.database, options.storage_table) or found
    if options.fsync and not storage.fsync and not storage.shards:
        problems.append(
            f"the table {storage} does not wait for the disk: run `kubenetmon schema apply --fsync`"
        )
    if options.ttl_days is not None and storage.ttl_days != options.ttl_days and not storage.shards:
        remedy = f"{_alter(options, options.storage_table)} {_ttl_change(options.ttl_days)}"
        problems.append(
            f"the table {storage} keeps rows {_kept(storage.ttl_days)}, not {_kept(options.ttl_days)}: "
            + ("run `kubenetmon schema apply`" if _longer(storage, options) else f"if rows may go, {remedy}")
        )
    return problems


def _window(found: TableSchema, options: SchemaOptions) -> int:
    """The blocks that a week makes, by the options and by what the table has seen."""
    return max(options.deduplication_window, blocks_of_a_week(past_rate(found)) if found.partitions else 0)


def _longer(found: TableSchema, options: SchemaOptions) -> bool:
    """True when the rows of a table with a rule of ours would be kept longer."""
    if options.ttl_days is None or not found.ttl_days:
        return False
    return options.ttl_days == 0 or options.ttl_days > found.ttl_days


def _kept(days: int | None) -> str:
    if days is None:
        return "by a rule of its own"
    return f"for {days} days" if days else "for ever"


def _ttl(days: int) -> str:
    return f"TTL intervalStartTime + toIntervalDay({days})"


def _ttl_change(days: int) -> str:
    return f"MODIFY {_ttl(days)}" if days else "REMOVE TTL"


def _create_statements(options: SchemaOptions) -> list[str]:
    columns = ",\n".join(f"    {_definition(column)}" for column in options.columns)
    name = f"{quoted(options.database)}.{quoted(options.storage_table)}{_on_cluster(options)}"
    summed = f"({', '.join(SUMMED)})"
    if options.cluster:
        engine = (
            "ReplicatedSummingMergeTree('/clickhouse/tables/{shard}/{database}/{table}', '{replica}', "
            f"{summed})"
        )
    else:
        engine = f"SummingMergeTree({summed})"
    statement = (
        f"CREATE TABLE IF NOT EXISTS {name}\n(\n{columns}\n)\nENGINE = {engine}\nPARTITION BY date\n"
        f"PRIMARY KEY ({', '.join(PRIMARY_KEY)})\nORDER BY ({', '.join(options.sorting_key)})\n"
    )
    ttl_days = DEFAULT_TTL_DAYS if options.ttl_days is None else options.ttl_days
    if ttl_days:
        statement += f"{_ttl(ttl_days)}\n"
    window = window_settings(engine.partition("(")[0], options.deduplication_window)
    statement += f"SETTINGS index_granularity = 8192, ttl_only_drop_parts = 1, {window}"
    if options.fsync:
        statement += f", {_FSYNC}"
    if not options.cluster:
        return [statement]
    return [statement, _create_distributed(options)]


def _create_distributed(options: SchemaOptions) -> str:
    columns = ",\n".join(f"    {quoted(column.name)} {column.type}" for column in options.columns)
    arguments = ", ".join(literal(one) for one in (options.cluster, options.database, options.storage_table))
    name = f"{quoted(options.database)}.{quoted(options.table)}{_on_cluster(options)}"
    return (
        f"CREATE TABLE IF NOT EXISTS {name}\n"
        f"(\n{columns}\n)\nENGINE = Distributed({arguments}, cityHash64(localNode))"
    )


def _extensions(found: TableSchema, options: SchemaOptions) -> list[str]:
    alter = _alter(options, options.storage_table)
    statements = []
    missing = [column for column in options.columns if column.name not in found.columns]
    if missing:
        new_keys = [column.name for column in missing if column.name in options.sorting_key]
        change = _add_columns(missing, codecs=True)
        if new_keys and found.sorting_key:
            key = ", ".join((found.sorting_key, *map(quoted, new_keys)))
            change += f", MODIFY ORDER BY ({key})"
        statements.append(f"{alter} {change}")
    if not found.engine.endswith("MergeTree"):
        return statements
    wanted = _window(found, options)
    settings = [] if found.own_window.holds(wanted) else [found.own_window.settings(wanted)]
    if options.fsync and not found.fsync:
        settings.append(_FSYNC)
    if settings:
        statements.append(f"{alter} MODIFY SETTING {', '.join(settings)}")
    if options.ttl_days is not None and _longer(found, options):
        statements.append(f"{alter} {_ttl_change(options.ttl_days)}")
    return statements


def _definition(column: ColumnSpec) -> str:
    return f"{quoted(column.name)} {column.type} {column.codec}"


def _add_columns(columns: Sequence[ColumnSpec], *, codecs: bool) -> str:
    definitions = (_definition(one) if codecs else f"{quoted(one.name)} {one.type}" for one in columns)
    return ", ".join(f"ADD COLUMN IF NOT EXISTS {definition}" for definition in definitions)


def _alter(options: SchemaOptions, table: str) -> str:
    return f"ALTER TABLE {quoted(options.database)}.{quoted(table)}{_on_cluster(options)}"


def _on_cluster(options: SchemaOptions) -> str:
    return f" ON CLUSTER {quoted(options.cluster)}" if options.cluster else ""


async def _describe(sink: Sink, database: str, table: str) -> TableSchema | None:
    where = f"database = {literal(database)} AND {{}} = {literal(table)}"
    tables = await sink.query(
        f"SELECT engine, engine_full, sorting_key FROM system.tables WHERE {where.format('name')}"  # noqa: S608 - quoted
    )
    if not tables:
        return None
    engine, engine_full, sorting_key = tables[0]
    rows = await sink.query(
        "SELECT name, type, is_in_sorting_key FROM system.columns "  # noqa: S608 - quoted
        f"WHERE {where.format('table')} AND default_kind NOT IN ('MATERIALIZED', 'ALIAS', 'EPHEMERAL') "
        "ORDER BY position"
    )
    columns = {name: type_name for name, type_name, _ in rows}
    in_key = {name for name, _, flag in rows if flag}
    if engine.endswith("SummingMergeTree"):
        for column in IPV6_COLUMNS:
            if column.name in columns and column.name not in in_key:
                del columns[column.name]
                logger.warning(
                    "%s.%s has %s outside its sorting key, where summing would merge addresses; not used",
                    database,
                    table,
                    column.name,
                )
    windows = await read_deduplication(sink, database, table, engine, engine_full)
    partitions = await read_partitions(sink, database, table) if engine.endswith("MergeTree") else ()
    ttl = _OUR_TTL.search(engine_full)
    return TableSchema(
        database,
        table,
        columns,
        engine,
        sorting_key,
        *windows,
        partitions=partitions,
        ttl_days=int(ttl[1]) if ttl else None if " TTL " in engine_full else 0,
        fsync="fsync_after_insert = 1" in engine_full and "fsync_part_directory = 1" in engine_full,
    )
