"""From a batch to rows in ClickHouse, once.

Contract: `process` answers when the batch is settled: committed, or to be sent again. It may be called any
number of times with one identity, at once or one after another: the batch is inserted once, all callers get
the one answer, and a caller that is cancelled changes nothing. Every batch's bytes and packets end up as
committed, ignored with a reason, handed back or pending, and nowhere else.

Attribution and encoding run in one worker thread, one batch at a time, over a snapshot taken on the event
loop; at most `inserters` batches are held in encoded form, the others wait as the arrays they came in.
At shutdown the inserter hands back what it cannot commit; then every `process` returns and `close` ends the
thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Protocol

from kubenetmon.clickhouse.block import Block, encode
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clock import Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.metrics import Metrics, MetricSpec, catalogue
from kubenetmon.model import FlowBatch, empty_records
from kubenetmon.proto import Outcome
from kubenetmon.server import rows
from kubenetmon.server.attribution import Attributed, Attributor, Ignored
from kubenetmon.server.ranges.table import RangeTable
from kubenetmon.server.rates import Digest, Rates, digest
from kubenetmon.server.snapshot import ClusterView, Snapshot
from kubenetmon.server.verdict import Verdict

logger = logging.getLogger(__name__)

_REMEMBERED = 16384
"""How many committed identities are remembered, so that a repeated one costs no insert."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """`inserters`: batches that are encoded and inserted at once."""

    rows: rows.RowsConfig
    inserters: int = 20


class RangesHolder(Protocol):
    """Whoever keeps the cloud ranges current."""

    @property
    def table(self) -> RangeTable:
        """The ranges in use now."""
        ...


class BlockInserter(Protocol):
    """Whoever commits blocks to ClickHouse."""

    async def wait_schema(self) -> TableSchema:
        """The table's columns, as soon as they are known."""
        ...

    async def commit(self, block: Block, token: str) -> CommitOutcome:
        """Insert the block once; return when ClickHouse holds it, or when it was handed back."""
        ...


