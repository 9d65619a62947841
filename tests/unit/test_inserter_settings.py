"""The settings that go with an INSERT, seen by a sink that writes them down."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.columns import COLUMNS
from kubenetmon.clickhouse.inserter import CommitOutcome, Inserter, InserterConfig
from kubenetmon.clickhouse.sinks import Settings
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import catalogue
from kubenetmon.metrics.registry import Metrics
from kubenetmon.readiness import Readiness


class RecordingSink:
    """Answers as a server with a Distributed table over so many shards; one machine runs no such cluster."""

    address = "recording"
    servers = 1

    def __init__(self, shards: int) -> None:
        self._shards = shards
        self.inserts: list[tuple[str, Settings]] = []

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        if "FROM system.columns" in sql:
            return [(column.name, column.type, 1) for column in COLUMNS]
        if "uniqExact(shard_num)" in sql:
            assert "cluster = 'clu\\'ster'" in sql
            return [(self._shards,)]
        if "dependencies_table" in sql:
            return []
        if "name = 'flows_local'" in sql:
            assert "database = 'storage'" in sql
            full = "ReplicatedSummingMergeTree('/p', '{replica}', (bytes)) ORDER BY date SETTINGS "
            full += "replicated_deduplication_window = 7000, replicated_deduplication_window_seconds = 86400"
            return [("ReplicatedSummingMergeTree", full)]
        return [("Distributed", "Distributed('clu\\'ster', 'storage', 'flows_local', rand())", "")]

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        self.inserts.append((token, settings))

    async def ping(self) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("name", ["async_insert", "insert_deduplicate", "insert_deduplication_token"])
def test_what_decides_exactness_is_not_the_operators_to_set(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"clickhouse_insert_settings: {name} "):
        InserterConfig("default", "flows", settings={name: 0})


@pytest.mark.parametrize("shards", [1, 3])
async def test_a_batch_goes_whole_to_the_shard_of_its_token(shards: int) -> None:
    sink = RecordingSink(shards)
    config = InserterConfig("default", "flows", settings={"insert_quorum": "auto"})
    metrics, readiness = Metrics(catalogue.SERVER_METRICS), Readiness()
    inserter = Inserter(config, sink=sink, metrics=metrics, readiness=readiness)
    running = asyncio.create_task(inserter.run())
    schema = await inserter.wait_schema()
    assert schema.shards == shards
    assert (schema.deduplication.blocks, schema.deduplication.seconds) == (7000, 86400)
    tokens = [f"node/{number}" for number in range(40)] * 2
    for token in tokens:
        assert await inserter.commit(Block(1, ("bytes",), b""), token) is CommitOutcome.COMMITTED
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    shard_of: dict[str, Any] = {}
    for token, settings in sink.inserts:
        assert settings["insert_deduplicate"] == 1
        assert settings["deduplicate_insert"] == "enable"
        assert settings["deduplicate_blocks_in_dependent_materialized_views"] == 1
        assert settings["async_insert"] == 0
        assert settings["distributed_foreground_insert"] == settings["insert_distributed_sync"] == 1
        assert settings["insert_quorum"] == "auto"
        assert shard_of.setdefault(token, settings["insert_shard_id"]) == settings["insert_shard_id"]
    assert set(shard_of.values()) == set(range(1, shards + 1))
