"""How the live view looks: sorting, filtering, sizes, and names that would like to move the cursor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.report.paths import PATHS
from kubenetmon.report.text import text_width
from kubenetmon.report.top.plain import table
from kubenetmon.report.top.screen import SORTS, State, chosen, lines, rate, sparkline
from kubenetmon.report.top.view import TopRow, TopView, merged

NOW = 1_800_000_010.0
ROWS = (
    TopRow("shop", "frontend", "cross-zone", 2048.0, 100.0, (0.0, 1.0, 2.0, 4.0)),
    TopRow("shop", "catalog", "same-zone", 10.0, 5000.0, (1.0,)),
    TopRow("ops", "backup", "internet", 1.5e9, 0.0),
)
VIEW = TopView("127.0.0.1:8883", ROWS, 1_800_000_000, 10, 60, 3)


def _names(state: State) -> list[str]:
    return [row.name for row in chosen(VIEW, state)]


def _screen(state: State, width: int = 120, height: int = 20, view: TopView = VIEW) -> str:
    return "\n".join(line.text for line in lines(view, state, width, height, NOW))


def test_keys_sort() -> None:
    order = {
        "t": ["backup", "catalog", "frontend"],
        "s": ["backup", "frontend", "catalog"],
        "r": ["catalog", "frontend", "backup"],
        "n": ["backup", "catalog", "frontend"],
        "p": ["backup", "frontend", "catalog"],
    }
    assert {key: _names(State().pressed(key)) for key in order} == order


def test_the_filter_works_while_it_is_typed_and_escape_drops_it() -> None:
    state = State().pressed("/")
    seen = []
    for key in "fr":
        state = state.pressed(key)
        seen.append(_names(state))
    assert seen[-1] == ["frontend"]
    # It is typed in the last line: no row moves for it.
    assert _screen(state).splitlines()[-1].startswith("filter: fr_   1 row   enter keeps it")
    assert state.pressed("backspace").needle == "f"
    assert "filter: fr (escape drops it)   q quit" in _screen(state.pressed("enter"))
    tail = State(typing=True, needle="a-long-name-of-a-workload")
    assert _screen(tail, width=20).splitlines()[-1] == "-name-of-a-workload_"
    assert state.pressed("enter").pressed("s").sort == "sent"
    assert len(_names(state.pressed("escape"))) == 3


def test_the_filter_takes_words_of_name_namespace_and_path() -> None:
    assert _names(State(needle="SHOP zone")) == ["catalog", "frontend"]
    assert _names(State(needle="internet")) == ["backup"]
    assert "Nothing matches" in _screen(State(needle="no such thing"))


def test_the_first_lines_say_what_when_and_how_much() -> None:
    text = _screen(State())
    assert "by app" in text
    assert "3 nodes, to 08:00:00 UTC, 10 s ago" in text
    assert "over 60 s" in text
    assert "internet 1.40 GiB/s" in text
    assert "12.0 Gbit/s" in _screen(State(bits=True))


def test_columns_stand_still_while_one_filters_and_scrolls() -> None:
    rows = [*ROWS, TopRow("a-long-namespace", "a-long-name-of-a-workload", "class:PARTNERS", 1.0, 1.0)]
    view = replace(VIEW, rows=rows)
    heads = {
        next(line for line in _screen(state, view=view).splitlines() if line.startswith("APP"))
        for state in (State(), State(needle="front"), State(needle="no such thing"), State(at=3))
    }
    assert len(heads) == 1


@pytest.mark.parametrize("width", [40, 60, 79, 120])
def test_what_there_is_no_room_for_is_left_out_as_a_whole(width: int) -> None:
    title, *_, foot = _screen(State(paused=True), width=width).splitlines()
    assert title.endswith("10 s ago, PAUSED")
    assert ("127.0.0.1" in title) == ("127.0.0.1:8883" in title)
    assert foot.startswith("q quit   / filter")
    said = "no server answers at 127.0.0.1:8883 (connection refused): name its metrics port"
    shown = [line.text for line in lines(VIEW, State(), width, 20, NOW, error=said) if line.text[:1] in "! "]
    assert " ".join(" ".join(shown).split()) == f"! {said}"


def test_units_are_told_where_there_is_little_room() -> None:
    screen = _screen(State(), width=50)
    assert "SENT/s*  RECV/s*" in screen
    assert "1.4GiB" in screen
    assert "12Gbit" in _screen(State(bits=True), width=50)


def test_equal_names_are_told_apart_without_a_column_for_namespaces() -> None:
    view = replace(VIEW, rows=[*ROWS, TopRow("test", "frontend", "internet", 5.0, 5.0)])
    screen = _screen(State(), width=79, view=view)
    assert "NAMESPACE" not in screen
    assert "shop/frontend" in screen
    assert "test/frontend" in screen
    assert "shop/catalog" not in screen


def test_before_the_first_report_it_says_so() -> None:
    assert "Waiting for the first report" in _screen(State(), view=TopView("x"))
    assert "no report" in table(TopView("x"), State())


def test_rows_that_do_not_fit_are_scrolled_to() -> None:
    rows = [TopRow("n", f"app-{number:03}", "unknown", 1000.0 - number, 0.0) for number in range(100)]
    view = TopView("x", rows, 1_800_000_000)
    assert "1-16 of 100" in _screen(State(), view=view)
    state = State().pressed("page down").pressed("down")
    assert "app-011" in _screen(state, view=view)
    assert "app-010" not in _screen(state, view=view)
    assert "85-100 of 100" in _screen(replace(state, at=9999), view=view)


def test_no_name_can_move_the_cursor() -> None:
    hostile = TopView("x", [TopRow("\x1b[2J", "a\x1b]0;b\x07\n", "\x1bPATH", 5.0, 5.0)], 1)
    for text in (_screen(State(), view=hostile), table(hostile, State())):
        assert all(one.isprintable() or one == "\n" for one in text)
        assert "a\\x1b" in text


@given(
    st.integers(1, 220),
    st.integers(1, 60),
    st.sampled_from(SORTS),
    st.text(max_size=8),
    st.lists(
        st.builds(
            TopRow,
            st.text(max_size=30),
            st.text(max_size=80),
            st.sampled_from(sorted(PATHS)),
            st.floats(0, 1e18),
            st.floats(0, 1e18),
            st.lists(st.floats(0, 1e18), max_size=70).map(tuple),
        ),
        max_size=30,
    ),
)
def test_the_screen_is_never_larger_than_the_terminal(
    width: int, height: int, sort: str, needle: str, rows: list[TopRow]
) -> None:
    view = TopView("127.0.0.1:8883", rows, 1_800_000_000, 10, 60, 3, ["a note", "another"])
    screen = lines(view, State(sort=sort, needle=needle), width, height, NOW, error="an error")
    assert len(screen) <= height
    for line in screen:
        assert text_width(line.text) <= width


@pytest.mark.parametrize(
    ("history", "width", "shown"),
    [
        ((), 4, "    "),
        ((0.0, 0.0), 4, "    "),
        ((1.0, 8.0), 4, "  ▂█"),
        ((8.0, 0.0, 4.0, 8.0), 4, "█ ▅█"),
        ((8.0, 0.0, 0.0, 4.0, 8.0), 3, "█ █"),
    ],
)
def test_sparklines(history: tuple[float, ...], width: int, shown: str) -> None:
    assert sparkline(history, width) == shown


def test_sparklines_do_without_unicode() -> None:
    assert sparkline((1.0, 8.0), 2, unicode=False).isascii()


def test_rates_have_units() -> None:
    assert rate(0) == ""
    assert rate(12) == "12 B/s"
    assert rate(1536) == "1.50 KiB/s"
    assert rate(1_250_000, bits=True) == "10.0 Mbit/s"
    assert rate(1536, short=True) == "1.5KiB"
    assert rate(1_250_000, bits=True, short=True) == "10Mbit"


def test_several_servers_are_one_view_that_ends_where_all_have_data() -> None:
    ahead = TopView(
        "b", (TopRow("shop", "frontend", "cross-zone", 1.0, 2.0, (5.0, 6.0, 7.0)),), 1_800_000_020, 10, 60, 2
    )
    both = merged([VIEW, ahead])
    row = next(row for row in both.rows if row.name == "frontend")
    assert (row.sent, row.received, both.nodes, both.horizon) == (2049.0, 102.0, 5, 1_800_000_000)
    assert row.history == (0.0, 1.0, 2.0, 9.0)
    assert merged([VIEW, TopView("c", notes=["starts"])]).notes == ["starts"]


def test_plain_output_is_a_table() -> None:
    text = table(VIEW, State(needle="shop"))
    assert text.splitlines()[0].startswith("127.0.0.1:8883: rates over 60 s up to 2027-01-15 08:00:00 UTC")
    assert [line.split()[0] for line in text.splitlines()[4:]] == ["catalog", "frontend"]


@pytest.mark.parametrize("horizon", [0, VIEW.horizon])
def test_names_in_plain_notes_move_no_cursor(horizon: int) -> None:
    text = table(replace(VIEW, horizon=horizon, notes=["no report from \x1b[2Jnode\r"]), State())
    assert "no report from \\x1b[2Jnode\\r" in text
    assert all(one.isprintable() for one in text if one != "\n")
