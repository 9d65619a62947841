"""Rows: which there are, what interval they carry, and that no byte is lost or doubled on the way."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.clickhouse.block import encode
from kubenetmon.clickhouse.columns import COLUMNS, IPV6_COLUMNS
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.server.attribution import Attributor
from kubenetmon.server.rows import LONGEST_INTERVAL, RowsConfig, columns, pieces
from tests.beds.attribution import CASE_TIME, Flow, Tuple, batch_of
from tests.beds.small_cluster import CONFIG, RANGES, SNAPSHOT, attribute, flow

ROWS = RowsConfig("test", "aws", "us-west-2", "blue")
MINUTE_START = CASE_TIME - CASE_TIME % 60


def counted(sent: tuple[int, int], received: tuple[int, int]) -> Flow:
    """A flow of the local client with (packets, bytes) both ways."""
    original = Tuple("10.1.1.5", 40000, "10.1.2.5", 80, *sent)
    return Flow(6, original, Tuple("10.1.2.5", 80, "10.1.1.5", 40000, *received))


def test_every_column_of_the_table_is_written() -> None:
    for flows, wanted in (
        ([flow("10.1.1.5", "10.1.2.5")], COLUMNS),
        ([flow("10.1.1.5", "10.1.2.5"), flow("fd00:1:1::5", "2001:db8::1")], COLUMNS + IPV6_COLUMNS),
    ):
        batch = batch_of(flows, "node-a")
        count, found = columns(Attributor(CONFIG).attribute(batch, SNAPSHOT, RANGES), batch, ROWS)
        assert found.keys() == {column.name for column in wanted}
        schema = TableSchema("default", "t", {column.name: column.type for column in wanted})
        assert encode(found, schema, count).rows == 2 * len(flows)


def test_what_is_the_same_in_all_rows_comes_from_the_configuration() -> None:
    rows, _, _ = attribute([flow("10.1.1.5", "10.1.2.5")])
    for row in rows:
        assert (row["environment"], row["localCloud"], row["localRegion"], row["localCluster"]) == (
            "test", "aws", "us-west-2", "blue"
        )  # fmt: skip
        assert (row["localCell"], row["remoteCell"]) == ("", "")


def test_a_direction_that_counted_nothing_makes_no_row() -> None:
    rows, _, _ = attribute([counted((1, 60), (0, 0)), counted((0, 0), (2, 80)), counted((0, 0), (0, 0))])
    assert [(row["direction"], row["packets"], row["bytes"]) for row in rows] == [
        ("out", 1, 60),
        ("in", 2, 80),
    ]
    rows, _, _ = attribute([counted((1, 0), (0, 7))])
    assert len(rows) == 2


@pytest.mark.parametrize(
    ("start", "seconds", "expected"),
    [
        (MINUTE_START, 60, [(0, 60)]),
        (MINUTE_START + 55, 5, [(0, 60)]),
        (MINUTE_START + 58, 5, [(0, 60)]),
        (MINUTE_START + 10, 61, [(0, 61)]),
        (MINUTE_START, 600, [(0, 600)]),
        (MINUTE_START, 65_535, [(0, 65_535)]),
        (MINUTE_START, 65_536, [(0, 32_768), (32_760, 32_768)]),
    ],
)
def test_the_interval_is_a_minute_or_its_true_length(
    start: int, seconds: int, expected: list[tuple[int, int]]
) -> None:
    assert [
        (piece.start - MINUTE_START, piece.seconds) for piece in pieces(start, start + seconds)
    ] == expected


@given(st.integers(1_600_000_000, 2_000_000_000), st.integers(1, 30 * 86_400))
def test_pieces_cover_the_interval_once(start: int, seconds: int) -> None:
    found = pieces(start, start + seconds)
    assert sum(piece.seconds for piece in found) == max(seconds, 60)
    position = start
    for piece in found:
        assert 60 <= piece.seconds <= LONGEST_INTERVAL
        assert piece.start == position - position % 60
        position += piece.seconds


@given(
    st.integers(1, 30 * 86_400),
    st.lists(st.tuples(*[st.integers(0, 2**40) | st.integers(0, 20)] * 4), max_size=6),
)
def test_a_report_of_days_is_split_without_losing_or_doubling(
    seconds: int, counters: list[tuple[int, ...]]
) -> None:
    flows = [counted((one[0], one[1]), (one[2], one[3])) for one in counters]
    rows, _, _ = attribute(flows, seconds=seconds)  # checks the sums itself
    of_interval = {(piece.start, piece.seconds) for piece in pieces(CASE_TIME, CASE_TIME + seconds)}
    for row in rows:
        assert (row["intervalStartTime"], row["intervalSeconds"]) in of_interval
        assert row["date"] == row["intervalStartTime"] // 86_400
    for place, direction, unit in (
        (0, "out", "packets"),
        (1, "out", "bytes"),
        (2, "in", "packets"),
        (3, "in", "bytes"),
    ):
        total = sum(row[unit] for row in rows if row["direction"] == direction)
        assert total == sum(one[place] for one in counters)


def test_ipv6_addresses_are_in_network_order() -> None:
    rows, _, _ = attribute([flow("fd00:1:1::5", "2001:db8:1234:5678:9abc:def0:1122:3344")])
    assert rows[0]["remoteIPv6"] == str(ipaddress.ip_address("2001:db8:1234:5678:9abc:def0:1122:3344"))
