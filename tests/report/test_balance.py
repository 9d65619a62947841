"""`balance` on worlds small enough to judge by hand: what is even, what is not, whose replicas they are."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import End, Flow, World

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

BEGIN = 1_800_000_000 // 3600 * 3600
_ports = itertools.cycle(range(32_768, 60_000))
_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("balance"))
    yield opened
    asyncio.run(opened.close())


def _pod(namespace: str, app: str, name: str, cluster: str = "main") -> End:
    """A pod on a node of its own."""
    number = next(_numbers)
    return End(f"10.0.{number}.1", f"node-{number}", "a", name, app, namespace, cluster=cluster)


def _calls(client: End, server: End, connections: int, each: int) -> list[Flow]:
    """So many connections, each with so many bytes there."""
    return [Flow(client, server, next(_ports), 6379, each, 0, BEGIN) for _ in range(connections)]


async def _asked(sink: EmbeddedSink, flows: list[Flow], **scope: Any) -> list[dict[str, Any]]:
    await sink.query("CREATE DATABASE balance")
    try:
        await apply(sink, SchemaOptions("balance", ipv6=True, ttl_days=0))
        nodes = frozenset(end.node for flow in flows for end in (flow.client, flow.server))
        await sink.query(World(nodes, True, flows).insert("balance.network_flows_0"))
        source = await read_source(sink, "balance", "network_flows_0")
        given = {"since": BEGIN, "until": BEGIN + 3600, "limit": 0, **scope}
        return (await ask(sink, QUESTIONS["balance"], Scope(**given), source)).records()
    finally:
        await sink.query("DROP DATABASE balance SYNC")


def _shown(records: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    columns = ("client", "server", "replica", "connections", "bytes", "spread", "odd", "replicas")
    return sorted(tuple(record[name] for name in columns) for record in records)


@pytest.mark.parametrize("names", [("redis-a", "redis-b"), ("redis", "redis")], ids=["deployments", "sets"])
async def test_apps_of_one_name_in_two_namespaces_are_two(sink: EmbeddedSink, names: tuple[str, str]) -> None:
    flows: list[Flow] = []
    for team, client, name in (("team-a", "web", names[0]), ("team-b", "front", names[1])):
        caller = _pod(team, client, f"{client}-0")
        for replica in range(2):
            flows += _calls(caller, _pod(team, "redis", f"{name}-{replica}"), 40, 1000)
    wanted = [
        (f"{team}/{client}", f"{team}/redis", f"{team}/{name}-{replica}", 40, 40_000, 1.0, "", 2)
        for team, client, name in (("team-a", "web", names[0]), ("team-b", "front", names[1]))
        for replica in range(2)
    ]
    assert _shown(await _asked(sink, flows)) == wanted
    assert _shown(await _asked(sink, flows, namespace="team-a")) == wanted[:2]
    assert _shown(await _asked(sink, flows, app="redis")) == wanted
    for client in ("front", "team-b/front"):
        assert _shown(await _asked(sink, flows, client=client)) == wanted[2:]


async def test_apps_of_one_name_in_two_clusters_are_two(sink: EmbeddedSink) -> None:
    flows: list[Flow] = []
    for cluster, connections in (("east", 40), ("west", 90)):
        callers = [
            _pod("shop", "web", "web-0", cluster),
            _pod("shop", cluster, f"{cluster}-0", cluster),
            _pod("shop", "", f"of-no-app-{cluster}", cluster),
        ]
        for replica in range(2):
            for caller in callers:
                flows += _calls(caller, _pod("shop", "redis", f"redis-{replica}", cluster), connections, 1000)
    wanted = [
        (client, f"{cluster}/shop/redis", f"shop/redis-{replica}", n, n * 1000, 1.0, "", 2)
        for cluster, n in (("east", 40), ("west", 90))
        for client in (f"{cluster}/shop/web", f"shop/{cluster}", "")
        for replica in range(2)
    ]
    assert _shown(await _asked(sink, flows)) == sorted(wanted)
    for client in ("web", "shop/web"):
        found = _shown(await _asked(sink, flows, client=client))
        assert found == [row for row in sorted(wanted) if row[0].endswith("/web")]
    assert _shown(await _asked(sink, flows, client="east/shop/web")) == wanted[:2]


IDLE = (0, 0)


@pytest.mark.parametrize(
    ("replicas", "spread", "verdicts"),
    [
        ([(50, 1000), (50, 1000)], 1.0, ["", ""]),
        ([(30, 1000), (10, 1000)], 1.5, ["", ""]),
        ([(90, 1000), (30, 1000), (30, 1000)], 1.8, ["connections and bytes", "", ""]),
        ([(5, 200), (1, 1000)], 1.0, ["", ""]),
        ([(4, 1000), (1, 1000)], 1.6, ["bytes", "bytes"]),
        ([(100, 10), (10, 100)], 1.0, ["connections", "connections"]),
        ([(50, 900), (50, 100)], 1.8, ["bytes", "bytes"]),
        ([(50, 1000), IDLE], 2.0, ["connections and bytes", "idle"]),
    ],
    ids=[
        "even",
        "three to one is the edge",
        "one of three has more",
        "few connections are chance",
        "few connections are chance, their bytes are not",
        "equal bytes over uneven connections",
        "equal connections with uneven bytes",
        "idle",
    ],
)
async def test_shares_spread_and_verdicts_are_those_worked_out_by_hand(
    sink: EmbeddedSink, replicas: list[tuple[int, int]], spread: float, verdicts: list[str]
) -> None:
    """`replicas`: connections and the bytes of each, for one client."""
    client, other = _pod("shop", "web", "web-0"), _pod("shop", "other", "other-0")
    servers = [_pod("shop", "db", f"db-{number}") for number in range(len(replicas))]
    flows = [
        flow
        for server, (connections, each) in zip(servers, replicas, strict=True)
        for flow in (*_calls(client, server, connections, each), *_calls(other, server, 1, 1))
    ]
    found = {row["replica"]: row for row in await _asked(sink, flows, client="web")}
    links, volume = (sum(one[0] for one in replicas), sum(one[0] * one[1] for one in replicas))
    for server, (connections, each), verdict in zip(servers, replicas, verdicts, strict=True):
        row = found[f"shop/{server.pod}"]
        assert (row["connections"], row["bytes"]) == (connections, connections * each)
        assert row["connections_share"] == pytest.approx(connections / links)
        assert row["bytes_share"] == pytest.approx(connections * each / volume)
        assert row["spread"] == pytest.approx(spread)
        assert row["odd"] == verdict
    assert len(found) == len(replicas)
