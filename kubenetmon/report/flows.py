"""The rows that questions are asked of, so that no byte counts twice: SQL, and what the table is.

Contract: pure but for `read_source`. Every relation here is a SELECT over one span of time.

- `flows`: the rows of the table as they are, or, for whole hours and days, those of its rollups
  (`kubenetmon.clickhouse.rollups`), which have the same columns.
- `transfers`: every byte once, from `source` to `destination`. A connection between pods of two nodes is seen
  on both; of each byte the observation at its **sender** is used (direction `out`). What only its receiver
  saw counts there (direction `in`): what came from outside, replies within one node (seen once, by the side
  that opened), and what came from a node that reports nothing in the span.
- `ends`: every end of a connection with what it sent and received, each as its own node saw it; the end that
  no node reports (the other pod of the same node) is mirrored from the one that does.

An end counts as reported elsewhere when its node is another one that reports in the span, or, where it is
not known whose a private address is, when rows with that address as the local one name this end as theirs.

Who opened a connection is the flag `LOCAL_INITIATED` where a node's rows of a day carry it at all, else
inferred from ports: the side with an ephemeral port (32768 and up, Linux's default range) opened, when the
other side's is below. Port 0 is the client's side of connections that an agent merged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kubenetmon.clickhouse.rollups import (
    COMMON_COLUMNS,
    DAY,
    HOUR,
    HOUR_OF_MINUTE,
    LONGEST_INTERVAL,
    MINUTES_ARRAY,
    PORT_OPENER,
    REMOTE_CLUSTER,
    SAME_NODE,
    Coverage,
    RollupNames,
    connection,
    coverage_of,
    local_address,
    minutes_of_rows,
    qualified,
    remote_address,
)
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import literal
from kubenetmon.errors import SchemaError

SIDE_COLUMNS = {
    "app": "App",
    "pod": "Pod",
    "namespace": "Namespace",
    "node": "Node",
    "zone": "AvailabilityZone",
    "cloud": "Cloud",
    "region": "Region",
    "cluster": "Cluster",
}
"""Word to the column's name behind `local` or `remote`."""


def name_of(key: str, prefix: str = "") -> str:
    """The expression that names an end by one of `SIDE_COLUMNS`; `prefix` begins its columns, without one
    they are the words themselves. A pod is `namespace/pod`: its name is its own within a namespace only. A
    node is `cluster/node` where the span has that name in several clusters; `define` is told of the key."""
    if key == "node":
        node = _column(key, prefix)
        # No IN: what a key of GROUP BY is made of may hold no set (NOT_FOUND_COLUMN_IN_BLOCK).
        return f"if(has((SELECT nodes FROM shared), {node}), {in_cluster(prefix)}, {node})"
    return in_namespace(key, prefix) if key == "pod" else _column(key, prefix)


def in_cluster(prefix: str = "") -> str:
    """A node's name with its cluster before it, where it is known."""
    cluster, node = _column("cluster", prefix), _column("node", prefix)
    return f"if({node} = '', '', concat({cluster}, '/', {node}))"


def in_namespace(key: str, prefix: str = "") -> str:
    """The same with the namespace before it, where there is a name and a namespace."""
    name, namespace = _column(key, prefix), _column("namespace", prefix)
    return f"if({name} = '' OR {namespace} = '', {name}, concat({namespace}, '/', {name}))"


def _with_cluster(key: str) -> str:
    return in_cluster() if key == "node" else name_of(key)


def named_by(key: str) -> tuple[str, ...]:
    """The words of `SIDE_COLUMNS` that `name_of` needs."""
    return {"pod": (key, "namespace"), "node": (key, "cluster")}.get(key, (key,))


def _column(key: str, prefix: str) -> str:
    return f"{prefix}{SIDE_COLUMNS[key]}" if prefix else key


def _remote(name: str) -> str:
    return REMOTE_CLUSTER if name == "Cluster" else f"remote{name}"


