"""Asynchronous inserts on a server that keeps them in a queue: the acknowledgement comes with the flush, a
flush takes many batches, and each is there once whenever the server dies."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from kubenetmon.clickhouse import probe
from kubenetmon.clickhouse.insert_settings import insert_settings
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_server import User
from tests.beds.clickhouse_whole import FLUSH, WholeServer
from tests.beds.engine_internals import Engine
from tests.beds.proxy import TcpProxy
from tests.clickhouse.conftest import make_block
from tests.clickhouse.test_inserter import Running, quick
from tests.clickhouse.test_old_batches import ROWS as REPORT_ROWS
from tests.clickhouse.test_old_batches import SUM, a_report

pytestmark = [pytest.mark.chdb, pytest.mark.whole]

ROWS = 10
FLOWS = "default.flows"
# Else an insert that comes late enough after the one before is itself a reason to flush.
PATIENT = User(
    profile={"async_insert_busy_timeout_min_ms": 600_000, "async_insert_busy_timeout_max_ms": 600_000}
)


class Queue:
    """A server with a queue, a table of ours on it, and inserters that put into it asynchronously."""

    def __init__(self, server: WholeServer, things: contextlib.AsyncExitStack) -> None:
        self.server = server
        self._things = things
        self._seen: set[str] = set()
        self.control = TcpSink(TcpConfig((server.endpoint,), tls=None))
        things.push_async_callback(self.control.close)

    async def inserter(self, endpoint: str = "", **options: object) -> Running:
        """One at work that has been granted asynchronous inserts; the table is made where there is none."""
        await apply(self.control, SchemaOptions(table="flows"))
        config = TcpConfig((endpoint or self.server.endpoint,), tls=None, request_timeout=10, silence=10)
        running = Running(quick("default", table="flows", asynchronous=True, **options), TcpSink(config))
        self._things.push_async_callback(running.end)
        async with self.flushing():
            await running.inserter.wait_schema()
        assert "synchronous:" not in running.detail(), "granted"
        return running

    @contextlib.asynccontextmanager
    async def flushing(self, often: float = 0.05) -> AsyncIterator[None]:
        """Do in between what a server's own thread does."""

        over = asyncio.Event()

        async def work() -> None:
            while not over.is_set():
                await self.control.query(FLUSH)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(over.wait(), often)

        task = asyncio.create_task(work())
        try:
            yield
        finally:
            over.set()  # and no flush of ours is under way after this
            await task

    async def waiting(self) -> int:
        """How many inserts are in the queue."""
        rows = await self.control.query(
            "SELECT sum(length(entries.query_id)) FROM system.asynchronous_inserts"
        )
        return int(rows[0][0])

    async def until_waiting(self, count: int) -> None:
        async with asyncio.timeout(30):
            while await self.waiting() < count:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.02)

    async def flushes(self) -> list[int]:
        """How many inserts each flush took that ended well since this was asked last."""
        await self.control.query("SYSTEM FLUSH LOGS")
        rows = await self.control.query(
            "SELECT flush_query_id, count() FROM system.asynchronous_insert_log "
            f"WHERE status = 'Ok' AND database || '.' || table = '{FLOWS}' GROUP BY flush_query_id"
        )
        new = [int(count) for flush, count in rows if flush not in self._seen]
        self._seen |= {flush for flush, _ in rows}
        return new

    async def total(self, what: str = f"sum(bytes) FROM {FLOWS}") -> int:
        return int((await self.control.query(f"SELECT {what}"))[0][0])

    async def restart(self, how: Callable[[], None]) -> None:
        """End the process so, and start it again on the same data and port."""
        await asyncio.to_thread(how)
        await asyncio.to_thread(self.server.start)


Opened = Callable[[WholeServer], AbstractAsyncContextManager[Queue]]


@pytest.fixture
def opened() -> Opened:
    @contextlib.asynccontextmanager
    async def opened(server: WholeServer) -> AsyncIterator[Queue]:
        async with contextlib.AsyncExitStack() as things:
            yield Queue(server, things)

    return opened


@pytest.fixture(scope="module")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WholeServer]:
    server = WholeServer(tmp_path_factory.mktemp("queue"), users=[PATIENT], flush=0)
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture
async def queue(shared_server: WholeServer, opened: Opened) -> AsyncIterator[Queue]:
    """A server that flushes when the test says so."""
    async with opened(shared_server) as queue:
        yield queue
        await queue.control.query(f"DROP TABLE IF EXISTS {FLOWS} SYNC")


