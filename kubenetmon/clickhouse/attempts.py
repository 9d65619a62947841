"""A block on its way into the table, and the room that it takes of its server.

Contract: plain data of the inserter's; a `Place` is its caller's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.evidence import Tracer
from kubenetmon.clickhouse.sinks import Settings


class Place(Protocol):
    """What a block takes of the server until it is settled: a turn, and memory."""

    def step_aside(self) -> None:
        """Give the turn to another, for good; the memory stays. May be called again."""
        ...

    @property
    def wanted(self) -> bool:
        """Whether others wait for the memory."""
        ...


@dataclass(slots=True)
class Attempts:
    """A block and what is known of the attempts at it; times in the clock's monotonic seconds."""

    block: Block
    token: str
    tracer: Tracer | None
    place: Place | None
    begun: float
    attempts: int = 0
    settings: Settings | None = None
    tokens_spent: int = 0
    """How many tokens of the block the table has kept without its rows."""
    outcome_unknown: bool = False
    needs_an_operator: bool = False
    """Whether the last attempt failed by what only an operator can mend."""
    failing_since: float | None = None
    held_since: float | None = None
    absent_at: float | None = None
    """When a look at the table began that showed it not to be there."""

    @property
    def insert_token(self) -> str:
        """The token that the table knows the block by: another where the table has one without the rows. The
        same for every server that finds the same."""
        return f"{self.token}{'+' * self.tokens_spent}"

    def __str__(self) -> str:
        return f"batch {self.token}, {self.block.rows} rows"