_OUT = "direction = 'out'"
_FLAG = "connectionFlags['LOCAL_INITIATED']"
_FLAGGED = f"(date, localNode) GLOBAL IN (SELECT date, localNode FROM flows WHERE {_FLAG})"
"""True where the rows of this node and day say who opened."""
_OPENER = f"if({_FLAGGED}, if({_FLAG}, 1, -1), portOpener)"
"""1 where the local side opened, -1 where the remote did, 0 unclear."""
_REPORTED_ELSEWHERE = (
    f"(remoteNode != '' AND NOT {SAME_NODE}\n"
    f"    AND ({REMOTE_CLUSTER}, remoteNode) GLOBAL IN (SELECT localCluster, localNode FROM flows)\n"
    "    OR remoteAddress != toIPv6('::')\n"
    "    AND ((remoteAddress, localPod, localNode) GLOBAL IN (SELECT localAddress, remotePod, remoteNode\n"
    "      FROM flows WHERE remoteNode != '' AND localAddress GLOBAL IN (\n"
    "        SELECT remoteAddress FROM flows WHERE remoteAddress != toIPv6('::')))\n"
    "    OR (remoteAddress, localAddress) GLOBAL IN (SELECT localAddress, remoteAddress\n"
    "      FROM flows WHERE remoteAddress != toIPv6('::'))))"
)
"""True where the remote end's own node reports this connection too."""
_SHARED_NODES = (
    "  SELECT groupArray(node) AS nodes FROM (\n"
    "    SELECT end.1 AS node\n"
    f"    FROM (SELECT DISTINCT localNode, localCluster, remoteNode, {REMOTE_CLUSTER} AS other FROM flows)\n"
    "    ARRAY JOIN [(localNode, localCluster), (remoteNode, other)] AS end\n"
    "    WHERE node != '' GROUP BY node HAVING uniqExact(end.2) > 1)"
)
_NEEDED = frozenset(
    f"{side}{name}" for side in ("local", "remote") for name in (*SIDE_COLUMNS.values(), "IPv4", "Port")
) | {"date", "intervalStartTime", "direction", "connectionClass", "connectionFlags", "bytes", "packets"}


@dataclass(frozen=True, slots=True)
class Source:
    """The table that is asked. `ipv6`: it has the IPv6 columns. `coverage` says for which days its rollups
    stand for its rows; None where it has no rollups."""

    database: str = "default"
    table: str = "network_flows_0"
    ipv6: bool = False
    coverage: Coverage | None = None

    @property
    def name(self) -> str:
        """Quoted, for SQL."""
        return qualified(self.database, self.table)


async def read_source(sink: Sink, database: str, table: str, *, raw: bool = False) -> Source:
    """What the table is now; `raw`: without its rollups.

    Raises `SchemaError` when it is not there or lacks columns, and what the sink raises.
    """
    rows = await sink.query(
        f"SELECT name FROM system.columns WHERE database = {literal(database)} AND table = {literal(table)}"
    )
    columns = {str(row[0]) for row in rows}
    if not columns:
        raise SchemaError(
            f"the table {database}.{table} does not exist on {sink.address} or may not be seen: name another "
            "with --set clickhouse_table=…, make it with `kubenetmon schema apply`, or grant SELECT on it"
        )
    if missing := sorted(_NEEDED - columns):
        raise SchemaError(f"{database}.{table} is no table of flows: it lacks {', '.join(missing[:5])}")
    ipv6 = {"localIPv6", "remoteIPv6"} <= columns
    coverage = None if raw else await coverage_of(sink, database, table)
    return Source(database, table, ipv6, coverage)


@dataclass(frozen=True, slots=True)
class Span:
    """A span of time as SQL expressions of type DateTime. `begin` and `end` are the same in Unix seconds,
    None where they are parameters."""

    since: str
    until: str
    begin: int | None = field(default=None)
    end: int | None = field(default=None)

    @classmethod
    def of(cls, since: int, until: int) -> Span:
        """The span between two times in Unix seconds."""
        return cls(f"toDateTime({since})", f"toDateTime({until})", since, until)

    @classmethod
    def parameters(cls) -> Span:
        """The span that the parameters `since` and `until` of a view name."""
        return cls("{since:DateTime}", "{until:DateTime}")

    def condition(self) -> str:
        """The rows that begin in the span; `date` finds the partitions, whatever time zone it was made in."""
        return (
            f"date >= toDate({self.since}, 'UTC') - 1 AND date <= toDate({self.until}, 'UTC') + 1 "
            f"AND intervalStartTime >= {self.since} AND intervalStartTime < {self.until}"
        )


