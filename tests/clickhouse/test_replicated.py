"""A Replicated table as the engine leaves it by itself: made, read, checked, and read-only for ever.

The engine brings a Keeper of its own, in memory, but no address at which other replicas could fetch parts,
without which a replica does not begin to take rows. `test_replicas` lends it one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, check, ddl, read_table
from kubenetmon.clickhouse.sinks import ClickHouseError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.clickhouse.test_inserter import Running, quick

pytestmark = pytest.mark.chdb

OPTIONS = SchemaOptions(table="flows", cluster="main")


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[RunningFront]:
    """Of an engine with a Keeper, on which the statements of `schema print --cluster` were run."""
    config = tmp_path / "cluster.xml"
    config.write_text(
        "<clickhouse><zookeeper><implementation>testkeeper</implementation></zookeeper>"
        "<macros><shard>1</shard><replica>one</replica></macros><remote_servers><main><shard><replica>"
        "<host>127.0.0.1</host><port>9000</port></replica></shard></main></remote_servers></clickhouse>"
    )
    async with clickhouse_front(tmp_path / "engine", "--engine-config", str(config)) as front:
        sink = TcpSink(TcpConfig((front.endpoint,), tls=None))
        for statement in ddl(OPTIONS).split(";\n")[:2]:
            await sink.query(statement.replace(" ON CLUSTER `main`", ""))  # nobody keeps a queue of DDL here
        await sink.close()
        yield front


@pytest.fixture
async def sink(front: RunningFront) -> AsyncIterator[TcpSink]:
    sink = TcpSink(TcpConfig((front.endpoint,), tls=None))
    yield sink
    await sink.close()


async def test_it_is_what_is_wanted_and_nothing_is_done_twice(sink: TcpSink) -> None:
    assert await apply(sink, OPTIONS) == []
    assert await check(sink, OPTIONS) == []
    table = await read_table(sink, "default", "flows")
    assert (table.engine, table.shards, table.one_memory) == ("Distributed", 1, True)
    assert (table.deduplication.blocks, table.deduplication.seconds) == (100_000, 604_800)


async def test_what_it_lacks_is_named_and_asked_for_on_the_cluster(sink: TcpSink) -> None:
    wanted = SchemaOptions(table="flows", cluster="main", ipv6=True, deduplication_window=200_000)
    findings = " ".join(await check(sink, wanted))
    assert "does not keep IPv6" in findings
    assert (
        "`flows_local` ON CLUSTER `main` MODIFY SETTING replicated_deduplication_window = 200000" in findings
    )
    with pytest.raises(ClickHouseError, match="Replicated DDL queries are disabled"):
        await apply(sink, wanted)
    assert await check(sink, OPTIONS) == []


async def test_a_replica_that_is_read_only_is_waited_out(sink: TcpSink) -> None:
    """The engine's own 242; an operator puts a table in its place that takes rows."""
    options = quick("default", table="flows_local", settings={"insert_keeper_max_retries": 0})
    running = Running(options, sink)
    await running.inserter.wait_schema()
    batches = [asyncio.create_task(running.commit(f"batch-{number}")) for number in range(5)]
    await running.until("242")
    assert running.metrics.value(catalogue.HELD_BATCHES) == 0, "it may pass"
    assert running.readiness.ready
    await apply(sink, SchemaOptions(table="plain"))
    await sink.query("RENAME TABLE flows_local TO broken, plain TO flows_local")
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await running.total() == 50
    await running.end()
