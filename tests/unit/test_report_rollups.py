"""The rollups' DDL on a cluster, and what a comment says of the days they stand for."""

from __future__ import annotations

import pytest

from kubenetmon.clickhouse.rollups import DAY, Coverage, parse_coverage
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.report.flows import Flows, Source, Span
from kubenetmon.report.views import ddl

TODAY = 20_000 * DAY


def test_on_a_cluster_rows_lie_in_local_tables_behind_distributed_ones() -> None:
    text = ddl(SchemaOptions("d", "t", cluster="c"))
    assert "CREATE TABLE IF NOT EXISTS `d`.`t_hourly_local` ON CLUSTER `c`" in text
    assert "ENGINE = ReplicatedAggregatingMergeTree(" in text
    assert "ENGINE = Distributed('c', 'd', 't_hourly_local')" in text
    assert (
        "CREATE MATERIALIZED VIEW IF NOT EXISTS `d`.`t_daily_view` ON CLUSTER `c` TO `d`.`t_daily_local`"
        in text
    )
    assert "CREATE OR REPLACE VIEW `d`.`t_cross_zone` ON CLUSTER `c`" in text


@pytest.mark.parametrize(
    "coverage", [Coverage(0, 0), Coverage(TODAY, TODAY + DAY), Coverage(TODAY, TODAY)], ids=str
)
def test_coverage_is_kept_in_a_comment(coverage: Coverage) -> None:
    assert parse_coverage(coverage.comment()) == coverage
    assert parse_coverage("mine") is None
    assert parse_coverage("days before 2026-99-99 and from 2026-01-01") is None


@pytest.mark.parametrize(
    ("coverage", "within"),
    [
        (Coverage(0, 0), [(TODAY - 5, TODAY + 2 * DAY)]),
        (Coverage(TODAY, TODAY + DAY), [(TODAY - 5, TODAY), (TODAY + DAY, TODAY + 2 * DAY)]),
        (Coverage(0, TODAY + DAY), [(TODAY + DAY, TODAY + 2 * DAY)]),
        (Coverage(0, TODAY + 9 * DAY), []),
    ],
)
def test_a_span_is_covered_in_parts(coverage: Coverage, within: list[tuple[int, int]]) -> None:
    assert coverage.within(TODAY - 5, TODAY + 2 * DAY) == within


def test_whole_days_and_hours_come_from_rollups_and_the_rest_from_rows() -> None:
    source = Source(coverage=Coverage(0, 0))
    text = Flows(source, Span.of(TODAY + 60, TODAY + 3 * DAY + 7260)).define()
    tables = [line.split("FROM `default`.")[1] for line in text.splitlines() if "FROM `default`." in line]
    names = ("", "_hourly", "_daily", "_hourly", "")
    assert tables == [f"`network_flows_0{name}`" for name in names]
    assert "UNION" not in Flows(source, Span.of(TODAY + 60, TODAY + 120)).define()
