"""A ClickHouse and servers in front of it, for agents to report to; and what ClickHouse holds in the end.

Contract: `async with site(directory) as running` starts the native front over the real engine, with the
table made as `kubenetmon schema apply` makes it, and ends whatever was started. Servers listen on loopback
addresses of their own with one port, as the pods behind a headless Service do.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.ports import free_port
from tests.beds.replica import Replica, Serve, serve
from tests.bench import cluster

TABLE = schema.SchemaOptions()

SETTLED_SECONDS = 20.0


class Site:
    """What a test works with; made by `site`."""

    def __init__(self, directory: Path, front: RunningFront, sink: TcpSink) -> None:
        self.directory, self.front, self.sink = directory, front, sink
        self.port = free_port()
        self.replicas: list[Replica] = []

    def replica(
        self,
        *,
        clickhouse: str = "",
        document: dict[str, Any] | None = None,
        work: Serve = serve,
        **settings: object,
    ) -> Replica:
        """One more server, not started."""
        number = len(self.replicas) + 1
        replica = Replica(
            self.directory / f"server-{number}",
            clickhouse=clickhouse or self.front.endpoint,
            cluster=document or cluster.document(nodes=60, pods_per_node=5),
            host=f"127.0.0.{10 + number}",
            port=self.port,
            work=work,
            **settings,
        )
        self.replicas.append(replica)
        return replica

    @property
    def addresses(self) -> list[str]:
        """Those of all servers made so far."""
        return [replica.host for replica in self.replicas]

    async def stored(self) -> dict[str, tuple[int, int]]:
        """Bytes and packets by node."""
        rows = await self.sink.query(
            "SELECT localNode, sum(bytes), sum(packets) FROM default.network_flows_0 GROUP BY localNode"
        )
        return {node: (int(moved), int(packets)) for node, moved, packets in rows}

    async def wait_stored(self, truth: dict[str, tuple[int, int]]) -> None:
        """Fails unless ClickHouse comes to hold exactly that; what an ended server sent may still come."""
        deadline = time.monotonic() + SETTLED_SECONDS
        while await self.stored() != truth:
            if time.monotonic() >= deadline:
                break
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.2)  # for a double that is still on its way
        assert await self.stored() == truth


@contextlib.asynccontextmanager
async def site(directory: Path, *, discard: bool = False) -> AsyncIterator[Site]:
    """ClickHouse with an empty table; servers that were started are killed at the end.

    `discard`: ClickHouse says that rows are committed and keeps none, so that only servers are measured.
    """
    async with clickhouse_front(directory / "clickhouse", *(["--discard"] if discard else [])) as front:
        sink = TcpSink(TcpConfig((front.endpoint,), tls=None))
        await schema.apply(sink, TABLE)
        running = Site(directory, front, sink)
        try:
            yield running
        finally:
            for replica in running.replicas:
                replica.kill()
            await sink.close()
