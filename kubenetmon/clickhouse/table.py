"""What a table in ClickHouse is, as the server reads it at start.

Contract: plain data. `schema` reads and makes tables, `block` encodes for one, `inserter` holds the one in
use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


def quoted(identifier: str) -> str:
    """An identifier as ClickHouse reads it back, whatever characters it holds."""
    escaped = identifier.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def literal(text: str) -> str:
    """A string literal as ClickHouse reads it back."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of one table that an INSERT may name.

    `columns` maps a column's name to its type as `system.columns` spells it, in the table's order;
    materialized and alias columns are not in it.
    """

    database: str
    table: str
    columns: Mapping[str, str]
    engine: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def has_ipv6(self) -> bool:
        """True when IPv6 flows can be stored without loss."""
        return "localIPv6" in self.columns and "remoteIPv6" in self.columns

    def __str__(self) -> str:
        return f"{self.database}.{self.table}"
