"""What befalls a node and its agent, with real processes and the real engine: sums by movement afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.demo.processes import Intervals
from tests.beds import ctnetlink
from tests.beds.injected_node import FULL_LENGTH, InjectedNode, until
from tests.beds.injector import MAX_PAYLOAD, TCP, UDP
from tests.beds.interpose import another_boot, colliding_ids

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.slow, pytest.mark.timeout(300)]

FLOWS = 2_000
STALL = 60.0 if FULL_LENGTH else 9.0
"""Seconds that an agent stands still."""
NEXT_CLIENT = 50_000
"""Flows from this number on are another client's, and so other rows."""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[InjectedNode]:
    with InjectedNode(tmp_path, Intervals(1, 1), label="faults") as made:
        yield made


def send(rig: InjectedNode, first: int = 0, count: int = FLOWS, seed: int = 0) -> None:
    """Every flow moves something both ways, of both protocols and of mixed sizes."""
    sizes = np.random.default_rng(seed)
    for protocol in (TCP, UDP):
        rig.bed.send(protocol, first, count, payload=sizes.integers(0, MAX_PAYLOAD, count))
        rig.bed.send(protocol, first, count, payload=sizes.integers(0, MAX_PAYLOAD, count), direction="reply")


def ids_seen(rig: InjectedNode, environment: Mapping[str, str]) -> set[str]:
    """The ids of flows as a process of that environment has them from the kernel."""
    script = (
        "from kubenetmon.demo.network import Namespace\n"
        "from tests.beds import ctnetlink\n"
        f"for flow in ctnetlink.dump(Namespace({rig.bed.node.name!r})): print(flow.identifier.hex())\n"
    )
    listing = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(listing.stdout.split())


def sums_are_equal(rig: InjectedNode) -> None:
    rig.finish()
    assert rig.stored() == rig.truth()


def test_a_table_that_is_flushed_again_and_again_loses_nothing_while_ids_collide(rig: InjectedNode) -> None:
    rig.start_server()
    agent = rig.start_agent(colliding_ids(7))
    send(rig)
    assert len(ids_seen(rig, colliding_ids(7))) == 8 < len(ids_seen(rig, {}))
    for life in range(6):
        send(rig, seed=life)
        if life % 2:
            time.sleep(1)
            send(rig, seed=10 + life)
        rig.flush()
    until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == 6 * 2 * FLOWS)
    metrics = rig.settle()
    assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
    assert metrics["kubenetmon_agent_ambiguous_identity_total"] == 0
    sums_are_equal(rig)


def test_a_flush_while_the_agent_is_down_loses_what_the_gap_says_and_no_more(rig: InjectedNode) -> None:
    rig.start()
    send(rig)
    rig.settle(rig.bed.tracked_bytes())
    assert rig.agent is not None
    rig.agent.kill()
    metered = rig.bed.tracked_bytes()
    died = time.monotonic()
    send(rig, seed=1)
    rig.flush()
    missed = rig.bed.tracked_bytes() - metered
    agent = rig.start_agent()
    send(rig, seed=2)
    metrics = rig.settle(rig.bed.tracked_bytes() - missed)
    assert 0 < metrics["kubenetmon_agent_event_gap_seconds"] < time.monotonic() - died + 2
    assert "nobody heard which flows ended" in agent.log.read_text()
    until(lambda: agent.metrics()["kubenetmon_agent_vanished_flows_total"] == 2 * FLOWS)
    rig.finish()
    assert rig.stored()[0].total() == rig.bed.tracked_bytes() - missed


