"""Bursts over 10,000 TCP and 10,000 UDP flows of mixed sizes, and a real agent that is killed meanwhile.

The same bursts without kills are in `tests.bench`, and what reading by zeroing makes of them is in
`tests/kernel/test_conntrack_faults.py`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.demo.processes import Intervals
from tests.beds.identity import agent_imbalances, server_imbalances
from tests.beds.injected_node import InjectedNode
from tests.beds.injector import MAX_PAYLOAD, TCP, UDP
from tests.beds.interpose import LoopWatch
from tests.bench.accounting import memory_bytes

pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.chdb,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

FLOWS = 10_000
BURSTS = 20
IDLE_MEMORY, PEAK_MEMORY = 45_000_000, 80_000_000
LONGEST_HOLD = 0.020
"""Seconds."""


def send_bursts(rig: InjectedNode, bursts: int, kills: int, environment: Mapping[str, str]) -> None:
    """Every flow moves something both ways in each burst; kills at random instants within the bursts."""
    sizes, chance = np.random.default_rng(7), random.Random(7)
    fatal = set(chance.sample(range(bursts * 4), kills))
    for burst in range(bursts):
        part = 0
        for protocol in (TCP, UDP):
            for direction in ("original", "reply"):
                if burst * 4 + part in fatal:
                    time.sleep(chance.uniform(0, 0.3))
                    assert rig.agent is not None
                    rig.agent.check()
                    rig.agent.kill()
                    rig.begin_agent(environment)
                payload = sizes.integers(0, MAX_PAYLOAD, FLOWS)
                rig.bed.send(protocol, 0, FLOWS, payload=payload, direction=direction)  # type: ignore[arg-type]
                part += 1
    assert rig.agent is not None
    rig.agent.wait_ready()


def test_killed_seven_times_an_agent_stores_every_byte_of_the_bursts_once(tmp_path: Path) -> None:
    watch = LoopWatch(tmp_path / "loop")
    with InjectedNode(tmp_path, Intervals(1, 2)) as rig:
        rig.start_server()
        idle = rig.start_agent(watch.environment())
        assert memory_bytes(idle.process_id) < IDLE_MEMORY
        send_bursts(rig, BURSTS, 7, watch.environment())
        assert rig.agent is not None
        assert rig.server is not None
        time.sleep(1.2)
        metrics = rig.agent.metrics()
        assert agent_imbalances(metrics) == []
        assert server_imbalances(rig.server.metrics()) == []
        assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
        # Of processor time, for a busy machine: who waits for a thread that has none waits for long.
        assert 0 < watch.longest().processor < LONGEST_HOLD
        assert memory_bytes(rig.agent.process_id, "VmHWM") < PEAK_MEMORY
        rig.finish()
        truth, stored = rig.truth(), rig.stored()
        assert len(truth[0]) == 256 * 2 * 2, "servers, protocols and directions"
        assert stored == truth


def test_without_its_state_a_killed_agent_loses_bytes_so_the_comparison_can_fail(tmp_path: Path) -> None:
    with InjectedNode(tmp_path, Intervals(1, 2), state=False) as rig:
        rig.start()
        send_bursts(rig, 4, 3, {})
        rig.finish()
        (truth, _), (stored, _) = rig.truth(), rig.stored()
        for direction in ("out", "in"):
            seen = sum(size for key, size in truth.items() if key[3] == direction)
            found = sum(size for key, size in stored.items() if key[3] == direction)
            assert found < seen
