"""Known traffic in tables: the original's, ours, ours with rollups, and one of petabytes; fixtures, which
`conftest` gives to the tests of this directory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.answers import Answer
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import MINUTE, World, make_world
from tests.clickhouse.conftest import original_ddl

DAY = 86_400
MINUTES = 3 * 24 * 60
BEGIN = int(time.time()) // DAY * DAY - 5 * DAY
END = BEGIN + MINUTES * MINUTE + DAY


@dataclass(frozen=True)
class Table:
    """A table with a known world in it."""

    sink: EmbeddedSink
    source: Source
    world: World

    async def ask(self, question: str, **scope: object) -> Answer:
        """All rows over all of the world's time."""
        given = {"since": BEGIN, "until": END, "limit": 0, **scope}
        return await ask(self.sink, QUESTIONS[question], Scope(**given), self.source)  # type: ignore[arg-type]

    async def sums(self, question: str, *columns: str, of: str = "bytes", **scope: object) -> Counter[object]:
        """A column's sums by others."""
        found: Counter[object] = Counter()
        for record in (await self.ask(question, **scope)).records():
            found[tuple(record[name] for name in columns)] += record[of]
        return found


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("answers"))
    yield opened
    asyncio.run(opened.close())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["original", "ours", "rollups", "huge"])
async def table(request: pytest.FixtureRequest, sink: EmbeddedSink) -> AsyncIterator[Table]:
    """The original's table, ours, ours with its rollups, and the original's with petabytes, each with a
    world."""
    name = f"answers_{request.param}"
    await sink.query(f"CREATE DATABASE {name}")
    ours = request.param in ("ours", "rollups")
    if ours:
        await apply(sink, SchemaOptions(name, ipv6=True))
    else:
        await sink.query(original_ddl(name))
    world = make_world(ours=ours, begin=BEGIN, minutes=MINUTES)
    if request.param == "huge":
        # Beyond what a double holds exactly, and together near what 64 bits hold.
        world.flows = [replace(flow, up=flow.up + 2**53, down=flow.down + 2**53) for flow in world.flows]
    await sink.query(world.insert(f"{name}.network_flows_0"))
    if request.param == "rollups":
        await apply_rollups(sink, SchemaOptions(name), time.time())
    source = await read_source(sink, name, "network_flows_0")
    assert (source.coverage is not None) == (request.param == "rollups")
    yield Table(sink, source, world)
    await sink.query(f"DROP DATABASE {name} SYNC")
