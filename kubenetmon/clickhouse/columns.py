"""The one list of the table's columns, from which DDL, checks and inserts are made.

The first 35 columns, their types, codecs and order are the original's; the sorting key too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kubenetmon.clickhouse.block import Coded, Column, Constant, FlagMaps, Values


@dataclass(frozen=True, slots=True)
class ColumnSpec:
    """One column. `delta` is the width in bytes of its Delta codec, 0 for none."""

    name: str
    type: str
    delta: int = 0

    @property
    def codec(self) -> str:
        """The codec's expression."""
        return f"CODEC(Delta({self.delta}), ZSTD(1))" if self.delta else "CODEC(ZSTD(1))"

    def sample(self) -> Column:
        """One row of what the server writes here, to try a table's type with."""
        if self.type.startswith("Map"):
            return FlagMaps(np.zeros(1, np.uint8), [{"LOCAL_INITIATED": True}])
        if self.type.startswith("Enum"):
            return Coded(np.zeros(1, np.uint8), ["out", "in"])
        if self.type == "IPv6":
            return Values(np.zeros((1, 16), np.uint8))
        if self.delta:
            return Constant((1 << 8 * self.delta) - 1)
        return Constant("x")


def _labels(side: str) -> tuple[ColumnSpec, ...]:
    """The columns that both sides of a connection have, in the original's order."""
    low_cardinality = "LowCardinality(String)"
    return (
        ColumnSpec(f"{side}Cloud", low_cardinality),
        ColumnSpec(f"{side}Region", low_cardinality),
        ColumnSpec(f"{side}Cluster", low_cardinality),
        ColumnSpec(f"{side}Cell", low_cardinality),
        ColumnSpec(f"{side}AvailabilityZone", low_cardinality),
        ColumnSpec(f"{side}Node", "String"),
        ColumnSpec(f"{side}InstanceID", "String"),
        ColumnSpec(f"{side}Namespace", low_cardinality),
        ColumnSpec(f"{side}Pod", "String"),
        ColumnSpec(f"{side}IPv4", "IPv4", 4),
        ColumnSpec(f"{side}Port", "UInt16", 2),
        ColumnSpec(f"{side}App", "String"),
    )


COLUMNS: tuple[ColumnSpec, ...] = (
    ColumnSpec("date", "Date", 2),
    ColumnSpec("intervalStartTime", "DateTime", 4),
    ColumnSpec("intervalSeconds", "UInt16", 2),
    ColumnSpec("environment", "LowCardinality(String)"),
    ColumnSpec("proto", "LowCardinality(String)"),
    ColumnSpec("connectionClass", "LowCardinality(String)"),
    ColumnSpec("connectionFlags", "Map(LowCardinality(String), Bool)"),
    ColumnSpec("direction", "Enum8('out' = 1, 'in' = 2)"),
    *_labels("local"),
    *_labels("remote"),
    ColumnSpec("remoteCloudService", "LowCardinality(String)"),
    ColumnSpec("bytes", "UInt64", 8),
    ColumnSpec("packets", "UInt64", 8),
)
"""What every table must have."""

IPV6_COLUMNS: tuple[ColumnSpec, ...] = (ColumnSpec("localIPv6", "IPv6"), ColumnSpec("remoteIPv6", "IPv6"))
"""What a table that keeps IPv6 flows has besides; in the sorting key, or summing would merge them away."""

SUMMED = ("bytes", "packets")

PRIMARY_KEY = (
    "date",
    "intervalStartTime",
    "direction",
    "proto",
    "localApp",
    "remoteApp",
    "localPod",
    "remotePod",
)
SORTING_KEY = PRIMARY_KEY + tuple(
    column.name for column in COLUMNS if column.name not in PRIMARY_KEY and column.name not in SUMMED
)
