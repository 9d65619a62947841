"""How ClickHouse is, as /ready and the log show it, and a sign for those who wait for it to be well again.

Contract: plain data, no task. One line in the log for each kind of trouble until all is well again, however
many attempts fail. Two checks: `clickhouse` (does it take rows?) and `old batches` (is one held because the
table cannot tell whether it is there?).
"""

from __future__ import annotations

import asyncio
import logging

from kubenetmon.clickhouse.failures import advice, code
from kubenetmon.clock import Clock
from kubenetmon.errors import KubenetmonError
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

CHECK = "clickhouse"
OLD_BATCHES_CHECK = "old batches"
_LEAST_BETWEEN_WAKES = 1.0
_NO_OLD_BATCHES = "none waits for a decision"
_SHOWN_FOR = 600.0
_AWAY_FOR = 120.0
"""How long a refused batch counts that went back to its agent, which sends it again within a minute."""


class ClickHouseHealth:
    """Owns the readiness checks named above."""

    def __init__(self, address: str, *, readiness: Readiness, clock: Clock) -> None:
        self._address = address
        self._readiness = readiness
        self._clock = clock
        self._troubles: set[tuple[str, int]] = set()
        self._failing = 0
        self._away: dict[str, float] = {}
        self._last_wake = -_LEAST_BETWEEN_WAKES
        self._undecided_at: float | None = None
        self.in_trouble = asyncio.Event()
        """Set while `troubled`."""
        self.looked_again = asyncio.Event()
        """Set, and replaced by a new one, when the table has been read again in times of trouble."""
        self.took_rows = asyncio.Event()
        """Likewise when a block has been committed in times of trouble."""
        readiness.expect(CHECK, f"{address} has not answered yet")
        readiness.passed(OLD_BATCHES_CHECK, _NO_OLD_BATCHES)

    @property
    def troubled(self) -> bool:
        """True from the first failure until all is well again."""
        return bool(self._troubles)

    def began_to_fail(self) -> None:
        """One more batch has failed and not yet passed."""
        self._failing += 1

    def no_longer_fails(self) -> None:
        """One of those has settled."""
        self._failing -= 1

    def went_back(self, token: str) -> None:
        """One of those went back to its agent: ClickHouse takes rows again when this one has passed."""
        self._failing -= 1
        self._forget_who_stays_away()
        self._away[token] = self._clock.monotonic() + _AWAY_FOR

    def came_again(self, token: str) -> bool:
        """True where this batch is one of those, which counts as failing again until it has settled."""
        if self._away.pop(token, None) is None:
            return False
        self._failing += 1
        return True

    def failed(self, error: KubenetmonError) -> None:
        """An attempt or a look at the table has failed."""
        kind = (type(error).__name__, code(error))
        self._readiness.failed(CHECK, advice(error))
        if kind not in self._troubles:
            logger.warning("Rows cannot be stored: %s", advice(error), extra={"clickhouse_code": kind[1]})
            self._troubles.add(kind)
            self.in_trouble.set()

    def looked(self, state: str) -> None:
        """The table has been read; `state` describes it in a line."""
        if self._troubles:
            self.looked_again = _woken(self.looked_again)
        self._well(state)
        if self._undecided_at is not None and self._clock.monotonic() - self._undecided_at > _SHOWN_FOR:
            self._undecided_at = None
            self._readiness.passed(OLD_BATCHES_CHECK, _NO_OLD_BATCHES)

    def committed(self, state: str) -> None:
        """A block has been committed."""
        if not self._troubles:
            return
        now = self._clock.monotonic()
        if now - self._last_wake >= _LEAST_BETWEEN_WAKES:
            self._last_wake = now
            self.took_rows = _woken(self.took_rows)
        self._well(state)

    def undecided(self, detail: str) -> None:
        """A batch is held because the table cannot tell."""
        if self._undecided_at is None:
            logger.error("%s", detail)
        self._undecided_at = self._clock.monotonic()
        self._readiness.failed(OLD_BATCHES_CHECK, detail)

    def _forget_who_stays_away(self) -> None:
        now = self._clock.monotonic()
        self._away = {token: until for token, until in self._away.items() if until > now}

    def _well(self, state: str) -> None:
        self._forget_who_stays_away()
        if self._failing or self._away:
            return
        if self._troubles:
            logger.info("ClickHouse takes rows again")
        self._troubles.clear()
        self.in_trouble.clear()
        self._readiness.passed(CHECK, f"{state} on {self._address}")


def _woken(event: asyncio.Event) -> asyncio.Event:
    """Wake who waits for the event; a new one for who waits next."""
    event.set()
    return asyncio.Event()
