"""Spans and filters: what is understood, and what is refused with a line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError
from kubenetmon.report.scope import Scope, moment, month_start, next_month, parse_time

NOW = 1_764_000_123.0  # 2025-11-24 16:02:03 UTC


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("now", 1_764_000_123),
        ("today", 1_763_942_400),
        ("month", 1_761_955_200),
        ("90m", 1_764_000_123 - 5400),
        ("7d", 1_764_000_123 - 7 * 86400),
        ("2w", 1_764_000_123 - 14 * 86400),
        ("1d12h", 1_764_000_123 - 36 * 3600),
        ("2025-11", 1_761_955_200),
        ("2025-11-24", 1_763_942_400),
        ("2025-11-24T08:30", 1_763_942_400 + 30_600),
        ("2025-11-24T08:30:05Z", 1_763_942_400 + 30_605),
        ("@1700000000", 1_700_000_000),
    ],
)
def test_times_are_read_as_people_write_them(text: str, wanted: int) -> None:
    assert parse_time(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "7", "-7d", "2025-13-01", "7dd", "d", "1" * 99 + "d"])
def test_other_words_are_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--until .* is not a time: write how long ago"):
        parse_time(text, NOW, "--until")


@given(st.text(max_size=30))
def test_any_text_is_a_time_or_one_line(text: str) -> None:
    said = ""
    try:
        parse_time(text, NOW)
    except ConfigurationError as error:
        said = str(error)
    assert "\n" not in said


@pytest.mark.parametrize(
    ("given_values", "says"),
    [
        ({"since": 5, "until": 5}, "is empty"),
        ({"since": 9, "until": 5}, "is empty"),
        ({"since": -1}, "is empty"),
        ({"until": 2**32}, "is empty"),
        ({"by": "colour"}, "--by 'colour' is not one of app, pod"),
        ({"limit": -1}, "--limit -1"),
        ({"app": "a\nb"}, "--app: 'a\\nb' is not a name"),
        ({"service": "x" * 2000}, "--service"),
    ],
)
def test_impossible_scopes_are_refused(given_values: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Scope(**{"since": 0, "until": 10, **given_values})  # type: ignore[arg-type]
    assert says in str(caught.value)


@given(st.integers(0, 4_000_000_000))
def test_a_moment_lies_in_its_month(at: int) -> None:
    assert month_start(at) <= at < next_month(at)
    assert month_start(next_month(at)) == next_month(at)
    assert moment(month_start(at)).endswith("-01 00:00")
