"""A real agent on a node of a hundred thousand busy flows: processor time, memory, and no byte missed."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.processes import GRPC_PORT, METRICS_PORT, Role
from tests.beds.injector import MAX_PAYLOAD, TCP, UDP, InjectionBed
from tests.beds.interpose import LoopWatch
from tests.bench.accounting import cpu_seconds, memory_bytes
from tests.bench.collector import Sums
from tests.bench.kernel import Floor, change_all
from tests.bench.line import Line, megabytes, ratio_of

_INTERVAL = 5
_ROUNDS = 4
_BURSTS = 20
_BURST_FLOWS = 10_000
_IDLE_SECONDS = 5.0
_IDLE_MEMORY = 45_000_000
_LONGEST_HOLD = 0.020


class CollectorProcess:
    """`tests.bench.collector` on the loopback interface of the bed's node."""

    def __init__(self, bed: InjectionBed) -> None:
        self._process = bed.node.popen(
            [sys.executable, "-m", "tests.bench.collector", "127.0.0.1", str(GRPC_PORT)],
            environment=python_environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.sums()

    def sums(self) -> Sums:
        """What has arrived."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the collector of the bench has ended: its error is above")
        return Sums(**json.loads(line))

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


@contextlib.contextmanager
def running_agent(
    bed: InjectionBed,
    log: Path,
    *,
    collection: int,
    report: int,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Role]:
    """An agent in the bed's node that reports to a collector there; ready."""
    role = Role(
        "the agent",
        bed.node,
        ["--role", "agent"],
        log=log,
        environment={
            "NODE_NAME": "bench",
            "COLLECTION_INTERVAL": f"{collection}s",
            "KUBENETMON_REPORT_INTERVAL": f"{report}s",
            "KUBENETMON_SERVER_SERVICE_HOST": "127.0.0.1",
            "KUBENETMON_SERVER_SERVICE_PORT": str(GRPC_PORT),
            "METRICS_PORT": str(METRICS_PORT),
            "SKIP_CONNTRACK_SANITY_CHECK": "true",
            **(environment or {}),
        },
    )
    try:
        role.wait_ready()
        yield role
    finally:
        role.kill()


def measure_idle(bed: InjectionBed, directory: Path) -> list[Line]:
    """Memory of an agent on a node without flows, once it has reported."""
    collector = CollectorProcess(bed)
    try:
        with running_agent(bed, directory / "agent-idle.log", collection=1, report=1) as agent:
            time.sleep(_IDLE_SECONDS)
            agent.check()
            resident = memory_bytes(agent.process_id)
    finally:
        collector.close()
    return [
        Line("agent, resident memory, idle", megabytes(resident), "45 MB", "", resident <= _IDLE_MEMORY),
    ]


def measure(bed: InjectionBed, floor: Floor, directory: Path) -> list[Line]:
    """Processor time per reported flow, peak memory, the event loop; every flow changes in every interval."""
    collector = CollectorProcess(bed)
    watch = LoopWatch(directory / "loop")
    try:
        with running_agent(
            bed,
            directory / "agent.log",
            collection=_INTERVAL,
            report=_INTERVAL,
            environment=watch.environment(),
        ) as agent:
            _change_within_interval(bed, floor.flows)
            _sleep_to(0.9)
            records, cpu = collector.sums().records, cpu_seconds(agent.process_id)
            watch.reset()
            for _ in range(_ROUNDS):
                _change_within_interval(bed, floor.flows)
                agent.check()
            _sleep_to(0.9)
            held = watch.longest()
            reported = collector.sums().records - records
            used = cpu_seconds(agent.process_id) - cpu
            peak = memory_bytes(agent.process_id, "VmHWM")
    finally:
        collector.close()
    if reported < floor.flows * (_ROUNDS - 1):
        raise RuntimeError(f"the agent reported {reported} flows, {floor.flows * _ROUNDS} had changed")
    per_flow = used / reported
    return [
        Line(
            f"agent, end to end, {floor.flows:,} flows each {_INTERVAL} s, CPU per reported flow",
            ratio_of(per_flow, floor.per_flow),
            "1.65 x",
            "12 x",
            per_flow <= 1.65 * floor.per_flow,
        ),
        Line(
            f"agent, peak memory, {floor.flows:,} flows",
            megabytes(peak),
            "80 MB",
            "202 MB",
            peak <= 80_000_000,
        ),
        Line(
            f"agent, event loop away from waiting at the most, {floor.flows:,} flows",
            f"{held.itself * 1e3:.1f} ms ({held.clock * 1e3:.1f} ms with what other processes took)",
            "20 ms",
            "",
            held.itself <= _LONGEST_HOLD,
        ),
    ]


def measure_bursts(bed: InjectionBed, directory: Path) -> list[Line]:
    """Bytes metered of bytes that passed, read each second through bursts of mixed sizes."""
    generator = np.random.default_rng(20)
    collector = CollectorProcess(bed)
    try:
        with running_agent(bed, directory / "agent-bursts.log", collection=1, report=5) as agent:
            before = bed.truth()
            for _ in range(_BURSTS):
                for protocol in (TCP, UDP):
                    sizes = generator.integers(0, MAX_PAYLOAD, (2, _BURST_FLOWS))
                    bed.send(protocol, 200_000, _BURST_FLOWS, payload=sizes[0])
                    bed.send(protocol, 200_000, _BURST_FLOWS, payload=sizes[1], direction="reply")
                time.sleep(0.3)
            after = bed.truth()
            agent.stop()
            sums = collector.sums()
    finally:
        collector.close()
    sent = after["original"].bytes - before["original"].bytes
    received = after["reply"].bytes - before["reply"].bytes
    exact = (sums.sent, sums.received) == (sent, received)
    return [
        Line(
            f"bytes metered of bytes sent / received, {_BURSTS} bursts over 10,000 TCP and 10,000 UDP flows",
            f"{_share(sums.sent, sent)} / {_share(sums.received, received)}"
            f" ({sums.sent} of {sent} / {sums.received} of {received})",
            "100 % / 100 %",
            "99.59 % / 99.82 %",
            exact,
        )
    ]


def _share(part: int, whole: int) -> str:
    return "100 %" if part == whole else f"{100 * part / whole:.4f} %"


def _sleep_to(phase: float) -> None:
    """Sleep to that share of an interval; agents read at the multiples."""
    now = time.time() / _INTERVAL
    time.sleep((phase - now) % 1 * _INTERVAL)


def _change_within_interval(bed: InjectionBed, flows: int) -> None:
    """Change every flow once, clear of the moments at which the agent reads."""
    _sleep_to(0.35)
    change_all(bed, flows)
