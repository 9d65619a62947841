"""`kubenetmon schema apply --cluster` on servers that execute `ON CLUSTER`, and what its tables do."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.errors import SchemaError
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_server import User
from tests.beds.clickhouse_whole import CLUSTER, WholeServer, cluster
from tests.beds.replication import keeper
from tests.clickhouse.conftest import schema_command
from tests.clickhouse.test_asynchronous_queue import Mixer
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.whole, pytest.mark.keeper, pytest.mark.timeout(300)]

ROWS = 10
FLOWS = f"--cluster {CLUSTER} --database flows --table bytes"


class Cluster:
    """Servers at work, the command on the first of them, and an inserter."""

    def __init__(
        self,
        servers: Sequence[WholeServer],
        capsys: pytest.CaptureFixture[str],
        things: contextlib.AsyncExitStack,
    ) -> None:
        self.servers = list(servers)
        self._capsys, self._things = capsys, things

    async def command(self, action: str, options: str = FLOWS) -> tuple[int, str]:
        """`kubenetmon schema`: its exit code and all that it said."""
        return await schema_command(self.servers[0].endpoint, self._capsys, action, options)

    async def inserter(self, table: str = "bytes", **options: object) -> Running:
        """Of ours, on the first server."""
        sink = TcpSink(TcpConfig((self.servers[0].endpoint,), tls=None, request_timeout=20, silence=10))
        running = Running(quick("flows", table=table, **options), sink)
        self._things.push_async_callback(running.end)
        await running.inserter.wait_schema()
        return running

    async def ask(self, server: WholeServer, question: str) -> list[tuple[object, ...]]:
        sink = TcpSink(TcpConfig((server.endpoint,), tls=None))
        try:
            return list(await sink.query(question))
        finally:
            await sink.close()

    async def everywhere(self, question: str) -> list[list[tuple[object, ...]]]:
        return [await self.ask(server, question) for server in self.servers]

    async def sums(self, table: str) -> list[int]:
        return [
            int(str(rows[0][0])) for rows in await self.everywhere(f"SELECT sum(bytes) FROM flows.{table}")
        ]


@pytest.fixture
async def two_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Cluster]:
    with keeper(tmp_path / "keeper") as at_work:
        servers = cluster(tmp_path, at_work, [1, 1])
        for server in servers:
            server.users = [User(profile={"distributed_ddl_task_timeout": 5})]
        try:
            for server in servers:
                await asyncio.to_thread(server.start)
            async with contextlib.AsyncExitStack() as things:
                yield Cluster(servers, capsys, things)
        finally:
            for server in servers:
                server.kill()


TABLES = "SELECT name, engine FROM system.tables WHERE database = 'flows' ORDER BY name"
BOTH = [("bytes", "Distributed"), ("bytes_local", "ReplicatedSummingMergeTree")]
COLUMNS = "SELECT table, name, type FROM system.columns WHERE database = 'flows' ORDER BY table, position"


async def test_apply_makes_and_extends_the_tables_on_every_server_and_is_idempotent(
    two_shards: Cluster,
) -> None:
    code, said = await two_shards.command("apply")
    assert code == 0, said
    assert "ON CLUSTER" in said
    assert await two_shards.everywhere(TABLES) == [BOTH, BOTH]
    assert await two_shards.command("apply") == (0, "flows.bytes is as it should be\n")
    assert await two_shards.command("check") == (0, "")
    for options in ("--ipv6", "--ipv6 --ttl-days 365", "--ipv6 --ttl-days 365 --fsync --nodes 200"):
        code, said = await two_shards.command("apply", f"{FLOWS} {options}")
        assert code == 0, said
        assert "ALTER TABLE" in said
        assert await two_shards.command("check", f"{FLOWS} {options}") == (0, "")
    one, other = await two_shards.everywhere(COLUMNS)
    assert one == other
    assert ("bytes", "localIPv6", "IPv6") in one
    engines = await two_shards.everywhere(
        "SELECT engine_full FROM system.tables WHERE database = 'flows' AND name = 'bytes_local'"
    )
    assert engines[0] == engines[1]
    for what in ("toIntervalDay(365)", "fsync_after_insert = 1", "replicated_deduplication_window = 2520000"):
        assert what in str(engines[0]), what


async def test_batches_through_the_distributed_table_are_there_once(two_shards: Cluster) -> None:
    await two_shards.command("apply")
    running = await two_shards.inserter()
    for _ in range(2):
        await asyncio.gather(*(running.commit(f"batch-{number}", ROWS) for number in range(30)))
    assert await two_shards.sums("bytes") == [30 * ROWS, 30 * ROWS]
    local = await two_shards.sums("bytes_local")
    assert sum(local) == 30 * ROWS
    assert min(local) > 0, "both shards took some"
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1


async def test_asynchronous_inserts_through_the_distributed_table_are_not_granted(
    two_shards: Cluster,
) -> None:
    await two_shards.command("apply")
    running = await two_shards.inserter(asynchronous=True)
    assert "synchronous: flows.bytes is a Distributed table" in running.detail()
    taken = "SELECT value FROM system.events WHERE event = 'AsyncInsertQuery'"
    for _ in range(2):
        await asyncio.gather(*(running.commit(f"batch-{number}", ROWS) for number in range(30)))
    assert await two_shards.sums("bytes") == [30 * ROWS, 30 * ROWS]
    assert await two_shards.everywhere(taken) == [[], []]


async def test_asynchronous_inserts_through_a_distributed_table_would_lose_and_double(
    two_shards: Cluster,
) -> None:
    """The control: granted all the same, and straight into the tables behind it, which is exact."""
    await two_shards.command("apply")
    sink = (await two_shards.inserter()).sink
    sums: dict[str, set[int]] = {}
    for table in ("bytes", "bytes_local"):
        mixer, before, deviations = Mixer(sink, await read_table(sink, "flows", table)), 0, set()
        for _ in range(60):
            due = mixer.expected
            await asyncio.gather(*mixer.start())
            now = int((await sink.query(f"SELECT sum(bytes) FROM flows.{table}"))[0][0])
            deviations.add((now - before) - (mixer.expected - due))
            before = now
        sums[table] = deviations
        await sink.query(f"TRUNCATE TABLE flows.bytes_local ON CLUSTER {CLUSTER} SYNC")
    assert sums["bytes_local"] == {0}
    assert min(sums["bytes"]) < 0 < max(sums["bytes"]), "the engine was mended: ask the probe again"


async def test_a_server_that_is_down_is_named_in_time_and_catches_up(two_shards: Cluster) -> None:
    down = two_shards.servers[1]
    await asyncio.to_thread(down.kill)
    begun = time.monotonic()
    code, said = await two_shards.command("apply")
    assert time.monotonic() - begun < 60
    assert code != 0
    assert said.startswith(
        "kubenetmon: CREATE DATABASE IF NOT EXISTS `flows`: not done in time on 1 of 2 hosts"
    )
    assert f"(127.0.0.1:{down.port})" in said
    assert said.count("\n") == 1
    # ClickHouse shows that it lives while it waits for the other, for longer than our patience with silence.
    sink = TcpSink(TcpConfig((two_shards.servers[0].endpoint,), tls=None, silence=2))
    with pytest.raises(SchemaError, match="`others`: not done in time on 1 of 2 hosts"):
        await apply(sink, SchemaOptions("others", cluster=CLUSTER))
    await sink.close()
    await asyncio.to_thread(down.start)
    async with asyncio.timeout(60):
        while (await two_shards.command("apply"))[0] != 0:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.5)
    async with asyncio.timeout(30):
        while await two_shards.everywhere(TABLES) != [BOTH, BOTH]:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.2)
    assert await two_shards.command("check") == (0, "")
    running = await two_shards.inserter()
    for number in range(8):
        assert await running.commit(f"batch-{number}", ROWS) is CommitOutcome.COMMITTED
    assert await two_shards.sums("bytes") == [8 * ROWS, 8 * ROWS]
