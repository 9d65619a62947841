"""`--role all`: agent and server in one process over loopback, for a laptop or a single node.

Without configuration this machine is the one node, its own traffic is metered as host traffic, and rows go
into an embedded ClickHouse. Connection tracking is switched on by an nft table of our own, which goes when
the process goes, however it ends.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubenetmon.agent.tracking import Tracking
from kubenetmon.app.agent import build_agent
from kubenetmon.app.server import STOP_DEADLINE, ServerParts, build_server
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.config import agent as agent_config
from kubenetmon.config import server as server_config
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.http import HttpServer
from kubenetmon.lag import LoopLag
from kubenetmon.lifecycle import Component, Lifecycle
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.report import text

logger = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
_REPORT_INTERVAL = "10s"
_SUMMARY_INTERVAL = 60.0


async def run_single(environ: Mapping[str, str], config_path: Path | None, overrides: Sequence[str]) -> None:
    """Meter this machine until told to stop. Raises `KubenetmonError`."""
    if os.geteuid() != 0:
        raise MachineError(
            "--role all reads this machine's connection tracking, which only root may: run it with sudo"
        )
    here = agent_config.from_environment(
        {"KUBENETMON_REPORT_INTERVAL": _REPORT_INTERVAL, "KUBENETMON_SET_SYSCTLS": "true", **environ}
    )
    config = server_config.load(config_path, overrides, _defaults(here.node_name))
    here = dataclasses.replace(here, server_host=_reached_at(config.grpc_host), server_port=config.grpc_port)
    metrics = Metrics(catalogue.AGENT_METRICS + catalogue.SERVER_METRICS + catalogue.COMMON_METRICS)
    readiness = Readiness()
    tracking = Tracking()
    server = await build_server(config, metrics, readiness, node_name=here.node_name, ipv6_table=True)
    try:
        await tracking.switch_on()
        agent = build_agent(here, metrics, readiness)
        try:
            http = HttpServer(
                config.metrics_port, metrics=metrics, readiness=readiness, host=config.metrics_host
            )
            for path, page in server.pages.items():
                http.add_local_page(path, page)
            lag = LoopLag(metrics=metrics, clock=SYSTEM_CLOCK)
            summary = Summary(config, server, clock=SYSTEM_CLOCK)
            parts: list[Component] = [http, lag, summary, *server.components, *agent.components]
            await Lifecycle(parts, stop_deadline=STOP_DEADLINE).run()
            await summary.show_last()
        finally:
            agent.takeover.close()
    finally:
        await tracking.switch_off()
        await server.close()


def _defaults(node_name: str) -> dict[str, object]:
    return {
        "environment": "development",
        "cloud": "none",
        "region": "local",
        "cluster": socket.gethostname() or node_name,
        "metrics_host": LOOPBACK,
        "grpc_host": LOOPBACK,
        "clickhouse_endpoint": f"chdb:{server_config.SINGLE_MACHINE_DATABASE}",
        "kubernetes_source": "machine",
        "meter_host_network": True,
        "ignore_udp": False,
    }


def _reached_at(listen: str) -> str:
    """Where this machine reaches what listens there."""
    if listen in ("", "0.0.0.0"):  # noqa: S104 - compared, not bound
        return LOOPBACK
    return "::1" if listen == "::" else listen


class Summary:
    """Component that says now and then what is stored, and at the end shows it."""

    name = "summary"

    def __init__(self, config: server_config.ServerConfig, server: ServerParts, *, clock: Clock) -> None:
        self._table = f"`{config.clickhouse_database}`.`{config.clickhouse_table}`"
        self._endpoint = config.clickhouse_endpoint
        self._sink: Sink | None = server.sink
        self._clock = clock
        self._begun = int(clock.time())

    async def run(self) -> None:
        """A line a minute until cancelled."""
        logger.info("Metering this machine; rows go into %s, table %s", self._endpoint, self._table)
        while True:
            await self._clock.sleep(_SUMMARY_INTERVAL)
            stored = await self._ask("count(), sum(bytes)")
            if stored:
                rows, total = stored[0]
                logger.info("%s in %d rows since the start are in %s", text.size(total), rows, self._endpoint)

    async def stop(self) -> None:
        """Nothing to finish."""

    async def show_last(self) -> None:
        """Print who this machine spoke to most since the start."""
        rows = await self._ask(
            "toString(direction), proto, if(remoteIPv6 = toIPv6('::'), toString(remoteIPv4), "
            "toString(remoteIPv6)) AS remote, remoteCloudService, connectionClass, sum(bytes) AS total",
            "GROUP BY ALL ORDER BY total DESC LIMIT 15",
        )
        if rows:
            heads = ("direction", "proto", "remote", "service", "class", "bytes")
            print(text.table(heads, [(*row[:-1], text.size(row[-1])) for row in rows]))
        print(f"All rows are in {self._endpoint}, table {self._table}.")

    async def _ask(self, columns: str, rest: str = "") -> list[tuple[Any, ...]]:
        if self._sink is None:
            return []
        since = self._begun - self._begun % 60
        sql = f"SELECT {columns} FROM {self._table} WHERE intervalStartTime >= toDateTime({since}) {rest}"  # noqa: S608 - all ours
        try:
            async with asyncio.timeout(30):
                return await self._sink.query(sql)
        except (KubenetmonError, TimeoutError) as error:
            logger.warning("The summary could not be made: %s", error)
            return []
