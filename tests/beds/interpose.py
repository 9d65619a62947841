"""Faults at an exact place inside a real process: killed between two system calls, its wall clock moved.

Contract: `library` compiles interpose.c, whose head says what a step is; `killed_at` and `WallClock` give the
environment in which a process loads it. Nothing of the program under test knows about it.
"""

from __future__ import annotations

import functools
import struct
import subprocess
import tempfile
from pathlib import Path

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
