"""Every query of the dashboards over ClickHouse, on the real engine, with known traffic."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.report.views import apply_views
from tests.beds import grafana
from tests.report.conftest import Page

pytestmark = pytest.mark.chdb


async def _answers(page: Page, name: str) -> dict[str, list[tuple[Any, ...]]]:
    """The rows of each panel, by its title."""
    await apply_views(page.sink, SchemaOptions(ipv6=True), page.until)
    model = json.loads((grafana.DIRECTORY / name).read_text())
    return {
        title: await page.sink.query(
            grafana.clickhouse_sql(target["rawSql"], page.start, page.until, "default", "network_flows_0")
        )
        for title, target in grafana.targets(model)
    }


async def test_the_platform_dashboard_answers(page: Page) -> None:
    answers = await _answers(page, "platform.json")
    empty = {title for title, rows in answers.items() if not rows}
    assert empty == set()
    known = page.world.sums
    assert answers["All bytes"] == [(sum(known.values()),)]
    assert answers["Cross zone"] == [(known["cross-zone"],)]
    assert answers["Internet"] == [(known["PUBLIC_INTERNET"],)]
    assert sum(row[2] for row in answers["Bytes by path"]) == sum(known.values())
    assert sum(row[4] for row in answers["Across zones"]) == pytest.approx(known["cross-zone"], rel=0.3)
    assert {row[1] for row in answers["Uneven over replicas"]} >= {"shop/catalog", "shop/search"}


async def test_the_finops_dashboard_answers_in_dollars(page: Page) -> None:
    answers = await _answers(page, "finops.json")
    assert {title for title, rows in answers.items() if not rows} == set()
    crossing = page.world.sums["cross-zone"] / 2**30 * 0.02
    assert answers["Cross zone"][0][0] == pytest.approx(crossing)
    parts = sum(answers[title][0][0] for title in ("Cross zone", "Other regions", "Internet"))
    assert answers["All"][0][0] == pytest.approx(parts)
    assert sum(row[3] for row in answers["By workload"]) == pytest.approx(parts)
    assert sum(row[2] for row in answers["By namespace"]) == pytest.approx(parts)


@pytest.mark.parametrize("name", ["platform.json", "finops.json"])
async def test_units_are_of_columns_that_exist(page: Page, name: str) -> None:
    await apply_views(page.sink, SchemaOptions(ipv6=True), page.until)
    for panel in json.loads((grafana.DIRECTORY / name).read_text())["panels"]:
        named = {one["matcher"]["options"] for one in panel.get("fieldConfig", {}).get("overrides", [])}
        for target in panel.get("targets", ()):
            sql = grafana.clickhouse_sql(
                target["rawSql"], page.start, page.until, "default", "network_flows_0"
            )
            described = await page.sink.query(f"DESCRIBE ({sql})")
            columns = {row[0] for row in described}
            assert named <= columns, panel["title"]
            if panel["type"] == "timeseries":
                assert re.search(r"DateTime", str(described[0][1])), "a time series begins with its time"
