"""What a table in ClickHouse is, as the server reads it at start.

Contract: plain data. `schema` reads and makes tables, `block` encodes for one, `inserter` holds the one in
use.
"""

from __future__ import annotations

import math
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


WEEK = 7 * 86400
LEAST_WINDOW = 100_000
"""Blocks; what `schema apply` asks for where nothing says that a week takes more."""


def keeps_tokens_in_keeper(engine: str) -> bool:
    """True for the engines whose replicas share one memory of tokens."""
    return engine.startswith(("Replicated", "Shared"))


def window_settings(engine: str, blocks: int, seconds: int = WEEK) -> str:
    """The table settings that make an engine remember so many blocks, for CREATE and MODIFY SETTING."""
    if keeps_tokens_in_keeper(engine):
        return (
            f"replicated_deduplication_window = {blocks}, replicated_deduplication_window_seconds = {seconds}"
        )
    return f"non_replicated_deduplication_window = {blocks}"


@dataclass(frozen=True, slots=True)
class Deduplication:
    """How long a table remembers the tokens of blocks.

    `blocks` is how many it remembers, 0 for none; `seconds` for how long, 0 for no limit in time. `table` is
    its quoted name; `obstacle` says why nothing makes it remember more, empty where something does.
    """

    blocks: int
    seconds: int
    table: str = ""
    engine: str = ""
    obstacle: str = ""

    def holds(self, blocks: int) -> bool:
        """True when it remembers so many blocks, and for a week where time counts too."""
        return self.blocks >= blocks and (self.seconds == 0 or self.seconds >= WEEK)

    def settings(self, blocks: int) -> str:
        """The table settings that make it remember so many blocks; nothing gets shorter by them."""
        return window_settings(self.engine, max(blocks, self.blocks), max(WEEK, self.seconds))

    def weaker_than(self, other: Deduplication) -> bool:
        """True when it forgets sooner; one that forgets within a week comes first, however many it holds."""

        def strength(one: Deduplication) -> tuple[bool, int, float]:
            return one.holds(LEAST_WINDOW), one.blocks, one.seconds or math.inf

        return strength(self) < strength(other)

    def remedy(self, blocks: int = LEAST_WINDOW, on_cluster: str = "") -> str:
        """The statement that makes it remember so many blocks, or in words why none can."""
        if self.obstacle:
            return self.obstacle
        return f"ALTER TABLE {self.table}{on_cluster} MODIFY SETTING {self.settings(blocks)}"


@dataclass(frozen=True, slots=True)
class Partition:
    """Which numbers the blocks of a partition have, and the days that its rows lie in, in Unix seconds.

    `ended` is the end of the last day, or now where that is not over.
    """

    name: str
    first_block: int
    last_block: int
    begun: int
    ended: int


@dataclass(frozen=True, slots=True)
class TableSchema:
    """The columns of one table that an INSERT may name, and what else decides how to insert.

    `columns` maps a column's name to its type as `system.columns` spells it, in the table's order;
    materialized and alias columns are not in it. `own_window` is the table's own deduplication (for a
    Distributed table: that of the table behind it), `deduplication` the weakest among it and the targets of
    its materialized views, if it `has_views`. `shards` is the number of shards behind a Distributed table, 0
    for any other engine. `partitions` are those of the last days, of a table on this very server. `ttl_days`:
    rows are kept so long, 0 for ever, None by a rule that is not ours. `fsync`: an insert is on the disk when
    it is acked.
    """

    database: str
    table: str
    columns: Mapping[str, str]
    engine: str = ""
    sorting_key: str = ""
    own_window: Deduplication = Deduplication(0, 0, obstacle="not read")
    deduplication: Deduplication = Deduplication(0, 0, obstacle="not read")
    has_views: bool = True
    shards: int = 0
    partitions: tuple[Partition, ...] = ()
    ttl_days: int | None = None
    fsync: bool = False

    @property
    def one_memory(self) -> bool:
        """True when every server that holds the table knows the tokens that any of them has taken."""
        return bool(self.shards) or keeps_tokens_in_keeper(self.engine)

    @property
    def has_ipv6(self) -> bool:
        """True when IPv6 flows can be stored without loss."""
        return "localIPv6" in self.columns and "remoteIPv6" in self.columns

    def __str__(self) -> str:
        return f"{self.database}.{self.table}"
