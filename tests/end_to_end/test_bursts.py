"""Bursts over 10,000 TCP and 10,000 UDP flows of mixed sizes, and a real agent that is killed meanwhile."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.demo.processes import Intervals
from tests.beds.identity import agent_imbalances, server_imbalances
from tests.beds.injected_node import InjectedNode
from tests.beds.injector import MAX_PAYLOAD, TCP, UDP
from tests.beds.interpose import LoopWatch

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.slow, pytest.mark.timeout(300)]

FLOWS = 10_000
BURSTS = 20
LONGEST_HOLD = 0.020
"""Seconds."""


def send_bursts(rig: InjectedNode, bursts: int, kills: int, seed: int) -> None:
    """Every flow moves something both ways in each burst; kills at random instants within the bursts."""
    sizes, chance = np.random.default_rng(seed), random.Random(seed)
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
                    rig.begin_agent()
                payload = sizes.integers(0, MAX_PAYLOAD, FLOWS)
                rig.bed.send(protocol, 0, FLOWS, payload=payload, direction=direction)  # type: ignore[arg-type]
                part += 1
    assert rig.agent is not None
    rig.agent.wait_ready()


@pytest.mark.parametrize("kills", [0, 7])
def test_every_byte_of_the_bursts_is_stored_once(tmp_path: Path, kills: int) -> None:
    watch = LoopWatch(tmp_path / "loop")
    with InjectedNode(tmp_path, Intervals(1, 2)) as rig:
        rig.start_server()
        rig.start_agent(watch.environment())
        send_bursts(rig, BURSTS, kills, seed=kills)
        assert rig.agent is not None
        assert rig.server is not None
        time.sleep(1.2)
        metrics = rig.agent.metrics()
        assert agent_imbalances(metrics) == []
        assert server_imbalances(rig.server.metrics()) == []
        assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
        _, held = watch.longest()
        assert 0 < held < LONGEST_HOLD, (
            "the event loop is there for other things while 40,000 records are made"
        )
        rig.finish()
        truth, stored = rig.truth(), rig.stored()
        assert len(truth[0]) == 256 * 2 * 2, "servers, protocols and directions"
        assert stored == truth


def test_without_its_state_a_killed_agent_loses_bytes_so_the_comparison_can_fail(tmp_path: Path) -> None:
    with InjectedNode(tmp_path, Intervals(1, 2), state=False) as rig:
        rig.start()
        send_bursts(rig, 4, kills=3, seed=1)
        rig.finish()
        (truth, _), (stored, _) = rig.truth(), rig.stored()
        for direction in ("out", "in"):
            seen = sum(size for key, size in truth.items() if key[3] == direction)
            found = sum(size for key, size in stored.items() if key[3] == direction)
            assert found < seen
