"""Each answer against known traffic, to the byte, on the original's table and on ours."""

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
from kubenetmon.report.answers import Answer, render
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import KEYS, Scope
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import MINUTE, STRANGE, World, in_namespace, make_world
from tests.clickhouse.conftest import original_ddl

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

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


@pytest.mark.parametrize("by", KEYS)
async def test_top_is_every_byte_once(table: Table, by: str) -> None:
    wanted = table.world.summed(
        lambda one: (one.source.named(by), one.destination.named(by), one.klass, one.service)
    )
    assert await table.sums("top", "source", "destination", "class", "service", by=by) == wanted


async def test_classes_add_up_to_every_byte_once(table: Table) -> None:
    wanted = table.world.summed(lambda one: (one.klass,))
    assert await table.sums("classes", "class") == wanted
    answer = await table.ask("classes")
    assert all(row["bytes"] == row["sent"] + row["received"] for row in answer.records())
    assert sum(row["share"] for row in answer.records()) == pytest.approx(1)


@pytest.mark.parametrize("by", KEYS)
async def test_cross_zone_is_between_two_known_zones(table: Table, by: str) -> None:
    def key(one):  # type: ignore[no-untyped-def]
        zones = (one.source.zone, one.destination.zone)
        if "" in zones or zones[0] == zones[1]:
            return None
        return one.source.named(by), zones[0], one.destination.named(by), zones[1]

    found = await table.sums("cross-zone", "source", "source_zone", "destination", "destination_zone", by=by)
    assert found == table.world.summed(key)
    assert any("no known zone" in note for note in (await table.ask("cross-zone")).notes)


@pytest.mark.parametrize(
    ("service", "by"),
    [("", "app"), ("ec2", "app"), ("any", "app"), ("nothing", "app"), *(("any", by) for by in KEYS[1:])],
)
async def test_a_cloud_service_both_ways(table: Table, service: str, by: str) -> None:
    def of(end: str):  # type: ignore[no-untyped-def]
        def key(one):  # type: ignore[no-untyped-def]
            wanted = {"": ("s3",), "any": ("s3", "ec2")}.get(service, (service,))
            local = getattr(one, end)
            return (local.named(by), one.service) if one.service in wanted and local.node else None

        return key

    for column, end in (("sent", "source"), ("received", "destination")):
        found = await table.sums("s3", "local", "service", of=column, by=by, service=service)
        wanted = table.world.summed(of(end))
        assert +found == wanted


@pytest.mark.parametrize("by", KEYS)
async def test_openers_count_each_end_as_its_own_node_saw_it(table: Table, by: str) -> None:
    answer = await table.ask("openers", by=by)
    found = {
        row["end"]: [row["opened"], row["accepted"], row["sent"], row["received"]] for row in answer.records()
    }
    assert found == table.world.ends(by)
    assert all(row["unclear"] == 0 for row in answer.records())
    inferred = any("inferred from ports" in note for note in answer.notes)
    assert inferred == (not table.world.ours)


async def test_only_those_that_never_open_only_receive(table: Table) -> None:
    for row in (await table.ask("openers", by="pod")).records():
        wanted = {(True, True): "opens and receives", (True, False): "opens", (False, True): "only receives"}
        assert row["role"] == wanted[row["opened"] > 0, row["accepted"] > 0]


async def test_balance_shows_every_replica_of_a_server_with_its_share(table: Table) -> None:
    pairs: Counter[tuple[str, str, str]] = Counter()
    links: dict[tuple[str, str, str], set[object]] = {}
    replicas: dict[str, set[str]] = {}
    for one in table.world.transfers():
        client, server = (one.source, one.destination) if one.opener == 1 else (one.destination, one.source)
        if server.pod and server.app:
            names = in_namespace(client, "app"), in_namespace(server, "app"), server.named("pod")
            pairs[names] += one.bytes
            links.setdefault(names, set()).add((one.flow.client, one.flow.server, one.flow.client_port))
            replicas.setdefault(names[1], set()).add(names[2])
    records = (await table.ask("balance")).records()
    found = {(row["client"], row["server"], row["replica"]): row for row in records}
    wanted = {
        (client, server, pod)
        for client, server, _ in pairs
        for pod in replicas[server]
        if len(replicas[server]) > 1
    }
    assert found.keys() == wanted
    assert {len(replicas[f"{team}/twin"]) for team in ("team-a", "team-b")} == {2}
    for key, row in found.items():
        assert row["bytes"] == pairs[key]
        assert row["connections"] == len(links.get(key, ()))
        assert (row["odd"] == "idle") == (key not in pairs)
        assert row["replicas"] == len(replicas[key[1]])
        whole = sum(amount for (client, server, _), amount in pairs.items() if (client, server) == key[:2])
        assert row["bytes_share"] == pytest.approx(pairs[key] / whole)


