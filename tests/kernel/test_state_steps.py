"""SIGKILL at each step of reading, sealing, sending and forgetting: every byte once, whichever it was."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.beds.interpose import killed_at
from tests.beds.router import CLIENT, RouterBed
from tests.kernel.metered import sums_of
from tests.kernel.victims import Victim, delivered, make_place

pytestmark = pytest.mark.root

FLOWS = 300
MANY_FLOWS = 5000
"""More than a new ledger has room for."""


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("steps") as made:
        for name in ("tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream"):
            # No flow leaves the table while nobody listens: that would be a true gap.
            made.node.sysctl(f"net.netfilter.nf_conntrack_{name}", 600)
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    with make_place() as made:
        yield made


def move(bed: RouterBed) -> None:
    """Some of everything: new flows of both protocols, and flows that go on."""
    bed.udp_flows(FLOWS)
    bed.tcp(20_000, 30_000)
    bed.udp([100, 1200, 7], 2, source_port=5555)


def end_one_flow(bed: RouterBed) -> None:
    """One event, which alone tells of what the flow moved."""
    bed.udp([100, 200], 1, source_port=5556)
    bed.node.run(["conntrack", "-D", "-p", "udp", "-s", CLIENT, "--sport", "5556"])


def end_two_flows(bed: RouterBed) -> None:
    end_one_flow(bed)
    end_one_flow(bed)


def move_many(bed: RouterBed) -> None:
    bed.udp_flows(MANY_FLOWS)


Steps = tuple[str, ...]

SEALING: dict[str, Steps] = {
    "batch file made": ("openat:after:batch-",),
    "batch file half written": ("writev:half:batch-",),
    "batch file written": ("writev:after:batch-",),
    "batch about to be marked as sent": ("pwrite:before:batch-",),
    "batch marked as sent": ("pwrite:after:batch-",),
    "batch sent": ("rename:after:deliveries/",),
    "batch answered for": ("unlink:before:batch-",),
    "batch forgotten": ("unlink:after:batch-",),
    "next batch half written": ("unlink:after:batch-", "writev:half:batch-"),
    "next batch answered for": ("unlink:after:batch-", "unlink:before:batch-"),
    "in a dump": ("unlink:after:batch-", "recv:after:requests", "recv:after:requests"),
}

STORING: dict[str, Steps] = {
    "seal about to be committed": ("writev:after:batch-", "store:0:/ledger"),
    "records being settled": ("writev:after:batch-", "store:6:/ledger"),
}


def kill_and_go_on(
    bed: RouterBed,
    place: Path,
    steps: Steps,
    traffic: Callable[[RouterBed], None],
    by: signal.Signals = signal.SIGKILL,
    meanwhile: Callable[[], None] = lambda: None,
) -> None:
    """One life that ends at the steps, traffic with nobody there, and a life that ends in order."""
    victim = Victim(bed.node, place, killed_at(*steps))
    assert victim.says() == "metering"
    with victim.held():
        traffic(bed)
    while len(steps) > 1 and victim.process.poll() is None:
        bed.udp_flows(FLOWS)  # what the next dump and the next batch are about
    assert victim.wait_killed() == by
    meanwhile()
    move(bed)
    heir = Victim(bed.node, place)
    assert heir.says() == "metering"
    move(bed)
    heir.finish()


def check(bed: RouterBed, place: Path) -> None:
    assert sums_of(delivered(place)) == bed.truth()
    assert [path.name for path in (place / "state").iterdir() if path.name.startswith("aside-")] == []
    assert [path.name for path in (place / "state").iterdir() if path.name.startswith("batch-")] == []


@pytest.mark.parametrize("step", SEALING)
def test_killed_between_two_steps_of_a_batch(bed: RouterBed, place: Path, step: str) -> None:
    kill_and_go_on(bed, place, SEALING[step], move)
    check(bed, place)


@pytest.mark.parametrize(
    ("step", "arrived", "known"),
    [
        ("batch about to be marked as sent", True, True),
        ("batch marked as sent", False, False),
        ("batch sent", True, False),
        ("batch answered for", True, False),
        ("batch forgotten", True, True),
    ],
)
def test_by_submit_a_batch_of_unknown_outcome_is_not_repeated_but_counted(
    bed: RouterBed, place: Path, step: str, arrived: bool, known: bool
) -> None:
    victim = Victim(bed.node, place, killed_at(*SEALING[step]), wire="submit")
    assert victim.says() == "metering"
    with victim.held():
        move(bed)
    assert victim.wait_killed() == signal.SIGKILL
    heir = Victim(bed.node, place, wire="submit")
    assert heir.says() == "metering"
    move(bed)
    unknown = heir.finish()
    assert (unknown == 0) == known
    metered = sum(count.bytes for count in sums_of(delivered(place)).values())
    assert metered == bed.true_bytes() - (0 if arrived else unknown)


@pytest.mark.parametrize("step", STORING)
def test_killed_at_a_store_into_the_ledger(bed: RouterBed, place: Path, step: str) -> None:
    kill_and_go_on(bed, place, STORING[step], move, signal.SIGSEGV)
    check(bed, place)


@pytest.mark.parametrize(
    ("end_flows", "events"), [(end_one_flow, 1), (end_two_flows, 2)], ids=["the first", "the second"]
)
def test_killed_with_an_event_just_taken_off_its_socket(
    bed: RouterBed, place: Path, end_flows: Callable[[RouterBed], None], events: int
) -> None:
    kill_and_go_on(bed, place, ("recv:after:events",) * events, end_flows)
    check(bed, place)


def test_killed_while_the_ledger_grows(bed: RouterBed, place: Path) -> None:
    kill_and_go_on(bed, place, ("fallocate:after:/ledger",) * 2, move_many)
    check(bed, place)


@pytest.mark.parametrize("file", ["ledger", "events"])
def test_killed_while_the_state_is_made(bed: RouterBed, place: Path, file: str) -> None:
    victim = Victim(bed.node, place, killed_at(f"fallocate:after:/{file}"))
    assert victim.wait_killed() == signal.SIGKILL
    heir = Victim(bed.node, place)
    assert heir.says() == "metering"
    move(bed)
    heir.finish()
    check(bed, place)


def test_without_its_state_a_killed_agent_loses_bytes_so_the_comparison_can_fail(
    bed: RouterBed, place: Path
) -> None:
    def forget() -> None:
        shutil.rmtree(place / "state")
        (place / "state").mkdir()

    kill_and_go_on(bed, place, SEALING["batch file written"], move, meanwhile=forget)
    sums, truth = sums_of(delivered(place)), bed.truth()
    assert all(sums[name].bytes < truth[name].bytes for name in truth)
