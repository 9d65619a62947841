"""How long the demo waits is a factor that a slow machine's user sets."""

from __future__ import annotations

import pytest

from kubenetmon.demo.patience import VARIABLE, patience
from kubenetmon.errors import MachineError


@pytest.mark.parametrize(("told", "waited"), [(None, 90), ("1", 90), ("2.5", 225), ("1000", 90_000)])
def test_waits_as_many_times_longer_as_it_is_told(
    monkeypatch: pytest.MonkeyPatch, told: str | None, waited: float
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if told is not None:
        monkeypatch.setenv(VARIABLE, told)
    assert patience(90) == waited


@pytest.mark.parametrize("told", ["", "0", "0.5", "-1", "nan", "inf", "1001", "long"])
def test_what_is_no_factor_ends_the_demo_with_a_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setenv(VARIABLE, told)
    with pytest.raises(MachineError, match=VARIABLE):
        patience(90)
