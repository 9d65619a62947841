"""Users with exactly the grants that docs/clickhouse.md names, on a real server."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, check, ddl, read_table
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.errors import SchemaError
from kubenetmon.metrics import catalogue
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from kubenetmon.report.views import apply_views
from tests.beds.clickhouse_server import ClickHouseServer, User, clickhouse_server
from tests.beds.grants import documented
from tests.clickhouse.conftest import original_ddl
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

FLOWS = SchemaOptions("flows")
METERING = documented("metering")
USERS = {
    "metering": User("metering", "m", grants=METERING),
    "founder": User("founder", "f", grants=documented("founder")),
    "reader": User("reader", "r", grants=documented("reader"), profile={"readonly": 1}),
    "least": User("least", "l", grants=["INSERT, SELECT ON flows.network_flows_0", *METERING[4:]]),
    "blind": User("blind", "b", grants=METERING[:1]),
}
Open = Callable[[str], TcpSink]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    made = tmp_path_factory.mktemp("clickhouse")
    with clickhouse_server(made, users=list(USERS.values())) as server:
        server.stop()
        replica = f"<replica><host>127.0.0.1</host><port>{server.port}</port></replica>"
        server.config = (
            f"<remote_servers><main><shard>{replica}</shard></main></remote_servers>"
            "<macros><cluster>main</cluster></macros>"
        )
        server.start()
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def as_user(server: ClickHouseServer) -> AsyncIterator[Open]:
    """Opens a sink of that user's; the database is dropped at the end."""
    made: list[TcpSink] = []

    def open_sink(name: str) -> TcpSink:
        password = USERS[name].password if name in USERS else ""
        made.append(TcpSink(TcpConfig((server.endpoint,), tls=None, username=name, password=password)))
        return made[-1]

    yield open_sink
    await open_sink("default").query("DROP DATABASE IF EXISTS flows SYNC")
    for sink in made:
        await sink.close()


async def test_table_and_views_are_made_filled_and_asked(as_user: Open) -> None:
    founder = as_user("founder")
    await apply(founder, FLOWS)
    for _ in range(2):
        await apply_views(founder, FLOWS, time.time())
    running = Running(quick("flows"), as_user("metering"))
    for _ in range(2):
        assert await running.commit("one") is CommitOutcome.COMMITTED
    assert await running.total() == 10
    assert running.readiness.ready
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1
    table = await read_table(running.sink, "flows", "network_flows_0")
    assert table.has_views
    assert table.partitions
    reader = as_user("reader")
    source = await read_source(reader, "flows", "network_flows_0")
    scope = Scope(since=int(time.time()) - 86_400, until=int(time.time()), limit=0)
    for question in ("classes", "throughput"):
        await ask(reader, QUESTIONS[question], scope, source)
    assert await check(founder, FLOWS) == []
    await running.end()


async def test_an_originals_table_is_extended(as_user: Open) -> None:
    founder = as_user("founder")
    await as_user("default").query("CREATE DATABASE flows")
    await as_user("default").query(original_ddl("flows"))
    options = SchemaOptions("flows", ipv6=True, ttl_days=365, fsync=True)
    assert len(await apply(founder, options)) == 3
    assert await check(founder, options) == []


async def test_a_distributed_table_is_made_and_its_shards_counted(as_user: Open) -> None:
    founder = as_user("founder")
    await apply(founder, SchemaOptions("flows", "bytes_local"))
    statement = ddl(SchemaOptions("flows", "bytes", cluster="main")).split(";\n")[1]
    await founder.query(statement.replace(" ON CLUSTER `main`", ""))  # nobody keeps a queue of DDL here
    running = Running(quick("flows", table="bytes"), as_user("metering"))
    assert await running.commit("one") is CommitOutcome.COMMITTED
    assert (await read_table(running.sink, "flows", "bytes")).shards == 1
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1
    await running.end()
    with pytest.raises(SchemaError, match=r"GRANT SELECT ON system\.clusters and system\.macros"):
        await read_table(as_user("blind"), "flows", "bytes")


async def test_what_the_page_says_of_missing_grants_is_so(as_user: Open) -> None:
    boss = as_user("default")
    await apply(boss, FLOWS)
    await apply_views(boss, FLOWS, time.time())
    running = Running(quick("flows"), as_user("least"))
    assert await running.commit("one") is CommitOutcome.COMMITTED
    await running.until("cannot be seen")
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 0
    await running.end()
    blind = await read_table(as_user("blind"), "flows", "network_flows_0")
    assert blind.deduplication.blocks == 100_000
    assert not blind.partitions
    await boss.query("ALTER TABLE flows.network_flows_0 RESET SETTING non_replicated_deduplication_window")
    assert (await read_table(as_user("blind"), "flows", "network_flows_0")).own_window.blocks == 0
