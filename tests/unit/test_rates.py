"""The live view: each workload's bytes by path, as its own node saw them, for the last ten minutes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.server.attributed import NamedNetwork
from kubenetmon.server.attribution import Attributor
from kubenetmon.server.moved import Digest, Workload, digest
from kubenetmon.server.rates import SLOTS, Rates, RatesPage
from tests.beds.attribution import CASE_TIME, Flow, batch_of
from tests.beds.small_cluster import CONFIG, RANGES, SNAPSHOT, flow
from tests.beds.virtual_clock import VirtualClock


def _digest(*flows: Flow, node: str = "node-a", start: int = CASE_TIME) -> Digest:
    batch = batch_of(flows, node, start)
    attributed = Attributor(CONFIG).attribute(batch, SNAPSHOT, RANGES)
    return digest(attributed, SNAPSHOT, node, batch.interval_start, batch.interval_end)


def _rates(start: int = CASE_TIME) -> Rates:
    return Rates(clock=VirtualClock(float(start)))


def _rows(view: Mapping[str, Any]) -> dict[tuple[str, str], tuple[int, int]]:
    return {(row["name"], row["path"]): (row["sent"], row["received"]) for row in view["rows"]}


def _workload(number: int, path: str = "unknown") -> Workload:
    return Workload("n", f"app-{number // 4}", f"pod-{number}", "node", "zone", path)


def test_paths_are_classes_and_zones_where_both_are_known() -> None:
    found = _digest(
        flow("10.1.1.5", "10.1.2.5"),
        flow("10.1.1.5", "198.51.100.1"),
        flow("10.1.1.5", "192.0.2.1"),
        flow("10.1.1.6", "10.200.0.1"),
    )
    assert {(one.pod, one.path): amounts for one, amounts in found.amounts.items()} == {
        ("client", "cross-zone"): (300, 5000),
        ("client", "region-service"): (300, 5000),
        ("client", "internet"): (300, 5000),
        ("sidecar", "unknown-zone"): (300, 5000),
    }


def test_within_one_node_the_other_end_is_credited_too() -> None:
    found = _digest(flow("10.1.1.5", "10.1.1.6"))
    assert {(one.pod, one.path): amounts for one, amounts in found.amounts.items()} == {
        ("client", "same-zone"): (300, 5000),
        ("sidecar", "same-zone"): (5000, 300),
    }


def test_a_connection_of_two_nodes_shows_once_at_each_end() -> None:
    rates = _rates()
    rates.add(_digest(flow("10.1.1.5", "10.1.2.5")))
    rates.add(_digest(flow("10.1.1.5", "10.1.2.5"), node="node-b"))
    assert _rows(rates.view("app")) == {
        ("client", "cross-zone"): (5, 83),
        ("server", "cross-zone"): (83, 5),
    }


def test_a_pod_already_gone_keeps_node_and_zone() -> None:
    found = _digest(flow("10.1.1.77", "10.1.2.5"), flow("10.1.1.77", "10.1.1.5"))
    named = {(one.node, one.zone, one.pod, one.path) for one in found.amounts}
    assert named == {
        ("node-a", "zone-1", "", "cross-zone"),
        ("node-a", "zone-1", "client", "same-zone"),
    }


def test_rates_are_those_of_the_last_report_and_history_adds_up() -> None:
    rates = _rates()
    for minute, megabytes in enumerate((60, 6, 0)):
        amounts = {_workload(0): (megabytes * 1e6, 0.0)} if megabytes else {}
        start = CASE_TIME + 60 * minute
        rates.add(Digest("node", start, start + 60, amounts))
        shown = _rows(rates.view("pod"))
        assert shown[("pod-0", "unknown")][0] == megabytes * 1e6 / 60
    view = rates.view("pod")
    history = view["rows"][0]["history"]
    assert sum(history) * view["slot_seconds"] == 66e6
    assert history[-6:] == [0] * 6
    assert history[-12:-6] == [100_000] * 6


def test_split_batches_of_one_interval_add_up() -> None:
    rates = _rates()
    for _ in range(3):
        rates.add(Digest("node", CASE_TIME, CASE_TIME + 60, {_workload(0): (60.0, 120.0)}))
    assert _rows(rates.view("pod")) == {("pod-0", "unknown"): (3, 6)}


def test_history_ends_where_all_live_nodes_have_reported_and_a_silent_one_is_named() -> None:
    rates = _rates()
    rates.add(Digest("slow", CASE_TIME, CASE_TIME + 60, {_workload(0): (60.0, 0.0)}))
    rates.add(Digest("node", CASE_TIME + 60, CASE_TIME + 120, {_workload(8): (60.0, 0.0)}))
    assert rates.view("app")["horizon"] == CASE_TIME + 60
    assert rates.view("app")["nodes"] == 2
    rates.add(Digest("node", CASE_TIME + 120, CASE_TIME + 300, {_workload(8): (60.0, 0.0)}))
    view = rates.view("app")
    assert (view["horizon"], view["nodes"], view["late_nodes"]) == (CASE_TIME + 300, 1, ["slow"])
    assert _rows(view)[("app-0", "unknown")] == (0, 0)


def test_what_is_older_than_the_history_is_forgotten() -> None:
    rates = _rates()
    rates.add(Digest("old", CASE_TIME, CASE_TIME + 60, {_workload(0): (60.0, 0.0)}))
    later = CASE_TIME + SLOTS * 10 + 120
    rates._clock = VirtualClock(float(later))
    rates.add(Digest("node", later, later + 10, {_workload(1): (10.0, 0.0)}))
    assert [row["name"] for row in rates.view("pod")["rows"]] == ["pod-1"]
    assert len(rates._rows) == len(rates._nodes) == 1
    rates.add(Digest("late", CASE_TIME, CASE_TIME + 60, {_workload(2): (60.0, 0.0)}))
    assert [row["name"] for row in rates.view("pod")["rows"]] == ["pod-1"]


def test_an_agent_whose_clock_is_ahead_wipes_nothing_out() -> None:
    rates = _rates()
    rates.add(Digest("node", CASE_TIME - 60, CASE_TIME, {_workload(0): (60.0, 0.0)}))
    rates.add(Digest("mad", CASE_TIME + 9**7, CASE_TIME + 9**7 + 60, {_workload(1): (60.0, 0.0)}))
    assert [row["name"] for row in rates.view("pod")["rows"]] == ["pod-0"]


def test_memory_is_bounded_and_no_byte_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kubenetmon.server.rates._MOST_ROWS", 100)
    rates = _rates()
    rates.add(Digest("node", CASE_TIME, CASE_TIME + 60, {_workload(n): (60.0, 0.0) for n in range(1000)}))
    view = rates.view("app")
    assert sum(row["sent"] for row in view["rows"]) == 1000
    assert sum(sum(row["history"]) for row in view["rows"]) == 6000
    assert len(rates._rows) <= 151
    assert len(rates._sent) <= 256
    assert "others" in {row["name"] for row in view["rows"]}


async def test_the_page_answers_as_json_makes_one_body_for_all_and_refuses_other_keys() -> None:
    rates = _rates()
    rates.add(_digest(flow("10.1.1.5", "10.1.2.5")))
    page = RatesPage(rates, clock=VirtualClock(0.0))
    first = await page.page({"by": "zone"})
    assert json.loads(first.body)["rows"][0]["name"] == "zone-1"
    assert (await page.page({"by": "zone"})).body is first.body
    assert (await page.page({"by": "colour"})).status == 400
    assert json.loads((await page.page({})).body)["by"] == "app"


async def test_who_has_the_newest_is_told_of_the_next_report_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates = _rates()
    rates.add(_digest(flow("10.1.1.5", "10.1.2.5")))
    page = RatesPage(rates, clock=SYSTEM_CLOCK)
    first = await page.page({})
    after = {"after": dict(first.headers)["etag"]}
    monkeypatch.setattr(RatesPage, "WAIT_SECONDS", 0.05)
    assert (await page.page(after)).status == 204
    monkeypatch.setattr(RatesPage, "WAIT_SECONDS", 30.0)
    waiting = [asyncio.create_task(page.page(after)) for _ in range(40)]
    await asyncio.sleep(0.05)
    refused = [task.result().status for task in waiting if task.done()]
    assert refused == [204] * 24, "more than sixteen that wait hold connections that probes need"
    began = time.monotonic()
    for minute in (60, 120, 180):
        rates.add(_digest(flow("10.1.1.5", "10.1.2.5"), start=CASE_TIME + minute))
    told = await asyncio.gather(*(task for task in waiting if not task.done()))
    assert time.monotonic() - began < 10
    assert {id(one.body) for one in told} == {id(told[0].body)}, "one body for all"
    assert json.loads(told[0].body)["horizon"] == json.loads(first.body)["horizon"] + 180
    assert not rates._waiting
    restarted = await RatesPage(rates, clock=SYSTEM_CLOCK).page({"after": dict(told[0].headers)["etag"]})
    assert restarted.status == 200, "another process's state is none of ours"


def test_a_class_of_the_configurations_own_is_a_path_of_its_own() -> None:
    partner = NamedNetwork("partner", (ip_network("192.0.2.0/24"),), "aws", "us-west-2", "PARTNER")
    batch = batch_of([flow("10.1.1.5", "192.0.2.9")], "node-a", CASE_TIME)
    attributed = Attributor(replace(CONFIG, networks=(partner,))).attribute(batch, SNAPSHOT, RANGES)
    found = digest(attributed, SNAPSHOT, "node-a", batch.interval_start, batch.interval_end)
    assert {one.path for one in found.amounts} == {"class:PARTNER"}