class Pipeline:
    """Attributes, encodes and inserts batches."""

    def __init__(
        self,
        config: PipelineConfig,
        *,
        cluster: ClusterView,
        ranges: RangesHolder,
        attributor: Attributor,
        inserter: BlockInserter | None,
        metrics: Metrics,
        clock: Clock,
        rates: Rates | None = None,
    ) -> None:
        """Without an inserter batches are attributed, counted and acknowledged, and nothing is stored.

        `rates` is told of every batch that is settled.
        """
        self._config = config
        self._cluster = cluster
        self._ranges = ranges
        self._attributor = attributor
        self._inserter = inserter
        self._metrics = metrics
        self._clock = clock
        self._rates = rates
        self._in_flight: dict[str, asyncio.Task[Verdict]] = {}
        self._committed: OrderedDict[str, None] = OrderedDict()
        self._slots = asyncio.Semaphore(config.inserters)
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="attribution")
        self._pending = {"bytes": 0, "packets": 0}

    async def process(self, batch: FlowBatch, received_at: float) -> Verdict:
        """Settle the batch; `received_at` is when it came, in the clock's Unix seconds."""
        joined = self.join(batch)
        if joined is not None:
            return await joined
        token = batch.identity.token
        task = asyncio.create_task(self._settle(batch, received_at), name=f"batch {token}")
        self._in_flight[token] = task
        task.add_done_callback(lambda _: self._in_flight.pop(token, None))
        return await asyncio.shield(task)

    def join(self, batch: FlowBatch) -> asyncio.Task[Verdict] | None:
        """The verdict of an earlier copy of this batch, or None where there is none.

        What is returned keeps no hold of the batch: during an outage agents send the same batches again and
        again, and only one copy of each may stay in memory.
        """
        token, amounts = batch.identity.token, _amounts(batch)
        first = self._in_flight.get(token)
        if first is None and token not in self._committed:
            return None
        return asyncio.create_task(self._joined(first, amounts))

    def close(self) -> None:
        """End the worker thread once it has finished what it is at."""
        self._worker.shutdown(wait=False)

    async def _joined(self, first: asyncio.Task[Verdict] | None, amounts: dict[str, int]) -> Verdict:
        verdict = Verdict(Outcome.COMMITTED) if first is None else await asyncio.shield(first)
        if verdict.outcome is Outcome.COMMITTED:
            for unit, amount in amounts.items():
                self._metrics.add(catalogue.SERVER_RECEIVED, amount, unit=unit)
                self._metrics.add(catalogue.SERVER_IGNORED, amount, reason="duplicate", unit=unit)
        return verdict

    async def _settle(self, batch: FlowBatch, received_at: float) -> Verdict:
        self._count(catalogue.SERVER_RECEIVED, batch)
        self._pend(batch, 1)
        ignored: dict[str, Ignored] = {}
        verdict = Verdict(Outcome.RETRY_LATER, "the server is stopping")
        try:
            waiting_since = self._clock.monotonic()
            async with self._slots:
                waited = (self._clock.monotonic() - waiting_since) * 1e6
                self._metrics.observe(catalogue.ENQUEUE_WAIT, waited, type="succeeded")
                verdict = await self._store(batch, received_at, ignored)
        except KubenetmonError as error:
            logger.error("Batch %s waits at the agent: %s", batch.identity.token, error)
            self._metrics.add(catalogue.SERVER_ERRORS, type="enqueuing_failed")
            verdict = Verdict(Outcome.RETRY_LATER, str(error))
        except Exception:
            logger.exception("Batch %s waits at the agent: it could not be processed", batch.identity.token)
            self._metrics.add(catalogue.SERVER_ERRORS, type="labeling_failed")
            verdict = Verdict(Outcome.RETRY_LATER, "the server failed to process it; its log says why")
        finally:
            self._pend(batch, -1)
            if verdict.outcome is Outcome.COMMITTED:
                self._remember(batch.identity.token)
                self._count_settled(batch, ignored)
            else:
                self._count(catalogue.SERVER_HANDED_BACK, batch)
        return verdict

    async def _store(self, batch: FlowBatch, received_at: float, ignored: dict[str, Ignored]) -> Verdict:
        """Attribute, encode, commit; fills `ignored` with what makes no rows."""
        inserter = self._inserter
        schema = None if inserter is None else await inserter.wait_schema()
        if schema is not None and not schema.has_ipv6 and len(batch.ipv6):
            # Only the table says whether IPv6 can be kept; without the columns such rows would merge.
            ipv6 = batch.ipv6
            ignored["ipv6"] = Ignored(len(ipv6), ipv6.total_bytes(), ipv6.total_packets())
            batch = replace(batch, ipv6=empty_records(6))
        attributed, block, moved = await asyncio.get_running_loop().run_in_executor(
            self._worker, self._encode, batch, self._cluster.snapshot(), self._ranges.table, schema
        )
        for reason, part in attributed.ignored.items():
            before = ignored.get(reason, Ignored(0, 0, 0))
            ignored[reason] = Ignored(
                before.records + part.records, before.bytes + part.bytes, before.packets + part.packets
            )
        records = len(attributed)
        self._observed("labeled", records)
        self._observed("ignored", sum(part.records for part in ignored.values()))
        if attributed.empty_region:
            self._metrics.add(
                catalogue.REMOTE_LABELER_ERRORS, attributed.empty_region, type="intra_cloud_empty_region"
            )
        if inserter is None and records:
            ignored["disabled"] = Ignored(records, attributed.total_bytes(), attributed.total_packets())
        elif inserter is not None and block is not None:
            self._observed("enqueued", records)
            outcome = await inserter.commit(block, batch.identity.token)
            if outcome is not CommitOutcome.COMMITTED:
                self._observed("dropped", records)
                return Verdict(Outcome.RETRY_LATER, "the server is stopping")
            age = max(0.0, self._clock.time() - received_at)
            self._metrics.observe(catalogue.INSERT_BATCH_AGE, age * 1000)
        if self._rates is not None and moved is not None:
            self._rates.add(moved)
        return Verdict(Outcome.COMMITTED)

    def _encode(
        self, batch: FlowBatch, cluster: Snapshot, ranges: RangeTable, schema: TableSchema | None
    ) -> tuple[Attributed, Block | None, Digest | None]:
        """In the worker thread: no block when there is nothing to insert."""
        attributed = self._attributor.attribute(batch, cluster, ranges)
        moved = None
        if self._rates is not None:
            moved = digest(attributed, batch.interval_start, batch.interval_end)
        if schema is None or not len(attributed):
            return attributed, None, moved
        count, columns = rows.columns(attributed, batch, self._config.rows)
        return attributed, encode(columns, schema, count) if count else None, moved

    def _remember(self, token: str) -> None:
        self._committed[token] = None
        if len(self._committed) > _REMEMBERED:
            self._committed.popitem(last=False)

    def _count_settled(self, batch: FlowBatch, ignored: dict[str, Ignored]) -> None:
        """What became of a committed batch's bytes and packets: committed = all - ignored."""
        committed = _amounts(batch)
        for reason, part in ignored.items():
            for unit, amount in (("bytes", part.bytes), ("packets", part.packets)):
                self._metrics.add(catalogue.SERVER_IGNORED, amount, reason=reason, unit=unit)
                committed[unit] -= amount
        for unit, amount in committed.items():
            self._metrics.add(catalogue.SERVER_COMMITTED, amount, unit=unit)

    def _count(self, spec: MetricSpec, batch: FlowBatch) -> None:
        for unit, amount in _amounts(batch).items():
            self._metrics.add(spec, amount, unit=unit)

    def _pend(self, batch: FlowBatch, sign: int) -> None:
        for unit, amount in _amounts(batch).items():
            self._pending[unit] += sign * amount
            self._metrics.set(catalogue.SERVER_PENDING, self._pending[unit], unit=unit)

    def _observed(self, what: str, records: int) -> None:
        if records:
            self._metrics.add(catalogue.SERVER_OBSERVATIONS, records, type=what)


def _amounts(batch: FlowBatch) -> dict[str, int]:
    """Bytes and packets of both directions, by unit."""
    return {"bytes": batch.total_bytes(), "packets": batch.total_packets()}
