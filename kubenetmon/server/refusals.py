"""Who was turned away at the gRPC port, and why: counted, and said ever more rarely.

Contract: plain data, no task, nothing to shut down. A reason's first, second, fourth, eighth… refusal is
logged, so that no number of peers makes a log grow, and nothing is kept of a peer.
"""

from __future__ import annotations

import logging

from kubenetmon.metrics import Metrics, catalogue

logger = logging.getLogger(__name__)

Reason = catalogue.RefusalReason


class Refusals:
    """The counters of one process."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._counts: dict[Reason, int] = {}

    def count(self, reason: Reason, peer: str, text: str) -> None:
        """One more: `peer` as address and port, `text` as what it did."""
        count = self._counts[reason] = self._counts.get(reason, 0) + 1
        self._metrics.add(catalogue.SERVER_REFUSED, reason=reason)
        if count & (count - 1) == 0:
            logger.warning("Refused %s: %s (%d for this reason so far)", peer, text, count)
