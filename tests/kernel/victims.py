"""Processes of `tests.kernel.state_victim` and what they delivered."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from kubenetmon.demo.network import Namespace
from kubenetmon.proto import FlowBatch
from tests.kernel.metered import Record, decode


@contextlib.contextmanager
def make_place() -> Iterator[Path]:
    """Directories for state and deliveries, on a tmpfs where there is one, as a state directory should be."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as made:
        for name in ("state", "deliveries"):
            (Path(made) / name).mkdir()
        yield Path(made)


class Victim:
    """One life of `tests.kernel.state_victim`."""

    def __init__(
        self,
        node: Namespace,
        place: Path,
        environment: Mapping[str, str] | None = None,
        *,
        wire: Literal["push", "submit"] = "push",
    ) -> None:
        arguments = [str(place / "state"), str(place / "deliveries"), wire]
        self.process = node.popen(
            [sys.executable, "-m", "tests.kernel.state_victim", *arguments],
            environment={**os.environ, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def finish(self) -> int:
        """Let it seal and deliver what is pending, and end; bytes whose fate it does not know."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"finish\n")
        self.process.stdin.flush()
        said, _, unknown = self.says().partition(" ")
        assert said == "finished"
        assert self.process.wait(30) == 0
        self._close()
        return int(unknown)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """It does not run meanwhile, and then finds all at once."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def wait_killed(self) -> int:
        """The signal that ended it."""
        status = self.process.wait(30)
        self._close()
        return -status

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def delivered(place: Path) -> list[Record]:
    """What the server would hold: each batch once, however often it came."""
    records: list[Record] = []
    for path in (place / "deliveries").iterdir():
        if not path.name.startswith("."):  # else its sender was killed before the server had it
            batch = FlowBatch().parse(path.read_bytes())
            for arrays, width in ((batch.ipv4, 4), (batch.ipv6, 16)):
                assert arrays is not None
                records += decode(arrays, width)
    return records
