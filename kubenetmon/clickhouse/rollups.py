"""Rollups: the rows by hour and by day, and each pod's minutes, for questions over long spans.

Contract: pure but for `coverage_of`; `rollup_tables` makes and fills them. Materialized views fill the
tables from every insert into the table of flows; their targets deduplicate by the insert's token as the table
itself does, so that a batch sent again counts once everywhere (a window on every target, and the setting
`deduplicate_blocks_in_dependent_materialized_views`, which the server sends).

What a rollup drops: ports, instance ids, cells, and remote addresses, except those in the own network that
nobody is known to own. Bytes and packets are sums; connections a sketch (uniqCombined64 of 2^14 cells: a
standard error of 1.04 / 2^7 = 0.8 %).
`date` is the day (UTC) in which a row's interval begins.

The views take the days after the one in which they are made; those before are filled a partition at a time.
`Coverage`, kept in the hourly table's comment, says for which days the rollups stand for the rows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import literal, quoted

HOUR = 3600
DAY = 86_400
LONGEST_INTERVAL = 65_535
"""Seconds that `intervalSeconds` (UInt16) can say."""

SIDE_COLUMNS = ("Cloud", "Region", "Cluster", "AvailabilityZone", "Node", "Namespace", "Pod", "App")
"""What a rollup keeps of each side; the names behind `local` and `remote`."""
COMMON_COLUMNS = (
    "date",
    "intervalStartTime",
    "environment",
    "proto",
    "connectionClass",
    "connectionFlags",
    "direction",
    *(f"local{name}" for name in SIDE_COLUMNS),
    *(f"remote{name}" for name in SIDE_COLUMNS),
    "remoteCloudService",
)
"""The columns that a rollup has of the table's own, in order."""
CONNECTIONS_TYPE = "AggregateFunction(uniqCombined64(14), UInt64)"

PORT_OPENER = (
    "toInt8(multiIf(localPort >= 32768 AND remotePort < 32768 AND remotePort != 0, 1, "
    "remotePort >= 32768 AND localPort < 32768 AND localPort != 0, -1, "
    "localPort = 0 AND remotePort != 0, 1, remotePort = 0 AND localPort != 0, -1, 0))"
)
"""Who opened by the ports: 1 the local side, -1 the remote, 0 unclear (Int8)."""

REMOTE_CLUSTER = "if(remoteCluster IN ('', 'UNKNOWN'), localCluster, remoteCluster)"
"""The remote's cluster; the original calls it UNKNOWN and knows remotes of its own cluster only."""
SAME_NODE = f"(remoteNode = localNode AND {REMOTE_CLUSTER} = localCluster)"
"""True where both ends are on one node (or on none that is known)."""
MINUTES_TYPE = "AggregateFunction(sumForEach, Array(UInt64))"
HOUR_OF_MINUTE = "toDateTime(toStartOfHour(minute, 'UTC'))"
MINUTES_ARRAY = "groupArrayInsertAt(0, 60)(total, toMinute(minute, 'UTC'))"
"""The bytes of the 60 minutes of an hour from rows of `minute` and `total`."""

_COMMENT = re.compile(r"days before (\d{4}-\d\d-\d\d) and from (\d{4}-\d\d-\d\d)")


@dataclass(frozen=True, slots=True)
class RollupNames:
    """The names of the tables that go with a table of flows."""

    table: str

    @property
    def hourly(self) -> str:
        """Rows by hour."""
        return f"{self.table}_hourly"

    @property
    def daily(self) -> str:
        """Rows by day."""
        return f"{self.table}_daily"

    @property
    def minutes(self) -> str:
        """The bytes of each minute, by node and pod, an hour a row."""
        return f"{self.table}_minutes"

    @property
    def all(self) -> tuple[str, str, str]:
        """Every table."""
        return self.hourly, self.daily, self.minutes


@dataclass(frozen=True, slots=True)
class Coverage:
    """The rollups stand for the rows of all days before `before` and of all from `since` on (days' starts in
    Unix seconds)."""

    before: int
    since: int

    @property
    def complete(self) -> bool:
        """True when no day is left out."""
        return self.before >= self.since

    def within(self, begin: int, end: int) -> list[tuple[int, int]]:
        """The parts of a span that are covered, in order."""
        if self.complete:
            return [(begin, end)]
        parts = [(begin, min(end, self.before)), (max(begin, self.since), end)]
        return [(first, last) for first, last in parts if first < last]

    def comment(self) -> str:
        """As the table's comment says it."""
        return (
            f"kubenetmon rollup: stands for the days before {_day(self.before)} and from {_day(self.since)}"
        )


def parse_coverage(comment: str) -> Coverage | None:
    """What a comment says, None when it says nothing."""
    found = _COMMENT.search(comment)
    if found is None:
        return None
    try:
        before, since = (
            int(datetime.fromisoformat(f"{day}T00:00:00+00:00").timestamp()) for day in found.groups()
        )
    except ValueError:
        return None
    return Coverage(before, since)


async def coverage_of(sink: Sink, database: str, table: str) -> Coverage | None:
    """For which days the rollups of a table stand; None where it has none. Raises what the sink raises."""
    names = RollupNames(table)
    listed = ", ".join(literal(name) for name in names.all)
    rows = await sink.query(
        f"SELECT name, comment FROM system.tables WHERE database = {literal(database)} AND name IN ({listed})"
    )
    comments = {str(name): str(comment) for name, comment in rows}
    return parse_coverage(comments[names.hourly]) if len(comments) == len(names.all) else None