@pytest.fixture
async def mortal(tmp_path: Path, opened: Opened) -> AsyncIterator[Queue]:
    """A server of the test's own."""
    server = WholeServer(tmp_path / "server", users=[PATIENT], flush=0)
    try:
        await asyncio.to_thread(server.start)
        async with opened(server) as queue:
            yield queue
    finally:
        server.kill()


class Mixer:
    """Sends batches seen and unseen, each of a size of its own, some at once; knows what should be there."""

    def __init__(self, sink: TcpSink, table: TableSchema) -> None:
        self._sink, self._table = sink, table
        self._chance = random.Random(7)
        self._sent: list[int] = []
        self.expected = 0

    def start(self) -> list[asyncio.Task[None]]:
        """One to four inserts under way, of which some repeat one of the last few."""
        tasks = []
        for _ in range(1 + self._chance.randrange(4)):
            number = (
                self._chance.choice(self._sent[-6:]) if self._sent and self._chance.random() < 0.5 else -1
            )
            if number < 0:
                number = len(self._sent)
                self._sent.append(number)
                self.expected += 1 + number % 7
            tasks.append(asyncio.create_task(self._insert(number)))
        return tasks

    async def _insert(self, number: int) -> None:
        table, token = self._table, f"mixed-{number}"
        settings = insert_settings(table, token, {}, asynchronous=True)
        await self._sink.insert(
            table.database, table.table, make_block(table, 1 + number % 7), token, settings
        )


def pending(running: Running, tokens: list[str]) -> list[asyncio.Task[CommitOutcome]]:
    return [asyncio.create_task(running.commit(token, ROWS)) for token in tokens]


async def test_the_acknowledgement_comes_with_the_flush_and_not_before(queue: Queue) -> None:
    running = await queue.inserter()
    await queue.flushes()
    batches = pending(running, ["one", "two"])
    await queue.until_waiting(2)
    await asyncio.sleep(0.5)
    assert not any(batch.done() for batch in batches)
    assert await queue.total() == 0
    await queue.control.query(FLUSH)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await queue.total() == 2 * ROWS
    assert await queue.flushes() == [2], "one flush took both"


async def test_many_nodes_batches_are_there_once_each(queue: Queue) -> None:
    running = await queue.inserter(workers=50)
    await queue.flushes()
    taken = "value FROM system.events WHERE event = 'AsyncInsertQuery'"
    before = await queue.total(taken)
    async with queue.flushing():
        await asyncio.gather(*pending(running, [f"node-{number}" for number in range(200)]))
        await asyncio.gather(*pending(running, [f"node-{number}" for number in range(0, 200, 2)]))
    assert await queue.total() == 200 * ROWS
    assert await queue.total(taken) - before == 300
    flushes = await queue.flushes()
    assert sum(flushes) == 300
    assert len(flushes) < 150, "flushes took several batches"
    assert running.metrics.value(catalogue.EXACTLY_ONCE) == 1


async def test_a_token_twice_in_one_flush_counts_once(queue: Queue) -> None:
    """Two servers of ours send it: the agent has given up on the first."""
    one, other = await queue.inserter(), await queue.inserter()
    batches = pending(one, ["same", "another"]) + pending(other, ["same", "third"])
    await queue.until_waiting(4)
    await queue.control.query(FLUSH)
    assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await queue.total() == 3 * ROWS


async def test_flushes_of_seen_and_unseen_batches_add_the_unseen_alone(queue: Queue) -> None:
    await queue.inserter()
    mixer = Mixer(queue.control, await read_table(queue.control, "default", "flows"))
    for step in range(60):
        inserts = mixer.start()
        await queue.until_waiting(len(inserts))
        await queue.control.query(FLUSH)
        await asyncio.gather(*inserts)
        assert await queue.total() == mixer.expected, step


async def test_a_view_on_the_table_counts_once_too(queue: Queue) -> None:
    await apply(queue.control, SchemaOptions(table="flows"))
    for statement in (
        "CREATE TABLE daily (day Date, b UInt64) ENGINE = SummingMergeTree ORDER BY day "
        "SETTINGS non_replicated_deduplication_window = 10080000",
        "CREATE MATERIALIZED VIEW to_daily TO daily AS "
        f"SELECT date AS day, sum(bytes) AS b FROM {FLOWS} GROUP BY day",
    ):
        await queue.control.query(statement)
    one, other = await queue.inserter(), await queue.inserter()
    for again in range(2):
        batches = pending(one, ["a", "b"]) + pending(other, ["b", "c"])
        await queue.until_waiting(4)
        await queue.control.query(FLUSH)
        assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}, again
    assert await queue.total() == 3 * ROWS
    assert await queue.total("sum(b) FROM daily") == 3 * ROWS
    await queue.control.query("DROP TABLE to_daily SYNC")
    await queue.control.query("DROP TABLE daily SYNC")


