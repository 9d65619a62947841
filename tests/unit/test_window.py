"""How far back a table remembers tokens, at the rate at which all its writers insert."""

from __future__ import annotations

import pytest

from kubenetmon.clickhouse.table import Deduplication, Partition, TableSchema
from kubenetmon.clickhouse.window import WindowWatch, blocks_of_a_week

PLAIN, REPLICATED = "SummingMergeTree", "ReplicatedSummingMergeTree"
MIDNIGHT = 20_000 * 86_400
NOON = MIDNIGHT + 43_200
TODAY = (MIDNIGHT, NOON)
YESTERDAY = (MIDNIGHT - 86_400, MIDNIGHT)


def table(*partitions: Partition, engine: str = PLAIN) -> TableSchema:
    return TableSchema("default", "flows", {}, engine, partitions=partitions)


def window(blocks: int, seconds: int = 0) -> Deduplication:
    return Deduplication(blocks, seconds, "t", PLAIN)


def test_blocks_of_other_servers_count() -> None:
    watch = WindowWatch(0.0)
    watch.observe(table(Partition("p", 1, 100, *TODAY)), 0.0)
    watch.committed()
    watch.observe(table(Partition("p", 1, 700, *TODAY)), 60.0)
    assert watch.blocks_since(60, 60.0) == 600
    assert not watch.reaches(window(600), 60, 60.0)
    assert watch.reaches(window(800), 60, 60.0)


def test_a_replicated_table_numbers_blocks_by_partition() -> None:
    watch = WindowWatch(0.0)
    watch.observe(table(Partition("a", 0, 9, *YESTERDAY), engine=REPLICATED), 0.0)
    later = table(Partition("a", 0, 14, *YESTERDAY), Partition("b", 0, 4, *TODAY), engine=REPLICATED)
    watch.observe(later, 60.0)
    assert watch.blocks_since(60, 60.0) == 10


def test_where_the_table_shows_nothing_our_own_blocks_count() -> None:
    watch = WindowWatch(0.0)
    watch.observe(table(), 0.0)
    for _ in range(50):
        watch.committed()
    assert watch.blocks_since(10, 5.0) == 50
    watch.observe(table(), 60.0)
    assert watch.blocks_since(60, 60.0) == 50
    assert watch.blocks_since(1, 70.0) == 0


def test_what_came_before_this_server_is_reckoned_from_the_last_days() -> None:
    watch = WindowWatch(0.0)
    watch.observe(table(Partition("p", 1, 86_400, *YESTERDAY)), 0.0)
    assert watch.blocks_since(3600, 0.0) == pytest.approx(3600, rel=0.01)
    assert watch.reaches(window(5000), 3600, 0.0)
    assert not watch.reaches(window(5000), 7200, 0.0)


def test_a_limit_in_time_is_one_too() -> None:
    watch = WindowWatch(0.0)
    assert watch.reaches(window(1000, 3600), 3000, 0.0)
    assert not watch.reaches(window(1000, 3600), 3600, 0.0)
    assert not watch.reaches(window(0), 0, 0.0)


def test_a_week_is_sized_from_the_rate_within_reason() -> None:
    assert blocks_of_a_week(0.0) == 100_000
    assert blocks_of_a_week(1.0) == 760_000  # 604,800 and a quarter
    assert blocks_of_a_week(1e9) == 20_000_000


def test_what_forgets_within_a_week_is_the_weakest() -> None:
    week, hour = window(100_000, 604_800), window(1_000_000, 3600)
    assert hour.weaker_than(week)
    assert window(50_000).weaker_than(week)
    assert not window(100_000).weaker_than(week)
    assert week.weaker_than(window(100_000))


def test_the_remedy_names_the_window_for_the_engine() -> None:
    assert window(0).remedy(7) == "ALTER TABLE t MODIFY SETTING non_replicated_deduplication_window = 7"
    assert Deduplication(0, 0, "t", REPLICATED).remedy(7) == (
        "ALTER TABLE t MODIFY SETTING replicated_deduplication_window = 7, "
        "replicated_deduplication_window_seconds = 604800"
    )
    assert Deduplication(0, 0, obstacle="it is a view").remedy() == "it is a view"
