"""When each waiting batch may go out.

Plain data, no task. A report goes out a random delay after it was sealed, the same for the whole life of the
process, so that a cluster's agents, which all seal at the turn of the minute, do not all send then. A batch
that the server asked to have again later waits longer each time. In a hurry there is no first delay.
"""

from __future__ import annotations

import random
from collections.abc import Container
from dataclasses import dataclass

from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.clock import Clock


@dataclass(frozen=True, slots=True)
class Backoff:
    """Seconds between attempts: `first`, then twice as long each time up to `longest`, half of it random."""

    first: float = 1.0
    longest: float = 30.0

    def pause(self, failures: int, chance: random.Random) -> float:
        """After so many failures in a row; 0 failures: half of `first`."""
        return min(self.first * 2.0 ** min(failures - 1, 20), self.longest) * chance.uniform(0.5, 1.0)


class Schedule:
    """The due times of one outbox's batches."""

    def __init__(
        self, outbox: Outbox, *, jitter: float, backoff: Backoff, clock: Clock, chance: random.Random
    ) -> None:
        self.hurry = False
        """The process is stopping: first delays are over, later ones short."""
        self._outbox, self._clock, self._chance = outbox, clock, chance
        self._delay = chance.uniform(0.0, jitter)
        self._backoff = backoff
        self._retries: dict[int, tuple[int, float]] = {}

    def due(self, batch: SealedBatch) -> float:
        """Monotonic time from which the batch may go out."""
        _, not_before = self._retries.get(batch.sequence, (0, 0.0))
        return not_before if self.hurry else max(not_before, batch.sealed_at + self._delay)

    def next_due(self, leave_out: Container[int]) -> SealedBatch | None:
        """The oldest batch that may go out now and whose sequence is not in `leave_out`."""
        now = self._clock.monotonic()
        for batch in self._outbox.waiting():
            if batch.sequence not in leave_out and self.due(batch) <= now:
                return batch
        return None

    def until_due(self, leave_out: Container[int] = ()) -> float | None:
        """Seconds until a batch that is not in `leave_out` may go out; None: there is no such batch."""
        now = self._clock.monotonic()
        dues = [self.due(batch) for batch in self._outbox.waiting() if batch.sequence not in leave_out]
        return max(0.0, min(dues) - now) if dues else None

    def retry_later(self, batch: SealedBatch) -> float:
        """Put the batch off; returns for how many seconds."""
        attempts, _ = self._retries.get(batch.sequence, (0, 0.0))
        pause = self._backoff.pause(1 if self.hurry else attempts + 1, self._chance)
        self._retries[batch.sequence] = (attempts + 1, self._clock.monotonic() + pause)
        return pause

    def settled(self, batch: SealedBatch) -> None:
        """The batch waits no more."""
        self._retries.pop(batch.sequence, None)
