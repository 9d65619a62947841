"""What the yardstick's exit code says of its table."""

from __future__ import annotations

import contextlib

import pytest

import tests.bench.__main__ as bench
from tests.bench.line import Line


@pytest.mark.parametrize(
    ("arguments", "reached", "code"),
    [([], True, 0), ([], False, 0), (["--strict"], True, 0), (["--strict"], False, 1)],
)
def test_a_bound_that_is_not_reached_fails_where_that_is_demanded(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reached: bool,
    code: int,
) -> None:
    lines = [Line("reading", "1.2 x", "1.5 x", "6 x", True), Line("sending", "9 x", "2 x", "7 x", reached)]
    for name in ("require_machine", "remove_leftovers", "remove_own"):
        monkeypatch.setattr(bench.network, name, contextlib.nullcontext)
    monkeypatch.setattr(bench, "hide_test_packages", contextlib.nullcontext)
    monkeypatch.setattr(bench, "_measure", lambda *_: lines)
    assert bench.main(arguments) == code
    shown = capsys.readouterr()
    assert ("NOT reached" in shown.out) != reached
    assert ("not reached: sending" in shown.err) == bool(code)
