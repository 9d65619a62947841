"""Real agents killed at each step, overlapping, with clocks that are set: every byte once in ClickHouse."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kubenetmon.demo import plan
from kubenetmon.demo.processes import Intervals, Role
from kubenetmon.errors import MachineError
from tests.beds.identity import agent_imbalances
from tests.beds.interpose import WallClock, killed_at
from tests.beds.metered_world import MeteredWorld, expected

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.timeout(300)]

NODE = plan.NODES[0].name
QUICK = Intervals(1, 1)
PATIENCE = 30.0


def until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended_by(agent: Role, number: int) -> bool:
    try:
        agent.check()
    except MachineError as error:
        if f"exit code {-number})" not in str(error):
            raise
        return True
    return False


def check_identity(metrics: dict[str, float]) -> None:
    """What an agent's ledger observed is reported, ignored or pending."""
    assert agent_imbalances(metrics) == []
    assert metrics['kubenetmon_agent_observed_total{unit="bytes"}'] > 0


STEPS = {
    "batch half written": ("writev:half:batch-",),
    "batch written": ("writev:after:batch-",),
    "at the commit": ("writev:after:batch-", "store:0:/ledger"),
    "before it is marked": ("pwrite:before:batch-",),
    "before it is sent": ("pwrite:after:batch-",),
    "sent": ("pwrite:after:batch-", "write:after:inet"),
    "answered": ("unlink:before:batch-",),
}


def test_an_agent_killed_at_each_step_of_a_batch(tmp_path: Path) -> None:
    with MeteredWorld(tmp_path, QUICK, state=True) as metered:
        metered.keep_ended_flows(600)
        metered.start()
        metered.begin_traffic(seed=11)
        metered.run_for(1)
        metered.agents[NODE].kill()
        for step in STEPS.values():
            agent = metered.begin_agent(NODE, killed_at(*step))
            number = signal.SIGSEGV if step[-1].startswith("store") else signal.SIGKILL
            until(lambda agent=agent, number=number: ended_by(agent, number))  # type: ignore[misc]
            if step[-1].startswith(("write:", "unlink:")):
                # The next server remembers nothing: what comes again is for the engine to recognise.
                assert metered.server is not None
                metered.server.kill()
                metered.start_server()
        metered.start_agent(NODE)
        metered.run_for(1)
        metered.end_traffic()
        time.sleep(QUICK.collection + 0.5)
        check_identity(metered.agents[NODE].metrics())
        flows = metered.finish()
        assert metered.stored() == expected(flows)
        assert not list((tmp_path / f"state-{NODE}").glob("aside-*"))


@pytest.mark.alone
@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_a_new_agent_takes_over_while_connections_come_and_go(tmp_path: Path, end: str) -> None:
    with MeteredWorld(tmp_path, QUICK, state=True) as metered:
        # What ends leaves the table at once: only who listens without a gap can have it.
        metered.keep_ended_flows(1)
        metered.start()
        metered.begin_traffic(seed=12)
        metered.run_for(1)
        for _ in range(3):
            old = metered.agents[NODE]
            waits = old.log.read_text().count("Another agent meters this node")
            new = metered.begin_agent(NODE)
            until(lambda: old.log.read_text().count("Another agent meters this node") > waits)  # noqa: B023
            time.sleep(1)  # flows end that both hear of
            new.check()
            if end == "SIGTERM":
                old.stop()
            else:
                old.kill()
            new.wait_ready()
            metrics = new.metrics()
            assert metrics["kubenetmon_agent_event_gap_seconds"] == 0
            metered.run_for(0.5)
        metered.run_for(1)
        metered.end_traffic()
        metrics = metered.agents[NODE].metrics()
        assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
        check_identity(metrics)
        flows = metered.finish()
        assert metered.stored() == expected(flows)


def test_with_a_state_of_its_own_a_second_agent_meters_nothing(tmp_path: Path) -> None:
    with MeteredWorld(tmp_path, QUICK, state=True) as metered:
        metered.start()
        first = metered.agents[NODE]
        rival = metered.begin_agent(
            NODE, {"KUBENETMON_STATE_DIR": str(tmp_path / "another"), "METRICS_PORT": "8993"}
        )
        until(lambda: "Another agent meters this node" in rival.log.read_text())
        metered.begin_traffic(seed=13)
        metered.run_for(2)
        metered.end_traffic()
        rival.stop()
        assert not (tmp_path / "another").exists()
        metered.agents[NODE] = first
        flows = metered.finish()
        assert metered.stored() == expected(flows)


def test_a_wall_clock_that_is_set_moves_no_byte(tmp_path: Path) -> None:
    clock = WallClock(tmp_path / "clock")
    with MeteredWorld(tmp_path, QUICK, state=True) as metered:
        metered.keep_ended_flows(600)
        metered.start_server()
        for node in plan.NODES:
            metered.begin_agent(node.name, clock.environment()).wait_ready()
        metered.begin_traffic(seed=14)
        for offset in (3600, 0, -3600, 0):
            metered.run_for(1.2)
            clock.jump_to(offset)
        metered.run_for(1.2)
        clock.jump_to(-3600)
        metered.agents[NODE].kill()
        metered.begin_agent(NODE, clock.environment()).wait_ready()
        metered.run_for(1.2)
        metered.end_traffic()
        time.sleep(QUICK.collection + 0.5)
        check_identity(metered.agents[NODE].metrics())
        said = metered.agents[NODE].log.read_text()
        flows = metered.finish()
        assert metered.stored() == expected(flows)
        assert said.count("The wall clock was set by") >= 4
        [(earliest, latest, longest)] = metered.ask(
            "SELECT toUnixTimestamp(min(intervalStartTime)), toUnixTimestamp(max(intervalStartTime)), "
            "max(intervalSeconds) FROM default.network_flows_0"
        )
        assert earliest < time.time() - 3500
        assert latest > time.time() + 3400
        assert longest <= 60, "no jump makes an interval long"
