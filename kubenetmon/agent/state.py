"""The state directory: ledger, events and sealed batches that survive the process.

Contract: one `StateDirectory` at a time owns a directory, by the lock on its file `lock`, which the kernel
releases when the process dies. The C shim writes `ledger`, `events` and each `batch-SEQUENCE`; from then on
the batch files are the outbox's, through this class: marked before the batch may leave, removed when it was
answered for, kept as `rejected-…` with the reason beside it when it was refused. What cannot be used is
renamed to `aside-REASON-…`, said in one line and counted; the newest few of both kinds are kept. Nothing here
runs by itself; `close` releases the lock and leaves every file.

Files survive a kill, not a crash of the machine: the kernel's counters do not survive that either.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_STATE_SET_ASIDE

logger = logging.getLogger(__name__)

LEDGER, EVENTS = "ledger", "events"
_LOCK = "lock"
_BATCH = re.compile(r"batch-([0-9]{20})")
_KEPT = 8
"""Files set aside, and rejected batches, that are kept."""

_LISTENED_UNTIL_OFFSET, _LISTENED_UNTIL = 24, struct.Struct("=q")
"""Where the spool's header (`struct spool_header`) has it."""

_SENT = struct.Struct("=Q")
"""What a batch file ends its header with: 0, or how the batch may have left."""

SENT_OFFSET = 424
"""Where in the file (`struct meter_batch_file`)."""

SENT_BY_PUSH, SENT_BY_SUBMIT = 1, 2


class Files(NamedTuple):
    """Descriptors of the directory and of the two files that the shim maps."""

    directory: int
    ledger: int
    events: int


class StateDirectory:
    """Owns the directory's names; who holds the lock owns their contents."""

    def __init__(self, path: Path, *, metrics: Metrics) -> None:
        self.path = path
        self._metrics = metrics
        self._lock = -1
        self._opened: list[int] = []

    def lock(self) -> bool:
        """Make the directory ours, unless another agent has it. Raises `ConfigurationError`."""
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"KUBENETMON_STATE_DIR: {self.path} cannot be used ({error.strerror}): name a directory that "
                "the agent may write to, best on a tmpfs such as /run"
            ) from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        self._lock = descriptor
        return True

    def close(self) -> None:
        """Let another agent have it; the shim is done with the files."""
        self._close_files()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def files(self) -> Files:
        """The directory and what the shim maps, made where missing, open until `close`. Raises `OSError`."""
        self._close_files()
        for name, flags in (
            (".", os.O_RDONLY | os.O_DIRECTORY),
            (LEDGER, os.O_RDWR | os.O_CREAT),
            (EVENTS, os.O_RDWR | os.O_CREAT),
        ):
            self._opened.append(os.open(self.path / name, flags | os.O_CLOEXEC, 0o600))
        return Files(*self._opened)

    def _close_files(self) -> None:
        while self._opened:
            os.close(self._opened.pop())

    def listened_until(self) -> int:
        """Up to when whoever has the lock received all events: boot time in nanoseconds; 0: never."""
        try:
            with (self.path / EVENTS).open("rb") as file:
                file.seek(_LISTENED_UNTIL_OFFSET)
                contents = file.read(_LISTENED_UNTIL.size)
        except OSError:
            return 0
        return int(_LISTENED_UNTIL.unpack(contents)[0]) if len(contents) == _LISTENED_UNTIL.size else 0

    def set_aside(self, names: Iterable[str], reason: str, explanation: str) -> None:
        """Rename these files out of the way; `reason` is the metric's, `explanation` is for people."""
        moved = [name for name in names if self._rename(name, f"aside-{reason}-{name}")]
        self._metrics.add(AGENT_STATE_SET_ASIDE, reason=reason)
        logger.error(
            "State in %s is set aside, %s: %s", self.path, explanation, ", ".join(moved) or "nothing there"
        )
        self._keep_newest("aside-*")

    def forget_ledger(self) -> None:
        """Remove what takes room for a ledger that is not there."""
        for name in (LEDGER, EVENTS):
            (self.path / name).unlink(missing_ok=True)

    def sequences(self) -> list[int]:
        """Those of the batch files, ascending."""
        matches = (_BATCH.fullmatch(name) for name in os.listdir(self.path))
        return sorted(int(match[1]) for match in matches if match)

    def read(self, sequence: int) -> bytes:
        """The whole batch file. Raises `OSError`."""
        return (self.path / batch_name(sequence)).read_bytes()

    def leaves_by_push(self, sequence: int) -> None:
        """Say so in the batch's file, before it does."""
        self._mark(sequence, SENT_BY_PUSH)

    def leaves_by_submit(self, sequence: int) -> None:
        """Say so in the batch's file, before it does."""
        self._mark(sequence, SENT_BY_SUBMIT)

    def did_not_leave(self, sequence: int) -> None:
        """Take back what was said."""
        self._mark(sequence, 0)

    def _mark(self, sequence: int, sent: int) -> None:
        with self._whatever_fails("marked", sequence):
            descriptor = os.open(self.path / batch_name(sequence), os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(descriptor, _SENT.pack(sent), SENT_OFFSET)
            finally:
                os.close(descriptor)

    def remove(self, sequence: int) -> None:
        """The batch was answered for."""
        with self._whatever_fails("removed", sequence):
            (self.path / batch_name(sequence)).unlink()

    def reject(self, sequence: int, epoch: bytes, reason: str) -> None:
        """Keep the batch with why it was refused."""
        name = f"rejected-{epoch.hex()}-{sequence:020d}"
        with self._whatever_fails("kept", sequence), contextlib.suppress(FileNotFoundError):
            try:
                (self.path / f"{name}.reason").write_text(f"{reason}\n", encoding="utf-8")
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            (self.path / batch_name(sequence)).rename(self.path / name)
        self._keep_newest("rejected-*[0-9]")

    @contextlib.contextmanager
    def _whatever_fails(self, what: str, sequence: int) -> Iterator[None]:
        """A batch sealed after the directory was full has no file; else the failure is said."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            logger.error("Batch %d in %s could not be %s: %s", sequence, self.path, what, error.strerror)

    def _rename(self, name: str, to: str) -> bool:
        try:
            (self.path / name).rename(self.path / to)
        except OSError:
            return False
        return True

    def _keep_newest(self, pattern: str) -> None:
        """Of the files so named; what lies beside one goes with it."""
        found = sorted(self.path.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path.name))
        for path in found[:-_KEPT]:
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.reason").unlink(missing_ok=True)


def batch_name(sequence: int) -> str:
    """As csrc/batch.c names it."""
    return f"batch-{sequence:020d}"
