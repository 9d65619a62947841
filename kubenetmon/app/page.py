"""The page's port: which answers it gives, of what; in a server, or by itself (`kubenetmon page`)."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Mapping

from kubenetmon.app.report import instance_types, reading_sink
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import KubenetmonError
from kubenetmon.http import HttpServer, Page, is_loopback
from kubenetmon.lifecycle import Lifecycle
from kubenetmon.report.limits import Limits, read_limits
from kubenetmon.report.page.api import PageApi, PageConfig
from kubenetmon.report.page.health import Health
from kubenetmon.report.prices import read_prices

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8885
_TYPES_AGAIN, _TYPES_RETRY = 3600.0, 300.0
_TYPES_PATIENCE = 10.0
"""Seconds."""
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


class NodeLimits:
    """What the nodes can move; their types are looked up when they are asked for, at most once an hour."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises `ConfigurationError`."""
        self._config = config
        self._known = read_limits({}, config.page_instance_type, config.page_limits)
        self._until = 0.0

    async def __call__(self) -> Limits:
        """As known now; without types where they cannot be had."""
        now = SYSTEM_CLOCK.monotonic()
        nobody = not self._config.page_nodes or self._config.kubernetes_source == "machine"
        if not nobody and now >= self._until:
            self._until = now + _TYPES_AGAIN
            try:
                async with asyncio.timeout(_TYPES_PATIENCE):
                    types = await instance_types(self._config.page_nodes, self._config)
            except (KubenetmonError, TimeoutError) as error:
                self._until = now + _TYPES_RETRY
                logger.warning("The page does not know the nodes' instance types: %s", error or "no answer")
            else:
                config = self._config
                self._known = read_limits(types, config.page_instance_type, config.page_limits)
        return self._known


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
        limits=NodeLimits(config),
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