class Flows:
    """The relations over one span of one table.

    `connections` and `connections_if` are aggregate expressions over them that count connections: exact from
    raw rows, from rollups with a standard error of 0.8 %.
    """

    def __init__(self, source: Source, span: Span, coarsest: int = DAY) -> None:
        """`coarsest`: no rollup of a grain of more seconds is used."""
        self.source = source
        self._span = span
        self._segments = [
            (_grain(grain, coarsest), part) for grain, part in _segments(source, span, coarsest)
        ]
        self.from_rollups = any(grain for grain, _ in self._segments)

    def define(self, by: str = "") -> str:
        """The rows as `flows`, with the columns of the rollups: how a statement over relations begins. `by`
        is the key that it names ends by; for nodes `shared` has the names that several clusters have."""
        parts = "\n  UNION ALL\n".join(self._part(grain, span) for grain, span in self._segments)
        shared = f",\nshared AS (\n{_SHARED_NODES}\n)" if by == "node" else ""
        return f"WITH flows AS (\n{parts}\n){shared}\n"

    def connections(self) -> str:
        """How many connections."""
        return "uniqCombined64Merge(14)(connections)" if self.from_rollups else "uniqExact(connections)"

    def connections_if(self, condition: str) -> str:
        """How many connections under a condition."""
        if self.from_rollups:
            return f"uniqCombined64MergeIf(14)(connections, {condition})"
        return f"uniqExactIf(connections, {condition})"

    def transfers(self, *ends: str, opener: bool = False) -> str:
        """Every byte once: the columns of `flows`, and `source…` and `destination…` of each of `ends`, words
        of `SIDE_COLUMNS` (`sourceApp`, …); with `opener` that column, 1 where the source opened, -1 the
        destination, 0 unclear."""
        names = [SIDE_COLUMNS[word] for word in dict.fromkeys(ends)]
        columns = [
            *(f"if({_OUT}, local{name}, {_remote(name)}) AS source{name}" for name in names),
            *(f"if({_OUT}, {_remote(name)}, local{name}) AS destination{name}" for name in names),
            *([f"if({_OUT}, 1, -1) * {_OPENER} AS opener"] if opener else []),
        ]
        listed = "".join(f",\n    {column}" for column in columns)
        return f"SELECT *{listed}\n  FROM flows\n  WHERE {_OUT} OR NOT {_REPORTED_ELSEWHERE}"

    def ends(self, where: str = "") -> str:
        """Every end of a connection: `app`, `pod`, … of it, `opened` (1 this end did, -1 the other, 0
        unclear), `sent`, `received`, connections. `where` is a condition on the end's columns."""
        ends = "".join(
            f"    if(mirrored, {_remote(name)}, local{name}) AS {word},\n"
            for word, name in SIDE_COLUMNS.items()
        )
        inner = (
            f"SELECT\n{ends}    if(mirrored, -1, 1) * {_OPENER} AS opened,\n"
            f"    ({_OUT}) != mirrored AS sending, if(sending, bytes, 0) AS sent, "
            "if(sending, 0, bytes) AS received, connections\n  FROM flows\n"
            "  ARRAY JOIN if((remotePod != '' OR remoteNode != '') AND NOT "
            f"{_REPORTED_ELSEWHERE}, [false, true], [false]) AS mirrored"
        )
        return f"SELECT * FROM (\n  {inner}\n)" + (f" WHERE {where}" if where else "")

    def hours_of_minutes(self, key: str, where: str) -> str:
        """Each hour's minutes, `name` being the end's `key`, a node's with its cluster: name, sending (1 the
        end sent), intervalStartTime (the hour), `minutes` (the bytes of its 60 minutes). `where` is a
        condition on the end's columns `app`, `pod`, `namespace`, `node`, `zone`, `cluster`."""
        conditions = [*([where] if where else []), *(["withinNode = 0"] if key in ("node", "zone") else [])]
        rolled = self._rolled_minutes()
        if not rolled:
            return self._hours_of_rows(key, conditions)
        parts = [self._hours_of_rollup(span, key, conditions, whole=whole) for whole, span in rolled]
        return "\nUNION ALL\n".join(parts)

    def _rolled_minutes(self) -> list[tuple[bool, Span]]:
        """The hours that the rollup has all of, and those that the span begins and ends in; [] where only raw
        rows answer: a row of an uncovered day can reach into the next."""
        span, coverage = self._span, self.source.coverage
        if coverage is None:
            return []
        since, until = span.since, span.until
        if span.begin is None or span.end is None:
            if not coverage.complete:
                return []
            first = f"toStartOfHour({since} + {HOUR - 1}, 'UTC')"
            last = f"greatest(toStartOfHour({until}, 'UTC'), {first})"
            before = f"toStartOfHour({since}, 'UTC')"
            return [(True, Span(first, last)), (False, Span(before, f"least({first}, {until})")),
                    (False, Span(last, until))]  # fmt: skip
        if coverage.within(span.begin - DAY, span.end) != [(span.begin - DAY, span.end)]:
            return []
        hour = span.begin - span.begin % HOUR
        begin = span.begin + -span.begin % HOUR
        end = max(begin, span.end - span.end % HOUR)
        parts = ((True, begin, end), (False, hour, min(begin, span.end)), (False, end, span.end))
        return [(whole, Span.of(first, last)) for whole, first, last in parts if first < last]

    def _hours_of_rollup(self, span: Span, key: str, conditions: Sequence[str], *, whole: bool) -> str:
        names = RollupNames(self.source.table)
        condition = " AND ".join((f"({span.condition()})", *conditions))
        name = _with_cluster(key)
        minutes = "sumForEachMerge(minutes)"
        if not whole:
            at = "toUnixTimestamp(intervalStartTime) + 60 * (at - 1)"
            inside = (
                f"{at} >= toUnixTimestamp({self._span.since}) AND {at} < toUnixTimestamp({self._span.until})"
            )
            minutes = (
                f"arrayMap((count, at) -> if({inside}, count, 0), {minutes} AS every, arrayEnumerate(every))"
            )
        # A group's alias must not be what its aggregate reads: the minutes get their name outside.
        hours = (
            f"SELECT {name} AS name, sending, intervalStartTime, {minutes} AS hour "
            f"FROM {qualified(self.source.database, names.minutes)} WHERE {condition} "
            "GROUP BY name, sending, intervalStartTime"
        )
        left = "" if whole else " WHERE arrayExists(one -> one > 0, hour)"
        return f"SELECT name, sending, intervalStartTime, hour AS minutes FROM ({hours}){left}"

    def _hours_of_rows(self, key: str, conditions: Sequence[str]) -> str:
        span = self._span
        rows = (
            f" WHERE date >= toDate({span.since}, 'UTC') - 2 AND date <= toDate({span.until}, 'UTC') + 1 "
            f"AND intervalStartTime >= {span.since} - {LONGEST_INTERVAL} AND intervalStartTime < {span.until}"
        )
        condition = " AND ".join((f"minute >= {span.since}", f"minute < {span.until}", *conditions))
        by_minute = (
            f"SELECT {_with_cluster(key)} AS name, sending, minute, sum(share) AS total "
            f"FROM ({minutes_of_rows(self.source.name, rows)}) WHERE {condition} "
            "GROUP BY name, sending, minute"
        )
        return (
            f"SELECT name, sending, {HOUR_OF_MINUTE} AS intervalStartTime, {MINUTES_ARRAY} AS minutes "
            f"FROM ({by_minute}) GROUP BY name, sending, intervalStartTime"
        )

    def silent_nodes(self) -> str:
        """The nodes that pods of others talk with and that report nothing in the span."""
        return (
            "SELECT DISTINCT remoteNode FROM flows WHERE remoteNode != '' "
            f"AND ({REMOTE_CLUSTER}, remoteNode) GLOBAL NOT IN (SELECT localCluster, localNode FROM flows)"
        )

    def _part(self, grain: int, span: Span) -> str:
        columns = ",\n    ".join((", ".join(COMMON_COLUMNS[:7]), ", ".join(COMMON_COLUMNS[7:])))
        if grain:
            names = RollupNames(self.source.table)
            table = qualified(self.source.database, names.daily if grain == DAY else names.hourly)
            return (
                f"  SELECT {columns},\n"
                "    localAddress, remoteAddress, portOpener, connections, bytes, packets\n"
                f"  FROM {table}\n  WHERE {span.condition()}"
            )
        ipv6 = self.source.ipv6
        connections = connection(ipv6)
        if self.from_rollups:
            connections = f"initializeAggregation('uniqCombined64State(14)', {connections})"
        return (
            f"  SELECT {columns},\n    {local_address(ipv6)} AS localAddress,\n"
            f"    {remote_address(ipv6)} AS remoteAddress,\n    {PORT_OPENER} AS portOpener,\n"
            f"    {connections} AS connections, bytes, packets\n"
            f"  FROM {self.source.name}\n  WHERE {span.condition()}"
        )


