"""The page on other tables than the demo's: the original's, one with IPv6, an empty one, a huge one."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.report.answers import Answer
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.limits import Limits, read_limits
from kubenetmon.report.page.api import PageApi, PageConfig
from kubenetmon.report.prices import read_prices
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from tests.beds.browser import browser
from tests.beds.known_traffic import Transfer, World, make_world
from tests.clickhouse.conftest import original_ddl
from tests.report.conftest import served
from tests.report.test_page_browser import DONE, VIEWS

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

BEGIN = 1_800_000_000 // 3600 * 3600
MINUTES = 300
UNTIL = BEGIN + MINUTES * 60
SPAN = f"since=%40{BEGIN}&until=%40{UNTIL}"
ANSWERED = (*QUESTIONS, "cost", "paths", "nodes")


@dataclass(frozen=True)
class Table:
    """A table with a known world in it, and the page on it."""

    name: str
    sink: EmbeddedSink
    source: Source
    world: World

    def api(self) -> PageApi:
        return PageApi(
            PageConfig(database=self.name),
            sink=self.sink,
            health=None,
            clock=SYSTEM_CLOCK,
            prices=read_prices(),
            limits=_limits,
        )


async def _limits() -> Limits:
    return read_limits({}, "m5.large", None)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = EmbeddedSink(tmp_path_factory.mktemp("page_tables"))
    yield opened
    asyncio.run(opened.close())


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["original", "with_ipv6", "empty", "huge"]
)
async def table(request: pytest.FixtureRequest, sink: EmbeddedSink) -> AsyncIterator[Table]:
    name = f"page_{request.param}"
    await sink.query(f"CREATE DATABASE {name}")
    ours = request.param == "with_ipv6"
    if ours:
        await apply(sink, SchemaOptions(name, ipv6=True, ttl_days=0))
    else:
        await sink.query(original_ddl(name))
        await sink.query(f"ALTER TABLE {name}.network_flows_0 REMOVE TTL")  # The rows are of one fixed day.
    world = make_world(ours=ours, begin=BEGIN, minutes=MINUTES, count=200)
    if request.param == "empty":
        world.flows = []
    elif request.param == "huge":
        world.flows = [replace(flow, up=2**57 + 1, down=2**57 - 1) for flow in world.flows[::6][:30]]
    if world.flows:
        await sink.query(world.insert(f"{name}.network_flows_0"))
    yield Table(name, sink, await read_source(sink, name, "network_flows_0"), world)
    await sink.query(f"DROP DATABASE {name} SYNC")


@asynccontextmanager
async def _asking(table: Table) -> AsyncIterator[Any]:
    async with served(table.api()) as address, aiohttp.ClientSession() as session:

        async def get(question: str, more: str = "") -> Any:
            query = f"question={question}&{SPAN}&limit=5000{more}"
            async with session.get(f"{address}/api/ask?{query}") as answer:
                body = await answer.text()
                assert answer.status == 200, body
                return body if "format" in more else json.loads(body)

        yield get


def _path(one: Transfer) -> tuple[str]:
    if one.klass != "INTRA_VPC":
        paths = {"INTRA_REGION": "region-service", "INTER_REGION": "inter-region", "UNKNOWN": "unknown"}
        return (paths.get(one.klass, "internet"),)
    zones = (one.source.zone, one.destination.zone)
    return ("unknown-zone" if "" in zones else "same-zone" if zones[0] == zones[1] else "cross-zone",)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_each_panel_has_the_rows_of_the_command(table: Table, question: str) -> None:
    """Which are those of the known traffic: `test_answers`."""
    scope = Scope(since=BEGIN, until=UNTIL, limit=5000)
    wanted: Answer = await ask(table.sink, QUESTIONS[question], scope, table.source, await _limits())
    async with _asking(table) as get:
        document = await get(question)
        text = await get(question, "&format=csv")
    assert document["rows"] == [list(row) for row in wanted.rows]
    assert bool(document["rows"]) == bool(table.world.flows)
    assert document["general"] + document["notes"] == list(wanted.notes)
    assert len(text.strip().splitlines()) == 1 + len(wanted.rows)


async def test_the_chart_is_every_byte_once(table: Table) -> None:
    async with _asking(table) as get:
        document = await get("paths")
        reports = await get("nodes")
    sums: Counter[tuple[str]] = Counter()
    for slot, path, count in document["rows"]:
        assert BEGIN <= slot < UNTIL
        sums[(path,)] += count
    assert sums == table.world.summed(_path)
    stored = sum(
        flow.up + flow.down
        for flow in table.world.flows
        for node, local, _ in table.world.observers(flow)
        if table.world.view(local, node).node
    )
    assert sum(row[3] for row in reports["rows"]) == stored
    assert {row[0] for row in reports["rows"]} <= table.world.reporting


async def test_costs_are_those_of_the_command_and_cover_every_byte(table: Table) -> None:
    scope = Scope(since=BEGIN, until=UNTIL, limit=5000)
    wanted = await cost(table.sink, table.source, scope, "path", read_prices())
    async with _asking(table) as get:
        document = await get("cost", "&by=path")
    assert document["rows"] == [list(row) for row in wanted.rows]
    assert document["summary"] == dict(wanted.summary)
    crossing = table.world.summed(_path)[("cross-zone",)]
    found = {row[1]: row[2] for row in document["rows"]}
    assert found.get("aws/cross-zone-out", 0) == found.get("aws/cross-zone-in", 0) == crossing


async def test_openers_are_inferred_and_the_observation_is_said(table: Table) -> None:
    async with _asking(table) as get:
        openers, top = await get("openers"), await get("top")
    said = [note for note in openers["notes"] if "inferred from ports" in note]
    assert bool(said) == (bool(table.world.flows) and not table.world.ours)
    assert any("counted once, as the sender's node saw them" in note for note in top["general"])


@pytest.mark.chromium
async def test_every_view_draws(table: Table) -> None:
    async with served(table.api()) as address, browser() as tab:
        await tab.size(1280, 900)
        for view in VIEWS:
            await tab.open(f"{address}/#/{view}?{SPAN}")
            await tab.until(f"document.querySelector('nav a[data-view={view}][aria-current]') && {DONE}")
            assert await tab.run("document.querySelectorAll('.error[role=alert]').length") == 0, view
            assert await tab.run("document.documentElement.scrollWidth - innerWidth") <= 0, view
            text = await tab.run("document.querySelector('main').innerText")
            assert not any(word in text for word in ("NaN", "undefined", "Infinity", "[object")), view
        assert tab.complaints == []


@pytest.mark.chromium
async def test_each_cell_of_a_matrix_is_the_worlds(table: Table) -> None:
    cells = (
        "[...document.querySelectorAll('section[aria-label=\"{}\"] table.matrix tbody tr')].flatMap(row =>"
        "[...row.querySelectorAll('td.cell')].map((cell, at) => [row.querySelector('th').textContent,"
        "row.closest('table').querySelectorAll('thead th')[at + 1].textContent,"
        "cell.querySelector('a')?.title ?? '0 bytes']))"
    )
    async with served(table.api()) as address, browser() as tab:
        await tab.size(1280, 900)
        await tab.open(f"{address}/#/talks?{SPAN}")
        await tab.until(f"document.querySelector('nav a[data-view=talks][aria-current]') && {DONE}")
        for panel, key in (("Zone to zone", "zone"), ("App to app", "app")):
            wanted: Counter[tuple[str, str]] = Counter()
            for one in table.world.transfers():
                ends = [getattr(end, key) or "outside" for end in (one.source, one.destination)]
                for row, column in itertools.product((ends[0], "all"), (ends[1], "all")):
                    wanted[row, column] += one.bytes
            del wanted["all", "all"]
            found = {
                (row, column): int(title.removesuffix(" bytes").replace(",", ""))
                for row, column, title in await tab.run(cells.format(panel))
            }
            # What a double cannot hold is shown as near as it can.
            assert found.keys() >= wanted.keys()
            for at, amount in found.items():
                assert amount == pytest.approx(wanted[at], rel=1e-15, abs=0), (panel, at)
            assert bool(found) == bool(table.world.flows)
