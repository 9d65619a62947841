"""A server's live view as `kubenetmon top` asks for it, with the rates that a test gives it.

Contract: `live_server` yields its address and its `Rates`, which two workloads have reported to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.http import HttpServer
from kubenetmon.metrics import Metrics
from kubenetmon.readiness import Readiness
from kubenetmon.server.moved import Digest, Workload
from kubenetmon.server.rates import Rates, RatesPage


def workload(app: str, path: str = "cross-zone") -> Workload:
    return Workload("shop", app, f"{app}-0", "node-a", "zone-1", path)


@asynccontextmanager
async def live_server(local: bool = True) -> AsyncIterator[tuple[str, Rates]]:
    rates = Rates(clock=SYSTEM_CLOCK)
    http = HttpServer(0, metrics=Metrics([]), readiness=Readiness(), host="127.0.0.1")
    (http.add_local_page if local else http.add_page)(
        RatesPage.PATH, RatesPage(rates, clock=SYSTEM_CLOCK).page
    )
    task = asyncio.create_task(http.run())
    await asyncio.wait_for(http.listening.wait(), 5)
    end = int(time.time()) // 10 * 10
    rates.add(
        Digest("node-a", end - 10, end, {workload("frontend"): (1e6, 2e6), workload("catalog"): (2e6, 1e6)})
    )
    try:
        yield f"127.0.0.1:{http.port}", rates
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
