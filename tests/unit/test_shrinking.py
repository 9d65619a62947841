"""A dict that gives memory back."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.server.shrinking import Shrinking


def test_what_was_large_and_is_small_takes_little() -> None:
    numbers: Shrinking[int, str] = Shrinking()
    for number in range(100_000):
        numbers.held[number] = "one"
    large = sys.getsizeof(numbers.held)
    for number in range(99_000):
        numbers.remove(number)
    assert list(numbers.held) == list(range(99_000, 100_000))
    assert sys.getsizeof(numbers.held) < large / 20


def test_a_hundred_thousand_that_come_and_go_do_not_double_it() -> None:
    ours: Shrinking[int, int] = Shrinking()
    plain: dict[int, int] = {}
    for number in range(100_000):
        ours.held[number] = plain[number] = 1
    settled = sys.getsizeof(plain)
    for number in range(100_000):
        ours.remove(number)
        del plain[number]
        ours.held[100_000 + number] = plain[100_000 + number] = 1
        assert sys.getsizeof(ours.held) <= settled
    assert sys.getsizeof(plain) > settled, "nothing was shown"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20))))
def test_it_holds_what_a_dict_would(steps: list[tuple[bool, int]]) -> None:
    ours: Shrinking[int, int] = Shrinking()
    model: dict[int, int] = {}
    for number, (is_removed, key) in enumerate(steps):
        if is_removed:
            assert ours.remove(key) == model.pop(key, None)
        else:
            ours.held[key] = model[key] = number
        assert ours.held == model
