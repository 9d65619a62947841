"""A Distributed table of the real engine over two shards: every batch whole on one of them, once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, ddl
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.clickhouse.test_inserter import Running, quick

pytestmark = pytest.mark.chdb

ROWS = 10


class Cluster:
    """Two shards, and a server that knows them and holds the Distributed table."""

    def __init__(self, directory: Path, fronts: contextlib.AsyncExitStack) -> None:
        self._directory, self._fronts = directory, fronts
        self.shards: list[RunningFront] = []
        self.entry: RunningFront
        self.running: Running

    async def start(self) -> None:
        for name in ("shard-1", "shard-2"):
            self.shards.append(await self._front(name))
            await self._made(self.shards[-1])
        await self._start_entry("main")
        await self._made(self.entry)  # as `schema apply --cluster` leaves it on every server
        sink = TcpSink(TcpConfig((self.entry.endpoint,), tls=None, request_timeout=10, silence=5))
        self.running = Running(quick("default", table="flows"), sink)
        await self.make_distributed("flows", "main")

    async def make_distributed(self, table: str, cluster: str) -> None:
        """One over the cluster that is written so."""
        statement = ddl(SchemaOptions(table="flows", cluster="main")).split(";\n")[1]
        statement = statement.replace(" ON CLUSTER `main`", "")  # nobody keeps a queue of DDL here
        statement = statement.replace(".`flows`", f".`{table}`").replace("'main'", f"'{cluster}'")
        await self.running.sink.query(statement)

    async def _start_entry(self, cluster: str, port: int = 0) -> None:
        """The server that knows the shards as the cluster of that name."""
        shards = "".join(
            f"<shard><replica><host>127.0.0.1</host><port>{shard.port}</port></replica></shard>"
            for shard in self.shards
        )
        config = self._directory / "cluster.xml"
        config.write_text(
            f"<clickhouse><remote_servers><{cluster}>{shards}</{cluster}></remote_servers>"
            f"<macros><cluster>{cluster}</cluster></macros></clickhouse>"
        )
        self.entry = await self._front("entry", "--engine-config", str(config), "--port", str(port))

    async def restart_entry(self, cluster: str) -> None:
        """SIGKILL, and back on the same port, where the cluster has that name."""
        await self.entry.kill()
        await self._start_entry(cluster, self.entry.port)

    async def _front(self, name: str, *options: str) -> RunningFront:
        return await self._fronts.enter_async_context(clickhouse_front(self._directory / name, *options))

    async def restart(self, number: int) -> None:
        """SIGKILL, and back on the same port."""
        port = self.shards[number].port
        await self.shards[number].kill()
        self.shards[number] = await self._front(f"shard-{number + 1}", "--port", str(port))

    async def _made(self, front: RunningFront) -> None:
        sink = TcpSink(TcpConfig((front.endpoint,), tls=None))
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


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with contextlib.AsyncExitStack() as fronts:
        cluster = Cluster(tmp_path, fronts)
        await cluster.start()
        yield cluster
        await cluster.running.end()


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
    await cluster.entry.fault("after_commit", "drop", kind="insert", times=3)
    for shard in cluster.shards:
        await shard.fault("after_commit", "drop", kind="insert", times=2)
    await asyncio.gather(*(cluster.running.commit(f"batch-{number}", ROWS) for number in range(6)))
    assert cluster.running.metrics.value(catalogue.INSERT_RETRIES) >= 3
    assert sum(await cluster.sums()) == 6 * ROWS


async def test_a_shard_that_is_away_does_not_stop_the_other(cluster: Cluster) -> None:
    """One insert at a time: what is for the shard that is away steps aside."""
    one_by_one = Running(quick("default", table="flows", workers=1), cluster.running.sink)
    await one_by_one.inserter.wait_schema()
    await cluster.shards[0].kill()
    first, second = (  # by the shard of their tokens
        [asyncio.create_task(one_by_one.commit(f"batch-{number}", ROWS)) for number in numbers]
        for numbers in (range(4), range(4, 8))
    )
    assert set(await asyncio.wait_for(asyncio.gather(*second), 40)) == {CommitOutcome.COMMITTED}
    assert not any(batch.done() for batch in first)
    await cluster.restart(0)
    assert set(await asyncio.gather(*first)) == {CommitOutcome.COMMITTED}
    assert await cluster.sums() == [4 * ROWS, 4 * ROWS]
    await one_by_one.end()


async def test_a_shard_killed_while_it_inserts(cluster: Cluster) -> None:
    await cluster.running.inserter.wait_schema()
    for shard in cluster.shards:
        await shard.fault("before_commit", "stall", kind="insert", times=0)
    batches = [asyncio.create_task(cluster.running.commit(f"batch-{number}", ROWS)) for number in range(4)]
    await asyncio.sleep(0.3)
    for number in range(2):
        await cluster.restart(number)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert sum(await cluster.sums()) == 4 * ROWS
