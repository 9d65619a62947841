"""Who opened, inferred from ports where the rows do not say it; what ports do not say is unclear."""

from __future__ import annotations

import time

import pytest

from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from tests.beds.known_traffic import End, Flow, World
from tests.clickhouse.conftest import original_ddl

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

DAY = 86_400
BEGIN = int(time.time()) // DAY * DAY - 3 * DAY
CASES = {
    # name: (port of one side, port of the other, who opened: 1 the one, -1 the other, 0 unclear)
    "ephemeral to service": (40_000, 443, 1),
    "service to ephemeral": (443, 40_000, -1),
    "the first ephemeral": (32_768, 32_767, 1),
    "both ephemeral": (40_000, 50_000, 0),
    "both below": (2_000, 3_000, 0),
    "merged clients": (0, 8_080, 1),
    "merged clients of the other": (8_080, 0, -1),
    "merged clients of an ephemeral port": (0, 50_000, 1),
    "both zero": (0, 0, 0),
}


@pytest.mark.parametrize("rollups", [False, True], ids=["rows", "rollups"])
async def test_what_ports_do_not_say_is_unclear(sink: EmbeddedSink, rollups: bool) -> None:
    await sink.query("CREATE DATABASE ports")
    await sink.query(original_ddl("ports"))
    flows, wanted = [], {}
    for number, (name, (port, other_port, opener)) in enumerate(CASES.items(), 1):
        one = End(f"10.1.0.{number}", "node-1", "a", f"one-{number}", f"{name}: one", "shop")
        other = End(f"10.2.0.{number}", "node-2", "a", f"other-{number}", f"{name}: other", "shop")
        flows.append(Flow(one, other, port, other_port, 100, 7, BEGIN))
        counts = {1: (1, 0, 0), -1: (0, 1, 0), 0: (0, 0, 1)}
        roles = {1: "opens", -1: "only receives", 0: "unclear"}
        wanted[one.app] = (roles[opener], *counts[opener], 100, 7)
        wanted[other.app] = (roles[-opener], *counts[-opener], 7, 100)
    world = World(frozenset(("node-1", "node-2")), False, flows)
    await sink.query(world.insert("ports.network_flows_0"))
    if rollups:
        await apply_rollups(sink, SchemaOptions("ports"), time.time())
    try:
        source = await read_source(sink, "ports", "network_flows_0")
        scope = Scope(since=BEGIN, until=BEGIN + DAY, limit=0)
        answer = await ask(sink, QUESTIONS["openers"], scope, source)
        found = {row[0]: row[1:] for row in answer.rows}
        assert found == wanted
        assert any("inferred from ports" in note for note in answer.notes)
        assert rollups == any("Connections are counted from rollups" in note for note in answer.notes)
        # What is unclear is in no one's balance.
        servers = {row["server"] for row in (await ask(sink, QUESTIONS["balance"], scope, source)).records()}
        assert servers == set()
    finally:
        await sink.query("DROP DATABASE ports SYNC")
