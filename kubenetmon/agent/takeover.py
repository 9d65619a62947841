"""Becoming the node's agent: from whoever was it before, or anew.

Contract: `run` returns when this process alone meters the node, conntrack is open, and what the agent before
left in the state directory is in the outbox under its old identity; the collector goes on from where that
agent had sealed. `close` is the reverse, after everything else: conntrack first, the node last.
"""

from __future__ import annotations

import asyncio
import logging

from kubenetmon.agent.batch import serialise
from kubenetmon.agent.collector import Collector
from kubenetmon.agent.conntrack import Conntrack
from kubenetmon.agent.guard import NodeGuard
from kubenetmon.agent.metered import StoredBatch
from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.agent.state import SENT_BY_PUSH, SENT_BY_SUBMIT
from kubenetmon.waiting import to_the_end

logger = logging.getLogger(__name__)


class Takeover:
    """Owns guard and conntrack while they are ours; plain object, no task."""

    def __init__(
        self,
        *,
        conntrack: Conntrack,
        guard: NodeGuard,
        outbox: Outbox,
        collector: Collector,
    ) -> None:
        self._conntrack, self._guard = conntrack, guard
        self._outbox, self._collector = outbox, collector

    @property
    def waiting(self) -> bool:
        """Whether the node may still be another agent's."""
        return not self._guard.held

    async def run(self) -> None:
        """Take the node over. Raises `KubenetmonError`."""
        # Listening before the other lets go: what ends between the two is heard.
        self._conntrack.listen()
        await self._guard.take(self._conntrack.wait)
        # A ledger of a busy node takes longer to check than the event loop may stand still.
        stored, restored = await to_the_end(asyncio.to_thread(self._open))
        resumed = self._conntrack.resumed
        self._outbox.adopt(resumed.epoch, resumed.next_sequence, resumed.next_report, restored)
        for batch, one in zip(self._outbox.waiting(), stored, strict=True):
            if one.sent == SENT_BY_SUBMIT:
                self._outbox.submit_unknown(batch)
        self._collector.resume(resumed.unsealed_from, resumed.unsealed_from_monotonic)
        if resumed.gap or stored:
            logger.info(
                "Going on where the agent before ended: %d batches to send again, %.1fs without a listener",
                len(self._outbox.waiting()),
                resumed.gap,
            )

    def close(self) -> None:
        """Let the node go; safe to call twice."""
        self._conntrack.close()
        self._guard.release()

    def _open(self) -> tuple[list[StoredBatch], list[SealedBatch]]:
        self._conntrack.open()
        stored = self._conntrack.stored_batches()
        return stored, [self._restored(one) for one in stored]

    def _restored(self, stored: StoredBatch) -> SealedBatch:
        message = serialise(
            node_name=self._outbox.node_name,
            epoch=stored.epoch,
            sequence=stored.sequence,
            interval_start=stored.begin,
            interval_end=stored.end,
            ipv4=stored.records.ipv4,
            ipv6=stored.records.ipv6,
        )
        return SealedBatch(
            sequence=stored.sequence,
            report=stored.report,
            message=message,
            records=stored.records.records,
            metered_bytes=stored.records.bytes,
            sealed_at=0.0,
            epoch=stored.epoch,
            went_by_push=stored.sent == SENT_BY_PUSH,
        )
