"""Lives of flows that are easily lost or doubled, with a real agent, server and engine: sums by movement.

The same lives, closer to the kernel, are in `tests/kernel`: there is also what reading by zeroing, or an
ordinary listener, makes of them.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.demo.processes import Intervals, Role
from tests.beds import ctnetlink
from tests.beds.injected_node import InjectedNode, until
from tests.beds.injector import MAX_PAYLOAD, TCP, UDP
from tests.beds.interpose import ShownLate, SlowDying, stopped_at

# Ends of many flows at once take all processors, and the patience of whatever runs beside them.
pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.chdb,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

CLIENT = 50_000
"""Flows from a multiple of this number on are another client's, and so other rows."""
LIVES = 1_000
HASH_SIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
OFTEN = {"COLLECTION_INTERVAL": "100ms"}
NEVER = {"COLLECTION_INTERVAL": "1h", "KUBENETMON_REPORT_INTERVAL": "1h"}
"""Reads at the start and at the end only."""
ZONES = """
table inet zones {
    chain early {
        type filter hook prerouting priority raw; policy accept;
        iifname { "original", "reply" } ct zone set 7
    }
}
"""


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[InjectedNode]:
    with InjectedNode(tmp_path, Intervals(1, 1), label="lives") as made:
        made.start_server()
        yield made


def send(rig: InjectedNode, first: int, count: int, seed: int = 0, most: int = MAX_PAYLOAD) -> None:
    """Every flow moves something both ways, of both protocols and of mixed sizes."""
    sizes = np.random.default_rng(seed)
    for protocol in (TCP, UDP):
        rig.bed.send(protocol, first, count, payload=sizes.integers(0, most, count))
        rig.bed.send(protocol, first, count, payload=sizes.integers(0, most, count), direction="reply")


def end_flows_of(rig: InjectedNode, client: int) -> None:
    rig.bed.node.run(["conntrack", "-D", "-s", f"10.64.0.{client}"])


def sums_are_equal(rig: InjectedNode, clients: int) -> None:
    rig.finish()
    truth = rig.truth()
    assert {key[0] for key in truth[0]} == {f"10.64.0.{client}" for client in range(clients)}
    assert rig.stored() == truth


@pytest.mark.parametrize("reads", [OFTEN, NEVER], ids=["amid dumps", "between two dumps"])
def test_short_lives_the_same_tuple_again_and_natural_ends(rig: InjectedNode, reads: dict[str, str]) -> None:
    agent = rig.start_agent(reads)
    flows, bursts = 500, 4
    for seed in range(bursts):
        send(rig, 0, flows, seed)
        rig.flush()
    with ctnetlink.Flusher(rig.bed.node) as flusher:
        for life in range(LIVES):
            for protocol in (TCP, UDP):
                rig.bed.send(protocol, CLIENT, 1, payload=life * 7919 % MAX_PAYLOAD)
            until(lambda: rig.tracked() == 2)
            flusher.flush()
    rig.end_flows_after(1)
    send(rig, 2 * CLIENT, flows)
    time.sleep(1.2)
    rig.expire()
    until(lambda: rig.tracked() == 0)
    if reads is OFTEN:
        ends = 2 * (bursts * flows + LIVES + flows)
        until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == ends)
        metrics = rig.settle()
        assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
        assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
        assert metrics["kubenetmon_agent_ambiguous_identity_total"] == 0
        until(lambda: agent.metrics()["kubenetmon_agent_flows"] == 0)
    sums_are_equal(rig, 3)


