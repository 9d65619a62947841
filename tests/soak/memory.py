"""Resident memory over time, in each life of a process and over all of them, and whether it grows."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

_WARM_UP_SHARE = 0.25
WARM_UP = 60.0
"""Seconds."""
_SAMPLES_AT_LEAST = 3

_Sample = tuple[float, int]
"""Seconds since the beginning, bytes."""


@dataclass(slots=True)
class Memory:
    """Samples of one process through its lives.

    The warm-up, which growth leaves out, is the first quarter of a life and at least `warm_up` seconds.
    """

    name: str
    warm_up: float = WARM_UP
    lives: dict[int, list[_Sample]] = field(default_factory=dict)
    """By process id, in the order of their beginnings."""
    excused: set[int] = field(default_factory=set)
    """Lives in which growth is what was asked for."""

    def add(self, seconds: float, size: int, process: int = 0) -> None:
        """One more sample of the life that has this process id."""
        self.lives.setdefault(process, []).append((seconds, size))

    def excuse(self) -> None:
        """Do not judge the growth within the life of the last sample."""
        if self.lives:
            self.excused.add(next(reversed(self.lives)))

    @property
    def now(self) -> int:
        """Bytes at the last sample."""
        return next(reversed(self.lives.values()))[-1][1]

    @property
    def peak(self) -> int:
        """Bytes."""
        return max(size for samples in self.lives.values() for _, size in samples)

    def growth(self) -> float:
        """Bytes gained by the life that gained most, and by all lives from the first to the last.

        The greater of both, not below 0: from the warm-up's end to the last sample, by the line that fits
        the samples best. A life that left less than three samples after its warm-up counts only with all.
        """
        settled = {
            process: _settled(samples, self.warm_up)
            for process, samples in self.lives.items()
            if process not in self.excused
        }
        together = [sample for samples in settled.values() for sample in samples]
        gains: list[float] = [_gain(samples) for samples in (together, *settled.values())]
        return max(0.0, *gains)


def _settled(samples: Sequence[_Sample], warm_up: float) -> list[_Sample]:
    first, last = samples[0][0], samples[-1][0]
    begin = first + max(warm_up, (last - first) * _WARM_UP_SHARE)
    return [sample for sample in samples if sample[0] >= begin]


def _gain(samples: Sequence[_Sample]) -> float:
    if len(samples) < _SAMPLES_AT_LEAST:
        return 0.0
    times, sizes = zip(*samples, strict=True)
    slope: float = statistics.linear_regression(times, sizes).slope
    return slope * (times[-1] - times[0])
