"""Inside a real process: killed between two system calls, its wall clock moved, its event loop watched.

Contract: `library` compiles interpose.c, whose head says what a step is; `killed_at`, `WallClock` and
`LoopWatch` give the environment in which a process loads it. The program under test knows nothing about it.
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
            file.write(bytes(16))

    def longest(self) -> tuple[float, float]:
        """Seconds between two waits at the most since then: by the clock, and less what others took of that.

        The latter leaves out what the thread spent ready to run while no processor was free.
        """
        wall, own = struct.unpack("=qq", self.path.read_bytes())
        return wall / 1e9, own / 1e9
