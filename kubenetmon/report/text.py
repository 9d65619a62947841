"""Answers as plain text for a terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Sequence

from kubenetmon.errors import printable


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], right: Collection[int] | None = None) -> str:
    """Columns under their heads; those in `right` (the last one unless told) to the right; an empty cell is a
    dash. Control characters are shown as they are written in Python, so that no name can move the cursor."""
    if right is None:
        right = {len(heads) - 1}
    cells = [tuple(heads), *[tuple(printable(value) or "-" for value in row) for row in rows]]
    widths = [max(text_width(row[column]) for row in cells) for column in range(len(heads))]
    lines = ["  ".join(_padded(row, widths, right)).rstrip() for row in cells]
    return "\n".join([lines[0], "-" * (sum(widths) + 2 * (len(widths) - 1)), *lines[1:]])


def size(amount: float) -> str:
    """Bytes with a binary unit, as ClickHouse's formatReadableSize writes them."""
    units = iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while abs(amount) >= 1024 and unit != "EiB":
        amount, unit = amount / 1024, next(units)
    return f"{amount:.2f} {unit}"


def _padded(row: Sequence[str], widths: Sequence[int], right: Collection[int]) -> list[str]:
    padded = []
    for column, (value, width) in enumerate(zip(row, widths, strict=True)):
        blank = " " * (width - text_width(value))
        padded.append(blank + value if column in right else value + blank)
    return padded


def text_width(value: str) -> int:
    """How many columns of a terminal the text takes."""
    if value.isascii():
        return len(value)
    return sum(
        0 if unicodedata.combining(one) else 2 if unicodedata.east_asian_width(one) in "WF" else 1
        for one in value
    )
