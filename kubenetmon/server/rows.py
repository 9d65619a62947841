"""Rows of the table from attributed records, as columns.

Contract: pure. A record makes an "out" row with what its local side sent and an "in" row with what it
received; all "out" rows come first. A row that counts no bytes and no packets is left out: SummingMergeTree
deletes it at the next merge anyway, and no sum changes. Strings are coded once a side: a few dictionaries of
the endpoints that occur, never one string a row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.clickhouse.block import Coded, Column, Constant, FlagMaps, Values
from kubenetmon.clickhouse.native import used_entries
from kubenetmon.model import TCP, UDP, FlowBatch
from kubenetmon.server.attributed import OWN_LABEL, Attributed, Side
from kubenetmon.server.ranges.parse import Label

MINUTE = 60
DAY = 86_400
LONGEST_INTERVAL = 65_535
"""Seconds that `intervalSeconds` (UInt16) can say."""

PROTOCOLS = ("", "tcp", "udp")

_COLUMNS_OF_SIDE = {
    "Cell": "cell",
    "AvailabilityZone": "zone",
    "Node": "node",
    "InstanceID": "instance_id",
    "Namespace": "namespace",
    "Pod": "pod",
    "App": "app",
}
"""Column of a side, without "local" or "remote", to field of `Description`."""


@dataclass(frozen=True, slots=True)
class RowsConfig:
    """What is the same in every row; `cloud` and `region` are in lower case."""

    environment: str
    cloud: str
    region: str
    cluster: str


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a batch's interval: start (Unix seconds, a minute's start) and length in seconds."""

    start: int
    seconds: int


def pieces(interval_start: int, interval_end: int) -> list[Piece]:
    """The interval as rows can say it: one minute, its true length beyond that, split beyond 65,535 s."""
    length = max(interval_end - interval_start, MINUTE)
    count = -(-length // LONGEST_INTERVAL)
    edges = [interval_start + length * index // count for index in range(count + 1)]
    return [Piece(start - start % MINUTE, end - start) for start, end in itertools.pairwise(edges)]


def columns(attributed: Attributed, batch: FlowBatch, config: RowsConfig) -> tuple[int, dict[str, Column]]:
    """How many rows, and the table's columns with that many rows each.

    The IPv6 columns are there only where a record is IPv6, which only a table that has them is given.
    """
    intervals = pieces(batch.interval_start, batch.interval_end)
    rows = _Rows(attributed, len(intervals))
    starts = np.array([piece.start for piece in intervals], np.uint32)
    seconds = np.array([piece.seconds for piece in intervals], np.uint16)
    protocol = (attributed.protocol == TCP) + np.uint8(2) * (attributed.protocol == UDP)
    return rows.count, {
        "date": rows.by_piece(starts // DAY),
        "intervalStartTime": rows.by_piece(starts),
        "intervalSeconds": rows.by_piece(seconds),
        "environment": Constant(config.environment),
        "proto": Coded(rows.spread(protocol), PROTOCOLS),
        "connectionClass": Coded(rows.spread(attributed.connection_class), attributed.classes),
        "connectionFlags": FlagMaps(rows.spread(attributed.flag_code), attributed.flags),
        "direction": Coded(rows.direction, ("out", "in")),
        "localCloud": Constant(config.cloud),
        "localRegion": Constant(config.region),
        "localCluster": Constant(config.cluster),
        **_side("local", attributed.local, attributed, rows),
        **_label_columns(attributed, rows, config),
        **_side("remote", attributed.remote, attributed, rows),
        "bytes": Values(rows.bytes),
        "packets": Values(rows.packets),
    }


class _Rows:
    """Which record, piece of the interval and direction each row comes from, and what it counts."""

    def __init__(self, attributed: Attributed, piece_count: int) -> None:
        records = len(attributed)
        blocks = [
            (
                _share(attributed.out_bytes, piece, piece_count),
                _share(attributed.out_packets, piece, piece_count),
            )
            for piece in range(piece_count)
        ] + [
            (
                _share(attributed.in_bytes, piece, piece_count),
                _share(attributed.in_packets, piece, piece_count),
            )
            for piece in range(piece_count)
        ]
        all_bytes = np.concatenate([block[0] for block in blocks])
        all_packets = np.concatenate([block[1] for block in blocks])
        counted = (all_bytes != 0) | (all_packets != 0)
        self._copies = 2 * piece_count
        self._kept: NDArray[np.intp] | None = None
        if not counted.all():
            self._kept = np.flatnonzero(counted)
        self._piece_count = piece_count
        self._records = records
        self.bytes = self._select(all_bytes)
        self.packets = self._select(all_packets)
        self.count = len(self.bytes)
        self.direction = self._select(np.repeat(np.array([0, 1], np.uint8), records * piece_count))

    def spread(self, of_record: NDArray[Any]) -> NDArray[Any]:
        """A record's value in each of its rows; arrays of shape (n, ...)."""
        return self._select(np.concatenate([of_record] * self._copies))

    def by_piece(self, of_piece: NDArray[Any]) -> Column:
        """The value of each row's piece of the interval."""
        if self._piece_count == 1:
            return Constant(int(of_piece[0]))
        return Values(self._select(np.tile(np.repeat(of_piece, self._records), 2)))

    def _select(self, of_row: NDArray[Any]) -> NDArray[Any]:
        return of_row if self._kept is None else of_row[self._kept]


def _share(counter: NDArray[np.uint64], piece: int, piece_count: int) -> NDArray[np.uint64]:
    """What one piece gets of each counter, so that the pieces add up to it exactly."""
    if piece_count == 1:
        return counter
    share, rest = np.divmod(counter, np.uint64(piece_count))
    return share + (rest > piece)


def _label_columns(attributed: Attributed, rows: _Rows, config: RowsConfig) -> dict[str, Column]:
    used = used_entries(attributed.label - OWN_LABEL, len(attributed.labels) + 1)
    own = Label(config.cloud, config.region, "")
    labels = [attributed.labels[i + OWN_LABEL] if i + OWN_LABEL >= 0 else own for i in used.ids.tolist()]
    code = rows.spread(used.inverse)
    return {
        "remoteCloud": Coded(code, [label.cloud for label in labels]),
        "remoteRegion": Coded(code, [label.region for label in labels]),
        "remoteCloudService": Coded(code, [label.service for label in labels]),
    }


def _side(prefix: str, side: Side, attributed: Attributed, rows: _Rows) -> dict[str, Column]:
    """The columns of one end; `prefix` is local or remote."""
    world = attributed.world
    lowest = world.lowest
    used = used_entries(side.endpoint - lowest, world.end - lowest)
    ids = used.ids + lowest
    code = rows.spread(used.inverse)
    found: dict[str, Column] = {
        name: Coded(code, world.column(field, ids)) for name, field in _COLUMNS_OF_SIDE.items()
    }
    if prefix == "remote":
        found["Cluster"] = Coded(code, world.column("cluster", ids))
    found["IPv4"] = Values(rows.spread(side.ipv4))
    found["Port"] = Values(rows.spread(side.port))
    if side.ipv6 is not None:
        network_order = side.ipv6.astype(">u8").view(np.uint8).reshape(-1, 16)
        found["IPv6"] = Values(rows.spread(network_order))
    return {f"{prefix}{name}": column for name, column in found.items()}
