"""`--role agent`: the parts of an agent, from its environment to its life.

Stopping goes with the flow: the collector reads and seals a last time, the sender drains, conntrack closes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kubenetmon.agent.collector import Collector, CollectorConfig
from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from kubenetmon.agent.outbox import Outbox
from kubenetmon.agent.sender import Sender, SenderConfig
from kubenetmon.agent.startup import StartupConfig, check_accounting
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
    http = HttpServer(config.metrics_port, metrics=metrics, readiness=readiness)
    lag = LoopLag(metrics=metrics, clock=SYSTEM_CLOCK)
    try:
        await Lifecycle([http, lag, *parts.components], stop_deadline=STOP_DEADLINE).run()
    finally:
        parts.conntrack.close()


@dataclass(frozen=True, slots=True)
class AgentParts:
    """An agent ready to run; `components` in the order they start. The caller closes `conntrack`."""

    components: tuple[Component, ...]
    conntrack: Conntrack


def build_agent(config: AgentConfig, metrics: Metrics, readiness: Readiness) -> AgentParts:
    """Join the agent's parts. Raises `KubenetmonError`."""
    sender_config = SenderConfig.from_agent(config)
    sender_config.credentials.check()
    conntrack = Conntrack(ConntrackConfig(count_existing=config.count_existing))
    outbox = Outbox(config.node_name, metrics=metrics, clock=SYSTEM_CLOCK)
    collector = Collector(
        CollectorConfig(
            collection_interval=config.collection_interval, report_interval=config.report_interval
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
    conntrack.open()
    metering = _Metering(startup, conntrack, collector, readiness)
    return AgentParts((sender, metering), conntrack)


class _Metering:
    """The collector, behind the start-up check: /live and signals work while the check waits."""

    name = Collector.name

    def __init__(
        self, startup: StartupConfig, conntrack: Conntrack, collector: Collector, readiness: Readiness
    ) -> None:
        self._startup, self._conntrack = startup, conntrack
        self._collector, self._readiness = collector, readiness

    async def run(self) -> None:
        await check_accounting(
            self._startup, conntrack=self._conntrack, readiness=self._readiness, clock=SYSTEM_CLOCK
        )
        await self._collector.run()

    async def stop(self) -> None:
        await self._collector.stop()