async def test_a_table_without_memory_is_refused_by_the_probe(queue: Queue) -> None:
    await queue.inserter()
    await queue.control.query(f"ALTER TABLE {FLOWS} MODIFY SETTING non_replicated_deduplication_window = 0")
    table: TableSchema = await read_table(queue.control, "default", "flows")
    async with queue.flushing():
        assert "was stored 3 times" in await probe.refusal(queue.control, table)


async def test_killed_before_the_flush_loses_nothing(mortal: Queue) -> None:
    running = await mortal.inserter()
    batches = pending(running, [f"batch-{number}" for number in range(4)])
    await mortal.until_waiting(4)
    await mortal.restart(mortal.server.kill)
    assert await mortal.total() == 0
    async with mortal.flushing():
        assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await mortal.total() == 4 * ROWS
    assert running.metrics.value(catalogue.INSERT_RETRIES) >= 4


async def test_killed_after_the_flush_before_its_answer_doubles_nothing(mortal: Queue) -> None:
    async with TcpProxy("127.0.0.1", mortal.server.port) as proxy:
        running = await mortal.inserter(f"{proxy.host}:{proxy.port}")
        batches = pending(running, [f"batch-{number}" for number in range(4)])
        await mortal.until_waiting(4)
        proxy.to_client.stall()
        await mortal.control.query(FLUSH)
        assert await mortal.total() == 4 * ROWS
        await mortal.restart(mortal.server.kill)
        assert not any(batch.done() for batch in batches)
        await proxy.cut()
        proxy.heal()
        async with mortal.flushing():
            assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await mortal.total() == 4 * ROWS
    assert running.metrics.value(catalogue.INSERT_RETRIES) >= 4


async def test_a_server_that_ends_in_order_flushes_first(mortal: Queue) -> None:
    running = await mortal.inserter()
    batches = pending(running, ["a", "b"])
    await mortal.until_waiting(2)
    await mortal.restart(mortal.server.stop)
    assert await mortal.total() == 2 * ROWS
    async with mortal.flushing():
        assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await mortal.total() == 2 * ROWS


async def test_a_flush_that_fails_is_tried_again(mortal: Queue) -> None:
    """Every batch of the flush hears of it; the table is detached and comes back."""
    running = await mortal.inserter()
    batches = pending(running, ["a", "b", "c"])
    await mortal.until_waiting(3)
    await mortal.control.query(f"DETACH TABLE {FLOWS}")
    await mortal.control.query(FLUSH)
    await running.eventually(lambda: running.metrics.value(catalogue.INSERT_RETRIES) >= 1)
    assert not any(batch.done() for batch in batches)
    await mortal.control.query(f"ATTACH TABLE {FLOWS}")
    async with mortal.flushing():
        assert set(await asyncio.gather(*batches)) == {CommitOutcome.COMMITTED}
    assert await mortal.total() == 3 * ROWS


@pytest.mark.slow
async def test_killed_at_random_neither_loses_nor_doubles(tmp_path: Path, opened: Opened) -> None:
    """With its own flushes, every 50 ms."""
    server = WholeServer(tmp_path / "server")
    try:
        await asyncio.to_thread(server.start)
        async with opened(server) as queue:
            running = await queue.inserter()
            table = await running.inserter.wait_schema()
            chance = random.Random(7)
            begun = 0

            async def work() -> None:
                nonlocal begun
                while not over.is_set():
                    begun += 1
                    block, tracer = a_report(table, begun * REPORT_ROWS, 5)
                    outcome = await running.inserter.commit(block, f"batch-{begun}", tracer)
                    assert outcome is CommitOutcome.COMMITTED

            over = asyncio.Event()
            workers = [asyncio.create_task(work()) for _ in range(16)]
            for _ in range(5):
                await asyncio.sleep(0.3 + chance.random())
                await queue.restart(server.kill)
            over.set()
            await asyncio.gather(*workers)
            assert await queue.total() == begun * SUM
            assert running.metrics.value(catalogue.INSERT_RETRIES) >= 5
    finally:
        server.kill()


def test_another_build_of_the_engine_is_left_alone_and_says_what_to_do(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(
        b"\x7fELF" + bytes(64) + bytes.fromhex("040000001400000003000000") + b"GNU\0" + b"\xab" * 20
    )
    with pytest.raises(LookupError, match=f"is the build {'ab' * 20}, not .* find them anew"):
        Engine(other)
