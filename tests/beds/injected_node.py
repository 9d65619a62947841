"""A node whose flows are injected packets by the ten thousand; behind it a real agent, server and engine.

Contract: a context manager that removes everything. Clients of the injection are in the node's pod network,
so that every flow has a local side; the agent reaches the server over a link of its own that is not tracked.
`truth` is what the node's nft counters saw by movement, `stored` what ClickHouse holds once `finish` has
stopped both.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.demo.network import create_namespace, veth_pair
from kubenetmon.demo.plan import RANGES_DIRECTORY
from kubenetmon.demo.processes import GRPC_PORT, METRICS_PORT, Intervals, Role, start_server
from tests.beds.identity import agent_imbalances, assert_balanced
from tests.beds.injector import InjectionBed

FULL_LENGTH = bool(os.environ.get("KUBENETMON_TEST_FULL_LENGTH"))
"""Whether tests shall take the minutes that a promise names, in place of less and more at once."""

NODE = "node-a"
_PATIENCE = 60.0
_NODE_ADDRESS, _SERVER_ADDRESS = "172.31.9.2", "172.31.9.1"
_POD_NETWORK = "10.64.0.0/10"
_KEY = "ct original ip saddr . ct original ip daddr . meta l4proto . ct direction"
_RULES = f"""
table inet movements {{
    set seen {{
        typeof {_KEY}
        size 65536
        flags dynamic
        counter
    }}
    chain own_in {{
        type filter hook prerouting priority raw; policy accept;
        iifname {{ "lo", "management" }} notrack
    }}
    chain own_out {{
        type filter hook output priority raw; policy accept;
        oifname {{ "lo", "management" }} notrack
    }}
    chain count {{
        type filter hook prerouting priority filter; policy accept;
        ct state invalid,untracked accept
        meta l4proto {{ tcp, udp }} update @seen {{ {_KEY} }}
    }}
}}
"""
_BY_MOVEMENT = """
SELECT toString(localIPv4), toString(remoteIPv4), lower(proto), toString(direction), sum(bytes), sum(packets)
FROM default.network_flows_0 GROUP BY ALL
"""

Movement = tuple[str, str, str, str]
"""Local address, remote address, protocol, direction."""


def until(what: Callable[[], bool], patience: float = _PATIENCE) -> None:
    """Return once that is so; a test fails when it is not within so many seconds."""
    deadline = time.monotonic() + patience
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


class InjectedNode:
    """Node, server and what runs on them."""

    def __init__(
        self, directory: Path, intervals: Intervals | None = None, *, state: bool = True, label: str = "node"
    ) -> None:
        self.directory = directory
        self._intervals = intervals or Intervals()
        self._state = state
        self._database = directory / "clickhouse"
        self.agent: Role | None = None
        self.server: Role | None = None
        with contextlib.ExitStack() as undo:
            self.bed = undo.enter_context(InjectionBed(label))
            self._server_namespace = create_namespace(f"{label}-server")
            undo.callback(self._server_namespace.delete)
            veth_pair(self.bed.node, "management", self._server_namespace, "node")
            self.bed.node.address("management", f"{_NODE_ADDRESS}/30")
            self._server_namespace.address("node", f"{_SERVER_ADDRESS}/30")
            self.bed.node.nft(_RULES)
            self._undo = undo.pop_all()
        self._config = self._write_config()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for role in (self.agent, self.server):
            if role is not None:
                role.kill()
        self._undo.close()

    def end_flows_after(self, seconds: int) -> None:
        """How long a flow stays without a packet."""
        for name in (
            "udp_timeout",
            "udp_timeout_stream",
            "tcp_timeout_established",
            "tcp_timeout_unacknowledged",
        ):
            self.bed.node.sysctl(f"net.netfilter.nf_conntrack_{name}", seconds)

    def flush(self) -> None:
        """All flows end."""
        self.bed.node.run(["conntrack", "-F"])

    def expire(self) -> None:
        """What has expired ends, as by any reader of the table; the kernel's own sweep takes up to 60 s."""
        self.bed.node.run(["conntrack", "-L"])

    def tracked(self) -> int:
        """How many flows the kernel's table holds, those included whose end it could not tell yet."""
        count = Path("/proc/sys/net/netfilter/nf_conntrack_count")
        return int(self.bed.node.call(count.read_text))

    def start(self) -> None:
        """Server and agent, ready."""
        self.start_server()
        self.start_agent()

    def start_server(self) -> Role:
        """A server, ready; in place of the one before."""
        self.server = start_server(self._server_namespace, self._config, self.directory)
        self.server.wait_ready()
        return self.server

    def kill_server(self) -> None:
        """It is gone at once."""
        assert self.server is not None
        self.server.kill()
        self.server = None

    def begin_agent(self, environment: Mapping[str, str] | None = None) -> Role:
        """An agent, as soon as its process is started; in place of the one before."""
        kept = {"KUBENETMON_STATE_DIR": str(self.directory / "state")} if self._state else {}
        self.agent = Role(
            "the agent",
            self.bed.node,
            ["--role", "agent"],
            log=self.directory / "agent.log",
            environment={
                "NODE_NAME": NODE,
                "COLLECTION_INTERVAL": f"{self._intervals.collection}s",
                "KUBENETMON_REPORT_INTERVAL": f"{self._intervals.report}s",
                "KUBENETMON_SERVER_SERVICE_HOST": _SERVER_ADDRESS,
                "KUBENETMON_SERVER_SERVICE_PORT": str(GRPC_PORT),
                "METRICS_PORT": str(METRICS_PORT),
                "SKIP_CONNTRACK_SANITY_CHECK": "true",
                **kept,
                **(environment or {}),
            },
        )
        return self.agent

    def start_agent(self, environment: Mapping[str, str] | None = None) -> Role:
        """The same, ready."""
        agent = self.begin_agent(environment)
        agent.wait_ready()
        return agent

    def settle(self, observed: int = 0) -> dict[str, float]:
        """Wait until the agent has observed so many bytes and all are committed; its metrics."""

        def settled() -> bool:
            metrics.update(agent.metrics())
            assert agent_imbalances(metrics) == []
            return (
                metrics['kubenetmon_agent_observed_total{unit="bytes"}'] >= observed
                and metrics['kubenetmon_agent_pending{unit="bytes"}'] == 0
                and metrics["kubenetmon_agent_unacknowledged_batches"] == 0
            )

        agent = self.agent
        assert agent is not None
        metrics: dict[str, float] = {}
        until(settled)
        return metrics

    def finish(self) -> None:
        """The agent reports what is left, the server commits it; before that the metrics of both add up."""
        assert self.agent is not None
        assert self.server is not None
        assert_balanced([self.agent], self.server)
        self.agent.stop()
        self.server.stop()
        self.agent = self.server = None

    def truth(self) -> tuple[Counter[Movement], Counter[Movement]]:
        """Bytes and packets that the node's counters saw."""
        sizes: Counter[Movement] = Counter()
        packets: Counter[Movement] = Counter()
        for key, count in self.bed.node.set_counters("movements", "seen").items():
            client, server, protocol, direction = map(str, key)
            movement = (client, server, protocol, "out" if direction == "original" else "in")
            sizes[movement], packets[movement] = count.bytes, count.packets
        return sizes, packets

    def stored(self) -> tuple[Counter[Movement], Counter[Movement]]:
        """Bytes and packets in ClickHouse; after `finish`."""
        sizes: Counter[Movement] = Counter()
        packets: Counter[Movement] = Counter()
        for local, remote, protocol, direction, size, count in self.ask(_BY_MOVEMENT):
            movement = (local, remote, protocol, direction)
            sizes[movement], packets[movement] = size, count
        return sizes, packets

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query; after `finish`."""

        async def query() -> list[tuple[Any, ...]]:
            sink = EmbeddedSink(self._database)
            try:
                return await sink.query(sql)
            finally:
                await sink.close()

        return asyncio.run(query())

    def _write_config(self) -> Path:
        cluster = {
            "kind": "List",
            "items": [
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": NODE,
                        "uid": NODE,
                        "creationTimestamp": "2026-01-01T00:00:00Z",
                        "labels": {"topology.kubernetes.io/zone": "us-west-2a"},
                    },
                    "spec": {"podCIDR": _POD_NETWORK, "podCIDRs": [_POD_NETWORK]},
                    "status": {"addresses": [{"type": "InternalIP", "address": _NODE_ADDRESS}]},
                }
            ],
        }
        (self.directory / "cluster.json").write_text(json.dumps(cluster))
        config = self.directory / "config.yaml"
        settings = {
            "environment": "development",
            "cloud": "aws",
            "region": "us-west-2",
            "cluster": "bursts",
            "grpc_port": GRPC_PORT,
            "metrics_port": METRICS_PORT,
            "ignore_udp": False,
            "clickhouse_endpoint": f"chdb:{self._database}",
            "kubernetes_source": f"file:{self.directory / 'cluster.json'}",
            "cloud_ranges_dir": str(RANGES_DIRECTORY),
        }
        config.write_text(json.dumps(settings))
        return config
