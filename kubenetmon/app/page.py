"""The page's port: which answers it gives, of what; in a server, or by itself (`kubenetmon page`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from kubenetmon.app.report import reading_sink
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.http import HttpServer, Page, is_loopback
from kubenetmon.lifecycle import Lifecycle
from kubenetmon.report.limits import read_limits
from kubenetmon.report.page.api import PageApi, PageConfig
from kubenetmon.report.page.health import Health
from kubenetmon.report.prices import read_prices

DEFAULT_PORT = 8885
_STOP_DEADLINE = 5.0


class PageServer(HttpServer):
    """Component that serves the page; stopping cancels the questions that are being answered."""

    def __init__(self, config: ServerConfig, api: PageApi, more: Mapping[str, Page]) -> None:
        super().__init__(config.page_port, host=config.page_host, what="page")
        self._api = api
        add = self.add_local_page if _on_loopback(config.page_host) else self.add_page
        for path, page in {**api.pages(), **more}.items():
            add(path, page)

    async def stop(self) -> None:
        """End what callers wait for."""
        await self._api.close()


def _on_loopback(host: str) -> bool:
    try:
        return is_loopback(host)
    except ValueError:
        return host == "localhost"


def page_server(
    config: ServerConfig, *, sink: Sink | None, health: Health | None, more: Mapping[str, Page]
) -> PageServer:
    """The page's port; `more` are pages of the server's own. Raises `ConfigurationError`."""
    about = {
        "environment": config.environment,
        "cluster": config.cluster,
        "place": f"{config.cloud} {config.region}",
    }
    api = PageApi(
        PageConfig(
            database=config.clickhouse_database,
            table=config.clickhouse_table,
            about={name: value for name, value in about.items() if value not in ("none", "none none")},
        ),
        sink=sink,
        health=health,
        clock=SYSTEM_CLOCK,
        prices=read_prices(config.page_prices),
        limits=read_limits(config.page_nodes, config.page_instance_type, config.page_limits),
    )
    return PageServer(config, api, more)


async def run_page(config: ServerConfig) -> None:
    """Serve the page of the table that the configuration names until told to stop.

    Raises `KubenetmonError`.
    """
    if not config.page_port:
        config = dataclasses.replace(config, page_port=DEFAULT_PORT)
    async with reading_sink(config) as sink:
        page = page_server(config, sink=sink, health=None, more={})
        await Lifecycle([page], stop_deadline=_STOP_DEADLINE).run()
