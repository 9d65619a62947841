"""deploy/kind/run on real nodes: kubelets run the manifests' pods, and what they move is in ClickHouse, to
the byte.

Real are kubelet, kube-proxy, scheduler, controllers, containerd, runc, the image, and ClickHouse's server
(the embedded engine's). Stand-ins are docker and kind, podinfo, and the DNS server.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.beds.kind_stand_ins import StandIns
from tests.cluster.conftest import Kind

pytestmark = [
    pytest.mark.root, pytest.mark.apiserver, pytest.mark.image, pytest.mark.nodes, pytest.mark.chdb,
    pytest.mark.slow, pytest.mark.timeout(900),
]  # fmt: skip

NET_ADMIN = 1 << 12  # capability.h
PORT = 7000
COUNT = f"""
table inet truth {{
  counter seen {{ }}
  chain passing {{
    type filter hook prerouting priority -150;
    tcp dport {PORT} counter name "seen"
    tcp sport {PORT} counter name "seen"
  }}
}}
"""
SERVE = f"""
import socket
with socket.create_server(("", {PORT})) as listener:
    print("listening", flush=True)
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(65536):
            connection.sendall(data[: len(data) // 3])
"""
# Each line of the input is one exchange.
TALK = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT})) as connection:
    for line in sys.stdin:
        connection.sendall(bytes(int(line)))
        connection.recv(1)
        print("said", flush=True)
    connection.shutdown(socket.SHUT_WR)
    while connection.recv(65536):
        pass
"""

Sums = dict[str, tuple[int, int]]
"""Bytes and packets, by node."""


class Talk:
    """One connection between two pods until its `end`, counted by nft on both nodes."""

    def __init__(self, kind: Kind, client: str, server: str) -> None:
        pods = kind.pods("visitor")
        self._nodes = [kind.nodes[client], kind.nodes[server]]
        for node in self._nodes:
            node.inside("nft", "-f", "-", given=COUNT)
        python = ("exec", "-i", "-n", "default")
        self._server = kind.started(*python, pods[server], "--", "/usr/bin/python3", "-c", SERVE)
        assert self._server.stdout is not None
        assert self._server.stdout.readline() == "listening\n"
        path = f"/api/v1/namespaces/default/pods/{pods[server]}"
        address = kind.plane.request("GET", path)["status"]["podIP"]
        self._client = kind.started(*python, pods[client], "--", "/usr/bin/python3", "-c", TALK, address)

    def say(self, size: int) -> None:
        """Send so many bytes; return once something came back."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(f"{size}\n")
        self._client.stdin.flush()
        assert self._client.stdout.readline() == "said\n"

    def end(self) -> Sums:
        """Close it; bytes and packets that passed, by node."""
        for process in (self._client, self._server):
            process.communicate(timeout=30)
            assert process.returncode == 0
        seen = {}
        for node in self._nodes:
            time.sleep(0.2)  # the last acknowledgements
            listed = json.loads(node.inside("nft", "-j", "list", "counter", "inet", "truth", "seen"))
            counter = next(one["counter"] for one in listed["nftables"] if "counter" in one)
            node.inside("nft", "delete", "table", "inet", "truth")
            seen[node.name] = (counter["bytes"], counter["packets"])
        return seen


def ask(kind: Kind, query: str) -> list[list[str]]:
    """The rows of an answer, as text."""
    command = ("clickhouse-client", "--user", "default", "--password", "clickhouse", "--query", query)
    said = kind.kubectl("-n", "default", "exec", "deployment/clickhouse", "--", *command)
    return [line.split("\t") for line in said.splitlines()]


def stored(kind: Kind, since: int) -> Sums:
    """Bytes and packets of the connections to PORT that rows since then tell of, by node."""
    rows = ask(
        kind,
        "SELECT localNode, sum(bytes), sum(packets) FROM default.network_flows_0 "
        f"WHERE (localPort = {PORT} OR remotePort = {PORT}) AND intervalStartTime >= {since} "
        "GROUP BY localNode",
    )
    return {node: (int(size), int(packets)) for node, size, packets in rows}


def wait_for_equal(kind: Kind, seen: Sums, since: int, before: Sums | None = None) -> None:
    """Until what is stored is what was seen, beside what of that time was there before."""
    truth = dict(before or {})
    for node, (size, packets) in seen.items():
        stored_size, stored_packets = truth.get(node, (0, 0))
        truth[node] = (stored_size + size, stored_packets + packets)
    deadline = time.monotonic() + 90
    while (found := stored(kind, since)) != truth and time.monotonic() < deadline:
        time.sleep(1)
    assert found == truth
    time.sleep(11)  # another report: nothing is told twice
    assert stored(kind, since) == truth


def ready_again(kind: Kind) -> None:
    kind.kubectl(
        "-n", "kubenetmon-agent", "rollout", "status", "daemonset/kubenetmon-agent", "--timeout=120s"
    )


def privileges(kind: Kind, namespace: str, workload: str) -> dict[str, str]:
    """Of a workload's main process, by the names of proc(5)."""
    said = kind.kubectl("-n", namespace, "exec", workload, "--", "cat", "/proc/1/status")
    return {name: value.strip() for name, _, value in (line.partition(":") for line in said.splitlines())}


def test_the_journey_ends_with_who_talks_to_whom(kind: Kind, tmp_path: Path) -> None:
    done = StandIns(tmp_path, kind.kubeconfig, nodes=True).run(patience=600)
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout.partition("== who talks to whom")[2]
    for talker in ("visitor-", "frontend-podinfo-", "backend-podinfo-"):
        assert talker in table
    assert "INTRA_VPC" in table

    zones = ask(
        kind, "SELECT DISTINCT localNode, localAvailabilityZone FROM default.network_flows_0 ORDER BY 1"
    )
    workers = {"kubenetmon-worker": "us-west-2a", "kubenetmon-worker2": "us-west-2b"}
    assert dict(zones).items() >= workers.items()
    assert set(kind.pods("kubenetmon-agent", "kubenetmon-agent")) == set(kind.nodes), "one agent on each node"


def test_pods_have_the_privileges_that_they_need_and_no_more(kind: Kind) -> None:
    agent = privileges(kind, "kubenetmon-agent", "daemonset/kubenetmon-agent")
    assert int(agent["CapEff"], 16) == int(agent["CapBnd"], 16) == NET_ADMIN
    server = privileges(kind, "kubenetmon-server", "deployment/kubenetmon-server")
    assert int(server["CapBnd"], 16) == 0
    assert server["Uid"].split() == ["65532"] * 4
    for status in (agent, server):
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2"), "a filter, and none to gain more"


def test_a_connection_between_nodes_is_stored_to_the_byte_though_agents_are_killed(kind: Kind) -> None:
    since = int(time.time()) // 60 * 60
    talk = Talk(kind, "kubenetmon-worker", "kubenetmon-worker2")
    for number in range(30):
        talk.say(10_000 + number)
        if number == 10:
            # What kubelet does at once where there is no grace is SIGKILL.
            kind.kubectl("-n", "kubenetmon-agent", "delete", "pod", "--all", "--force", "--grace-period=0")
        time.sleep(0.2)
    ready_again(kind)
    talk.say(100_000)
    truth = talk.end()
    assert all(size > 30 * 10_000 for size, _ in truth.values())
    wait_for_equal(kind, truth, since)


def test_a_killed_server_loses_nothing(kind: Kind) -> None:
    since = int(time.time()) // 60 * 60
    before = stored(kind, since)
    talk = Talk(kind, "kubenetmon-worker2", "kubenetmon-worker")
    talk.say(50_000)
    kind.kubectl("-n", "kubenetmon-server", "delete", "pod", "--all", "--force", "--grace-period=0")
    for number in range(10):
        talk.say(20_000 + number)
        time.sleep(0.5)
    wait_for_equal(kind, talk.end(), since, before)


def test_the_journey_with_certificates_and_tokens(kind: Kind, tmp_path: Path) -> None:
    since = int(time.time()) // 60 * 60
    before = stored(kind, since)
    done = StandIns(tmp_path, kind.kubeconfig, nodes=True).run("secure", patience=600)
    assert done.returncode == 0, done.stdout + done.stderr
    ready_again(kind)
    talk = Talk(kind, "kubenetmon-worker", "kubenetmon-worker2")
    talk.say(70_000)
    wait_for_equal(kind, talk.end(), since, before)
