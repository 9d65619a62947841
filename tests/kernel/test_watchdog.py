"""An agent that stands still does not fill its node's table, and knows afterwards what it missed."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.agent import conntrack
from kubenetmon.demo.network import Namespace
from kubenetmon.errors import MachineError
from tests.beds.injector import TCP, UDP, InjectionBed

pytestmark = pytest.mark.root

SMALL_BUFFER, LARGE_BUFFER = 65_536, 8 << 20


class Meter:
    """A `tests.kernel.stalling` process in a namespace."""

    def __init__(self, node: Namespace, event_buffer_bytes: int, patience: float) -> None:
        command = [sys.executable, "-m", "tests.kernel.stalling", str(event_buffer_bytes), str(patience)]
        self.process = node.popen(
            command, environment=dict(os.environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def read(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def watchdog(self) -> int:
        """Its process."""
        [child] = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        assert Path(f"/proc/{child}/cmdline").read_bytes().startswith(b"kubenetmon-watchdog\0")
        return int(child)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@contextlib.contextmanager
def metering(node: Namespace, event_buffer_bytes: int, patience: float) -> Iterator[Meter]:
    meter = Meter(node, event_buffer_bytes, patience)
    try:
        meter.read()
        yield meter
    finally:
        meter.end()


@pytest.fixture
def injection() -> Iterator[InjectionBed]:
    with InjectionBed("watchdog") as bed:
        yield bed


def tracked(node: Namespace) -> int:
    return int(node.call(lambda: Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text()))


def wait_until(true: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.05)


def send(injection: InjectionBed, first: int, flows: int, payload: int) -> None:
    """Until the node has seen what it will see of it."""
    for protocol in (TCP, UDP):
        injection.send(protocol, first, flows, payload=payload)
    seen = -1
    while seen != (seen := injection.tracked_bytes()):
        time.sleep(0.1)


def test_while_an_agent_is_stopped_the_table_drains_and_only_the_gap_goes_unmetered(
    injection: InjectionBed,
) -> None:
    flows, node = 3000, injection.node
    with metering(node, SMALL_BUFFER, 1.0) as meter:
        send(injection, 0, flows, 100)
        assert meter.read()["bytes"] == injection.tracked_bytes()
        send(injection, 0, flows, 200)  # moved after the last read: only their ends tell
        metered = injection.tracked_bytes()
        with meter.stopped():
            began = time.monotonic()
            node.run(["conntrack", "-F"])
            held = tracked(node)
            wait_until(lambda: tracked(node) == 0, 30)
            drained = time.monotonic()
            send(injection, flows, flows, 300)  # nobody will have heard of these
            node.run(["conntrack", "-F"])
            wait_until(lambda: tracked(node) == 0, 10)
            missed = injection.tracked_bytes() - metered
            stood = time.monotonic()
        wait_until(lambda: meter.read()["events"] == 2 * flows, 30)
        said = meter.read()
        assert held > flows, "the table did not fill: nothing was tried"
        assert said["bytes"] == metered
        assert missed > 0
        assert stood - drained <= said["gap"] <= time.monotonic() - began

        send(injection, 2 * flows, 500, 100)
        node.run(["conntrack", "-F"])
        wait_until(lambda: meter.read()["events"] == 2 * flows + 1000, 30)
        again = meter.read()
        assert again["bytes"] == injection.tracked_bytes() - missed
        assert again["gap"] == said["gap"], "it listens again"


def test_an_agent_that_is_stopped_while_few_flows_end_misses_nothing(injection: InjectionBed) -> None:
    with metering(injection.node, LARGE_BUFFER, 0.3) as meter:
        send(injection, 0, 500, 100)
        with meter.stopped():
            injection.node.run(["conntrack", "-F"])
            time.sleep(2)
        wait_until(lambda: meter.read()["events"] == 1000, 30)
        assert meter.read() == {"bytes": injection.tracked_bytes(), "events": 1000, "gap": 0}


def is_there(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


@pytest.mark.parametrize("killed", [True, False])
def test_the_watchdog_ends_with_its_agent(injection: InjectionBed, killed: bool) -> None:
    with metering(injection.node, SMALL_BUFFER, 5.0) as meter:
        watchdog = meter.watchdog()
        if killed:
            meter.process.kill()
        else:
            assert meter.process.stdin is not None
            meter.process.stdin.close()
        wait_until(lambda: not is_there(watchdog), 10)


def test_an_agent_without_its_watchdog_goes_on(injection: InjectionBed) -> None:
    with metering(injection.node, SMALL_BUFFER, 0.2) as meter:
        os.kill(meter.watchdog(), signal.SIGKILL)
        send(injection, 0, 500, 100)
        with meter.stopped():
            injection.node.run(["conntrack", "-F"])
            time.sleep(1)
            assert tracked(injection.node) > 500, "nobody let go"
        wait_until(lambda: meter.read()["events"] == 1000, 30)
        assert meter.read()["bytes"] == injection.tracked_bytes()


def test_an_installation_without_the_watchdog_is_said_to_be_one(
    injection: InjectionBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conntrack, "_WATCHDOG", tmp_path / "_watchdog")
    with pytest.raises(MachineError, match="_watchdog is missing or no program: install kubenetmon anew"):
        injection.node.call(conntrack.Conntrack(conntrack.ConntrackConfig()).listen)


def test_the_watchdog_holds_nothing_but_the_socket(injection: InjectionBed) -> None:
    with metering(injection.node, SMALL_BUFFER, 5.0) as meter:
        held = [os.readlink(path) for path in Path(f"/proc/{meter.watchdog()}/fd").iterdir()]
        assert sorted(name.partition(":")[0] for name in held) == ["/memfd", "pipe", "socket"]
