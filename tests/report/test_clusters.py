"""One table for two clusters that have nodes of the same names: each node is one, and none two."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.limits import read_limits
from kubenetmon.report.page.asked import Answers, Asked
from kubenetmon.report.page.health import NODES
from kubenetmon.report.prices import read_prices
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from kubenetmon.report.top.sources import TableSource
from kubenetmon.report.views import apply_views
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import S3, End, Flow, World
from tests.beds.virtual_clock import VirtualClock

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

DAY = 86_400
BEGIN = int(time.time()) // DAY * DAY - 2 * DAY
_ports = itertools.count(40_000)


def end(cluster: str, node: int, zone: str, app: str) -> End:
    network = {"east": 1, "west": 2}[cluster]
    return End(f"10.{network}.{node}.1", f"node-{node}", zone, f"{app}-0", app, "shop", cluster=cluster)


def sent(client: End, server: End, up: int, down: int = 0) -> Flow:
    return Flow(client, server, next(_ports), 443, up, down, BEGIN + 60)


WEB, API, LONE = end("east", 1, "a", "web"), end("east", 2, "b", "api"), end("east", 9, "a", "lone")
OTHER_WEB, OTHER_API = end("west", 1, "c", "web"), end("west", 2, "d", "api")
FLOWS = [
    sent(WEB, API, 1000, 100),
    sent(OTHER_WEB, OTHER_API, 5000, 500),
    sent(LONE, OTHER_API, 11),
    sent(LONE, S3, 7),
    sent(OTHER_WEB, S3, 3),
]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DescribedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("clusters"))
    yield opened
    asyncio.run(opened.close())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["rows", "rollups"])
async def source(request: pytest.FixtureRequest, sink: EmbeddedSink) -> AsyncIterator[Source]:
    options = SchemaOptions(f"clusters_{request.param}", ipv6=True)
    await apply(sink, options)
    world = World(frozenset(("node-1", "node-2", "node-9")), True, FLOWS)
    await sink.query(world.insert(f"{options.database}.network_flows_0"))
    if request.param == "rollups":
        await apply_rollups(sink, options, time.time())
    yield await read_source(sink, options.database, "network_flows_0")
    await sink.query(f"DROP DATABASE {options.database} SYNC")


async def asked(
    sink: EmbeddedSink, source: Source, question: str, *columns: str, **scope: Any
) -> set[tuple[Any, ...]]:
    """Some columns of an answer by node."""
    given = Scope(since=BEGIN, until=BEGIN + DAY, by="node", limit=0, **scope)
    records = (await ask(sink, QUESTIONS[question], given, source)).records()
    found = [tuple(row[name] for name in columns) for row in records]
    assert len(found) == len(set(found))
    return set(found)


TOP = {
    ("east/node-1", "east/node-2", 1000), ("east/node-2", "east/node-1", 100),
    ("west/node-1", "west/node-2", 5000), ("west/node-2", "west/node-1", 500),
    ("node-9", "west/node-2", 11), ("node-9", "", 7), ("west/node-1", "", 3),
}  # fmt: skip


async def test_who_sends_to_whom(sink: EmbeddedSink, source: Source) -> None:
    assert await asked(sink, source, "top", "source", "destination", "bytes") == TOP
    crossing = {row for row in TOP if row[1]}
    assert await asked(sink, source, "cross-zone", "source", "destination", "bytes") == crossing


async def test_ends_of_one_name_are_two(sink: EmbeddedSink, source: Source) -> None:
    assert await asked(sink, source, "openers", "end", "opened", "accepted", "sent", "received") == {
        ("east/node-1", 1, 0, 1000, 100), ("east/node-2", 0, 1, 100, 1000), ("node-9", 2, 0, 18, 0),
        ("west/node-1", 2, 0, 5003, 500), ("west/node-2", 0, 2, 500, 5011),
    }  # fmt: skip
    assert await asked(sink, source, "s3", "local", "sent") == {("node-9", 7), ("west/node-1", 3)}


async def test_peaks_are_a_nodes_own_and_judged_by_its_limit(sink: EmbeddedSink, source: Source) -> None:
    scope = Scope(since=BEGIN, until=BEGIN + DAY, by="node", limit=0)
    limits = read_limits({"node-1": "m5.large", "node-9": "m5.large"}, "", None)
    answer = await ask(sink, QUESTIONS["throughput"], scope, source, limits)
    peaks = {row["name"]: (round(row["peak_sent"] * 7.5), row["instance_type"]) for row in answer.records()}
    assert peaks == {
        "east/node-1": (1000, "m5.large"), "east/node-2": (100, ""), "node-9": (18, "m5.large"),
        "west/node-1": (5003, "m5.large"), "west/node-2": (500, ""),
    }  # fmt: skip


async def test_a_name_with_its_cluster_is_a_filter_too(sink: EmbeddedSink, source: Source) -> None:
    both = {row for row in TOP if any(end.endswith("node-1") for end in row[:2])}
    assert await asked(sink, source, "top", "source", "destination", "bytes", node="node-1") == both
    west = {row for row in TOP if "west/node-1" in row[:2]}
    assert await asked(sink, source, "top", "source", "destination", "bytes", node="west/node-1") == west
    found = await asked(sink, source, "throughput", "name", "peak_sent", node="west/node-1")
    assert found == {("node-1", 5003 * 8 / 60)}


async def test_each_pays_for_its_own(sink: EmbeddedSink, source: Source) -> None:
    scope = Scope(since=BEGIN, until=BEGIN + DAY, by="node", limit=0)
    answer = await cost(sink, source, scope, "node", read_prices())
    paid = {(row["name"], row["entry"]): row["bytes"] for row in answer.records()}
    assert paid["east/node-1", "aws/cross-zone-out"] == 1000
    assert paid["west/node-1", "aws/cross-zone-out"] == 5000
    assert paid["west/node-2", "aws/cross-zone-in"] == 5011


async def test_the_page_says_the_same_and_when_each_reported(sink: EmbeddedSink, source: Source) -> None:
    answers = Answers(sink, prices=read_prices(), limits=_no_limits)
    scope = Scope(since=BEGIN, until=BEGIN + DAY, by="node", limit=0)
    page = (await answers.body(Asked("top", "node", scope, "csv"), source)).decode()
    assert all(f"{source},{destination}," in page for source, destination, _ in TOP)
    reports = (await ask(sink, NODES, scope, source)).records()
    assert {row["node"]: row["bytes"] for row in reports} == {
        "east/node-1": 1100, "east/node-2": 1100, "node-9": 18, "west/node-1": 5503, "west/node-2": 5511
    }  # fmt: skip
    west = Scope(since=BEGIN, until=BEGIN + DAY, node="west/node-2")
    assert [row["bytes"] for row in (await ask(sink, NODES, west, source)).records()] == [5511]


async def test_the_live_view_of_the_table_tells_them_apart(sink: DescribedSink, source: Source) -> None:
    clock = VirtualClock(float(BEGIN + 150))
    sink.strict = False  # Over the embedded engine it may read arrays.
    view = await TableSource(sink, source.database, "network_flows_0", clock=clock).fetch("node")
    sink.strict = True
    sums = {(row.name, row.path): round(row.sent * 60) for row in view.rows}
    assert sums["east/node-1", "cross-zone"] == 1000
    assert sums["west/node-1", "cross-zone"] == 5000
    assert sums["node-9", "region-service"] == 7


async def test_views_in_clickhouse_tell_them_apart(sink: EmbeddedSink, source: Source) -> None:
    await apply_views(sink, SchemaOptions(source.database, ipv6=True), time.time())
    rows = await sink.query(
        f"SELECT name, round(peak_sent * 7.5) FROM {source.database}.network_flows_0_throughput("
        f"since = {BEGIN}, until = {BEGIN + DAY})"
    )
    assert {("east/node-1", 1000), ("west/node-1", 5003), ("node-9", 18)} <= set(rows)


async def _no_limits() -> Any:
    return read_limits({}, "", None)
