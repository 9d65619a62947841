"""The demo's world with a server and agents in it, step by step, for tests that interfere.

Contract: a context manager that removes everything. `start` brings up the processes, `begin_traffic` and
`end_traffic` frame what is metered, `finish` stops the processes in order, so that everything is committed,
and returns what the nodes' counters saw. `ask` queries the database that the server has let go of.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.demo import plan, processes, scenario
from kubenetmon.demo.actors import Actors
from kubenetmon.demo.processes import Intervals, Role
from kubenetmon.demo.run import wait_until_quiet
from kubenetmon.demo.world import FlowCount, World
from tests.beds.clickhouse_server import ClickHouseServer, User
from tests.beds.dual_stack import DualStack, pod_address
from tests.beds.grants import documented
from tests.beds.identity import assert_balanced

Movement = tuple[str, str, str, str, str]
"""Node, local address, remote address, protocol, direction: what rows are summed by."""

BY_MOVEMENT = """
SELECT localNode, toString(localIPv4), toString(remoteIPv4), proto, toString(direction),
       sum(bytes), sum(packets)
FROM {database}.network_flows_0 WHERE {which} GROUP BY ALL
"""

DATABASE = "flows"
"""The table's, on a server."""
METERING = User("metering", "of rows & <bytes>", grants=documented("metering"))
"""Whom our server inserts as there."""

T = TypeVar("T")


