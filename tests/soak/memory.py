"""Resident memory over time, and whether it grows."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

_WARM_UP_SHARE = 0.25
_WARM_UP_AT_LEAST = 60.0


@dataclass(slots=True)
class Memory:
    """Samples of one process: (seconds since the beginning, bytes)."""

    name: str
    samples: list[tuple[float, int]] = field(default_factory=list)

    def add(self, seconds: float, size: int) -> None:
        """One more sample."""
        self.samples.append((seconds, size))

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(size for _, size in self.samples)

    def growth(self) -> float:
        """Bytes gained from the warm-up's end to the last sample, by the line that fits the samples best.

        The warm-up is the first quarter, and at least a minute. 0 when less than three samples are left.
        """
        last = self.samples[-1][0]
        begin = max(_WARM_UP_AT_LEAST, last * _WARM_UP_SHARE)
        steady = [sample for sample in self.samples if sample[0] >= begin]
        if len(steady) < 3:
            return 0.0
        times, sizes = zip(*steady, strict=True)
        slope: float = statistics.linear_regression(times, sizes).slope
        return slope * (last - steady[0][0])
