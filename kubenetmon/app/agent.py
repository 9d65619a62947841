"""`--role agent`: the parts of an agent, from its environment to its life.

Stopping goes with the flow: the collector reads and seals a last time, the sender drains, conntrack closes,
and last the node is let go for the next agent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubenetmon.agent.collector import Collector, CollectorConfig
from kubenetmon.agent.conntrack import MANY_WAITING, Conntrack, ConntrackConfig
from kubenetmon.agent.guard import NodeGuard
from kubenetmon.agent.outbox import Outbox
from kubenetmon.agent.sender import Sender, SenderConfig
from kubenetmon.agent.startup import StartupConfig, check_accounting
from kubenetmon.agent.state import StateDirectory
from kubenetmon.agent.table_limit import TableLimit
from kubenetmon.agent.takeover import Takeover
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.agent import AgentConfig, from_environment
from kubenetmon.http import HttpServer
from kubenetmon.lag import LoopLag
from kubenetmon.lifecycle import Component, Lifecycle
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness

STOP_DEADLINE = 25.0
"""Seconds; Kubernetes kills after 30."""


async def run_agent(environ: Mapping[str, str]) -> None:
    """Meter this node until told to stop. Raises `KubenetmonError`."""
    config = from_environment(environ)
    metrics = Metrics(catalogue.AGENT_METRICS + catalogue.COMMON_METRICS)
    readiness = Readiness()
    parts = build_agent(config, metrics, readiness)
    takeover = parts.takeover
    http = HttpServer(
        config.metrics_port,
        metrics=metrics,
        readiness=readiness,
        host=config.metrics_host,
        predecessor=lambda: takeover.waiting,
    )
    lag = LoopLag(metrics=metrics, clock=SYSTEM_CLOCK)
    try:
        await Lifecycle([http, lag, *parts.components], stop_deadline=STOP_DEADLINE).run()
    finally:
        takeover.close()


@dataclass(frozen=True, slots=True)
class AgentParts:
    """An agent ready to run; `components` in the order they start. The caller closes `takeover`."""

    components: tuple[Component, ...]
    takeover: Takeover


def build_agent(config: AgentConfig, metrics: Metrics, readiness: Readiness) -> AgentParts:
    """Join the agent's parts. Raises `KubenetmonError`."""
    sender_config = SenderConfig.from_agent(config)
    sender_config.credentials.check()
    state = None if config.state_dir is None else StateDirectory(config.state_dir, metrics=metrics)
    conntrack = Conntrack(
        ConntrackConfig(count_existing=config.count_existing, event_buffer_bytes=config.event_buffer),
        state=state,
        node_name=config.node_name,
    )
    TableLimit(metrics=metrics)
    guard = NodeGuard(state, readiness=readiness, clock=SYSTEM_CLOCK)
    outbox = Outbox(config.node_name, metrics=metrics, clock=SYSTEM_CLOCK, store=state)
    collector = Collector(
        CollectorConfig(
            collection_interval=config.collection_interval,
            report_interval=config.report_interval,
            many_waiting=MANY_WAITING,
        ),
        conntrack=conntrack,
        outbox=outbox,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
    )
    sender = Sender(
        sender_config,
        outbox=outbox,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
        wished_report_interval=collector.wish_report_interval,
    )
    startup = StartupConfig(
        skip=config.skip_conntrack_sanity_check,
        set_sysctls=config.set_sysctls,
        uptime_wait=config.uptime_wait_duration,
    )
    takeover = Takeover(conntrack=conntrack, guard=guard, outbox=outbox, collector=collector)
    metering = _Metering(startup, takeover, conntrack, collector, readiness)
    return AgentParts((sender, metering), takeover)


class _Metering:
    """The collector, behind takeover and start-up check: /live and signals work while those wait."""

    name = Collector.name

    def __init__(
        self,
        startup: StartupConfig,
        takeover: Takeover,
        conntrack: Conntrack,
        collector: Collector,
        readiness: Readiness,
    ) -> None:
        self._startup, self._takeover, self._conntrack = startup, takeover, conntrack
        self._collector, self._readiness = collector, readiness

    async def run(self) -> None:
        await self._takeover.run()
        await check_accounting(
            self._startup, conntrack=self._conntrack, readiness=self._readiness, clock=SYSTEM_CLOCK
        )
        await self._collector.run()

    async def stop(self) -> None:
        await self._collector.stop()
