"""The page on a real engine with a known world in it, one for all tests of the session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.http import HttpServer
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.report.limits import Limits, read_limits
from kubenetmon.report.page.api import PageApi, PageConfig
from kubenetmon.report.page.health import Health
from kubenetmon.report.prices import read_prices
from kubenetmon.server.rates import Rates
from tests.beds import page_world
from tests.beds.described_sink import DescribedSink
from tests.report.known_tables import sink, table

__all__ = ["page", "sink", "table"]

MINUTES = 360
HOUR = 3600
DAY = 24 * HOUR


@dataclass
class Page:
    """The engine, what is in it, and when it begins."""

    sink: DescribedSink
    world: page_world.World
    start: int
    until: int

    def api(self, config: PageConfig | None = None, *, with_sink: bool = True) -> PageApi:
        metrics, readiness = Metrics(catalogue.SERVER_METRICS), Readiness()
        readiness.passed("grpc", "port 8884")
        metrics.add(catalogue.SERVER_RECEIVED, 1_000_000, unit="bytes")
        metrics.add(catalogue.SERVER_COMMITTED, 900_000, unit="bytes")
        metrics.add(catalogue.SERVER_IGNORED, 100_000, unit="bytes", reason="udp")
        rates = Rates(clock=SYSTEM_CLOCK)
        return PageApi(
            config or PageConfig(about={"cluster": "main", "place": "aws us-west-2"}),
            sink=self.sink if with_sink else None,
            health=Health(metrics, readiness, lambda: rates.view("app")),
            clock=SYSTEM_CLOCK,
            prices=read_prices(),
            limits=_limits,
        )

    @property
    def span(self) -> str:
        """The world's span, as parameters."""
        return f"since=%40{self.start}&until=%40{self.until}"


async def _limits() -> Limits:
    return read_limits({}, "m5.large", None)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    sink = DescribedSink(tmp_path_factory.mktemp("page"))
    until = int(time.time()) // DAY * DAY - 8 * HOUR  # yesterday, 16:00 UTC: rollups keep days, not for ever
    start = until - MINUTES * 60

    async def filled() -> page_world.World:
        return await page_world.fill(sink, start, MINUTES)

    yield Page(sink, asyncio.run(filled()), start, until)
    asyncio.run(sink.close())


@asynccontextmanager
async def served(api: PageApi) -> AsyncIterator[str]:
    """The page on a port of its own; yields its address."""
    http = HttpServer(0, host="127.0.0.1", what="page")
    for path, answer in api.pages().items():
        http.add_page(path, answer)
    task = asyncio.create_task(http.run())
    await asyncio.wait_for(http.listening.wait(), 5)
    try:
        yield f"http://127.0.0.1:{http.port}"
    finally:
        await api.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
