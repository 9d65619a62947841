"""The namespaces and counters that all rigs stand on."""

from __future__ import annotations

import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubenetmon.demo import network
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Count, Namespace, create_namespace, veth_pair
from kubenetmon.errors import MachineError
from tests.beds.injector import TCP, UDP, InjectionBed

pytestmark = pytest.mark.root

CONNTRACK_COUNT = Path("/proc/sys/net/netfilter/nf_conntrack_count")
MAKE_AND_DIE = """
import os, subprocess
from kubenetmon.demo.network import create_namespace
namespace = create_namespace("left")
namespace.popen(["sleep", "1000"], stdout=subprocess.DEVNULL, ends_with_us=False)
while not namespace.processes():
    pass
print(namespace.name, flush=True)
os._exit(1)
"""

# exit(2), not exit_group(2): the thread that began ends, the process goes on.
FIRST_THREAD_ENDS = """
import ctypes, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
ctypes.CDLL(None).syscall({number}, 0)
"""
EXIT_NUMBERS = {"x86_64": 60, "aarch64": 93}


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = create_namespace("test")
    yield made
    made.delete()


def test_what_a_dead_owner_left_is_removed_with_what_runs_in_it(namespace: Namespace) -> None:
    result = subprocess.run(
        [sys.executable, "-c", MAKE_AND_DIE],
        env=python_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=30,
    )
    left = Namespace(result.stdout.strip())
    assert left.exists()
    [sleeper] = left.processes()
    assert left.name in network.remove_leftovers()
    assert not left.exists()
    assert network._start_time(sleeper) is None
    assert namespace.exists(), "a living owner's is left alone"


def test_a_name_is_ours_only_with_process_and_start_time() -> None:
    assert network.owner_of("kubenetmon-12-345-1-node-a") == (12, 345)
    for name in ("kubenetmon-12-345", "kubenetmon-node-a-1", "other-12-345-x", "kubenetmon-12-x-y"):
        assert network.owner_of(name) is None
        assert not network.is_leftover(name)


def test_removing_twice_is_nothing(namespace: Namespace) -> None:
    namespace.delete()
    namespace.delete()
    assert not namespace.exists()
    assert namespace.processes() == []


def test_a_process_whose_first_thread_has_ended_is_seen_and_ended(namespace: Namespace) -> None:
    script = FIRST_THREAD_ENDS.format(number=EXIT_NUMBERS[platform.machine()])
    process = namespace.popen([sys.executable, "-c", script])
    status = Path(f"/proc/{process.pid}/stat")
    deadline = time.monotonic() + 30
    while status.read_text().rpartition(") ")[2][0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert process.poll() is None
    assert namespace.processes() == [process.pid]
    namespace.delete()
    assert process.wait(timeout=1) == -signal.SIGKILL


def test_sockets_made_inside_stay_inside_and_counters_see_their_packets(namespace: Namespace) -> None:
    other = create_namespace("other")
    try:
        veth_pair(namespace, "left", other, "right")
        namespace.address("left", "192.0.2.1/24")
        other.address("right", "192.0.2.2/24")
        other.nft(
            "table inet t {\n counter seen {}\n"
            " set by_source { typeof ip saddr; size 16; flags dynamic; counter; }\n"
            " chain c {\n type filter hook prerouting priority 0; policy accept;\n"
            " meta l4proto udp counter name seen update @by_source { ip saddr }\n }\n}\n"
        )
        with namespace.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sender:
            sender.sendto(b"x" * 100, ("192.0.2.2", 9))
        assert other.counters("t") == {"seen": Count(1, 128)}
        assert other.set_counters("t", "by_source") == {("192.0.2.1",): Count(1, 128)}
    finally:
        other.delete()


def test_failures_are_one_line(namespace: Namespace) -> None:
    for attempt in (
        lambda: namespace.sysctl("net.core.nothing_of_that_name", 1),
        lambda: namespace.address("nothing", "192.0.2.1/24"),
        lambda: namespace.nft("no such thing"),
        lambda: namespace.run(["false"]),
    ):
        with pytest.raises(MachineError) as caught:
            attempt()
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="longer than 15"):
        veth_pair(namespace, "a" * 16, namespace, "b")


def test_injected_packets_are_what_the_kernel_counts() -> None:
    with InjectionBed("test") as bed:
        written = Count(0, 0)
        for protocol in (TCP, UDP):
            written += bed.send(protocol, 0, 500, payload=700)
            written += bed.send(protocol, 0, 500, payload=50, direction="reply")
        truth = bed.truth()
        assert truth["tracked_tcp"] + truth["tracked_udp"] == written
        assert truth["original"] + truth["reply"] == written
        assert bed.node.call(CONNTRACK_COUNT.read_text) == "1000\n"


def test_connection_tracking_is_asked_for_where_it_is_a_module_that_is_not_loaded(
    namespace: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What makes the kernel load it is a request, not `modprobe`; that it does, `nox -s arm64` shows."""
    asked: list[str] = []
    want = network._want_conntrack
    monkeypatch.setattr(network, "_want_conntrack", lambda: (asked.append("once"), want()))
    namespace.sysctl("net.netfilter.nf_conntrack_acct", 1)
    loaded_before = not asked
    with pytest.raises(MachineError, match="does not take"):
        namespace.sysctl("net.netfilter.no_such_setting", 1)
    assert asked == ["once"] * (1 if loaded_before else 2)
    namespace.sysctl("net.netfilter.nf_conntrack_acct", 1)
    assert len(asked) == (1 if loaded_before else 2)
