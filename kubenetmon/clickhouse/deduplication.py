"""How long a table remembers deduplication tokens.

Contract: reads system tables only. What may not be read counts as remembering nothing, so that exactly-once
is never claimed on a guess; a Distributed table whose shards cannot be counted is refused, since nothing but
their number sends a batch to the same one at every attempt.

Facts: a plain MergeTree table remembers the tokens of its last `non_replicated_deduplication_window` blocks
(default 0: none), without limit in time; a Replicated or Shared one `replicated_deduplication_window` blocks
for `replicated_deduplication_window_seconds`. A block that reaches a materialized view's target is
deduplicated there by the target's own window (`deduplicate_blocks_in_dependent_materialized_views`).
"""

from __future__ import annotations

import re

from kubenetmon.clickhouse.sinks import ClickHouseError, Sink
from kubenetmon.clickhouse.table import Deduplication, Partition, keeps_tokens_in_keeper, literal, quoted
from kubenetmon.errors import SchemaError

_SETTING = re.compile(r"\b(\w+) = (\d+)")
_DISTRIBUTED = re.compile(r"Distributed\('((?:[^'\\]|\\.)*)', '((?:[^'\\]|\\.)*)', '((?:[^'\\]|\\.)*)'")
_MACRO = re.compile(r"\{(\w+)\}")
_VIEW_TARGET = re.compile(r"^CREATE MATERIALIZED VIEW \S+ TO (\S+)")
_MAX_VIEWS = 50
"""Two or three questions for each, whenever the table is read."""
_DAYS = 8
_ACCESS_DENIED = 497


async def read_deduplication(
    sink: Sink, database: str, table: str, engine: str, engine_full: str
) -> tuple[Deduplication, Deduplication, bool, int]:
    """The table's own window, the weakest of it and its views' targets, whether there are any, and the number
    of shards.

    Raises `SchemaError` for a Distributed table whose shards this server does not know, and what the sink
    raises.
    """
    shards = 0
    storage = (database, table)
    if engine == "Distributed":
        shards, storage = await _behind(sink, f"{database}.{table}", engine_full)
        rows = await sink.query(_table_query(*storage))
        engine, engine_full = rows[0][:2] if rows else ("", "")
    own = await _window(sink, *storage, engine, engine_full)
    weakest = own
    targets = await _all_targets(sink, [storage, (database, table)])
    if targets is None:
        obstacle = f"{database}.{table} has more than {_MAX_VIEWS} materialized views: not all were looked at"
        return own, Deduplication(0, 0, obstacle=obstacle), True, shards
    for target in targets:
        rows = await sink.query(_table_query(*target))
        engine, engine_full = rows[0][:2] if rows else ("", "")
        if engine == "Null":  # Keeps nothing, so that nothing can be there twice; views hang on such tables.
            continue
        window = await _window(sink, *target, engine, engine_full)
        if window.weaker_than(weakest):
            weakest = window
    return own, weakest, bool(targets), shards


async def _behind(sink: Sink, name: str, engine_full: str) -> tuple[int, tuple[str, str]]:
    """How many shards a Distributed table has, and which table on them holds the rows."""
    found = _DISTRIBUTED.match(engine_full)
    if found is None:
        raise SchemaError(f"{name}: which tables are behind it cannot be read from {engine_full[:100]!r}")
    cluster, *storage = (re.sub(r"\\(.)", r"\1", one) for one in found.groups())
    try:
        if _MACRO.search(cluster):
            macros = dict(await sink.query("SELECT macro, substitution FROM system.macros"))
            cluster = _MACRO.sub(lambda macro: str(macros.get(macro[1], macro[0])), cluster)
        counted = await sink.query(
            f"SELECT uniqExact(shard_num) FROM system.clusters WHERE cluster = {literal(cluster)}"  # noqa: S608
        )
    except ClickHouseError as error:
        if error.code != _ACCESS_DENIED:
            raise
        counted = [(0,)]
    if not int(counted[0][0]):
        raise SchemaError(
            f"{name} is Distributed over the cluster {cluster!r}, of which this ClickHouse knows no shard: "
            "see remote_servers in its configuration, and GRANT SELECT ON system.clusters and system.macros"
        )
    return int(counted[0][0]), (storage[0], storage[1])


