"""A Distributed table over two shards, three real servers: every batch whole on one shard, once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, ddl
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_server import ClickHouseServer
from tests.beds.proxy import TcpProxy
from tests.clickhouse.test_inserter import Running, quick

pytestmark = pytest.mark.chdb

ROWS = 10


class Cluster:
    """Two shards, and a server that knows them and holds the Distributed table; a proxy before each."""

    def __init__(self, directory: Path) -> None:
        self.shards = [ClickHouseServer(directory / name) for name in ("shard-1", "shard-2")]
        self.entry = ClickHouseServer(directory / "entry")
        self.before_shards = [TcpProxy("127.0.0.1", shard.port) for shard in self.shards]
        self.before_entry = TcpProxy("127.0.0.1", self.entry.port)
        self.running: Running

    @property
    def proxies(self) -> list[TcpProxy]:
        """All of them."""
        return [self.before_entry, *self.before_shards]

    async def start(self) -> None:
        for proxy in self.proxies:
            await proxy.start()
        self._name_cluster("main")
        servers = (*self.shards, self.entry)
        await asyncio.gather(*(asyncio.to_thread(server.start) for server in servers))
        for server in servers:
            await self._made(server)  # as `schema apply --cluster` leaves it on every server
        endpoint = f"127.0.0.1:{self.before_entry.port}"
        sink = TcpSink(TcpConfig((endpoint,), tls=None, request_timeout=10, silence=5))
        self.running = Running(quick("default", table="flows"), sink)
        await self.make_distributed("flows", "main")

    async def end(self) -> None:
        for proxy in self.proxies:
            await proxy.stop()
        for server in (*self.shards, self.entry):
            server.kill()

    async def make_distributed(self, table: str, cluster: str) -> None:
        """One over the cluster that is written so."""
        statement = ddl(SchemaOptions(table="flows", cluster="main")).split(";\n")[1]
        statement = statement.replace(" ON CLUSTER `main`", "")  # nobody keeps a queue of DDL here
        statement = statement.replace(".`flows`", f".`{table}`").replace("'main'", f"'{cluster}'")
        await self.running.sink.query(statement)

    def _name_cluster(self, name: str) -> None:
        """What the entry, once started again, knows the shards as."""
        shards = "".join(
            f"<shard><replica><host>127.0.0.1</host><port>{proxy.port}</port></replica></shard>"
            for proxy in self.before_shards
        )
        self.entry.config = (
            f"<remote_servers><{name}>{shards}</{name}></remote_servers>"
            f"<macros><cluster>{name}</cluster></macros>"
        )

    async def restart_entry(self, cluster: str) -> None:
        """SIGKILL, and back on the same port, where the cluster has that name."""
        self._name_cluster(cluster)
        await restart(self.entry)

    async def _made(self, server: ClickHouseServer) -> None:
        sink = TcpSink(TcpConfig((server.endpoint,), tls=None))
        await apply(sink, SchemaOptions(table="flows_local"))
        await sink.close()

    async def sums(self) -> list[int]:
        """Bytes on each shard."""
        found = []
        for shard in self.shards:
            sink = TcpSink(TcpConfig((shard.endpoint,), tls=None))
            found.append(int((await sink.query("SELECT sum(bytes) FROM flows_local"))[0][0]))
            await sink.close()
        return found

    async def until_sum(self, bytes_: int) -> None:
        """Until the shards hold so many bytes."""
        async with asyncio.timeout(30):
            while sum(await self.sums()) < bytes_:  # noqa: ASYNC110 - it has to be asked
                await asyncio.sleep(0.01)


async def restart(server: ClickHouseServer) -> None:
    """SIGKILL, and back on the same port."""
    await asyncio.to_thread(server.kill)
    await asyncio.to_thread(server.start)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    cluster = Cluster(tmp_path)
    try:
        await cluster.start()
        yield cluster
        await cluster.running.end()
    finally:
        await cluster.end()


async def test_every_batch_lies_whole_on_one_shard_once(cluster: Cluster) -> None:
    table = await cluster.running.inserter.wait_schema()
    assert (table.shards, table.deduplication.blocks) == (2, 100_000)
    for _ in range(2):
        for number in range(8):
            assert await cluster.running.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
    sums = await cluster.sums()
    assert sum(sums) == 8 * ROWS
    assert all(one % ROWS == 0 and one for one in sums)
    assert cluster.running.metrics.value(catalogue.EXACTLY_ONCE) == 1


async def test_a_cluster_named_by_a_macro_is_that_cluster(cluster: Cluster) -> None:
    await cluster.make_distributed("named", "{cluster}")
    running = Running(quick("default", table="named"), cluster.running.sink)
    table = await running.inserter.wait_schema()
    assert table.shards == 2
    for number in range(8):
        await running.commit(f"batch-{number}", ROWS)
        assert sum(await cluster.sums()) == (number + 1) * ROWS, "acked, and on no shard"
    assert all(one % ROWS == 0 and one for one in await cluster.sums())
    await running.end()


async def test_a_cluster_that_is_not_known_is_said_and_nothing_goes_there(cluster: Cluster) -> None:
    await cluster.restart_entry("renamed")
    running = Running(quick("default", table="flows"), cluster.running.sink)
    batches = [asyncio.create_task(running.commit(f"batch-{number}", ROWS)) for number in range(3)]
    await running.until("cluster 'main', of which this ClickHouse knows no shard: see remote_servers")
    assert not running.readiness.ready
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 0
    assert not any(batch.done() for batch in batches)
    await cluster.restart_entry("main")
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert sum(await cluster.sums()) == 3 * ROWS
    await running.end()


async def test_answers_lost_on_either_side_do_not_double(cluster: Cluster) -> None:
    await cluster.running.inserter.wait_schema()
    for proxy in cluster.proxies:
        proxy.to_client.delay = 0.5  # so long an answer lies in the proxy
    batches = [asyncio.create_task(cluster.running.commit(f"batch-{number}", ROWS)) for number in range(6)]
    for committed, proxy in enumerate(cluster.proxies, 1):
        await cluster.until_sum(committed * ROWS)
        await proxy.cut()
    for proxy in cluster.proxies:
        proxy.heal()
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert cluster.running.metrics.value(catalogue.INSERT_RETRIES) >= 3
    assert sum(await cluster.sums()) == 6 * ROWS


async def test_a_shard_that_is_away_does_not_stop_the_other(cluster: Cluster) -> None:
    """One insert at a time: what is for the shard that is away steps aside."""
    one_by_one = Running(quick("default", table="flows", workers=1), cluster.running.sink)
    await one_by_one.inserter.wait_schema()
    await asyncio.to_thread(cluster.shards[0].kill)
    first, second = (  # by the shard of their tokens
        [asyncio.create_task(one_by_one.commit(f"batch-{number}", ROWS)) for number in numbers]
        for numbers in (range(4), range(4, 8))
    )
    assert set(await asyncio.wait_for(asyncio.gather(*second), 40)) == {CommitOutcome.COMMITTED}
    assert not any(batch.done() for batch in first)
    await asyncio.to_thread(cluster.shards[0].start)
    assert set(await asyncio.gather(*first)) == {CommitOutcome.COMMITTED}
    assert await cluster.sums() == [4 * ROWS, 4 * ROWS]
    await one_by_one.end()


@pytest.mark.parametrize("committed", [False, True], ids=["before its rows are there", "after"])
async def test_shards_killed_while_they_insert(cluster: Cluster, committed: bool) -> None:
    await cluster.running.inserter.wait_schema()
    for proxy in cluster.before_shards:
        if committed:
            proxy.to_client.delay = 0.5
        else:
            proxy.to_upstream.stall()
    batches = [asyncio.create_task(cluster.running.commit(f"batch-{number}", ROWS)) for number in range(4)]
    if committed:
        await cluster.until_sum(ROWS)
    else:
        await asyncio.sleep(0.3)
    for shard, proxy in zip(cluster.shards, cluster.before_shards, strict=True):
        await asyncio.to_thread(shard.kill)
        await proxy.cut()
        proxy.heal()
        await asyncio.to_thread(shard.start)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert cluster.running.metrics.value(catalogue.INSERT_RETRIES) >= 1
    assert sum(await cluster.sums()) == 4 * ROWS
