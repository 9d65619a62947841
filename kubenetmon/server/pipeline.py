"""From a batch to rows in ClickHouse, once.

Contract: `process` answers when the batch is settled: committed, or to be sent again. It may be called any
number of times with one identity, at once or one after another: the batch is inserted once, all callers get
the one answer, and a caller that is cancelled changes nothing. Every batch's bytes and packets end up as
committed, ignored with a reason, handed back or pending, and nowhere else.

Attribution and encoding run in one worker thread, one batch at a time, over a snapshot taken on the event
loop; at most `inserters` batches are encoded and tried at once, and blocks take about `encoded_limit` bytes,
those that wait aside for ClickHouse to take them included; the others wait as the arrays they came in, which
is a fifth. One that waits aside keeps no turn, and goes back to its agent where its memory is wanted.
At shutdown the inserter hands back what it cannot commit; then every `process` returns and `close` ends the
thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from kubenetmon.clickhouse.block import Block, encode
from kubenetmon.clickhouse.evidence import Tracer
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.clock import Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.metrics import Metrics, MetricSpec, catalogue
from kubenetmon.model import FlowBatch, empty_records
from kubenetmon.proto import Outcome
from kubenetmon.server import rows
from kubenetmon.server.attributed import NOTHING_IGNORED, Attributed, Ignored, NoSide, Peer
from kubenetmon.server.attribution import Attributor
from kubenetmon.server.latecomers import Latecomers
from kubenetmon.server.moved import Digest, digest
from kubenetmon.server.pacing import ReportPacing
from kubenetmon.server.places import Place, Places
from kubenetmon.server.ranges.table import RangeTable
from kubenetmon.server.rates import Rates
from kubenetmon.server.snapshot import Addresses, ClusterView, Family, Snapshot
from kubenetmon.server.unattributed import Unattributed
from kubenetmon.server.verdict import Verdict

logger = logging.getLogger(__name__)

_REMEMBERED = 16384
"""How many committed identities are remembered, so that a repeated one costs no insert."""

_USUAL_BLOCK_BYTES = 300.0
"""Of the two rows that a record becomes, with names of usual length."""
_VERDICTS = {
    CommitOutcome.HANDED_BACK: Verdict(Outcome.RETRY_LATER, "the server is stopping"),
    CommitOutcome.UNDECIDED: Verdict(
        Outcome.RETRY_LATER,
        "ClickHouse no longer knows whether it holds this batch; the server's /ready says what to do",
    ),
    CommitOutcome.YIELDED: Verdict(
        Outcome.RETRY_LATER,
        "ClickHouse does not take this batch, and others wait for its room; the server's log says why",
    ),
    CommitOutcome.DROPPED: Verdict(
        Outcome.REJECTED, "the server's configuration says to drop what ClickHouse does not take"
    ),
}


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """`inserters`: batches that are encoded and inserted at once; `encoded_limit`: bytes of their blocks."""

    rows: rows.RowsConfig
    inserters: int = 20
    encoded_limit: int = 32 << 20


class RangesHolder(Protocol):
    """Whoever keeps the cloud ranges current."""

    @property
    def table(self) -> RangeTable:
        """The ranges in use now."""
        ...


class PeerView(Protocol):
    """Whoever knows another cluster."""

    def peer(self) -> Peer:
        """That cluster as known now."""
        ...


class BlockInserter(Protocol):
    """Whoever commits blocks to ClickHouse."""

    async def wait_schema(self) -> TableSchema:
        """The table's columns, as soon as they are known."""
        ...

    async def commit(
        self, block: Block, token: str, tracer: Tracer | None = None, place: Place | None = None
    ) -> CommitOutcome:
        """Insert the block once; return when ClickHouse holds it, or why it does not."""
        ...


@dataclass(slots=True)
class _Leftover:
    """What of a batch makes no rows, or rows that may be another's."""

    ignored: dict[str, Ignored] = field(default_factory=dict)
    no_side: Mapping[str, NoSide] = field(default_factory=dict)
    ambiguous: Ignored = NOTHING_IGNORED

    def add(self, reason: str, part: Ignored) -> None:
        self.ignored[reason] = self.ignored.get(reason, NOTHING_IGNORED) + part