def _table_query(database: str, table: str) -> str:
    return (
        "SELECT engine, engine_full FROM system.tables "  # noqa: S608 - quoted
        f"WHERE database = {literal(database)} AND name = {literal(table)}"
    )


async def _window(sink: Sink, database: str, table: str, engine: str, engine_full: str) -> Deduplication:
    name = f"{quoted(database)}.{quoted(table)}"
    if not engine.endswith("MergeTree"):
        what = f"has the engine {engine}" if engine else "cannot be seen"
        obstacle = f"{database}.{table} {what}, which keeps no tokens that could be read"
        return Deduplication(0, 0, obstacle=obstacle)
    settings = {key: int(value) for key, value in _SETTING.findall(engine_full.rpartition(" SETTINGS ")[2])}
    keeper = keeps_tokens_in_keeper(engine)
    blocks_setting = "replicated_deduplication_window" if keeper else "non_replicated_deduplication_window"
    seconds_setting = "replicated_deduplication_window_seconds"
    defaults_table = "replicated_merge_tree_settings" if keeper else "merge_tree_settings"
    if not {blocks_setting, seconds_setting} <= settings.keys():
        try:
            rows = await sink.query(
                f"SELECT name, toInt64OrZero(value) FROM system.{defaults_table} "  # noqa: S608 - constants
                f"WHERE name IN ('{blocks_setting}', '{seconds_setting}')"
            )
        except ClickHouseError:
            rows = []
        settings = {**{name: int(value) for name, value in rows}, **settings}
    seconds = settings.get(seconds_setting, 0) if keeper else 0
    return Deduplication(settings.get(blocks_setting, 0), seconds, name, engine)


async def read_partitions(sink: Sink, database: str, table: str) -> tuple[Partition, ...]:
    """The partitions with rows of the last days; none where they may not be seen."""
    try:
        rows = await sink.query(
            "SELECT partition_id, min(min_block_number), max(max_block_number), "  # noqa: S608 - quoted
            "toUInt32(min(min_date)) * 86400, "
            "least(toUnixTimestamp(now()), (toUInt32(max(max_date)) + 1) * 86400) "
            f"FROM system.parts WHERE active AND database = {literal(database)} "
            f"AND table = {literal(table)} AND max_date >= today() - {_DAYS} GROUP BY partition_id"
        )
    except ClickHouseError:
        return ()
    return tuple(Partition(*row) for row in rows)


async def _all_targets(sink: Sink, tables: list[tuple[str, str]]) -> list[tuple[str, str]] | None:
    """Where views on these tables write to, and views on those, and so on; None: too many to look at."""
    targets: list[tuple[str, str]] = []
    looked_at: set[tuple[str, str]] = set()
    while tables:
        table = tables.pop(0)
        if table in looked_at:
            continue
        looked_at.add(table)
        found = await _view_targets(sink, *table)
        targets += found
        if len(targets) > _MAX_VIEWS:
            return None
        tables += found
    return list(dict.fromkeys(targets))


async def _view_targets(sink: Sink, database: str, table: str) -> list[tuple[str, str]]:
    """One for each view on the table, up to one more than are looked at."""
    rows = await sink.query(
        "SELECT view_database, view FROM system.tables "  # noqa: S608 - quoted
        "ARRAY JOIN dependencies_database AS view_database, dependencies_table AS view "
        f"WHERE database = {literal(database)} AND name = {literal(table)}"
    )
    targets = []
    for view_database, view in rows[: _MAX_VIEWS + 1]:
        found = await sink.query(
            "SELECT create_table_query, toString(uuid) FROM system.tables "  # noqa: S608 - quoted
            f"WHERE database = {literal(view_database)} AND name = {literal(view)}"
        )
        if not found:
            targets.append((view_database, view))
            continue
        statement, uuid = found[0]
        if to := _VIEW_TARGET.match(statement):
            target_database, _, target = to[1].replace("`", "").rpartition(".")
            targets.append((target_database or view_database, target))
        elif uuid.strip("0-"):
            targets.append((view_database, f".inner_id.{uuid}"))
        else:
            targets.append((view_database, f".inner.{view}"))
    return targets
