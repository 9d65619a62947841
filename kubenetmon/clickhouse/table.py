"""What a table in ClickHouse is, as the server reads it at start.

Contract: plain data. `schema` reads and makes tables, `block` encodes for one, `inserter` holds the one in
use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


def quoted(identifier: str) -> str:
    """An identifier as ClickHouse reads it back, whatever characters it holds."""
    escaped = identifier.replace("\\", "\\\\").replace("`", "\\`")
    return f"`{escaped}`"


def literal(text: str) -> str:
    """A string literal as ClickHouse reads it back."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


@dataclass(frozen=True, slots=True)
class Deduplication:
    """How long a table remembers the tokens of blocks.

    `blocks` is how many it remembers, 0 for none; `seconds` for how long, 0 for no limit in time. `remedy`
    is the statement that makes it remember more, or says in words why none can.
    """

    blocks: int
    seconds: int
    remedy: str

    def covers(self, blocks_per_second: float, span: float) -> bool:
        """True when a token is still remembered `span` seconds after its insert at that insert rate."""
        within_time = self.seconds == 0 or self.seconds >= span
        return within_time and self.blocks > blocks_per_second * span


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of one table that an INSERT may name, and what else decides how to insert.

    `columns` maps a column's name to its type as `system.columns` spells it, in the table's order;
    materialized and alias columns are not in it. `own_window` is the table's own deduplication (for a
    Distributed table: that of the table behind it), `deduplication` the weakest among it and the targets of
    its materialized views. `shards` is the number of shards behind a Distributed table, 0 for any other
    engine.
    """

    database: str
    table: str
    columns: Mapping[str, str]
    engine: str = ""
    sorting_key: str = ""
    own_window: Deduplication = Deduplication(0, 0, "not read")
    deduplication: Deduplication = Deduplication(0, 0, "not read")
    shards: int = 0

    @property
    def has_ipv6(self) -> bool:
        """True when IPv6 flows can be stored without loss."""
        return "localIPv6" in self.columns and "remoteIPv6" in self.columns

    def __str__(self) -> str:
        return f"{self.database}.{self.table}"
