"""Replicas that fetch each other's parts: a quorum is reached, held while it cannot be, every batch once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_whole import CLUSTER, WholeServer, cluster
from tests.beds.replication import keeper
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.whole, pytest.mark.keeper, pytest.mark.timeout(300)]

ROWS = 10
QUORUM = {"insert_quorum": 2, "insert_quorum_timeout": 2000}


class Replicas:
    """Two servers with a replica each of one table, and inserters."""

    def __init__(self, servers: list[WholeServer], things: contextlib.AsyncExitStack) -> None:
        self.servers, self._things = servers, things

    async def inserter(self, number: int, **options: object) -> Running:
        """Of ours, on that server of theirs."""
        sink = TcpSink(TcpConfig((self.servers[number].endpoint,), tls=None, request_timeout=15, silence=10))
        await apply(sink, SchemaOptions(table="flows", cluster=CLUSTER))
        options = {"settings": QUORUM} | options
        running = Running(quick("default", table="flows_local", **options), sink)
        self._things.push_async_callback(running.end)
        await running.inserter.wait_schema()
        return running

    async def sums(self) -> list[int]:
        """Of each replica."""
        sums = []
        for server in self.servers:
            sink = TcpSink(TcpConfig((server.endpoint,), tls=None))
            try:
                sums.append(int((await sink.query("SELECT sum(bytes) FROM flows_local"))[0][0]))
            finally:
                await sink.close()
        return sums

    async def until_sums(self, each: int) -> None:
        """Wait until each replica has so much, and see that it stays so."""
        async with asyncio.timeout(60):
            while await self.sums() != [each] * len(self.servers):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.1)
        await asyncio.sleep(0.5)
        assert await self.sums() == [each] * len(self.servers)


@pytest.fixture
async def replicas(tmp_path: Path) -> AsyncIterator[Replicas]:
    with keeper(tmp_path / "keeper") as at_work:
        servers = cluster(tmp_path, at_work, [2])
        try:
            for server in servers:
                await asyncio.to_thread(server.start)
            async with contextlib.AsyncExitStack() as things:
                yield Replicas(servers, things)
        finally:
            for server in servers:
                server.kill()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
async def test_a_quorum_is_reached_and_every_batch_is_on_each_replica_once(
    replicas: Replicas, asynchronous: bool
) -> None:
    one, other = [await replicas.inserter(number, asynchronous=asynchronous) for number in (0, 1)]
    assert ("synchronous:" in one.detail()) is False
    assert await one.commit("batch", ROWS) is CommitOutcome.COMMITTED
    assert await replicas.sums() == [ROWS, ROWS], "acknowledged when the other has it"
    batches = [running.commit(f"batch-{number}", ROWS) for number in range(12) for running in (one, other)]
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    await replicas.until_sums(13 * ROWS)


async def test_a_quorum_is_held_while_a_replica_is_down_and_reached_when_it_is_back(
    replicas: Replicas,
) -> None:
    one = await replicas.inserter(0)
    await one.commit("before", ROWS)
    await asyncio.to_thread(replicas.servers[1].kill)
    batches = [asyncio.create_task(one.commit(f"batch-{number}", ROWS)) for number in range(3)]
    await one.eventually(lambda: one.metrics.value(catalogue.INSERT_RETRIES) >= 3)
    await asyncio.sleep(6)  # beyond its session in the Keeper: 285 follows 319
    assert not any(batch.done() for batch in batches)
    assert any(code in one.detail() for code in ("285", "319", "286")), one.detail()
    await asyncio.to_thread(replicas.servers[1].start)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    await replicas.until_sums(4 * ROWS)


async def test_the_replica_that_took_the_batches_dies_and_the_other_has_them(replicas: Replicas) -> None:
    """The agent sends them again, to a server of ours that knows the other replica alone."""
    one, other = [await replicas.inserter(number) for number in (0, 1)]
    for number in range(4):
        await one.commit(f"batch-{number}", ROWS)
    await asyncio.to_thread(replicas.servers[0].kill)
    without = await replicas.inserter(1, settings={})
    for number in range(4):
        assert await without.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
    waiting = asyncio.create_task(other.commit("after", ROWS))
    await asyncio.to_thread(replicas.servers[0].start)
    assert await waiting is CommitOutcome.COMMITTED
    await replicas.until_sums(5 * ROWS)
