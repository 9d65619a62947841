"""Inside a real process: killed or stopped between two system calls, lied to, and its event loop watched.

Contract: `library` compiles interpose.c, whose head says what it can do; the functions and classes here give
the environment in which a process loads it. The program under test knows nothing about it.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

_SOURCE = Path(__file__).with_name("interpose.c")


@functools.cache
def library() -> Path:
    """The shared object; made once, removed with this process."""
    folder = tempfile.TemporaryDirectory(prefix="interpose-")
    _folders.append(folder)
    made = Path(folder.name) / "interpose.so"
    warnings = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", *warnings, "-o", str(made), str(_SOURCE), "-ldl"], check=True
    )
    return made


_folders: list[tempfile.TemporaryDirectory[str]] = []


def killed_at(*steps: str) -> dict[str, str]:
    """The process dies at the last of the steps, once those before it have happened in order."""
    return {"LD_PRELOAD": str(library()), "KILL_AT": ";".join(steps)}


def stopped_at(*steps: str) -> dict[str, str]:
    """The process stands still at the last of the steps, until it gets SIGCONT."""
    return {"LD_PRELOAD": str(library()), "STOP_AT": ";".join(steps)}


def colliding_ids(mask: int) -> dict[str, str]:
    """Of each flow's id the process sees only these bits, so that flows share ids."""
    return {"LD_PRELOAD": str(library()), "ID_MASK": str(mask)}


def another_boot(boot_id: Path) -> dict[str, str]:
    """The process takes what that file holds for the id of the machine's boot."""
    return {"LD_PRELOAD": str(library()), "BOOT_ID": str(boot_id)}


class _Counted:
    """What a process under test counts in a file, `path`."""

    variable: str

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(8))

    def environment(self) -> dict[str, str]:
        """For the process."""
        return {"LD_PRELOAD": str(library()), self.variable: str(self.path)}

    def count(self) -> int:
        """Up to now."""
        return int.from_bytes(self.path.read_bytes(), sys.byteorder)


class ShownLate(_Counted):
    """A process whose dumps still show what has ended since the dump before; counted are such flows."""

    variable = "SHOWN_LATE"


class SlowDying(_Counted):
    """A process that reads the list of dying flows slowly; counted are the times that it waited."""

    variable = "SLOW_DYING"


class WallClock:
    """A wall clock that a process under test takes for the machine's; `path` is its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.jump_to(0)

    def environment(self) -> dict[str, str]:
        """For the process."""
        return {"LD_PRELOAD": str(library()), "CLOCK_OFFSET": str(self.path)}

    def jump_to(self, offset: int) -> None:
        """So many seconds ahead of the machine's from now on."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.write(struct.pack("=q", offset))


class Held(NamedTuple):
    """How long an event loop kept others waiting, in seconds."""

    clock: float
    itself: float
    """Less what the thread spent ready to run while no processor was free; waiting for a lock counts."""
    processor: float


class LoopWatch:
    """How long the event loop of a process under test is away from waiting; `path` is its file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reset()

    def environment(self) -> dict[str, str]:
        """For the process."""
        return {"LD_PRELOAD": str(library()), "LOOP_LONGEST": str(self.path)}

    def reset(self) -> None:
        """Forget what was; what the process is at just now still counts."""
        with self.path.open("r+b" if self.path.exists() else "w+b") as file:
            file.write(bytes(24))

    def longest(self) -> Held:
        """Between two waits at the most since then."""
        return Held(*(nanoseconds / 1e9 for nanoseconds in struct.unpack("=qqq", self.path.read_bytes())))
