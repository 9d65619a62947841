"""An inserter on a ClickHouse that may be killed, behind a network that may fail.

The table has a materialized view on it; both must hold every row once, whatever happened.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from kubenetmon.clickhouse.block import Constant, Values, encode
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.clickhouse_server import ClickHouseServer, User
from tests.beds.proxy import TcpProxy
from tests.clickhouse.conftest import DAY
from tests.clickhouse.test_inserter import Running, quick

ROWS = 5_000
DATABASE = "faulty"
METERING = User("metering", "of bytes & rows")
"""Whom the inserter inserts as."""

Site = TypeVar("Site", bound="FaultySite")


class FaultySite:
    """Server, proxy, table, view and inserter."""

    user = METERING

    def __init__(self, path: Path) -> None:
        self.server = ClickHouseServer(path, users=[METERING])
        self.proxy: TcpProxy
        self.running: Running
        self.direct: TcpSink
        """Around the proxy, for the test's own questions."""
        self.batches = 0

    @property
    def port(self) -> int:
        """ClickHouse's."""
        return self.server.port

    async def start_clickhouse(self) -> None:
        """On the same port as before."""
        await asyncio.to_thread(self.server.start)

    async def kill_clickhouse(self) -> None:
        """SIGKILL."""
        await asyncio.to_thread(self.server.kill)

    async def commit(self, *, days: int = 1, rows: int = ROWS) -> None:
        """One batch more, whose rows lie on so many days; returns when it is committed."""
        number, self.batches = self.batches, self.batches + 1
        table = await self.running.inserter.wait_schema()
        dates = DAY + np.arange(rows) % days
        columns = {
            "date": Values(dates),
            "intervalStartTime": Values(dates * 86_400),
            "localPort": Values(np.arange(rows) % 65_536),
            "localNode": Constant(f"node-{number}"),
            "bytes": Constant(1),
        }
        block = encode(columns, table, rows)
        outcome = await asyncio.wait_for(self.running.inserter.commit(block, f"batch-{number}"), 60)
        assert outcome is CommitOutcome.COMMITTED

    async def sums(self) -> dict[str, tuple[int, int]]:
        """Bytes by node in the table and in what the view fills."""
        table = dict(await self.direct.query(
            f"SELECT localNode, sum(bytes) FROM {DATABASE}.network_flows_0 GROUP BY localNode"
        ))  # fmt: skip
        view = dict(await self.direct.query(f"SELECT node, sum(total) FROM {DATABASE}.by_node GROUP BY node"))
        return {node: (table.get(node, 0), view.get(node, 0)) for node in {**table, **view}}

    async def each_batch_once(self, rows: int = ROWS) -> None:
        """Every batch has all its rows once, in the table and behind the view."""
        wanted = {f"node-{number}": (rows, rows) for number in range(self.batches)}
        sums = await self.sums()
        assert sums == wanted, f"{sums} (table, view)"

    async def close(self) -> None:
        await self.direct.close()
        await self.kill_clickhouse()


class FrontedSite(FaultySite):
    """With the front instead of a server, for faults within ClickHouse."""

    user = User()
    front: RunningFront

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path
        self._fronts = contextlib.AsyncExitStack()

    async def start_clickhouse(self) -> None:
        started = clickhouse_front(self._path, "--port", str(self.port))
        self.front = await self._fronts.enter_async_context(started)

    async def kill_clickhouse(self) -> None:
        await self.front.kill()
        await self._fronts.aclose()


@contextlib.asynccontextmanager
async def at_work(site: Site, *, schema_interval: float = 0.2, **tcp: Any) -> AsyncIterator[Site]:
    """The site with an empty table; short timeouts, so that what hangs is soon given up."""
    await site.start_clickhouse()
    async with TcpProxy("127.0.0.1", site.port) as proxy:
        site.proxy = proxy
        site.direct = TcpSink(TcpConfig((f"127.0.0.1:{site.port}",), tls=None))
        try:
            await make_table_and_view(site.direct)
            config = TcpConfig(
                (f"{proxy.host}:{proxy.port}",),
                tls=None,
                username=site.user.name,
                password=site.user.password,
                **{"request_timeout": 2.0, "silence": 1.0, "dial_timeout": 1.0, **tcp},
            )
            site.running = Running(quick(DATABASE, schema_interval=schema_interval), TcpSink(config))
            await site.running.inserter.wait_schema()
            try:
                yield site
            finally:
                await site.running.end()
        finally:
            await site.close()


async def make_table_and_view(sink: TcpSink) -> None:
    """The table, and a view on it that sums bytes by node."""
    await apply(sink, SchemaOptions(DATABASE))
    for statement in (
        f"CREATE TABLE {DATABASE}.by_node (node String, total UInt64) ENGINE = SummingMergeTree "
        "ORDER BY node SETTINGS non_replicated_deduplication_window = 1000",
        f"CREATE MATERIALIZED VIEW {DATABASE}.to_by_node TO {DATABASE}.by_node AS "
        f"SELECT localNode AS node, sum(bytes) AS total FROM {DATABASE}.network_flows_0 GROUP BY node",
    ):
        await sink.query(statement)