@dataclass(frozen=True, slots=True)
class _Waits:
    """That a batch is better attributed a little later, and for whose sake."""

    latecomers: Latecomers
    strangers: Mapping[Family, Addresses]


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
        pacing: ReportPacing,
        metrics: Metrics,
        clock: Clock,
        unattributed: Unattributed,
        peers: Sequence[PeerView] = (),
        latecomers: Latecomers | None = None,
        rates: Rates | None = None,
    ) -> None:
        """Without an inserter batches are attributed, counted and acknowledged, and nothing is stored.

        Without `latecomers` no batch waits for pods. `rates` is told of every batch that is settled.
        """
        self._config = config
        self._cluster = cluster
        self._ranges = ranges
        self._attributor = attributor
        self._inserter = inserter
        self._pacing = pacing
        self._metrics = metrics
        self._clock = clock
        self._rates = rates
        self._unattributed = unattributed
        self._peers = peers
        self._latecomers = latecomers
        self._in_flight: dict[str, asyncio.Task[Verdict]] = {}
        self._committed: OrderedDict[str, None] = OrderedDict()
        self._places = Places(config.inserters, config.encoded_limit)
        self._block_bytes_per_record = _USUAL_BLOCK_BYTES
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="attribution")
        self._pending = {"bytes": 0, "packets": 0}

    async def process(self, batch: FlowBatch, received_at: float, *, sender_keeps: bool = True) -> Verdict:
        """Settle the batch; `received_at` is when it came, in the clock's Unix seconds.

        What its sender does not keep is handed back at shutdown only.
        """
        joined = self.join(batch)
        if joined is not None:
            return await joined()
        token = batch.identity.token
        task = asyncio.create_task(self._settle(batch, received_at, sender_keeps), name=f"batch {token}")
        self._in_flight[token] = task
        task.add_done_callback(lambda _: self._in_flight.pop(token, None))
        return await asyncio.shield(task)

    def join(self, batch: FlowBatch) -> Callable[[], Awaitable[Verdict]] | None:
        """What waits for the verdict of an earlier copy of this batch, or None where there is none.

        What is returned is inert until called, and keeps no hold of the batch: during an outage agents send
        the same batches again and again, and only one copy of each may stay in memory.
        """
        token = batch.identity.token
        first = self._in_flight.get(token)
        if first is None and token not in self._committed:
            return None
        return partial(self._joined, first, _amounts(batch))

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

    async def _settle(self, batch: FlowBatch, received_at: float, sender_keeps: bool) -> Verdict:
        amounts = _amounts(batch)
        self._count(catalogue.SERVER_RECEIVED, amounts)
        self._pend(amounts, 1)
        leftover = _Leftover()
        verdict = Verdict(Outcome.RETRY_LATER, "the server is stopping")
        try:
            waiting_since = self._clock.monotonic()
            async with self._places.take(self._size(batch), yields=sender_keeps) as place:
                waited = (self._clock.monotonic() - waiting_since) * 1e6
                self._metrics.observe(catalogue.ENQUEUE_WAIT, waited, type="succeeded")
                stored = await self._store(batch, received_at, leftover, place)
            if isinstance(stored, _Waits):
                # Without a place: who waits for a pod keeps no one else waiting.
                await stored.latecomers.wait(stored.strangers)
                async with self._places.take(self._size(batch), yields=sender_keeps) as place:
                    stored = await self._store(batch, received_at, leftover, place, patient=False)
            assert isinstance(stored, Verdict)
            verdict = stored
        except KubenetmonError as error:
            logger.error("Batch %s waits at the agent: %s", batch.identity.token, error)
            self._metrics.add(catalogue.SERVER_ERRORS, type="enqueuing_failed")
            verdict = Verdict(Outcome.RETRY_LATER, str(error))
        except Exception:
            logger.exception("Batch %s waits at the agent: it could not be processed", batch.identity.token)
            self._metrics.add(catalogue.SERVER_ERRORS, type="labeling_failed")
            verdict = Verdict(Outcome.RETRY_LATER, "the server failed to process it; its log says why")
        finally:
            self._pend(amounts, -1)
            if verdict.outcome is Outcome.RETRY_LATER:
                self._count(catalogue.SERVER_HANDED_BACK, amounts)
            else:
                self._count_settled(batch, amounts, leftover)
            if verdict.outcome is Outcome.COMMITTED:
                self._remember(batch.identity.token)
        return verdict

    def _size(self, batch: FlowBatch) -> int:
        """About what the batch's block will take in bytes."""
        return int(len(batch) * self._block_bytes_per_record)

    async def _store(
        self,
        batch: FlowBatch,
        received_at: float,
        leftover: _Leftover,
        place: Place,
        *,
        patient: bool = True,
    ) -> Verdict | _Waits:
        """Attribute, encode, commit; fills `leftover` with what makes no rows.

        One that is patient and meets pods it does not know gives the batch back, and `leftover` untouched.
        """
        inserter, not_kept = self._inserter, NOTHING_IGNORED
        schema = None if inserter is None else await inserter.wait_schema()
        if schema is not None and not schema.has_ipv6 and len(batch.ipv6):
            # Only the table says whether IPv6 can be kept; without the columns such rows would merge.
            ipv6 = batch.ipv6
            not_kept = Ignored(len(ipv6), ipv6.total_bytes(), ipv6.total_packets())
            batch = replace(batch, ipv6=empty_records(6))
        peers = [view.peer() for view in self._peers]
        attributed, encoded, moved = await asyncio.get_running_loop().run_in_executor(
            self._worker, self._encode, batch, self._cluster.snapshot(), peers, self._ranges.table, schema
        )
        if patient and self._latecomers is not None and attributed.strangers:
            fresh = self._latecomers.fresh(attributed.strangers)
            if fresh:
                return _Waits(self._latecomers, fresh)
        if not_kept.records:
            leftover.add("ipv6", not_kept)
        for reason, part in attributed.ignored.items():
            leftover.add(reason, part)
        leftover.no_side, leftover.ambiguous = attributed.no_side, attributed.ambiguous
        records = len(attributed)
        self._observed("labeled", records)
        self._observed("ignored", sum(part.records for part in leftover.ignored.values()))
        if attributed.empty_region:
            self._metrics.add(
                catalogue.REMOTE_LABELER_ERRORS, attributed.empty_region, type="intra_cloud_empty_region"
            )
        labeled = Ignored(records, attributed.total_bytes(), attributed.total_packets())
        if inserter is None or encoded is None:
            if inserter is None and records:
                leftover.add("disabled", labeled)
            self._show(moved)
            return Verdict(Outcome.COMMITTED)
        del attributed  # what an insert may wait for through an outage is the block
        block, tracer = encoded
        # The longest of late, for the room that the next ones will need.
        self._block_bytes_per_record = max(
            _USUAL_BLOCK_BYTES, 0.9 * self._block_bytes_per_record, len(block.body) / max(1, records)
        )
        self._observed("enqueued", records)
        self._pacing.arrived(batch.interval_end - batch.interval_start)
        begun = self._clock.monotonic()
        outcome = await inserter.commit(block, batch.identity.token, tracer, place)
        if outcome is CommitOutcome.COMMITTED:
            self._pacing.inserted(self._clock.monotonic() - begun)
        else:
            self._observed("dropped", records)
        if outcome is CommitOutcome.UNDECIDED and not place.yields:
            leftover.add("undecided", labeled)  # There is no one to send it again.
            return Verdict(Outcome.COMMITTED)
        if outcome is CommitOutcome.DROPPED:
            leftover.add("dropped", labeled)
        if verdict := _VERDICTS.get(outcome):
            return verdict
        age = max(0.0, self._clock.time() - received_at)
        self._metrics.observe(catalogue.INSERT_BATCH_AGE, age * 1000)
        self._show(moved)
        return Verdict(Outcome.COMMITTED)

    def _show(self, moved: Digest | None) -> None:
        if self._rates is not None and moved is not None:
            self._rates.add(moved)

    def _encode(
        self,
        batch: FlowBatch,
        cluster: Snapshot,
        peers: Sequence[Peer],
        ranges: RangeTable,
        schema: TableSchema | None,
    ) -> tuple[Attributed, tuple[Block, Tracer] | None, Digest | None]:
        """In the worker thread: no block when there is nothing to insert."""
        attributed = self._attributor.attribute(batch, cluster, ranges, peers)
        moved = None
        if self._rates is not None:
            moved = digest(
                attributed, cluster, batch.identity.node_name, batch.interval_start, batch.interval_end
            )
        if schema is None or not len(attributed):
            return attributed, None, moved
        count, columns = rows.columns(attributed, batch, self._config.rows)
        if not count:
            return attributed, None, moved
        tracer = Tracer(
            columns,
            count,
            node=batch.identity.node_name,
            interval_start=batch.interval_start,
            interval_end=batch.interval_end,
        )
        return attributed, (encode(columns, schema, count), tracer), moved

    def _remember(self, token: str) -> None:
        self._committed[token] = None
        if len(self._committed) > _REMEMBERED:
            self._committed.popitem(last=False)

    def _count_settled(self, batch: FlowBatch, amounts: Mapping[str, int], leftover: _Leftover) -> None:
        """What became of a settled batch's bytes and packets: committed = all - ignored."""
        self._unattributed.record(batch.identity.node_name, batch.interval_end, leftover.no_side)
        for unit, amount in (("bytes", leftover.ambiguous.bytes), ("packets", leftover.ambiguous.packets)):
            self._metrics.add(catalogue.AMBIGUOUS_OWNER, amount, unit=unit)
        committed = dict(amounts)
        for reason, part in leftover.ignored.items():
            for unit, amount in (("bytes", part.bytes), ("packets", part.packets)):
                self._metrics.add(catalogue.SERVER_IGNORED, amount, reason=reason, unit=unit)
                committed[unit] -= amount
        for unit, amount in committed.items():
            self._metrics.add(catalogue.SERVER_COMMITTED, amount, unit=unit)

    def _count(self, spec: MetricSpec, amounts: Mapping[str, int]) -> None:
        for unit, amount in amounts.items():
            self._metrics.add(spec, amount, unit=unit)

    def _pend(self, amounts: Mapping[str, int], sign: int) -> None:
        for unit, amount in amounts.items():
            self._pending[unit] += sign * amount
            self._metrics.set(catalogue.SERVER_PENDING, self._pending[unit], unit=unit)

    def _observed(self, what: str, records: int) -> None:
        if records:
            self._metrics.add(catalogue.SERVER_OBSERVATIONS, records, type=what)


def _amounts(batch: FlowBatch) -> dict[str, int]:
    """Bytes and packets of both directions, by unit."""
    return {"bytes": batch.total_bytes(), "packets": batch.total_packets()}
