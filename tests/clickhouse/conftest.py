"""The embedded engine, a server and a front, each one for all tests of a module; a table for each test."""

from __future__ import annotations

import asyncio
import itertools
import os
import shlex
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from kubenetmon.__main__ import main
from kubenetmon.clickhouse.block import Block, Constant, Values, encode
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.clickhouse_server import ClickHouseServer, User, clickhouse_server

ORIGINAL_DDL = (Path(__file__).resolve().parents[1] / "data" / "network_flows_0.sql").read_text()
INSERT_SETTINGS = {"insert_deduplicate": 1, "async_insert": 0}
OTHER_SERVER = os.environ.get("KUBENETMON_TEST_CLICKHOUSE", "")
"""host:port of a server of another version, for tests that take `config` and neither `front` nor `server`."""
USERS = [
    User("forgetful", "forgets", profile={"deduplicate_insert": "disable"}),
    User("ann", "first"),
    User("bob", "second"),
]
DAY = 25_000  # far from the table's TTL
_numbers = itertools.count()


def original_ddl(database: str, table: str = "network_flows_0") -> str:
    """The original's DDL for a table of that name."""
    return ORIGINAL_DDL.replace("default.network_flows_0", f"{database}.{table}")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    sink = EmbeddedSink(tmp_path_factory.mktemp("engine"))
    yield sink
    asyncio.run(sink.close())


@pytest.fixture(scope="module")
def engine(embedded: EmbeddedSink) -> EmbeddedSink:
    """What `database` is on; a module may put another in its place."""
    return embedded


@pytest.fixture(params=["embedded", "server"])
async def either(
    embedded: EmbeddedSink, server: ClickHouseServer, request: pytest.FixtureRequest
) -> AsyncIterator[Sink]:
    """The engine in this process, and once more a server over TCP."""
    if request.param == "embedded":
        yield embedded
        return
    sink = TcpSink(TcpConfig((server.endpoint,), tls=None))
    yield sink
    await sink.close()


@pytest.fixture
async def database(engine: Sink) -> AsyncIterator[str]:
    """An empty database of this test's own."""
    name = f"test_{next(_numbers)}"
    await engine.query(f"CREATE DATABASE {name}")
    yield name
    await engine.query(f"DROP DATABASE {name} SYNC")


def make_block(table: TableSchema, rows: int, *, day: int = DAY, bytes_each: int = 1) -> Block:
    """Rows that differ in their port, each with so many bytes."""
    columns = {
        "date": Constant(day),
        "intervalStartTime": Constant(day * 86400),
        "localPort": Values(np.arange(rows) % 65536),
        "localNode": Constant("node"),
        "bytes": Constant(bytes_each),
    }
    return encode(columns, table, rows)


async def schema_command(
    endpoint: str, capsys: pytest.CaptureFixture[str], action: str, options: str
) -> tuple[int, str]:
    """`kubenetmon schema` on that ClickHouse: its exit code and all that it said."""
    where = [f"clickhouse_endpoint={endpoint}", "clickhouse_disable_tls=true"]
    arguments = [part for setting in where for part in ("--set", setting)] + shlex.split(options)
    code = await asyncio.to_thread(main, ["schema", action, *arguments])
    said = capsys.readouterr()
    return code, said.out + said.err


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    """A server for all tests of a module."""
    with clickhouse_server(tmp_path_factory.mktemp("server"), users=USERS) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_front(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningFront]:
    """A front for all tests of a module."""
    async with clickhouse_front(tmp_path_factory.mktemp("front")) as front:
        yield front


@pytest_asyncio.fixture(loop_scope="module")
async def front(shared_front: RunningFront) -> AsyncIterator[RunningFront]:
    """The front, for tests that need its faults."""
    yield shared_front
    await shared_front.command(heal=True, listen=True)


@pytest.fixture
def config(request: pytest.FixtureRequest) -> TcpConfig:
    """How to reach the front in a test that asks for it, and in all others a server."""
    if "front" in request.fixturenames:
        endpoint = request.getfixturevalue("shared_front").endpoint
    elif OTHER_SERVER and "server" not in request.fixturenames:
        endpoint = OTHER_SERVER
    else:
        endpoint = request.getfixturevalue("server").endpoint
    return TcpConfig((endpoint,), tls=None, request_timeout=20, dial_timeout=5)


@pytest_asyncio.fixture(loop_scope="module")
async def remote_table(config: TcpConfig) -> AsyncIterator[TableSchema]:
    """A table of ours in a database of this test's own, dropped at the end."""
    sink = TcpSink(replace(config, compression="none"))
    options = SchemaOptions(f"remote_{next(_numbers)}")
    await apply(sink, options)
    yield await read_table(sink, options.database, options.table)
    await sink.query(f"DROP DATABASE {options.database} SYNC")
    await sink.close()
