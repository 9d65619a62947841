"""Durations read as Go reads them."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.config.duration import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("300s", 300),
        ("5m", 300),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("100ms", 0.1),
        ("0", 0),
        ("+5s", 5),
        ("5.s", 5),
        (".5s", 0.5),
        ("1us", 1e-6),
        ("1µs", 1e-6),
        ("1μs", 1e-6),
        ("1ns", 1e-9),
        ("1s1h", 3601),
        ("3m3m", 360),
        ("39h9m14.425s", 140954.425),
    ],
)
def test_it_reads_what_go_reads(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "-5s",
        "s",
        ".s",
        "+",
        "1.5",
        "5 s",
        " 5s",
        "5s ",
        "1d",
        "1h-1m",
        "0x5s",
        "1e3s",
        "٣s",
        "+-5s",
        "9223372037s",
        "9" * 5000 + "s",
        "5min",
        "1:30",
        "0\n",
        "nans",
        "1_000s",
    ],
)
def test_it_refuses_the_rest_and_says_what_to_write(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration: write numbers with units") as refusal:
        parse_duration(text)
    assert len(str(refusal.value)) < 250


@given(st.integers(0, 2**63 - 1))
def test_what_is_formatted_reads_back_the_same(nanoseconds: int) -> None:
    seconds = nanoseconds / 1e9
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, rel=1e-15, abs=1e-9)


@given(
    st.lists(
        st.tuples(st.integers(0, 9999), st.sampled_from(["ns", "us", "ms", "s", "m", "h"])),
        min_size=1,
        max_size=6,
    )
)
def test_parts_add_up(parts: list[tuple[int, str]]) -> None:
    whole = parse_duration("".join(f"{count}{unit}" for count, unit in parts))
    assert whole == pytest.approx(sum(parse_duration(f"{count}{unit}") for count, unit in parts))


@given(st.text(max_size=30))
def test_any_text_gives_seconds_or_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert parse_duration(text) >= 0


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (90, "1m30s"), (5400, "1h30m"), (0.25, "250ms"), (60, "1m")]
)
def test_it_formats_as_one_would_write(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_what_is_no_duration_is_not_formatted(seconds: float) -> None:
    with pytest.raises(ValueError, match="no duration"):
        format_duration(seconds)
