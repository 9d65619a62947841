"""Whether a batch is in the table already: what may be concluded from some of its rows, and what not."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.clickhouse.block import Coded, Column, Constant, Values
from kubenetmon.clickhouse.evidence import Finding, Trace, Tracer, judge

MINUTE = 1_800_000_000
Row = dict[str, Any]


def row(port: int, counted: int, direction: str = "out") -> Row:
    return {
        "intervalStartTime": MINUTE,
        "date": MINUTE // 86_400,
        "direction": direction,
        "proto": "tcp",
        "localNode": "node-a",
        "localIPv4": 0x0A000001,
        "localPort": port,
        "remoteIPv4": 0x0A000002,
        "remotePort": 443,
        "bytes": counted,
        "packets": 1,
    }


def trace(*rows: Row, start: int = MINUTE, seconds: int = 60) -> Trace:
    return Trace("node-a", start, start + seconds, rows)


def stored(one: Row, *, more: int = 0) -> tuple[Any, ...]:
    ends = ("10.0.0.1", one["localPort"], "10.0.0.2", one["remotePort"])
    return MINUTE, one["direction"], "tcp", *ends, one["localNode"], one["bytes"] + more, one["packets"]


def turned(one: Row) -> tuple[Any, ...]:
    """The row as a replica would have written it that took the other end for the local one."""
    direction = "in" if one["direction"] == "out" else "out"
    return (
        MINUTE,
        direction,
        "tcp",
        "10.0.0.2",
        one["remotePort"],
        "10.0.0.1",
        one["localPort"],
        one["localNode"],
        one["bytes"],
        1,
    )


ROWS = [row(port, 100 + port) for port in range(20)]


def test_nothing_of_it_there_is_absent() -> None:
    assert judge(trace(*ROWS), []) is Finding.ABSENT
    assert judge(trace(*ROWS), [stored(row(999, 5))]) is Finding.ABSENT


def test_all_of_it_there_is_present() -> None:
    assert judge(trace(*ROWS), map(stored, ROWS)) is Finding.PRESENT
    assert judge(trace(*ROWS), map(turned, ROWS)) is Finding.PRESENT


def test_less_than_it_counted_cannot_have_it_in() -> None:
    assert judge(trace(*ROWS), [stored(one, more=-1) for one in ROWS]) is Finding.ABSENT


def test_what_another_report_of_the_minute_could_have_written_is_undecided() -> None:
    """Equal sums prove nothing where several reports of one node share a minute."""
    for shared in ({"seconds": 5}, {"start": MINUTE + 30}):
        assert judge(trace(*ROWS, **shared), map(stored, ROWS)) is Finding.UNDECIDED
    assert judge(trace(*ROWS), [stored(one, more=7) for one in ROWS]) is Finding.UNDECIDED
    assert judge(trace(*ROWS), map(stored, ROWS[:10])) is Finding.UNDECIDED


def test_a_row_of_another_report_does_not_hide_the_other_way_round() -> None:
    """Each way round is looked at by itself: a small sum under one says nothing of the other."""
    small = [stored(row(port, 1)) for port in range(20)]
    assert judge(trace(*ROWS), [*small, *map(turned, ROWS)]) is Finding.PRESENT
    assert judge(trace(*ROWS, seconds=5), [*small, *map(turned, ROWS)]) is Finding.UNDECIDED


def test_rows_without_a_node_may_be_its_own_or_another_nodes() -> None:
    """A replica that knew no local end wrote no node; nor did one for the node at the other end."""
    nobodys = [stored({**one, "localNode": ""}) for one in ROWS]
    assert judge(trace(*ROWS), nobodys) is Finding.UNDECIDED
    assert judge(trace(*ROWS), [*nobodys, *map(stored, ROWS)]) is Finding.PRESENT
    nameless = Trace("", MINUTE, MINUTE + 60, tuple(ROWS))
    assert judge(nameless, nobodys) is Finding.UNDECIDED
    assert judge(nameless, []) is Finding.ABSENT


def test_two_lives_of_one_connection_do_not_hide_the_rest() -> None:
    answer = [stored(ROWS[0], more=50), *map(stored, ROWS[1:])]
    assert judge(trace(*ROWS), answer) is Finding.PRESENT
    twice = [row(1, 10), row(1, 20)]
    assert judge(trace(*twice), [(*stored(row(1, 30))[:9], 2)]) is Finding.PRESENT


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 500)), min_size=1, max_size=30), st.data())
def test_a_batch_that_is_there_is_never_called_absent(counts: list[tuple[int, int]], data: Any) -> None:
    rows = [row(port, counted) for port, counted in counts]
    sums: dict[int, list[int]] = {}
    for one in rows:
        total = sums.setdefault(one["localPort"], [0, 0])
        total[0] += one["bytes"]
        total[1] += 1
    answer = [
        (*stored(row(port, 0))[:8], counted + data.draw(st.integers(0, 99)), packets)
        for port, (counted, packets) in sums.items()
    ]
    picked = data.draw(st.lists(st.sampled_from(rows), min_size=1, max_size=len(rows), unique_by=id))
    assert judge(trace(*picked, seconds=data.draw(st.sampled_from([5, 60]))), answer) is not Finding.ABSENT


def columns(rows: int, nodes: list[str]) -> dict[str, Column]:
    return {
        "date": Constant(MINUTE // 86_400),
        "intervalStartTime": Constant(MINUTE),
        "direction": Coded(np.zeros(rows, np.uint8), ["out", "in"]),
        "proto": Coded(np.zeros(rows, np.uint8), ["tcp"]),
        "localNode": Coded(np.arange(rows) % len(nodes), nodes),
        "localIPv4": Values(np.full(rows, 7, np.uint32)),
        "localPort": Values(np.arange(rows) % 65536),
        "remoteIPv4": Values(np.full(rows, 8, np.uint32)),
        "remotePort": Values(np.full(rows, 443)),
        "bytes": Values(np.arange(rows)),
        "packets": Values(np.ones(rows, np.uint64)),
    }


def made(rows: int, nodes: list[str]) -> Trace:
    return Tracer(
        columns(rows, nodes), rows, node="node-a", interval_start=MINUTE, interval_end=MINUTE + 60
    ).trace()


def test_the_trace_is_a_bounded_sample_over_the_whole_block() -> None:
    assert [one["localPort"] for one in made(3, ["node-a"]).rows] == [0, 1, 2]
    large = made(40_000, ["node-a"])
    assert len(large.rows) == 128
    assert (large.rows[0]["bytes"], large.rows[-1]["bytes"]) == (0, 39_999)


def test_rows_of_an_unknown_local_end_are_used_only_where_there_are_no_others() -> None:
    mixed = made(10, ["node-a", ""])
    assert (mixed.node, len(mixed.rows)) == ("node-a", 5)
    unknown = made(10, [""])
    assert (unknown.node, len(unknown.rows)) == ("", 10)
