"""Brings blocks into the table, each once.

Contract: `commit` returns COMMITTED after ClickHouse has said so, or HANDED_BACK when the inserter stops
first; it settles once and never gives up in between. Attempts repeat the same block under the same token,
so that an attempt whose outcome is unknown may be repeated. At most `workers` attempts run at once; an
attempt that may pass later keeps its place while it waits, which is the limit on a troubled server; a batch
that only an operator can help is held apart and does not stand in the others' way.

`run` reads the table at start and again every now and then, keeps the readiness check `clickhouse` true to
life and exports `exactly_once`. At shutdown `stop` waits `stop_grace` for attempts under way and hands the
rest back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.failures import advice, code, needs_an_operator
from kubenetmon.clickhouse.schema import read_table
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.metrics import catalogue
from kubenetmon.metrics.registry import Metrics
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

CHECK = "clickhouse"
_LEAST_BETWEEN_WAKES = 1.0


class StoppingError(KubenetmonError):
    """The inserter stops before the table could be read; the batch stays with its agent."""


class CommitOutcome(Enum):
    """How a commit settled."""

    COMMITTED = "committed"
    HANDED_BACK = "handed_back"


@dataclass(frozen=True, slots=True)
class InserterConfig:
    """Durations in seconds.

    `settings` are query settings of the operator's own (insert_quorum, for one) and win over ours.
    `deduplication_span` is the age up to which a batch may be sent again and still must not double.
    """

    database: str
    table: str
    workers: int = 20
    first_delay: float = 0.2
    longest_delay: float = 15.0
    held_delay: float = 30.0
    schema_interval: float = 60.0
    deduplication_span: float = 3600.0
    stop_grace: float = 5.0
    settings: Mapping[str, str | int] = field(default_factory=dict)


class Inserter:
    """The component between the pipeline and a `Sink`; it does not own the sink."""

    name = "clickhouse inserter"

    def __init__(
        self,
        config: InserterConfig,
        *,
        sink: Sink,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config = config
        self._sink = sink
        self._metrics = metrics
        self._readiness = readiness
        self._clock = clock
        self._slots = asyncio.Semaphore(config.workers)
        self._schema: TableSchema | None = None
        self._schema_known_or_stopping = asyncio.Event()
        self._stopping = asyncio.Event()
        self._looked_again = asyncio.Event()
        self._took_rows = asyncio.Event()
        self._last_wake = -_LEAST_BETWEEN_WAKES
        self._under_way = 0
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._held = 0
        self._failing = 0
        self._troubles: set[tuple[str, int]] = set()
        self._commit_times: tuple[float, int] = (clock.monotonic(), 0)
        self._blocks_per_second = 0.0
        self._warned_of_window = ""
        readiness.expect(CHECK, f"{sink.address} has not answered yet")

    @property
    def schema(self) -> TableSchema | None:
        """The table as it was last read; None before the first time."""
        return self._schema

    async def wait_schema(self) -> TableSchema:
        """The table as it was last read, once it has been; raises `StoppingError` when that never comes."""
        await self._schema_known_or_stopping.wait()
        if self._schema is None:
            raise StoppingError("the server is stopping before ClickHouse has answered")
        return self._schema

    async def run(self) -> None:
        """Read the table until it answers, then every `schema_interval`, sooner while there is trouble."""
        delay = self._config.first_delay
        while True:
            try:
                schema = await read_table(self._sink, self._config.database, self._config.table)
            except KubenetmonError as error:
                self._failed(error)
                await self._clock.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(delay * 2, self._config.longest_delay)
                continue
            delay = self._config.first_delay
            if self._troubles:
                self._looked_again = _woken(self._looked_again)
            if self._schema is None:
                logger.info("ClickHouse answers; rows go to %s on %s", schema, self._sink.address)
            self._schema = schema
            self._schema_known_or_stopping.set()
            self._judge_window(schema)
            if not self._failing:
                self._recovered(schema)
            interval = self._config.longest_delay if self._troubles else self._config.schema_interval
            await self._clock.sleep(interval)

    async def stop(self) -> None:
        """Let attempts under way end; every commit still waiting is handed back at once.

        An attempt that ClickHouse leaves without an answer is left to its agent after `stop_grace`.
        """
        self._stopping.set()
        self._schema_known_or_stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_grace):
                await self._all_settled.wait()

    async def commit(self, block: Block, token: str) -> CommitOutcome:
        """Bring the block into the table under its token; see the module's contract."""
        self._under_way += 1
        self._all_settled.clear()
        try:
            return await self._commit(block, token)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_settled.set()

    async def _commit(self, block: Block, token: str) -> CommitOutcome:
        begun = self._clock.monotonic()
        failing = False
        settings: Mapping[str, str | int] | None = None
        attempt = 0
        delay = self._config.first_delay
        try:
            while not self._stopping.is_set():
                if not await self._take_slot():
                    break
                try:
                    while not self._stopping.is_set():
                        settings = settings or self._settings(token)
                        if attempt:
                            self._metrics.add(catalogue.INSERT_RETRIES)
                        attempt += 1
                        error = await self._attempt(block, token, settings)
                        if error is None:
                            self._failing -= failing
                            failing = False
                            self._committed(block, begun)
                            return CommitOutcome.COMMITTED
                        self._failing += not failing
                        failing = True
                        self._failed(error)
                        if needs_an_operator(error):
                            break
                        await self._pause(delay, self._took_rows)
                        delay = min(delay * 2, self._config.longest_delay)
                finally:
                    self._slots.release()
                await self._hold()
            return CommitOutcome.HANDED_BACK
        finally:
            self._failing -= failing

    async def _attempt(
        self, block: Block, token: str, settings: Mapping[str, str | int]
    ) -> KubenetmonError | None:
        try:
            await self._sink.insert(self._config.database, self._config.table, block, token, settings)
        except KubenetmonError as error:
            self._metrics.add(catalogue.WORKER_ERRORS, type="flush_batch_failed")
            self._metrics.add(catalogue.CLICKHOUSE_ERRORS, code=str(code(error)))
            return error
        return None

    async def _take_slot(self) -> bool:
        """False when the inserter stops before a slot is free."""
        if not self._slots.locked():
            return await self._slots.acquire()
        slot = asyncio.create_task(self._slots.acquire())
        stop = asyncio.create_task(self._stopping.wait())
        try:
            await asyncio.wait([slot, stop], return_when=asyncio.FIRST_COMPLETED)
            return slot.done()
        except BaseException:
            if slot.done() and not slot.cancelled():
                self._slots.release()
            raise
        finally:
            for task in (slot, stop):
                task.cancel()

    async def _hold(self) -> None:
        if self._stopping.is_set():
            return
        self._held += 1
        self._metrics.set(catalogue.HELD_BATCHES, self._held)
        try:
            await self._pause(self._config.held_delay, self._looked_again)
        finally:
            self._held -= 1
            self._metrics.set(catalogue.HELD_BATCHES, self._held)

    async def _pause(self, seconds: float, sign: asyncio.Event) -> None:
        """Wait with jitter; end early when the inserter stops or at a sign that ClickHouse is well again."""
        waits = [
            asyncio.create_task(self._clock.sleep(seconds * random.uniform(0.5, 1.0))),  # noqa: S311 - jitter
            asyncio.create_task(self._stopping.wait()),
            asyncio.create_task(sign.wait()),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _settings(self, token: str) -> Mapping[str, str | int]:
        settings: dict[str, str | int] = {
            "insert_deduplicate": 1,
            "deduplicate_blocks_in_dependent_materialized_views": 1,
            "async_insert": 0,
            "max_insert_threads": 1,
        }
        if self._schema is not None and self._schema.shards:
            # The whole batch on one shard, the same at every attempt: that shard knows the token.
            settings["distributed_foreground_insert"] = 1
            settings["insert_shard_id"] = 1 + zlib.crc32(token.encode()) % self._schema.shards
        return {**settings, **self._config.settings}

    def _committed(self, block: Block, begun: float) -> None:
        self._metrics.add(catalogue.WORKER_ROWS, block.rows, type="inserted")
        self._metrics.add(catalogue.WORKER_BATCHES, type="inserted")
        milliseconds = (self._clock.monotonic() - begun) * 1e3
        self._metrics.observe(catalogue.INSERT_WAIT, milliseconds, type="inserted")
        since, blocks = self._commit_times
        self._commit_times = (since, blocks + 1)
        if self._troubles:
            now = self._clock.monotonic()
            if now - self._last_wake >= _LEAST_BETWEEN_WAKES:
                self._last_wake = now
                self._took_rows = _woken(self._took_rows)
            if self._schema is not None and not self._failing:
                self._recovered(self._schema)

    def _failed(self, error: KubenetmonError) -> None:
        kind = (type(error).__name__, code(error))
        self._readiness.failed(CHECK, advice(error))
        if kind not in self._troubles:  # a line per kind until all is well again
            logger.warning("Rows cannot be stored: %s", advice(error), extra={"clickhouse_code": kind[1]})
            self._troubles.add(kind)

    def _recovered(self, schema: TableSchema) -> None:
        if self._troubles:
            logger.info("ClickHouse takes rows again")
        self._troubles.clear()
        self._readiness.passed(CHECK, f"{schema} on {self._sink.address}{self._window_note(schema)}")

    def _judge_window(self, schema: TableSchema) -> None:
        now = self._clock.monotonic()
        since, blocks = self._commit_times
        if now - since >= self._config.schema_interval:
            self._blocks_per_second = blocks / (now - since)
            self._commit_times = (now, 0)
        note = self._window_note(schema)
        self._metrics.set(catalogue.EXACTLY_ONCE, 0 if note else 1)
        if note and note != self._warned_of_window:
            logger.warning("A batch sent again late would count twice%s", note)
        self._warned_of_window = note

    def _window_note(self, schema: TableSchema) -> str:
        window = schema.deduplication
        if window.covers(self._blocks_per_second, self._config.deduplication_span):
            return ""
        return (
            f"; the deduplication window of {window.blocks} blocks is too short to rule out doubles: "
            f"{window.remedy}"
        )


def _woken(event: asyncio.Event) -> asyncio.Event:
    """Wake who waits for the event; a new one for who waits next."""
    event.set()
    return asyncio.Event()
