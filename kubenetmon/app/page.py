"""The page's port: which answers it gives, of what."""

from __future__ import annotations

from collections.abc import Mapping

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.http import HttpServer, Page
from kubenetmon.metrics import Metrics
from kubenetmon.readiness import Readiness
from kubenetmon.report.limits import read_limits
from kubenetmon.report.page.api import PageApi, PageConfig
from kubenetmon.report.page.health import Health
from kubenetmon.report.prices import read_prices
from kubenetmon.server.rates import Rates


class PageServer(HttpServer):
    """Component that serves the page; stopping cancels the questions that are being answered."""

    def __init__(self, config: ServerConfig, api: PageApi, more: Mapping[str, Page]) -> None:
        super().__init__(config.page_port, host=config.page_host, what="page")
        self._api = api
        for path, page in {**api.pages(), **more}.items():
            self.add_page(path, page)

    async def stop(self) -> None:
        """End what callers wait for."""
        await self._api.close()


def page_server(
    config: ServerConfig,
    *,
    sink: Sink | None,
    metrics: Metrics,
    readiness: Readiness,
    rates: Rates,
    more: Mapping[str, Page],
) -> PageServer:
    """The page's port; `more` are pages of the server's own. Raises `ConfigurationError`."""
    about = {
        "environment": config.environment,
        "cluster": config.cluster,
        "place": f"{config.cloud} {config.region}" if config.cloud != "none" else "",
    }
    api = PageApi(
        PageConfig(database=config.clickhouse_database, table=config.clickhouse_table, about=about),
        sink=sink,
        health=Health(metrics, readiness, lambda: rates.view("app")),
        clock=SYSTEM_CLOCK,
        prices=read_prices(config.page_prices),
        limits=read_limits(config.page_nodes, config.page_instance_type, config.page_limits),
    )
    return PageServer(config, api, more)
