"""The processes that make the traffic: one per namespace, started, directed and ended from here.

Contract: `Actors.begin` returns once every port is open; `go`, then `stop`, which returns when every
exchange has ended and every connection is closed by its client; `close` ends the processes. A process that
dies on its own or does not follow is a `MachineError` that names it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kubenetmon.demo.network import Namespace
from kubenetmon.demo.patience import patience
from kubenetmon.demo.traffic import Script, Tally
from kubenetmon.errors import MachineError

_PATIENCE = 30.0
PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def python_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for a `python -m kubenetmon…` that must be this very package, and nobody's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("KUBENETMON_")}
    search = os.pathsep.join(filter(None, (str(PACKAGE_PARENT), inherited.get("PYTHONPATH"))))
    return {**inherited, "PYTHONPATH": search, **(extra or {})}


class Actors:
    """All traffic processes of one run."""

    def __init__(self) -> None:
        self._actors: list[_Actor] = []

    def begin(self, scripts: Mapping[str, tuple[Namespace, Script]]) -> None:
        """Start a process for each name in its namespace and wait until all serve their ports."""
        for name, (namespace, script) in scripts.items():
            self._actors.append(_Actor(name, namespace, script))
        for actor in self._actors:
            actor.wait_for("listening")

    def go(self) -> None:
        """Begin the jobs."""
        for actor in self._actors:
            actor.tell({"go": True})

    def stop(self) -> None:
        """End the jobs in order; the totals are final afterwards."""
        for actor in self._actors:
            actor.tell({"stop": True})
        for actor in self._actors:
            actor.wait_for("done")

    def check(self) -> None:
        """Raise `MachineError` when a process has ended on its own."""
        for actor in self._actors:
            actor.check()

    def tally(self) -> Tally:
        """What all have done, at most a second ago."""
        total = Tally()
        for actor in self._actors:
            for field, value in actor.tally.items():
                setattr(total, field, getattr(total, field) + value)
        return total

    def close(self) -> None:
        """End the processes."""
        for actor in self._actors:
            actor.close()
        self._actors.clear()


class _Actor:
    """One process and the thread that reads what it says."""

    def __init__(self, name: str, namespace: Namespace, script: Script) -> None:
        self._name = name
        self.tally: dict[str, int] = {}
        self._said: set[str] = set()
        self._changed = threading.Condition()
        self._process = namespace.popen(
            [sys.executable, "-m", "kubenetmon.demo.traffic"],
            environment=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._reader = threading.Thread(target=self._read, name=f"traffic of {name}", daemon=True)
        self._reader.start()
        self._write(script.to_json())

    def tell(self, instruction: Mapping[str, Any]) -> None:
        self._write(json.dumps(instruction))

    def wait_for(self, word: str) -> None:
        limit = patience(_PATIENCE)
        deadline = time.monotonic() + limit
        with self._changed:
            while word not in self._said:
                self.check()
                if not self._changed.wait(min(1.0, deadline - time.monotonic())) and (
                    time.monotonic() >= deadline
                ):
                    raise MachineError(
                        f"the traffic of {self._name} did not get to {word!r} within {limit:g}s: "
                        "the machine is too busy, try again"
                    )

    def check(self) -> None:
        code = self._process.poll()
        if code is not None:
            raise MachineError(
                f"the traffic of {self._name} ended on its own (exit code {code}): what it wrote is above"
            )

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._process.wait(timeout=patience(_PATIENCE))
            self.check()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            said = json.loads(line)
            with self._changed:
                self.tally = said.get("so_far") or said.get("done") or self.tally
                self._said.update(said)
                self._changed.notify_all()
