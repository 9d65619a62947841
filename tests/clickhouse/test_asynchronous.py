"""Asynchronous inserts are used only where a probe has shown that a repeated token counts once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kubenetmon.clickhouse import probe
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]


class WatchedSink(TcpSink):
    """Writes down which inserts were asynchronous; says that it is of another version where told to."""

    def __init__(self, config: TcpConfig, version: str = "") -> None:
        super().__init__(config)
        self.version = version
        self.asynchronous: list[int] = []

    async def query(self, sql: str, settings: Any = None) -> list[tuple[Any, ...]]:
        if self.version and sql == "SELECT version()":
            return [(self.version,)]
        return await super().query(sql, settings)

    async def insert(self, database: str, table: str, block: Any, token: str, settings: Any) -> None:
        self.asynchronous.append(settings["async_insert"])
        await super().insert(database, table, block, token, settings)


@pytest_asyncio.fixture(loop_scope="module")
async def sink(config: TcpConfig) -> AsyncIterator[WatchedSink]:
    sink = WatchedSink(config)
    yield sink
    await sink.close()


async def test_a_window_passes_the_probe_and_sums_do_not_change(
    sink: WatchedSink, remote_table: TableSchema
) -> None:
    assert await probe.refusal(sink, remote_table) == ""
    assert await sink.query(f"SELECT sum(bytes), sum(packets) FROM {remote_table}") == [(0, 0)]
    await sink.query(f"OPTIMIZE TABLE {remote_table} FINAL")
    assert await sink.query(f"SELECT count() FROM {remote_table}") == [(0,)]


async def test_a_table_without_memory_does_not(sink: WatchedSink, remote_table: TableSchema) -> None:
    await sink.query(f"ALTER TABLE {remote_table} MODIFY SETTING non_replicated_deduplication_window = 0")
    assert "was stored 3 times" in await probe.refusal(sink, remote_table)


@pytest.mark.parametrize("version", ["26.1.9.9", "25.8.1.1", "unknown"])
async def test_an_older_server_does_not(sink: WatchedSink, remote_table: TableSchema, version: str) -> None:
    sink.version = version
    assert f"ClickHouse {version} is older than 26.2" in await probe.refusal(sink, remote_table)
    assert sink.asynchronous == []


@pytest.mark.parametrize(
    ("wished", "version", "used"), [(False, "", 0), (True, "26.1.1.1", 0), (True, "", 1)]
)
async def test_the_inserter_does_as_the_probe_says(
    config: TcpConfig, remote_table: TableSchema, wished: bool, version: str, used: int
) -> None:
    sink = WatchedSink(config, version)
    running = Running(quick(remote_table.database, asynchronous=wished), sink)
    await running.inserter.wait_schema()
    sink.asynchronous.clear()
    for _ in range(2):
        await running.commit("once")
    assert sink.asynchronous == [used, used]
    assert await running.total() == 10
    await running.until("inserts are synchronous" if wished and not used else remote_table.table)
    await running.end()


async def test_a_view_added_later_is_probed_too(config: TcpConfig, remote_table: TableSchema) -> None:
    sink = WatchedSink(config)
    running = Running(quick(remote_table.database, asynchronous=True), sink)
    await running.inserter.wait_schema()
    probed = len(sink.asynchronous)
    await apply(sink, SchemaOptions(remote_table.database, "copy", deduplication_window=50))
    await sink.query(
        f"CREATE MATERIALIZED VIEW {remote_table.database}.to_copy TO {remote_table.database}.copy AS "
        f"SELECT * FROM {remote_table}"
    )
    await running.eventually(lambda: len(sink.asynchronous) > probed)
    copy = await read_table(sink, remote_table.database, "copy")
    for _ in range(2):
        await running.commit("once")
    assert await sink.query(f"SELECT sum(bytes) FROM {copy}") == [(10,)]
    await running.end()