def test_an_agent_that_stands_still_lets_the_node_go_on_and_doubles_nothing(rig: InjectedNode) -> None:
    rig.end_flows_after(2)
    rig.start()
    agent = rig.agent
    assert agent is not None
    send(rig)
    rig.settle(rig.bed.tracked_bytes())
    os.kill(agent.process_id, signal.SIGSTOP)
    stopped = time.monotonic()
    number, most = NEXT_CLIENT, 0
    while time.monotonic() - stopped < STALL:
        send(rig, number, 500)
        number += 500
        rig.expire()
        most = max(most, rig.tracked())
        time.sleep(0.15)
    time.sleep(2.2)
    rig.expire()
    until(lambda: rig.tracked() == 0)
    os.kill(agent.process_id, signal.SIGCONT)
    stood = time.monotonic() - stopped
    until(lambda: agent.metrics()["kubenetmon_agent_event_gap_seconds"] > 0)
    last = 10 * NEXT_CLIENT
    assert number < last
    send(rig, last)
    rig.flush()
    metrics = rig.settle()
    assert metrics["kubenetmon_agent_event_gap_seconds"] < stood
    assert most < number - NEXT_CLIENT, "the node's table filled"
    rig.finish()
    truth, stored = rig.truth()[0], rig.stored()[0]
    assert stored.total() < truth.total(), "nothing was missed: the agent did not let go"
    assert all(stored[key] <= truth[key] for key in stored), "something was doubled"
    missed_by = {key[0] for key in truth if stored[key] != truth[key]}
    assert not missed_by & {"10.64.0.0", "10.64.0.10"}, "clients from before and after the gap"


def test_a_neighbour_that_resets_counters_is_said_loudly(rig: InjectedNode) -> None:
    rig.start()
    agent = rig.agent
    assert agent is not None
    send(rig)
    rig.settle(rig.bed.tracked_bytes())
    ctnetlink.zeroing_dump(rig.bed.node)
    rig.bed.send(UDP, 0, FLOWS, payload=0)
    until(lambda: agent.metrics()["kubenetmon_agent_foreign_resets_total"] > 0)
    until(lambda: "sets conntrack's counters to zero" in agent.log.read_text())
    rig.finish()
    truth, stored = rig.truth()[0], rig.stored()[0]
    assert all(stored[key] <= truth[key] for key in stored), "something was doubled"


def flip(path: Path, at: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[at] ^= 0x10
    path.write_bytes(contents)


SPOILT: dict[str, Callable[[Path], None]] = {
    "corrupt": lambda state: flip(state / "ledger", 4096 + 70),
    "truncated": lambda state: os.truncate(state / "ledger", 5000),
    "version": lambda state: flip(state / "ledger", 8),
    "other_boot": lambda state: None,
    "full": lambda state: _fill(state),
}


def _fill(state: Path) -> None:
    shutil.rmtree(state)
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", state], check=True)


def test_state_that_cannot_be_used_is_set_aside_and_metering_goes_on(
    rig: InjectedNode, tmp_path: Path
) -> None:
    state, boot = tmp_path / "state", tmp_path / "boot_id"
    boot.write_text("00000000-0000-4000-8000-000000000000\n")
    rig.start()
    try:
        for number, (reason, spoil) in enumerate(SPOILT.items()):
            # Nothing is under way when the state is spoilt, so that the new baseline takes no byte away.
            send(rig, first=number * FLOWS // 2, seed=number)
            rig.settle()
            time.sleep(1.2)
            rig.settle()
            assert rig.agent is not None
            rig.agent.kill()
            spoil(state)
            agent = rig.start_agent(another_boot(boot) if reason == "other_boot" else None)
            metrics = agent.metrics()
            assert metrics[f'kubenetmon_agent_state_set_aside_total{{reason="{reason}"}}'] == 1
            [*_, line] = [line for line in agent.log.read_text().splitlines() if "is set aside" in line]
            assert '"level":"error"' in line
            assert str(state) in line
            until(lambda: agent.metrics()["kubenetmon_agent_flows"] > 0)  # noqa: B023
        send(rig, seed=99)
        sums_are_equal(rig)
    finally:
        subprocess.run(["umount", "--lazy", state], check=True)
