"""How late the event loop is: the longest delay since the last scrape, as a metric."""

from __future__ import annotations

from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import LOOP_LAG

_STEP_SECONDS = 0.1


class LoopLag:
    """Component that wakes ten times a second and notes how late it was."""

    name = "event loop watch"

    def __init__(self, *, metrics: Metrics, clock: Clock) -> None:
        self._metrics, self._clock = metrics, clock
        self._longest = 0.0
        metrics.before_render(self._publish)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            begin = self._clock.monotonic()
            await self._clock.sleep(_STEP_SECONDS)
            self._longest = max(self._longest, self._clock.monotonic() - begin - _STEP_SECONDS)

    async def stop(self) -> None:
        """Nothing to finish."""

    def _publish(self) -> None:
        self._metrics.set(LOOP_LAG, self._longest)
        self._longest = 0.0
