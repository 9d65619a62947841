"""What processes use: processor time to the nanosecond, and memory."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

_CPUCLOCK_SCHED = 2


def cpu_seconds(process: int) -> float:
    """Processor time of a process, all its threads and the kernel's work for it (clock_getcpuclockid(3))."""
    return time.clock_gettime((~process << 3) | _CPUCLOCK_SCHED)


def starved_share(process: int) -> float:
    """Of the time in which its main thread could have run since its start, the share that it waited for a
    processor (/proc/PID/schedstat: nanoseconds on a processor, and waiting for one)."""
    ran, waited, _ = map(int, Path(f"/proc/{process}/schedstat").read_text().split())
    return waited / max(1, ran + waited)


def memory_bytes(process: int, field: str = "VmRSS") -> int:
    """`VmRSS` resident now, `VmHWM` the most there ever was (proc(5)); of the process and its children."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 + sum(
                memory_bytes(child, field) for child in _children(process)
            )
    raise ProcessLookupError(f"process {process} has no {field}: it is gone")


def _children(process: int) -> list[int]:
    """Those that live: an agent's watchdog."""
    found: list[int] = []
    for thread in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (thread / "children").read_text().split()]
    return [child for child in found if "\nState:\tZ" not in _status(child)]


def _status(process: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/status").read_text()
    return "\nState:\tZ"


def best(values: Sequence[float]) -> float:
    """The least of several measurements: what disturbs them only ever adds."""
    return min(values)