def stands_still(agent: Role) -> bool:
    """As proc(5) says of the process."""
    agent.check()
    return Path(f"/proc/{agent.process_id}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@contextmanager
def standing_still(agent: Role) -> Iterator[None]:
    """The agent's process does nothing; for less than its watchdog's patience (5 s), or there is a gap."""
    os.kill(agent.process_id, signal.SIGSTOP)
    until(lambda: stands_still(agent))
    try:
        yield
    finally:
        os.kill(agent.process_id, signal.SIGCONT)


def test_what_was_there_before_is_baseline_also_where_it_ends_before_the_first_dump(
    rig: InjectedNode,
) -> None:
    flows = 1_000
    for client in (0, 1):
        send(rig, client * CLIENT, flows)
    before = rig.truth()
    agent = rig.begin_agent(stopped_at("write:before:requests"))
    until(lambda: stands_still(agent))
    end_flows_of(rig, 1)
    for seed in (1, 2):  # born after the agent's start: not even the first dump shows them
        send(rig, 2 * CLIENT, flows, seed)
        end_flows_of(rig, 2)
    os.kill(agent.process_id, signal.SIGCONT)
    agent.wait_ready()
    until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == 3 * 2 * flows)
    until(lambda: agent.metrics()["kubenetmon_agent_flows"] == 2 * flows)
    send(rig, 0, flows, 3)
    end_flows_of(rig, 0)
    send(rig, CLIENT, flows, 4)
    metrics = rig.settle(rig.bed.tracked_bytes())
    for unit, sizes in zip(("bytes", "packets"), before, strict=True):
        ignored = f'kubenetmon_agent_ignored_total{{reason="baseline",unit="{unit}"}}'
        assert metrics[ignored] == sizes.total()
    rig.finish()
    truth, stored = rig.truth(), rig.stored()
    assert {key[0] for key in before[0]} < {key[0] for key in truth[0]}
    assert stored == tuple(after - earlier for after, earlier in zip(truth, before, strict=True))


def reads_conntrack(agent: Role) -> bool:
    """A netfilter socket of the process's network namespace (column Eth, 12) is amid a dump (column Dump)."""
    rows = Path(f"/proc/{agent.process_id}/net/netlink").read_text().splitlines()[1:]
    return any(row.split()[1] == "12" and row.split()[6] == "1" for row in rows)


def test_a_hundred_thousand_flows_end_at_once_behind_a_small_event_buffer(rig: InjectedNode) -> None:
    agent = rig.start_agent({"KUBENETMON_EVENT_BUFFER": "65536"})
    flows = 50_000
    send(rig, 0, flows, most=600)
    rig.settle(rig.bed.tracked_bytes())
    send(rig, 0, flows, 1, most=600)  # what their ends alone tell
    with standing_still(agent):
        rig.flush()
        assert rig.tracked() > flows, "the buffer took most: nothing was tried"
    until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == 2 * flows)
    metrics = rig.settle(rig.bed.tracked_bytes())
    assert rig.tracked() == 0
    sums_are_equal(rig, 1)
    assert metrics["kubenetmon_agent_event_gap_seconds"] == 0
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0


def test_ends_that_the_kernel_can_only_tell_many_dumps_later_are_booked_once(
    rig: InjectedNode, tmp_path: Path
) -> None:
    # While the agent reads the kernel's list of such flows some are told, and the list is cut without a word.
    slow = SlowDying(tmp_path / "slow")
    agent = rig.start_agent({**OFTEN, **slow.environment(), "KUBENETMON_EVENT_BUFFER": "65536"})
    flows = 20_000
    send(rig, 0, flows, most=600)
    rig.settle(rig.bed.tracked_bytes())
    send(rig, 0, flows, 1, most=600)
    with standing_still(agent):
        rig.flush()
    until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == 2 * flows)
    metrics = rig.settle(rig.bed.tracked_bytes())
    sums_are_equal(rig, 1)
    assert slow.count() > 5, "the list was never long: nothing was tried"
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0