def _segments(source: Source, span: Span, coarsest: int) -> list[tuple[int, Span]]:
    """The span cut into parts, each with the rollup's grain in seconds that answers it, 0 for raw rows."""
    if source.coverage is None:
        return [(0, span)]
    if span.begin is None or span.end is None:
        return _parameter_segments(source.coverage, span, coarsest)
    parts: list[tuple[int, int, int]] = []
    at = span.begin
    for begin, end in source.coverage.within(span.begin, span.end):
        parts.append((0, at, begin))
        parts.extend(_rolled(begin, end))
        at = end
    parts.append((0, at, span.end))
    return [(grain, Span.of(begin, end)) for grain, begin, end in parts if begin < end] or [(0, span)]


def _grain(grain: int, coarsest: int) -> int:
    return next((one for one in (DAY, HOUR) if one <= min(grain, coarsest)), 0)


def _rolled(begin: int, end: int) -> list[tuple[int, int, int]]:
    """Raw rows up to the first whole hour, hours up to the first whole day, days, and down again."""
    first_hour, last_hour = begin + -begin % HOUR, end - end % HOUR
    if first_hour >= last_hour:
        return [(0, begin, end)]
    first_day, last_day = begin + -begin % DAY, end - end % DAY
    inner = [(HOUR, first_hour, last_hour)]
    if first_day < last_day:
        inner = [(HOUR, first_hour, first_day), (DAY, first_day, last_day), (HOUR, last_day, last_hour)]
    return [(0, begin, first_hour), *inner, (0, last_hour, end)]


def _parameter_segments(coverage: Coverage, span: Span, coarsest: int) -> list[tuple[int, Span]]:
    """The same parts as of known times, each empty where there is no such hour or day."""
    if not coverage.complete:
        return [(0, span)]
    first = f"least(toStartOfHour({span.since} + 3599, 'UTC'), {span.until})"
    last = f"greatest(toStartOfHour({span.until}, 'UTC'), {first})"
    inner = [(HOUR, Span(first, last))]
    if coarsest >= DAY:
        first_day = f"least(toStartOfDay({first} + {DAY - 1}, 'UTC'), {last})"
        last_day = f"greatest(toStartOfDay({last}, 'UTC'), {first_day})"
        inner = [
            (HOUR, Span(first, first_day)),
            (DAY, Span(first_day, last_day)),
            (HOUR, Span(last_day, last)),
        ]
    return [(0, Span(span.since, first)), *inner, (0, Span(last, span.until))]
