"""One row of the table, and the table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Line:
    """A measurement beside its target. `reached` is for people, and for `--strict`."""

    work: str
    measured: str
    target: str
    original: str
    reached: bool


def render(lines: Sequence[Line]) -> str:
    """The table as Markdown."""
    heads = ("work", "ours", "to reach", "the original", "")
    cells = [heads] + [
        (line.work, line.measured, line.target, line.original, "reached" if line.reached else "NOT reached")
        for line in lines
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    rendered = [
        "| " + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True)) + " |"
        for row in cells
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(rendered)


def megabytes(count: int) -> str:
    """`61 MB`."""
    return f"{count / 1e6:.0f} MB"


def ratio_of(seconds: float, floor: float) -> str:
    """`1.42 x the receive floor (3.01 us : 2.12 us)`, both per flow."""
    return f"{seconds / floor:.2f} x the receive floor ({seconds * 1e6:.2f} us : {floor * 1e6:.2f} us)"