def test_flows_that_end_within_a_dump_are_booked_once(rig: InjectedNode) -> None:
    flows = 10_000
    agent = rig.start_agent(OFTEN)
    send(rig, 0, flows)
    within = 0
    for stop in range(15):
        send(rig, 0, flows, stop)
        time.sleep(0.01 * (stop % 5))
        with standing_still(agent):
            within += reads_conntrack(agent)
            for client in range(2):  # of what ends the dump showed a part already
                send(rig, client * CLIENT, 500, stop)
            end_flows_of(rig, stop % 2)
    assert within > 0, "no end fell into a dump: nothing was tried"
    rig.flush()
    until(lambda: rig.tracked() == 0)
    metrics = rig.settle(rig.bed.tracked_bytes())
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
    assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
    sums_are_equal(rig, 2)


def test_flows_whose_end_is_booked_and_that_a_dump_still_shows_are_not_born_again(
    rig: InjectedNode, tmp_path: Path
) -> None:
    late = ShownLate(tmp_path / "late")
    agent = rig.start_agent({**OFTEN, **late.environment()})
    flows, rounds = 1_000, 10
    send(rig, CLIENT, 100)  # these live on: there is always something to show
    for life in range(rounds):
        send(rig, 0, flows, life)
        rig.settle(rig.bed.tracked_bytes())
        send(rig, 0, flows, rounds + life)
        end_flows_of(rig, 0)
        ends = (life + 1) * 2 * flows
        until(lambda: agent.metrics()["kubenetmon_agent_destroy_events_total"] == ends)  # noqa: B023
        if life % 2:  # of the others a dump may show the next life beside the last
            until(lambda: late.count() == ends)  # noqa: B023
    metrics = rig.settle(rig.bed.tracked_bytes())
    assert metrics["kubenetmon_agent_ambiguous_identity_total"] == 0
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
    assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
    sums_are_equal(rig, 2)


def test_the_hash_table_is_resized_while_the_agent_reads(rig: InjectedNode) -> None:
    flows, buckets = 10_000, int(HASH_SIZE.read_text())  # of the one table of the machine
    agent = rig.start_agent(OFTEN)
    over = threading.Event()

    def resize() -> None:
        while not over.is_set():
            for size in (buckets // 4, buckets):
                HASH_SIZE.write_text(f"{size}\n")

    resizing = threading.Thread(target=resize)
    resizing.start()
    rounds, torn = 0, False
    try:
        while rounds < 6 or (rounds < 40 and not torn):
            send(rig, 0, flows, rounds)
            shown = [flow.original for flow in ctnetlink.dump(rig.bed.node)]
            torn |= len(set(shown)) != 2 * flows or len(shown) != 2 * flows
            rounds += 1
    finally:
        over.set()
        resizing.join()
        HASH_SIZE.write_text(f"{buckets}\n")
    assert torn, "every dump was whole: nothing was tried"
    metrics = rig.settle(rig.bed.tracked_bytes())
    until(lambda: agent.metrics()["kubenetmon_agent_flows"] == 2 * flows)
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
    assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
    sums_are_equal(rig, 1)


def test_tuples_that_two_conntrack_zones_share_are_two_flows_each(rig: InjectedNode) -> None:
    flows = 1_000
    agent = rig.start_agent()
    for seed in range(3):
        send(rig, 0, flows, seed)
        rig.bed.node.nft(ZONES)
        send(rig, 0, flows, 10 + seed)
        assert rig.tracked() == 2 * 2 * flows
        rig.settle(rig.bed.tracked_bytes())
        assert agent.metrics()["kubenetmon_agent_flows"] == 2 * 2 * flows
        send(rig, 0, flows, 20 + seed)
        # Alternately the zone's flows end and the others.
        rig.bed.node.run(["conntrack", "-D", "--zone", str(7 * (seed % 2))])
        assert rig.tracked() == 2 * flows
        rig.bed.node.nft("delete table inet zones")
    metrics = rig.settle(rig.bed.tracked_bytes())
    assert metrics["kubenetmon_agent_destroy_events_total"] == 3 * 2 * flows
    assert metrics["kubenetmon_agent_vanished_flows_total"] == 0
    assert metrics["kubenetmon_agent_foreign_resets_total"] == 0
    sums_are_equal(rig, 1)