def local_address(ipv6: bool) -> str:
    """The local address (IPv6); `ipv6`: the table has the IPv6 columns."""
    return _address("local", ipv6)


def remote_address(ipv6: bool) -> str:
    """The remote address (IPv6) where it lies in the own network and nobody is known to own it, else ::."""
    unknown = "connectionClass = 'INTRA_VPC' AND remoteNode = ''"
    return f"if({unknown}, {_address('remote', ipv6)}, toIPv6('::'))"


def connection(ipv6: bool) -> str:
    """A number for a connection (UInt64), the same from both of its sides."""
    local, remote = _address("local", ipv6), _address("remote", ipv6)
    return f"cityHash64(proto, cityHash64({local}, localPort) + cityHash64({remote}, remotePort))"


def _address(side: str, ipv6: bool) -> str:
    version_4 = f"CAST({side}IPv4, 'IPv6')"
    return f"if({side}IPv6 = toIPv6('::'), {version_4}, {side}IPv6)" if ipv6 else version_4


def rows_by(grain: int, source: str, *, ipv6: bool, where: str = "") -> str:
    """A SELECT that rolls rows of a table up by hour or day; `source` is quoted, `where` a condition."""
    start = (
        "toStartOfHour(intervalStartTime, 'UTC')"
        if grain == HOUR
        else "toStartOfDay(intervalStartTime, 'UTC')"
    )
    # The alias must not be what WHERE and the other expressions see as intervalStartTime: an inner SELECT.
    inner = ", ".join(
        (
            *(name for name in COMMON_COLUMNS if name not in ("date", "intervalStartTime")),
            f"{start} AS began",
            f"{local_address(ipv6)} AS localAddress",
            f"{remote_address(ipv6)} AS remoteAddress",
            f"{PORT_OPENER} AS portOpener",
            f"{connection(ipv6)} AS connection",
            "bytes",
            "packets",
        )
    )
    keys = ", ".join(("date", "intervalStartTime", *COMMON_COLUMNS[2:], *_DERIVED))
    outer = ", ".join(
        (
            "toDate(began, 'UTC') AS date",
            "toDateTime(began) AS intervalStartTime",
            *COMMON_COLUMNS[2:],
            *_DERIVED,
            "sum(bytes) AS bytes",
            "sum(packets) AS packets",
            "uniqCombined64State(14)(connection) AS connections",
        )
    )
    condition = f" WHERE {where}" if where else ""
    return f"SELECT {outer} FROM (SELECT {inner} FROM {source}{condition}) GROUP BY {keys}"


def days_of_hours(source: str, *, where: str = "") -> str:
    """The same by day from rows by hour, which are far fewer."""
    keys = ", ".join(("date", *COMMON_COLUMNS[2:], *_DERIVED))
    condition = f" WHERE {where}" if where else ""
    return (
        f"SELECT date, toDateTime(date, 'UTC') AS intervalStartTime, {keys.removeprefix('date, ')}, "
        "sum(bytes) AS bytes, sum(packets) AS packets, "
        f"uniqCombined64MergeState(14)(connections) AS connections FROM {source}{condition} GROUP BY {keys}"
    )


def minutes_by_hour(source: str, *, where: str = "") -> str:
    """A SELECT of each pod's bytes a minute, an hour a row. An interval of several minutes is spread evenly;
    a connection within a node, seen once, is given to both of its pods (`withinNode` 1)."""
    condition = f" WHERE {where}" if where else ""
    keys = "date, cluster, zone, node, namespace, pod, app, sending, withinNode"
    by_minute = (
        f"SELECT {keys}, minute, sum(share) AS total FROM ({minutes_of_rows(source, condition)}) "
        f"GROUP BY {keys}, minute"
    )
    by_hour = (
        f"SELECT {keys}, {HOUR_OF_MINUTE} AS hour, {MINUTES_ARRAY} AS each, sum(total) AS whole "
        f"FROM ({by_minute}) GROUP BY {keys}, hour"
    )
    return (
        f"SELECT date, hour AS intervalStartTime, {keys.removeprefix('date, ')}, "
        "sumForEachState(each) AS minutes, sum(whole) AS bytes "
        f"FROM ({by_hour}) GROUP BY {keys}, intervalStartTime"
    )


def minutes_of_rows(source: str, condition: str) -> str:
    """A SELECT of a row for each minute of each row, for each end that only this row knows; `condition`
    begins with WHERE or is empty."""
    ends = ", ".join(
        f"if(mirrored, remote{name}, local{name}) AS {alias}"
        for name, alias in (
            ("Cluster", "cluster"),
            ("AvailabilityZone", "zone"),
            ("Node", "node"),
            ("Namespace", "namespace"),
            ("Pod", "pod"),
            ("App", "app"),
        )
    )
    return (
        "SELECT toDate(intervalStartTime, 'UTC') AS date, intervalStartTime + 60 * part AS minute, "
        f"{ends}, (direction = 'out') != mirrored AS sending, {SAME_NODE} AS withinNode, "
        "intDiv(bytes, parts) + (part < bytes % parts) AS share "
        "FROM (SELECT *, toUInt64(greatest(1, intDiv(intervalSeconds + 59, 60))) AS parts, bytes AS whole "
        f"FROM {source}{condition}) "
        "ARRAY JOIN range(parts) AS part "
        f"ARRAY JOIN if({SAME_NODE} AND localNode != '', [false, true], [false]) AS mirrored"
    )


_DERIVED = ("localAddress", "remoteAddress", "portOpener")


def _day(at: int) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d")


def qualified(database: str, table: str) -> str:
    """Both names quoted."""
    return f"{quoted(database)}.{quoted(table)}"
