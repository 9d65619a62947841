"""The embedded engine, one for all tests of the process, and a table of the original's per test."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink

ORIGINAL_DDL = (Path(__file__).resolve().parents[1] / "data" / "network_flows_0.sql").read_text()
INSERT_SETTINGS = {"insert_deduplicate": 1, "async_insert": 0}
_numbers = itertools.count()


def original_ddl(database: str, table: str = "network_flows_0") -> str:
    """The original's DDL for a table of that name."""
    return ORIGINAL_DDL.replace("default.network_flows_0", f"{database}.{table}")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    sink = EmbeddedSink(tmp_path_factory.mktemp("engine"))
    yield sink
    asyncio.run(sink.close())


@pytest.fixture
async def database(engine: EmbeddedSink) -> AsyncIterator[str]:
    """An empty database of this test's own."""
    name = f"test_{next(_numbers)}"
    await engine.query(f"CREATE DATABASE {name}")
    yield name
    await engine.query(f"DROP DATABASE {name} SYNC")
