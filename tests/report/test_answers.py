"""Each answer against known traffic, to the byte, on the original's table and on ours."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report import statements
from kubenetmon.report.answers import render
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS
from kubenetmon.report.scope import KEYS
from tests.beds.known_traffic import MINUTE, World, make_world
from tests.clickhouse.conftest import original_ddl
from tests.report import known_answers
from tests.report.known_tables import BEGIN, DAY, Table

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]


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
    wanted = known_answers.balance(table.world)
    assert {len(wanted.replicas[f"{team}/twin"]) for team in ("team-a", "team-b")} == {2}
    judge_balance(wanted, (await table.ask("balance")).records())


def judge_balance(wanted: known_answers.Balance, records: list[dict[str, Any]], client: str = "") -> None:
    """All rows of an answer."""
    found = {(row["client"], row["server"], row["replica"]): row for row in records}
    assert found.keys() == wanted.rows(client)
    sums: Counter[tuple[str, str]] = Counter()
    links: Counter[tuple[str, str]] = Counter()
    for key, amount in wanted.bytes.items():
        sums[key[:2]] += amount
        links[key[:2]] += len(wanted.connections[key])
    for key, row in found.items():
        assert row["bytes"] == wanted.bytes[key]
        assert row["connections"] == len(wanted.connections.get(key, ()))
        assert (row["odd"] == "idle") == (key not in wanted.bytes)
        assert row["replicas"] == len(wanted.replicas[key[1]])
        assert row["bytes_share"] == pytest.approx(wanted.bytes[key] / sums[key[:2]])
        assert row["connections_share"] == pytest.approx(row["connections"] / links[key[:2]])
        most = max(wanted.bytes[*key[:2], pod] for pod in wanted.replicas[key[1]])
        assert row["spread"] == pytest.approx(most * row["replicas"] / sums[key[:2]])


@pytest.mark.parametrize("by", QUESTIONS["throughput"].keys)
async def test_throughput_is_the_peak_and_the_95th_percentile_of_minutes(table: Table, by: str) -> None:
    judge_throughput(known_answers.minutes(table.world, by), (await table.ask("throughput", by=by)).records())


def judge_throughput(minutes: known_answers.Minutes, records: list[dict[str, Any]]) -> None:
    """All rows of an answer."""
    assert {row["name"] for row in records} == {name for (name, _), counts in minutes.items() if +counts}
    for row in records:
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


@pytest.mark.parametrize("by", KEYS)
async def test_what_is_not_attributed_is_counted_by_reason(table: Table, by: str) -> None:
    wanted = known_answers.unattributed(table.world, by)
    assert {reason for reason, _ in wanted} == {reason for reason, _ in statements._REASONS}
    assert await table.sums("unattributed", "reason", "local", by=by) == wanted


async def test_what_is_not_attributed_has_an_example(table: Table) -> None:
    answer = await table.ask("unattributed")
    examples = {row["example"] for row in answer.records() if row["reason"].startswith("private")}
    assert "10.99.0.1" in examples
    assert {row["example"] for row in answer.records() if row["reason"].startswith("zone")} == {""}


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
    whole = await table.ask(question)
    for limit in (1, len(whole.rows) - 1, len(whole.rows), len(whole.rows) + 1):
        answer = await table.ask(question, limit=limit)
        assert list(answer.rows) == list(whole.rows[:limit])
        assert answer.cut == (limit < len(whole.rows))
        assert answer.cut == any(f"first {limit} rows" in note for note in answer.notes)


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
