"""The table that rows go to: what it is now, how rows go in, and how far back it remembers them.

Contract: no task of its own; `read` is called at start and again every now and then, and exports
`exactly_once`. Raises what the sink raises, and `SchemaError`.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from kubenetmon.clickhouse import evidence, probe
from kubenetmon.clickhouse.evidence import Finding, Tracer
from kubenetmon.clickhouse.schema import read_table
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import TableSchema, keeps_tokens_in_keeper
from kubenetmon.clickhouse.window import WindowWatch, blocks_of_a_week
from kubenetmon.clock import Clock
from kubenetmon.metrics import catalogue
from kubenetmon.metrics.registry import Metrics

logger = logging.getLogger(__name__)


class Target:
    """One table on one sink.

    `span` is the age in seconds up to which a batch may be sent again and the token alone must decide;
    `wants_asynchronous` wishes for asynchronous inserts, used where a probe shows them to be exact.
    """

    def __init__(
        self,
        database: str,
        table: str,
        *,
        span: float,
        wants_asynchronous: bool,
        sink: Sink,
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._database, self._table = database, table
        self._span = span
        self._wants_asynchronous = wants_asynchronous
        self._sink = sink
        self._metrics = metrics
        self._clock = clock
        self._watch = WindowWatch(clock.monotonic())
        self._why_synchronous = ""
        self._warned_of = ""
        self.schema: TableSchema | None = None
        """The table as it was last read; None before the first time."""
        self.asynchronous = False
        """Whether inserts may be asynchronous."""

    async def read(self) -> TableSchema:
        """Read the table anew."""
        schema = await read_table(self._sink, self._database, self._table)
        await self._choose_way(schema)
        if self.schema is None:
            logger.info("ClickHouse answers; rows go to %s on %s", schema, self._sink.address)
        self.schema = schema
        self._watch.observe(schema, self._clock.monotonic())
        doubt = self._doubt(schema)
        self._metrics.set(catalogue.EXACTLY_ONCE, 0 if doubt else 1)
        if doubt and doubt != self._warned_of:
            logger.warning("A batch sent again late could count twice: %s", doubt)
        self._warned_of = doubt
        return schema

    def committed(self) -> None:
        """A block has gone in."""
        self._watch.committed()

    @property
    def state(self) -> str:
        """The table and what there is to say of it, in a line."""
        if self.schema is None:
            return f"{self._database}.{self._table}"
        notes = [str(self.schema)]
        if self._why_synchronous:
            notes.append(f"inserts are synchronous: {self._why_synchronous}")
        if doubt := self._doubt(self.schema):
            notes.append(doubt)
        return "; ".join(notes)

    def remembers(self, age: float) -> bool:
        """True when a token that came `age` seconds ago still decides."""
        schema = self.schema
        return schema is None or self._watch.reaches(schema.deduplication, age, self._clock.monotonic())

    @property
    def promises(self) -> bool:
        """False for a table that remembers no tokens at all."""
        return self.schema is None or self.schema.deduplication.blocks > 0

    @property
    def may_keep_tokens_alone(self) -> bool:
        """Whether a server that is killed in an insert may know a token whose rows it does not have: a plain
        MergeTree writes the token to its log, and only then gives the part its name (ClickHouse,
        src/Storages/MergeTree/MergeTreeSink.cpp). Keeper takes both at once."""
        schema = self.schema
        if schema is None or not self.promises:
            return False
        return not keeps_tokens_in_keeper(schema.own_window.engine)

    async def look(self, tracer: Tracer) -> Finding:
        """Ask the table whether the block is there."""
        assert self.schema is not None
        trace = tracer.trace()
        answer = await self._sink.query(evidence.question(self.schema, trace), {"skip_unavailable_shards": 0})
        return evidence.judge(trace, answer)

    async def _choose_way(self, schema: TableSchema) -> None:
        """Asynchronous only where wished for and seen to be exact on this table as it is now."""
        known = self.schema
        same = known is not None and replace(known, partitions=()) == replace(schema, partitions=())
        if same or not self._wants_asynchronous:
            return
        self._why_synchronous = await probe.refusal(self._sink, schema)
        self.asynchronous = not self._why_synchronous
        if self._why_synchronous:
            logger.warning("Inserts are synchronous: %s", self._why_synchronous)
        else:
            logger.info("Inserts are asynchronous; a probe has shown that a repeated token counts once")

    def _doubt(self, schema: TableSchema) -> str:
        """Why the token alone does not decide here; "" where it does."""
        if self._sink.servers > 1 and not schema.one_memory:
            return (
                f"{schema} is not replicated, so that the servers of clickhouse_endpoint do not know each "
                "other's tokens: name one of them, or make the table with `kubenetmon schema apply --cluster`"
            )
        window, now = schema.deduplication, self._clock.monotonic()
        if self._watch.reaches(window, self._span, now):
            return ""
        return (
            f"the deduplication window of {window.blocks} blocks is too short: "
            f"{window.remedy(blocks_of_a_week(self._watch.rate(now)))}"
        )
