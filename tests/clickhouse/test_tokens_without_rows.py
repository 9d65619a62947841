"""A plain MergeTree on a server that is killed between a token's line in its log and the part: the server
knows the token and has not the rows."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_server import ClickHouseServer
from tests.clickhouse.test_inserter import Running, quick
from tests.clickhouse.test_old_batches import SUM, a_report

pytestmark = pytest.mark.chdb

TORN, WHOLE, WELL = "killed before the part is there", "killed after that", "not killed"
REFUSED = "not taken"


class Killed(TcpSink):
    """A connection to a server that is killed in the inserts that `ends` says so of."""

    def __init__(self, server: ClickHouseServer, ends: Sequence[str]) -> None:
        super().__init__(TcpConfig((server.endpoint,), tls=None))
        self._server, self._ends = server, list(ends)
        self.tokens: list[str] = []

    async def insert(self, *arguments: Any) -> None:
        how = self._ends.pop(0) if self._ends else WELL
        self.tokens.append(arguments[3])
        if how == REFUSED:
            raise ClickHouseError(497, "Not enough privileges")
        await super().insert(*arguments)
        if how != WELL:
            await asyncio.to_thread(self._kill, how)
            raise ClickHouseUnreachableError("the connection ended")

    def _kill(self, how: str) -> None:
        self._server.kill()
        if how == TORN:
            [part] = self._server.data.glob("store/*/*/2???????_*")
            shutil.rmtree(part)
        self._server.start()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ClickHouseServer]:
    made = ClickHouseServer(tmp_path / "server")
    await asyncio.to_thread(made.start)
    sink = TcpSink(TcpConfig((made.endpoint,), tls=None))
    await apply(sink, SchemaOptions(ipv6=True))
    await sink.close()
    yield made
    made.kill()


async def commit(server: ClickHouseServer, *ends: str, traced: bool = True) -> tuple[list[str], float, int]:
    """A batch by way of an inserter of its own: its tokens, how often its rows were missed, the sum."""
    sink = Killed(server, ends)
    running = Running(quick("default"), sink)
    try:
        block, tracer = a_report(await running.inserter.wait_schema(), 0, 5)
        committing = running.inserter.commit(block, "token", tracer if traced else None)
        assert await asyncio.wait_for(committing, 60) is CommitOutcome.COMMITTED
        return sink.tokens, running.metrics.value(catalogue.TOKENS_WITHOUT_ROWS), await running.total()
    finally:
        await running.end()


@pytest.mark.parametrize(
    ("ends", "tokens"),
    [
        ([WHOLE], ["token", "token"]),
        ([TORN], ["token", "token", "token+"]),
        ([TORN, WELL, TORN], ["token", "token", "token+", "token+", "token++"]),
        ([TORN, WELL, WHOLE], ["token", "token", "token+", "token+"]),
    ],
    ids=["the rows are there", "they are not", "nor those of the next token", "those of the next are"],
)
async def test_the_batch_is_there_once(server: ClickHouseServer, ends: list[str], tokens: list[str]) -> None:
    assert await commit(server, *ends) == (tokens, ends.count(TORN), SUM)
    # And by way of another server, which knows of no kill.
    assert await commit(server) == (["token"], 0, SUM)


class Wanted:
    """A place that others wait for."""

    wanted = True

    def step_aside(self) -> None:
        pass


async def test_a_batch_that_goes_back_in_between_is_there_once_it_comes_again(
    server: ClickHouseServer,
) -> None:
    running = Running(quick("default"), Killed(server, [TORN, WELL, REFUSED]))
    try:
        block, tracer = a_report(await running.inserter.wait_schema(), 0, 5)
        assert await running.inserter.commit(block, "token", tracer, Wanted()) is CommitOutcome.YIELDED
        assert await running.inserter.commit(block, "token", tracer, Wanted()) is CommitOutcome.COMMITTED
        assert await running.total() == SUM
    finally:
        await running.end()


async def test_without_a_look_it_would_be_lost(server: ClickHouseServer) -> None:
    assert await commit(server, TORN, traced=False) == (["token", "token"], 0, 0)


async def test_who_may_not_look_takes_its_word(server: ClickHouseServer) -> None:
    sink = Killed(server, [WHOLE])
    running = Running(quick("default"), sink)
    try:
        block, tracer = a_report(await running.inserter.wait_schema(), 0, 5)
        ask = sink.query

        async def refused(sql: str, *rest: Any) -> Any:
            if "sum(packets)" in sql:
                raise ClickHouseError(497, "Not enough privileges")
            return await ask(sql, *rest)

        sink.query = refused  # type: ignore[method-assign]
        assert await running.inserter.commit(block, "token", tracer) is CommitOutcome.COMMITTED
        assert sink.tokens == ["token", "token"]
    finally:
        await running.end()
