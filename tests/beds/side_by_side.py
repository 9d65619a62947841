"""What the processes of one test run have in common, when tests run side by side (pytest-xdist).

Contract: the process that the run begins with makes the directory (`begin`) and removes it (`end`); the
others find it through the environment. `turn` lets a test in: any number side by side, or one that is alone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_VARIABLE = "KUBENETMON_TEST_RUN"


def begin() -> None:
    """Make the run's directory. Not in memory: an image is built there."""
    os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="kubenetmon-tests-", dir="/var/tmp")


def end() -> None:
    """Remove it with all that it has."""
    shutil.rmtree(os.environ.pop(_VARIABLE), ignore_errors=True)


def directory() -> Path:
    """The run's directory."""
    return Path(os.environ[_VARIABLE])


@contextlib.contextmanager
def locked(name: str, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock of the run; raises `OSError`."""
    with (directory() / f"{name}.lock").open("w") as file:
        fcntl.flock(file, kind)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a child that a test has forked may have the file still


@contextlib.contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Be in the room, with others or alone. Who waits to be alone stands in the door: nobody overtakes it."""
    with contextlib.ExitStack() as inside:
        with locked("door"):
            inside.enter_context(locked("room", fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
