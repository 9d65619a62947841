"""The server is away while connections come and go by the thousand: totals stay exact, memory small.

In CI the time is scaled: 3,000 connections a second for little more than a minute in place of 1,000 a second
for ten. `KUBENETMON_TEST_FULL_LENGTH=1` takes the promise at its word, and so does, with real sockets,
`nox -s soak -- --minutes 14 --outage 10 --short-connections 1000`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.demo.processes import Intervals
from tests.beds.identity import agent_imbalances, server_imbalances
from tests.beds.injected_node import FULL_LENGTH, InjectedNode
from tests.beds.injector import TCP, UDP
from tests.bench.accounting import memory_bytes

SECONDS, RATE = (600.0, 1_000) if FULL_LENGTH else (64.0, 3_000)
"""Flows that begin each second, and as many that end."""
FLOW_SECONDS = 2
PATIENCE = 60.0
PEAK = 80_000_000

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.slow, pytest.mark.timeout(120 + 2 * SECONDS)]


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Connections:
    """Short connections without end: a packet there and one back, then never again."""

    def __init__(self, rig: InjectedNode) -> None:
        self._rig = rig
        self._sizes = np.random.default_rng(3)
        self._next = 0

    def run_for(self, seconds: float, rate: int) -> None:
        """So many begin each second, half of them TCP."""
        begin = time.monotonic()
        made = 0
        while (elapsed := time.monotonic() - begin) < seconds:
            count = (int(elapsed * rate) - made) // 2
            for protocol in (TCP, UDP):
                for direction in ("original", "reply"):
                    payload = self._sizes.integers(0, 600, count)
                    self._rig.bed.send(protocol, self._next, count, payload=payload, direction=direction)  # type: ignore[arg-type]
            self._next += count
            made += 2 * count
            assert self._rig.agent is not None
            self._rig.agent.check()
            time.sleep(0.1)


def test_totals_are_exact_after_an_outage_and_memory_stays_small(tmp_path: Path) -> None:
    with InjectedNode(tmp_path, Intervals(1, 1)) as rig:
        rig.end_flows_after(FLOW_SECONDS)
        rig.start()
        connections = Connections(rig)
        connections.run_for(3, 500)
        rig.kill_server()
        went = time.time()
        connections.run_for(SECONDS, RATE)
        agent = rig.agent
        assert agent is not None
        metrics = agent.metrics()
        peak = memory_bytes(agent.process_id, "VmHWM")
        assert agent_imbalances(metrics) == []
        assert metrics["kubenetmon_agent_destroy_events_total"] > RATE * (SECONDS - FLOW_SECONDS - 10)
        assert 1 <= metrics["kubenetmon_agent_unacknowledged_batches"] <= 4
        assert metrics["kubenetmon_agent_merged_flows_total"] > 0, "too few flows ended: nothing was tried"
        print(f"{peak / 1e6:.1f} MB at the end of the outage")
        server = rig.start_server()
        # What waits outlives the agent too; and the next one knocks at once.
        agent.kill()
        agent = rig.start_agent()
        connections.run_for(3, 500)
        time.sleep(FLOW_SECONDS + 2)
        until(lambda: agent.metrics()["kubenetmon_agent_unacknowledged_batches"] == 0)
        acknowledged = time.time()
        metrics = agent.metrics()
        assert agent_imbalances(metrics) == []
        assert metrics['kubenetmon_agent_ignored_total{reason="overflow",unit="bytes"}'] == 0
        assert server_imbalances(server.metrics()) == []
        peak = max(peak, memory_bytes(agent.process_id, "VmHWM"))
        print(f"{peak / 1e6:.1f} MB at the most")
        rig.finish()
        assert rig.stored() == rig.truth()
        assert peak < PEAK
        [[start, seconds]] = rig.ask(
            "SELECT DISTINCT toUnixTimestamp(intervalStartTime), intervalSeconds "
            "FROM default.network_flows_0 WHERE intervalSeconds > 60"
        )
        # A few batches go into the outbox first, one a second; the report after it begins there.
        assert went // 60 * 60 <= start <= went + 8
        assert SECONDS - 8 <= seconds <= acknowledged - went
