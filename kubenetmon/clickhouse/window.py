"""How far back a table's memory of tokens reaches, from the rate at which blocks come into it.

Contract: plain arithmetic over what `read_table` found, no I/O. The rate is that of the table, by all who
insert into it, not only this server: from the numbers that the engine gives to blocks, while this server
watches, and before that from the numbers of the last days' partitions. Where those cannot be seen (behind a
Distributed table) it is this server's own. It errs towards a memory that is too short.

Facts: a plain MergeTree numbers its blocks in one row over all partitions, a Replicated or Shared one in each
partition from 0; merges keep the numbers of what they merge. A repeated block that is left out takes a
number too.
"""

from __future__ import annotations

from collections import deque

from kubenetmon.clickhouse.table import LEAST_WINDOW, WEEK, Deduplication, TableSchema, keeps_tokens_in_keeper

_MARGIN = 1.25
_SAMPLES = 1500
_MOST_BLOCKS = 20_000_000
"""Some 5 GB of memory in ClickHouse; beyond that a shorter memory and a look at the table are better."""


class WindowWatch:
    """Keeps the table's count of blocks over time; `observe` it now and then.

    Times are a monotonic clock's seconds.
    """

    def __init__(self, since: float) -> None:
        self._own = 0
        self._seen: dict[str, int] = {}
        self._total = 0
        self._samples: deque[tuple[float, int]] = deque([(since, 0)], maxlen=_SAMPLES)
        self._rate_before = 0.0

    def committed(self) -> None:
        """This server has inserted a block."""
        self._own += 1

    def observe(self, schema: TableSchema, monotonic: float) -> None:
        """Take note of the table as it was just read."""
        last = last_blocks(schema)
        new = 0
        if self._seen:
            new = sum(max(0, number - self._seen.get(name, -1)) for name, number in last.items())
        elif last:
            self._rate_before = past_rate(schema)
        self._total += max(new, self._own)
        self._own = 0
        self._seen.update(last)
        self._samples.append((monotonic, self._total))

    def blocks_since(self, age: float, monotonic: float) -> float:
        """How many blocks have come into the table in the last `age` seconds."""
        asked = monotonic - age
        first_at, first_total = self._samples[0]
        before = max(0.0, first_at - asked) * self.rate(monotonic)
        total = next((total for at, total in reversed(self._samples) if at <= asked), first_total)
        return self._total + self._own - total + before

    def reaches(self, window: Deduplication, age: float, monotonic: float) -> bool:
        """True when a token that came `age` seconds ago is still remembered."""
        within_time = window.seconds == 0 or window.seconds > age
        return within_time and window.blocks > _MARGIN * self.blocks_since(age, monotonic)

    def rate(self, monotonic: float) -> float:
        """Blocks a second: the larger of now and before."""
        at, total = self._samples[0]
        watched = monotonic - at
        if watched < 60:
            return self._rate_before
        return max((self._total + self._own - total) / watched, self._rate_before)


def last_blocks(schema: TableSchema) -> dict[str, int]:
    """The last block's number in each row of numbers that the engine keeps; {} where none may be seen."""
    if keeps_tokens_in_keeper(schema.engine):
        return {partition.name: partition.last_block for partition in schema.partitions}
    if not schema.partitions:
        return {}
    return {"": max(partition.last_block for partition in schema.partitions)}


def past_rate(schema: TableSchema) -> float:
    """Blocks a second in the busiest of the last days' partitions; 0 where nothing tells."""
    fastest = 0.0
    for partition in schema.partitions:
        first = 0 if keeps_tokens_in_keeper(schema.engine) else partition.first_block
        # A day that has hardly begun tells little.
        fastest = max(
            fastest, (partition.last_block - first + 1) / max(3600.0, partition.ended - partition.begun)
        )
    return fastest


def blocks_of_a_week(rate: float) -> int:
    """The window that holds a week's tokens at so many blocks a second, rounded up."""
    wanted = int(_MARGIN * rate * WEEK)
    return min(_MOST_BLOCKS, max(LEAST_WINDOW, -(-wanted // 10_000) * 10_000))
