"""Brings blocks into the table, each once.

Contract: `commit` settles once and never gives up in between. It returns COMMITTED after ClickHouse has said
so, or after a look at the table has shown that the block is there; after an attempt whose outcome is unknown,
ClickHouse's word is not taken where such a look shows that the rows are not. It returns HANDED_BACK when the
inserter stops first; UNDECIDED when the block is older than the table's memory of tokens and the table cannot
tell; DROPPED only where the operator's settings say so. Attempts repeat the same block under the same
token, so that an attempt whose outcome is unknown may be repeated. At most `workers` attempts run at once; an
attempt that may pass later keeps its turn while it waits, which is the limit on a troubled server. What only
an operator can help, and what ClickHouse has answered with errors for `held_delay`, steps aside and does not
stand in the others' way: it is tried again every `held_delay`, and returns YIELDED after such a wait where
others want its room.

`run` reads the table at start and again every now and then, keeps the readiness check `clickhouse` true to
life and exports `exactly_once`. At shutdown `stop` waits `stop_grace` for attempts under way and hands the
rest back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from kubenetmon.clickhouse.attempts import Attempts, Place
from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.evidence import Finding, Tracer
from kubenetmon.clickhouse.failures import code, may_have_stored, needs_an_operator
from kubenetmon.clickhouse.health import ClickHouseHealth
from kubenetmon.clickhouse.insert_settings import check_own, insert_settings
from kubenetmon.clickhouse.sinks import ClickHouseError, Settings, Sink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clickhouse.target import Target
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.metrics import catalogue
from kubenetmon.metrics.registry import Metrics
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

_REMEMBERED = 16384
"""How many batches that left unsettled are remembered until they come again."""

_UNDECIDED = (
    "{}: it is older than the table's memory of tokens, and the table has rows of that node and minute that "
    "may or may not be its own; it stays with its agent, or is counted as undecided where that is the "
    "original's and keeps nothing. Compare, then set clickhouse_undecided to insert or drop while it is sent "
    "again; a longer deduplication window avoids this"
)


class StoppingError(KubenetmonError):
    """The inserter stops before the table could be read; the batch stays with its agent."""


class CommitOutcome(Enum):
    """How a commit settled."""

    COMMITTED = "committed"
    HANDED_BACK = "handed_back"
    UNDECIDED = "undecided"
    YIELDED = "yielded"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class InserterConfig:
    """Durations in seconds.

    `settings` are query settings of the operator's own (insert_quorum, for one). `deduplication_span` is the
    age up to which a batch may be sent again and the token alone must decide. `asynchronous` wishes for
    asynchronous inserts, used where a probe shows them to be exact. `undecided` says what becomes of a batch
    of which the table cannot tell whether it is there; `drop_held_after` how long a batch is held that
    ClickHouse refuses, None for ever. Raises `ConfigurationError` for settings that would undo exactness.
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
    settings: Settings = field(default_factory=dict)
    asynchronous: bool = False
    undecided: Literal["hold", "insert", "drop"] = "hold"
    drop_held_after: float | None = None

    def __post_init__(self) -> None:
        check_own(self.settings)


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
        self._clock = clock
        self._health = ClickHouseHealth(sink.address, readiness=readiness, clock=clock)
        self._slots = asyncio.Semaphore(config.workers)
        self._target = Target(
            config.database,
            config.table,
            span=config.deduplication_span,
            wants_asynchronous=config.asynchronous,
            sink=sink,
            metrics=metrics,
            clock=clock,
        )
        self._schema_known_or_stopping = asyncio.Event()
        self._stopping = asyncio.Event()
        self._under_way = 0
        self._all_settled = asyncio.Event()
        self._all_settled.set()
        self._held = 0
        self._left: OrderedDict[str, tuple[float | None, bool]] = OrderedDict()

    @property
    def schema(self) -> TableSchema | None:
        """The table as it was last read; None before the first time."""
        return self._target.schema

    async def wait_schema(self) -> TableSchema:
        """The table as it was last read, once it has been; raises `StoppingError` when that never comes."""
        await self._schema_known_or_stopping.wait()
        if self._target.schema is None:
            raise StoppingError("the server is stopping before ClickHouse has answered")
        return self._target.schema

    async def run(self) -> None:
        """Read the table until it answers, then every `schema_interval`, sooner while there is trouble."""
        delay = self._config.first_delay
        while True:
            try:
                await self._target.read()
            except KubenetmonError as error:
                self._health.failed(error)
                await self._clock.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
                delay = min(delay * 2, self._config.longest_delay)
                continue
            delay = self._config.first_delay
            self._health.looked(self._target.state)
            self._schema_known_or_stopping.set()
            if not self._health.troubled:
                await self._first_of(self._config.schema_interval, self._health.in_trouble)
            if self._health.troubled:
                await self._clock.sleep(self._config.longest_delay)

    async def stop(self) -> None:
        """Let attempts under way end; every commit still waiting is handed back at once.

        An attempt that ClickHouse leaves without an answer is left to its agent after `stop_grace`.
        """
        self._stopping.set()
        self._schema_known_or_stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_grace):
                await self._all_settled.wait()

    async def commit(
        self, block: Block, token: str, tracer: Tracer | None = None, place: Place | None = None
    ) -> CommitOutcome:
        """Bring the block into the table under its token; see the module's contract.

        Without a `tracer` the block is taken to be fresh; without a `place` it never yields.
        """
        self._under_way += 1
        self._all_settled.clear()
        try:
            batch = Attempts(block, token, tracer, place, self._clock.monotonic())
            batch.held_since, batch.outcome_unknown = self._left.pop(token, (None, False))
            if self._health.came_again(token):
                batch.failing_since = batch.begun
            return await self._commit(batch)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._all_settled.set()

    async def _commit(self, batch: Attempts) -> CommitOutcome:
        delay = self._config.first_delay
        try:
            while not self._stopping.is_set():
                if not await self._take_slot():
                    break
                try:
                    while not self._stopping.is_set():
                        try:
                            outcome = await self._attempt(batch)
                        except KubenetmonError as error:
                            self._attempt_failed(batch, error)
                            if self._steps_aside(batch, error):
                                break
                            await self._pause(delay, self._health.took_rows)
                            delay = min(delay * 2, self._config.longest_delay)
                        else:
                            self._settled(batch, outcome)
                            return outcome
                finally:
                    self._slots.release()
                if await self._hold(batch):
                    self._settled(batch, CommitOutcome.DROPPED)
                    return CommitOutcome.DROPPED
                if batch.place is not None and batch.place.wanted and not self._stopping.is_set():
                    self._remember(batch)
                    self._health.went_back(batch.token)
                    batch.failing_since = None
                    return CommitOutcome.YIELDED
            return CommitOutcome.HANDED_BACK
        finally:
            if batch.failing_since is not None:
                self._health.no_longer_fails()

    async def _attempt(self, batch: Attempts) -> CommitOutcome:
        """One attempt; raises what stands in its way."""
        if batch.attempts:
            self._metrics.add(catalogue.INSERT_RETRIES)
        batch.attempts += 1
        try:
            found = await self._find(batch)
            if found is Finding.PRESENT:
                logger.info("The table holds batch %s already", batch.token)
                return CommitOutcome.COMMITTED
            if found is Finding.UNDECIDED and self._config.undecided == "drop":
                logger.error("Dropped, as clickhouse_undecided says: %s", batch)
                return CommitOutcome.DROPPED
            if found is Finding.UNDECIDED and self._config.undecided == "hold":
                self._health.undecided(_UNDECIDED.format(batch))
                self._remember(batch)
                return CommitOutcome.UNDECIDED
            # The way is chosen once: both have memories of tokens of their own in older replicated tables.
            if batch.settings is None:
                batch.settings = insert_settings(
                    self._target.schema,
                    batch.token,
                    self._config.settings,
                    asynchronous=self._target.asynchronous,
                )
            await self._insert(batch, batch.settings)
            if await self._only_the_token_is_there(batch):
                logger.warning("ClickHouse was killed in an insert and has its token alone: %s, anew", batch)
                self._metrics.add(catalogue.TOKENS_WITHOUT_ROWS)
                batch.tokens_spent += 1
                await self._insert(batch, batch.settings)
        except KubenetmonError as error:
            self._metrics.add(catalogue.WORKER_ERRORS, type="flush_batch_failed")
            self._metrics.add(catalogue.CLICKHOUSE_ERRORS, code=str(code(error)))
            raise
        return CommitOutcome.COMMITTED

    async def _insert(self, batch: Attempts, settings: Settings) -> None:
        try:
            await self._sink.insert(
                self._config.database, self._config.table, batch.block, batch.insert_token, settings
            )
        except KubenetmonError as error:
            batch.outcome_unknown |= may_have_stored(error, self._target.schema)
            raise

    async def _only_the_token_is_there(self, batch: Attempts) -> bool:
        """Whether ClickHouse took an insert for a repetition of one that a kill has taken the rows of."""
        if not batch.outcome_unknown or batch.tracer is None or not self._target.may_keep_tokens_alone:
            return False
        try:
            return await self._target.look(batch.tracer) is Finding.ABSENT
        except ClickHouseError as error:
            if not needs_an_operator(error):
                raise
            return False  # Who may only insert has to take its word.

    def _attempt_failed(self, batch: Attempts, error: KubenetmonError) -> None:
        if batch.failing_since is None:
            batch.failing_since = self._clock.monotonic()
            self._health.began_to_fail()
        self._health.failed(error)
        batch.needs_an_operator = needs_an_operator(error)

    def _steps_aside(self, batch: Attempts, error: KubenetmonError) -> bool:
        """True where others may fare better: this one is refused, not ClickHouse out of reach."""
        if batch.needs_an_operator:
            return True
        assert batch.failing_since is not None
        failing = self._clock.monotonic() - batch.failing_since
        return isinstance(error, ClickHouseError) and failing >= self._config.held_delay

    def _remember(self, batch: Attempts) -> None:
        """For when the batch comes again: since when it is held, and whether it may be in the table."""
        self._left[batch.token] = batch.held_since, batch.outcome_unknown
        if len(self._left) > _REMEMBERED:
            self._left.popitem(last=False)

    async def _find(self, batch: Attempts) -> Finding:
        """Whether the block is in the table; ABSENT without a look where the token alone decides."""
        now = self._clock.monotonic()
        if batch.tracer is None:
            return Finding.ABSENT
        if batch.absent_at is not None:  # Whoever has inserted it since has left a token since.
            age = now - batch.absent_at
        else:
            age = max(self._clock.time() - batch.tracer.interval_end, now - batch.begun)
        if self._target.remembers(max(0.0, age)):
            return Finding.ABSENT
        found = await self._target.look(batch.tracer)
        self._metrics.add(catalogue.OLD_BATCHES, found=found.value)
        if found is Finding.UNDECIDED and not (self._target.promises or batch.outcome_unknown):
            return Finding.ABSENT  # The first attempt goes ahead.
        if found is Finding.ABSENT:
            batch.absent_at = now
        return found

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

    async def _hold(self, batch: Attempts) -> bool:
        """Wait aside before the next attempt; True when the operator's settings drop the batch instead."""
        if self._stopping.is_set():
            return False
        if batch.place is not None:
            batch.place.step_aside()
        now = self._clock.monotonic()
        if batch.held_since is None:
            batch.held_since = now
        left = self._config.held_delay
        if self._config.drop_held_after is not None:
            left = min(left, batch.held_since + self._config.drop_held_after - now)
            if left <= 0 and not batch.outcome_unknown:  # What may be in the table is never dropped.
                logger.error("Dropped, as clickhouse_drop_held_after says: %s", batch)
                return True
        self._count_held(int(batch.needs_an_operator))
        try:
            await self._pause(left if left > 0 else self._config.held_delay, self._health.looked_again)
        finally:
            self._count_held(-int(batch.needs_an_operator))
        return False

    def _count_held(self, more: int) -> None:
        self._held += more
        self._metrics.set(catalogue.HELD_BATCHES, self._held)

    async def _pause(self, seconds: float, sign: asyncio.Event) -> None:
        """Wait with jitter; end early when the inserter stops or at a sign that ClickHouse is well again."""
        await self._first_of(seconds * random.uniform(0.5, 1.0), self._stopping, sign)  # noqa: S311 - jitter

    async def _first_of(self, seconds: float, *events: asyncio.Event) -> None:
        """Wait until any is set, or so long."""
        waits: list[asyncio.Task[Any]] = [asyncio.create_task(event.wait()) for event in events]
        waits.append(asyncio.create_task(self._clock.sleep(seconds)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _settled(self, batch: Attempts, outcome: CommitOutcome) -> None:
        if batch.failing_since is not None:
            batch.failing_since = None
            self._health.no_longer_fails()
        if outcome is CommitOutcome.UNDECIDED:
            return
        what = "inserted" if outcome is CommitOutcome.COMMITTED else "dropped"
        self._metrics.add(catalogue.WORKER_ROWS, batch.block.rows, type=what)
        self._metrics.add(catalogue.WORKER_BATCHES, type=what)
        milliseconds = (self._clock.monotonic() - batch.begun) * 1e3
        self._metrics.observe(catalogue.INSERT_WAIT, milliseconds, type=what)
        if outcome is CommitOutcome.COMMITTED:
            self._target.committed()
            self._health.committed(self._target.state)