@pytest.mark.parametrize("by", QUESTIONS["throughput"].keys)
async def test_throughput_is_the_peak_and_the_95th_percentile_of_minutes(table: Table, by: str) -> None:
    minutes: dict[tuple[str, int], Counter[int]] = {}
    for flow in table.world.flows:
        for node, local, remote in table.world.observers(flow):
            # A pod that is gone has no node in the original's rows.
            same = table.world.view(remote, node).node == table.world.view(local, node).node != ""
            if same and by in ("node", "zone"):
                continue
            sent, received = (flow.up, flow.down) if local is flow.client else (flow.down, flow.up)
            told = [(table.world.view(local, node), sent, received)]
            if same and table.world.view(remote, node).node:
                told.append((table.world.view(remote, node), received, sent))
            parts = -(-flow.seconds // MINUTE)
            for labels, out, into in told:
                for way, amount in enumerate((out, into)):
                    counts = minutes.setdefault((labels.named(by), way), Counter())
                    for part in range(parts):
                        share = amount // parts + (part < amount % parts)
                        counts[flow.start + part * MINUTE] += share
    for row in (await table.ask("throughput", by=by)).records():
        each = [+minutes.get((row["name"], way), Counter()) for way in (0, 1)]
        busy = sorted(each[0] | each[1])
        span = (busy[-1] - busy[0]) // MINUTE + 1
        rank = span - -(-95 * span // 100)
        for counts, way in zip(each, ("sent", "received"), strict=True):
            falling = sorted(counts.values(), reverse=True)
            # Rows of several minutes that ClickHouse has merged are spread anew: a byte may move a minute.
            assert row[f"peak_{way}"] * 60 / 8 == pytest.approx(
                falling[0] if falling else 0, rel=1e-14, abs=2
            )
            wanted = falling[rank] if rank < len(falling) else 0
            assert row[f"p95_{way}"] * 60 / 8 == pytest.approx(wanted, rel=1e-14, abs=2)
        peak = max(max(counts.values(), default=0) for counts in each)
        assert any(counts[row["peak_minute"]] >= peak - 2 for counts in each)


async def test_what_is_not_attributed_is_named(table: Table) -> None:
    found = await table.sums("unattributed", "reason")
    zones = table.world.summed(
        lambda one: ("zone unknown between known ends",)
        if one.klass == "INTRA_VPC" and "" in (one.source.zone, one.destination.zone)
        and one.source.node and one.destination.node else None
    )  # fmt: skip
    name = ("zone unknown between known ends",)
    assert found[name] == zones[name] > 0
    assert found[("private address of nobody known",)] > 0
    answer = await table.ask("unattributed")
    examples = {row["example"] for row in answer.records() if row["reason"].startswith("private")}
    assert "10.99.0.1" in examples
    assert {row["example"] for row in answer.records() if row["reason"].startswith("zone")} == {""}


@pytest.mark.parametrize(
    "filters",
    [
        {"app": STRANGE},
        {"app": "web", "namespace": "ns-1"},
        {"node": "node-2"},
        {"zone": "zone-b"},
        {"app": "' OR 1 = 1 --"},
        {"app": "\\"},
    ],
    ids=str,
)
async def test_filters_are_exact_names_of_one_end(table: Table, filters: dict[str, str]) -> None:
    def key(one):  # type: ignore[no-untyped-def]
        for end in (one.source, one.destination):
            if all(getattr(end, name) == value for name, value in filters.items()):
                return (one.klass,)
        return None

    assert await table.sums("classes", "class", **filters) == table.world.summed(key)


async def test_a_part_of_the_time_is_that_part(table: Table) -> None:
    since, until = BEGIN + 7 * 3600 + 23 * 60, BEGIN + 2 * DAY + 3600 + 60
    wanted = table.world.summed(lambda one: (one.klass,) if since <= one.flow.start < until else None)
    found = await table.sums("classes", "class", since=since, until=until)
    assert found == wanted


async def test_a_node_without_an_agent_is_said(table: Table) -> None:
    assert any("silent" in note for note in (await table.ask("top")).notes)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_nothing_is_an_answer_too(table: Table, question: str) -> None:
    answer = await table.ask(question, since=BEGIN - 50 * DAY, until=BEGIN - 49 * DAY)
    assert answer.rows == []
    assert "Nothing was found." in render(answer, "table")
    assert render(answer, "csv").count("\n") == 0
    assert '"rows": []' in render(answer, "json")


@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_limit_is_kept_and_said(table: Table, question: str) -> None:
    answer = await table.ask(question, limit=1)
    assert len(answer.rows) == 1
    if question != "balance":
        whole = await table.ask(question)
        assert whole.rows[0][:2] == answer.rows[0][:2]
    assert any("first 1 rows" in note for note in answer.notes)


async def test_columns_are_those_of_the_rows(table: Table) -> None:
    for question in QUESTIONS:
        answer = await table.ask(question)
        assert answer.rows
        assert {len(row) for row in answer.rows} == {len(answer.columns)}
        assert render(answer, "table")


async def test_a_node_of_another_cluster_is_another_node(sink: EmbeddedSink) -> None:
    await sink.query("CREATE DATABASE peers")
    await sink.query(original_ddl("peers"))
    columns = (
        "date, intervalStartTime, intervalSeconds, connectionClass, direction, localCluster, localNode, "
        "localPod, localApp, remoteCluster, remoteNode, remotePod, remoteApp, bytes, packets"
    )
    both = [("main", "node-1", "ours", "a", "peer", "node-1", "theirs", "b", 5, 7)]
    both.append(("peer", "node-1", "theirs", "b", "main", "node-1", "ours", "a", 7, 5))
    both.append(("main", "node-1", "ours", "a", "quiet", "node-1", "third", "c", 1, 2))
    rows = [
        (f"(toDate({BEGIN}, 'UTC'), {BEGIN}, 60, 'INTRA_VPC', '{way}', " + ", ".join(map(repr, row[:8])))
        + f", {amount}, 1)"
        for row in both
        for way, amount in (("out", row[8]), ("in", row[9]))
    ]
    await sink.query(f"INSERT INTO peers.network_flows_0 ({columns}) VALUES {', '.join(rows)}")
    table = Table(sink, await read_source(sink, "peers", "network_flows_0"), World(frozenset(), ours=False))
    found = await table.sums("top", "source", "destination")
    assert found == {("a", "b"): 5, ("b", "a"): 7, ("a", "c"): 1, ("c", "a"): 2}
    [busy] = [row for row in (await table.ask("throughput", by="pod")).records() if row["name"] == "ours"]
    assert (busy["peak_sent"] * 60 / 8, busy["peak_received"] * 60 / 8) == (6, 9)
    await sink.query("DROP DATABASE peers SYNC")


async def test_huge_counts_stay_exact(sink: EmbeddedSink) -> None:
    await sink.query("CREATE DATABASE huge")
    await sink.query(original_ddl("huge"))
    world = make_world(ours=False, begin=BEGIN, minutes=10, count=40)
    world.flows = [replace(flow, up=2**57 + 1, down=2**57 - 1) for flow in world.flows][:30]
    await sink.query(world.insert("huge.network_flows_0"))
    table = Table(sink, await read_source(sink, "huge", "network_flows_0"), world)
    assert await table.sums("classes", "class") == world.summed(lambda one: (one.klass,))
    await sink.query("DROP DATABASE huge SYNC")
