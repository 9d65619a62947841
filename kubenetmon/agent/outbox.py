"""Sealed batches that wait for their acknowledgement.

Contract: `put` fixes the bytes and the identity of one report for ever; a batch stays here until the server
answered for it (`settle`) and is otherwise never dropped, changed or renumbered. At most `max_reports`
reports wait, or fewer when they are large; then `full` is true and the collector leaves the kernel and the
ledger to count on. A report is one batch or, beyond the records that one message takes, several. Plain data,
no task; `changed` is set whenever a batch comes or goes, for the one sender to wait on. With a state
directory the ledger has stored each batch before it comes here, `adopt` takes up what an agent before left
unanswered, and the files follow what becomes of the batches; without one what is left here when the process
ends is lost with it (`unsettled_bytes` says how much).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from kubenetmon.agent.batch import serialise
from kubenetmon.agent.metered import SealedRecords
from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    AGENT_BATCH_BYTES,
    AGENT_BATCHES,
    AGENT_UNACKNOWLEDGED,
)
from kubenetmon.proto import EPOCH_BYTES, MAX_MESSAGE_BYTES, Outcome

logger = logging.getLogger(__name__)

MAX_REPORTS = 3
"""Reports that wait unacknowledged before sealing pauses."""
MAX_WAITING_BYTES = 2 << 20
"""Bytes of messages that do; one report may be larger, and then it waits alone."""


@dataclass(slots=True, eq=False)
class SealedBatch:
    """One batch; all but `went_by_push` never changes."""

    sequence: int
    report: int
    """Number of the report that it is part of."""
    message: bytes
    """The serialised `FlowBatch`."""
    records: int
    metered_bytes: int
    sealed_at: float
    """Monotonic seconds."""
    epoch: bytes
    """That of the ledger which sealed it."""
    went_by_push: bool = False
    """From the first moment that any of it may have left by Push: it can never go by Submit any more."""


class BatchStore(Protocol):
    """Where batches survive the process."""

    def leaves_by_push(self, sequence: int) -> None:
        """Called before the first byte of it may leave."""

    def leaves_by_submit(self, sequence: int) -> None:
        """Called before the first byte of it may leave."""

    def did_not_leave(self, sequence: int) -> None:
        """Called when it is sure that none of it was processed."""

    def remove(self, sequence: int) -> None:
        """It was answered for."""

    def reject(self, sequence: int, epoch: bytes, reason: str) -> None:
        """It was refused."""


class Outbox:
    """The batches of one ledger, in the order of their sequence."""

    def __init__(
        self,
        node_name: str,
        *,
        metrics: Metrics,
        clock: Clock,
        epoch: bytes | None = None,
        max_reports: int = MAX_REPORTS,
        store: BatchStore | None = None,
    ) -> None:
        self.node_name = node_name
        self.epoch = epoch if epoch is not None else os.urandom(EPOCH_BYTES)
        """Made together with the ledger whose deltas the batches carry."""
        self.changed = asyncio.Event()
        self._metrics, self._clock = metrics, clock
        self._max_reports = max_reports
        self._store = store
        self._waiting: dict[int, SealedBatch] = {}
        self._next_sequence = 1
        self._next_report = 1
        metrics.before_render(self._publish)

    @property
    def full(self) -> bool:
        """Nothing more should be sealed now."""
        batches = self._waiting.values()
        return (
            len({batch.report for batch in batches}) >= self._max_reports
            or sum(len(batch.message) for batch in batches) >= MAX_WAITING_BYTES
        )

    @property
    def empty(self) -> bool:
        """Every batch has been answered for."""
        return not self._waiting

    @property
    def unsettled_bytes(self) -> int:
        """Metered bytes of the batches that wait."""
        return sum(batch.metered_bytes for batch in self._waiting.values())

    def waiting(self) -> list[SealedBatch]:
        """All unanswered batches, oldest first."""
        return list(self._waiting.values())

    def adopt(
        self, epoch: bytes, next_sequence: int, next_report: int, waiting: Sequence[SealedBatch]
    ) -> None:
        """Go on where the ledger of this epoch was left; `waiting`: what was left unanswered, oldest first.

        Before anything was put. Batches keep their identity, which may be of an epoch before.
        """
        assert not self._waiting, "batches are adopted before others are sealed"
        self.epoch = epoch
        self._next_sequence, self._next_report = next_sequence, next_report
        for batch in waiting:
            self._waiting[batch.sequence] = batch
            self._count(batch, "sealed")
        if waiting:
            self.changed.set()

    def put(self, records: Sequence[SealedRecords], interval_start: int, interval_end: int) -> None:
        """Seal one report over [interval_start, interval_end), Unix seconds; no records, no report."""
        if interval_end <= interval_start:
            raise ValueError(f"the interval from {interval_start} to {interval_end} has no length")
        for part in records:
            batch = SealedBatch(
                sequence=self._next_sequence,
                report=self._next_report,
                message=self._serialise(part, interval_start, interval_end),
                records=part.records,
                metered_bytes=part.bytes,
                sealed_at=self._clock.monotonic(),
                epoch=self.epoch,
            )
            self._next_sequence += 1
            self._waiting[batch.sequence] = batch
            self._count(batch, "sealed")
        if records:
            self._next_report += 1
            self.changed.set()

    def settle(self, epoch: bytes, sequence: int, outcome: Outcome, reason: str) -> SealedBatch | None:
        """Take the server's answer for one batch; None when no such batch waits (an ack that came twice).

        COMMITTED forgets it, REJECTED sets it aside for good, anything else leaves it waiting.
        """
        batch = self._waiting.get(sequence)
        if batch is None or batch.epoch != epoch:
            return None
        if outcome is Outcome.COMMITTED:
            self._forget(batch, "committed")
        elif outcome is Outcome.REJECTED:
            if self._store is not None:
                self._store.reject(batch.sequence, batch.epoch, reason)
            self._forget(batch, "rejected")
            logger.error(
                "The server rejected batch %d with %d bytes in %d records, which no report holds now: %s",
                batch.sequence,
                batch.metered_bytes,
                batch.records,
                reason or "no reason given",
            )
        return batch

    def leaves_by_push(self, batch: SealedBatch) -> None:
        """The batch is about to be handed to a Push."""
        if self._store is not None and not batch.went_by_push:
            self._store.leaves_by_push(batch.sequence)
        batch.went_by_push = True

    def leaves_by_submit(self, batch: SealedBatch) -> None:
        """The batch is about to be handed to a Submit: killed from here on, its outcome is unknown."""
        if self._store is not None:
            self._store.leaves_by_submit(batch.sequence)

    def did_not_leave(self, batch: SealedBatch) -> None:
        """The Submit has failed before the server processed anything: the outcome is known again."""
        if self._store is not None:
            self._store.did_not_leave(batch.sequence)

    def submitted(self, batch: SealedBatch) -> None:
        """The original's server confirmed all of the batch."""
        self._forget(batch, "submitted")

    def submit_unknown(self, batch: SealedBatch) -> None:
        """The original's server may or may not have taken the batch: it is not repeated."""
        self._forget(batch, "submit_unknown")

    def _serialise(self, records: SealedRecords, interval_start: int, interval_end: int) -> bytes:
        message = serialise(
            node_name=self.node_name,
            epoch=self.epoch,
            sequence=self._next_sequence,
            interval_start=interval_start,
            interval_end=interval_end,
            ipv4=records.ipv4,
            ipv6=records.ipv6,
        )
        assert len(message) <= MAX_MESSAGE_BYTES, "the ledger seals what fits one message"
        return message

    def _forget(self, batch: SealedBatch, outcome: str) -> None:
        if self._waiting.pop(batch.sequence, None) is not None:
            if self._store is not None:
                self._store.remove(batch.sequence)
            self._count(batch, outcome)
            self.changed.set()

    def _count(self, batch: SealedBatch, outcome: str) -> None:
        self._metrics.add(AGENT_BATCHES, outcome=outcome)
        self._metrics.add(AGENT_BATCH_BYTES, batch.metered_bytes, outcome=outcome)

    def _publish(self) -> None:
        self._metrics.set(AGENT_UNACKNOWLEDGED, len(self._waiting))