class MeteredWorld:
    """World, processes and traffic of one test."""

    def __init__(
        self,
        directory: Path,
        intervals: Intervals | None = None,
        *,
        offloads: bool = True,
        state: bool = False,
        ipv6: bool = False,
        clickhouse: bool = False,
    ) -> None:
        """With `clickhouse` rows go to a server of ClickHouse's beside ours, else to an engine in it."""
        self.directory = directory
        self.database = directory / "clickhouse"
        self._intervals = intervals or Intervals()
        self._state = state
        self.world = World()
        if not offloads:
            self.world.disable_offloads()
        self.actors = Actors()
        self.agents: dict[str, Role] = {}
        self.server: Role | None = None
        self.clickhouse: ClickHouseServer | None = None
        self._config = processes.write_server_files(directory, f"chdb:{self.database}")
        if clickhouse:
            self.clickhouse = ClickHouseServer(
                self.database, users=[METERING], within=self.world.server.command
            )
            self._use(self.clickhouse)
        self.dual_stack: DualStack | None = None
        if ipv6:
            try:
                self.dual_stack = DualStack(self.world, self._config, directory / "cluster.json")
            except BaseException:
                self.world.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End and remove everything."""
        self.actors.close()
        for role in (*self.agents.values(), self.server):
            if role is not None:
                role.kill()
        if self.clickhouse is not None:
            self.clickhouse.kill()
        self.world.close()

    def _use(self, clickhouse: ClickHouseServer) -> None:
        """Write what our server needs to know of it."""
        for name, content in (("username", METERING.name), ("password", METERING.password)):
            (self.directory / name).write_text(content)
        lines = self._config.read_text().splitlines()
        lines = [line for line in lines if not line.startswith("clickhouse_endpoint")]
        lines += [
            f"clickhouse_endpoint: {clickhouse.endpoint}",
            "clickhouse_disable_tls: true",
            f"clickhouse_credentials_dir: {self.directory}",
            f"clickhouse_database: {DATABASE}",
        ]
        self._config.write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Server and agents, ready."""
        if self.clickhouse is not None:
            self.clickhouse.start()
            self._with_sink(lambda sink: schema.apply(sink, schema.SchemaOptions(DATABASE)))
        self.start_server()
        for node in plan.NODES:
            self.start_agent(node.name)

    def start_server(self) -> Role:
        """A server, ready; in place of the one before."""
        self.server = processes.start_server(self.world.server, self._config, self.directory)
        self.server.wait_ready()
        return self.server

    def start_agent(self, node_name: str) -> Role:
        """An agent, ready; in place of the node's one before."""
        agent = self.begin_agent(node_name)
        agent.wait_ready()
        return agent

    def begin_agent(self, node_name: str, environment: Mapping[str, str] | None = None) -> Role:
        """The same, as soon as its process is started."""
        node = next(node for node in plan.NODES if node.name == node_name)
        self.agents[node_name] = processes.start_agent(
            node,
            self.world.nodes[node_name],
            self.directory,
            self._intervals,
            state=self._state,
            environment=environment,
        )
        return self.agents[node_name]

    def keep_ended_flows(self, seconds: int) -> None:
        """How long flows stay that have ended: longer than no agent listens, or they are a true gap."""
        for node in self.world.nodes.values():
            for name in ("tcp_timeout_time_wait", "tcp_timeout_close", "udp_timeout", "udp_timeout_stream"):
                node.sysctl(f"net.netfilter.nf_conntrack_{name}", seconds)

    def begin_traffic(self, seed: int = 0) -> None:
        """Everything that the demo's scenario has."""
        self.actors.begin(scenario.scripts(self.world, seed))
        self.actors.go()

    def run_for(self, seconds: float) -> None:
        """Let time pass, while nothing may end on its own."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(0.5, left))

    def check(self) -> None:
        """Raise when a process has ended on its own."""
        self.actors.check()
        for role in (*self.agents.values(), self.server):
            if role is not None:
                role.check()

    def end_traffic(self) -> None:
        """Let every exchange end, and every packet arrive."""
        self.actors.stop()
        wait_until_quiet(self.world)

    def finish(self) -> list[FlowCount]:
        """Agents report what is left, the server commits it; what the counters saw.

        Whatever befell them before, the metrics of all add up.
        """
        assert_balanced(self.agents.values(), self.server)
        for agent in self.agents.values():
            agent.stop()
        self.agents.clear()
        if self.server is not None:
            self.server.stop()
            self.server = None
        return self.world.flows() + (self.dual_stack.flows() if self.dual_stack is not None else [])

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self._with_sink(lambda sink: sink.query(sql))

    def _with_sink(self, work: Callable[[Sink], Coroutine[Any, Any, T]]) -> T:
        """What that returns, given the server as its user `default`, or the engine once ours has ended."""

        async def inside() -> T:
            endpoint = self.clickhouse.endpoint if self.clickhouse else ""
            sink: Sink = (
                TcpSink(TcpConfig((endpoint,), tls=None)) if endpoint else EmbeddedSink(self.database)
            )
            try:
                return await work(sink)
            finally:
                await sink.close()

        if self.clickhouse is not None:
            return self.world.server.call(lambda: asyncio.run(inside()))
        return asyncio.run(inside())

    def stored(self) -> tuple[Counter[Movement], Counter[Movement]]:
        """Bytes and packets in ClickHouse by movement."""
        sizes: Counter[Movement] = Counter()
        packets: Counter[Movement] = Counter()
        database = "default" if self.clickhouse is None else DATABASE
        statements = [BY_MOVEMENT.format(database=database, which="1")]
        if self.dual_stack is not None:
            is_ipv6 = "localIPv6 != toIPv6('::')"
            statements = [
                BY_MOVEMENT.format(database=database, which=f"NOT ({is_ipv6})"),
                BY_MOVEMENT.format(database=database, which=is_ipv6).replace("IPv4", "IPv6"),
            ]
        for *key, size, count in (row for statement in statements for row in self.ask(statement)):
            movement = (key[0], key[1], key[2], key[3].lower(), key[4])
            sizes[movement], packets[movement] = size, count
        return sizes, packets


def expected(flows: list[FlowCount]) -> tuple[Counter[Movement], Counter[Movement]]:
    """Bytes and packets that must be in ClickHouse: the counters' flows, seen from the side that is local.

    Local is who opened the connection where that is a pod of the node, else who answered.
    """
    homes = {address: pod.node for pod in plan.PODS for address in (pod.address, pod_address(pod))}
    sizes: Counter[Movement] = Counter()
    packets: Counter[Movement] = Counter()
    for flow in flows:
        opened_here = homes.get(flow.original_source) == flow.node
        local, remote = (
            (flow.original_source, flow.reply_source)
            if opened_here
            else (flow.reply_source, flow.original_source)
        )
        outwards = opened_here == (flow.direction == "original")
        movement = (flow.node, local, remote, flow.protocol, "out" if outwards else "in")
        sizes[movement] += flow.count.bytes
        packets[movement] += flow.count.packets
    return sizes, packets
