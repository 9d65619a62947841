"""Is a batch in the table already? Asked where the table's memory of tokens may not reach back to it.

Contract: pure; the inserter runs `question` and gives the answer to `judge`. A block is recognised by some of
its rows: by minute, node, direction and the ends of the connection, and what these counted. A block goes into
a table whole, so that one row that cannot be there shows that the block is not. An answer that could be wrong
either way is `UNDECIDED`, never a guess.

Why that holds: rows are only ever added and summed, so that a key that holds less than the block's row does
not have it in. Equal sums show that it has where nothing else of that node can have the same keys: a batch
that begins with a minute and lasts one at least is its node's only one to report that minute, but for parts
of the same report, which have other connections. Another replica may have attributed an earlier copy the
other way round, or not known its local end, in which case the row has no node: both ways are asked for, and
rows without a node too. These could be another node's, which saw the same connection: they show that a block
may be there, never that it is.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from kubenetmon.clickhouse.block import Coded, Column, Constant, Values
from kubenetmon.clickhouse.table import TableSchema, literal, quoted

MINUTE = 60
_ROWS = 128
_ADDRESS = "if({side}IPv4 = toIPv4('0.0.0.0'), hex({side}IPv6), toString({side}IPv4))"
_OTHER_DIRECTION = {"out": "in", "in": "out"}

Key = tuple[int, str, str, int | str, int, int | str, int]
"""Start of the interval, direction, protocol, local address and port, remote address and port."""
Counted = tuple[int, int]
"""Bytes and packets."""


class Finding(Enum):
    """What the table says of a block."""

    ABSENT = "absent"
    PRESENT = "present"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Trace:
    """What a block is recognised by; times in Unix seconds, `rows` are some of its rows by name of column."""

    node: str
    interval_start: int
    interval_end: int
    rows: tuple[Mapping[str, Any], ...]

    @property
    def alone_in_its_minutes(self) -> bool:
        """True when no other report of the node has rows of the same minutes."""
        return self.interval_start % MINUTE == 0 and self.interval_end - self.interval_start >= MINUTE


class Tracer:
    """The trace of a block of `rows` rows, made only when it is asked for: it is rarely needed."""

    def __init__(
        self, columns: Mapping[str, Column], rows: int, *, node: str, interval_start: int, interval_end: int
    ) -> None:
        self.node = node
        self.interval_start, self.interval_end = interval_start, interval_end
        picked = np.unique(np.linspace(0, rows - 1, min(rows, _ROWS)).astype(np.intp))
        self._picked = {name: _picked(columns[name], picked) for name in _columns(columns)}
        self._count = len(picked)

    def trace(self) -> Trace:
        """What to look for."""
        rows = [
            {name: _plain(column, index) for name, column in self._picked.items()}
            for index in range(self._count)
        ]
        # Rows whose local end nobody knew carry no node and could be another node's.
        own = [row for row in rows if row["localNode"] == self.node]
        return Trace(self.node if own else "", self.interval_start, self.interval_end, tuple(own or rows))


def question(schema: TableSchema, trace: Trace) -> str:
    """The query whose answer `judge` takes."""
    wanted = sorted({ends for row in trace.rows for ends in _both_ways(row)})
    starts = sorted({row["intervalStartTime"] for row in trace.rows})
    days = sorted({row["date"] for row in trace.rows})
    local = _ADDRESS.format(side="local") if schema.has_ipv6 else "toString(localIPv4)"
    remote = local.replace("local", "remote")
    ends = ", ".join(f"({literal(a)}, {a_port}, {literal(b)}, {b_port})" for a, a_port, b, b_port in wanted)
    return (
        "SELECT toUInt32(intervalStartTime), toString(direction), toString(proto), "  # noqa: S608 - quoted
        f"{local} AS local, toUInt16(localPort) AS local_port, "
        f"{remote} AS remote, toUInt16(remotePort) AS remote_port, "
        "toString(localNode), sum(bytes), sum(packets) "
        f"FROM {quoted(schema.database)}.{quoted(schema.table)} "
        f"WHERE date IN ({', '.join(f'toDate({day})' for day in days)}) "
        f"AND intervalStartTime IN ({', '.join(f'toDateTime({start})' for start in starts)}) "
        f"AND localNode IN ({literal(trace.node)}, '') "
        f"AND (local, local_port, remote, remote_port) IN ({ends}) "
        "GROUP BY ALL"
    )


def judge(trace: Trace, answer: Iterable[tuple[Any, ...]]) -> Finding:
    """What the answer to `question` shows."""
    stored = {row[:8]: (row[8], row[9]) for row in answer}
    own: dict[Key, Counted] = {}
    for row in trace.rows:
        key = _key(row)
        counted_bytes, counted_packets = own.get(key, (0, 0))
        own[key] = (counted_bytes + row["bytes"], counted_packets + row["packets"])

    def large_enough(key: Key, node: str, counted: Counted) -> list[Counted]:
        found = (stored.get((*way, node)) for way in (key, _other_way(key)))
        return [one for one in found if one and one[0] >= counted[0] and one[1] >= counted[1]]

    possible = shown = equal = 0
    for key, counted in own.items():
        found = large_enough(key, trace.node, counted) if trace.node else []
        possible += bool(found or large_enough(key, "", counted))
        shown += bool(found)
        equal += counted in found
    if not possible:
        return Finding.ABSENT
    # A connection with two lives in one report has two rows of one key, of which one may be in the trace.
    if shown == len(own) and equal * 10 >= len(own) * 9 and trace.alone_in_its_minutes:
        return Finding.PRESENT
    return Finding.UNDECIDED


def _columns(columns: Mapping[str, Column]) -> tuple[str, ...]:
    names = (
        "date", "intervalStartTime", "direction", "proto", "localNode", "localIPv4", "localPort",
        "remoteIPv4", "remotePort", "bytes", "packets",
    )  # fmt: skip
    return (*names, "localIPv6", "remoteIPv6") if "localIPv6" in columns else names


def _picked(column: Column, rows: Any) -> Column:
    if isinstance(column, Values):
        return Values(column.array[rows])
    if isinstance(column, Coded):
        return Coded(column.codes[rows], column.dictionary)
    return column


def _plain(column: Column, index: int) -> Any:
    if isinstance(column, Constant):
        return column.value
    if isinstance(column, Coded):
        return column.dictionary[int(column.codes[index])]
    assert isinstance(column, Values)
    value = column.array[index]
    return bytes(value) if getattr(value, "ndim", 0) else int(value)


def _address(row: Mapping[str, Any], side: str) -> str:
    """As the question has it: IPv4 in dots, IPv6 in hexadecimal digits."""
    number = row[f"{side}IPv4"]
    if number == 0 and f"{side}IPv6" in row:
        return str(row[f"{side}IPv6"].hex()).upper()
    return str(ipaddress.IPv4Address(number))


def _ends(row: Mapping[str, Any]) -> tuple[str, int, str, int]:
    return _address(row, "local"), row["localPort"], _address(row, "remote"), row["remotePort"]


def _both_ways(row: Mapping[str, Any]) -> tuple[tuple[str, int, str, int], tuple[str, int, str, int]]:
    local, local_port, remote, remote_port = _ends(row)
    return (local, local_port, remote, remote_port), (remote, remote_port, local, local_port)


def _key(row: Mapping[str, Any]) -> Key:
    return (row["intervalStartTime"], row["direction"], row["proto"], *_ends(row))


def _other_way(key: Key) -> Key:
    start, direction, protocol, local, local_port, remote, remote_port = key
    return start, _OTHER_DIRECTION[direction], protocol, remote, remote_port, local, local_port
