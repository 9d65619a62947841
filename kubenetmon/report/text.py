"""Answers as plain text for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, the last one (an amount) to the right; an empty cell is a dash."""
    cells = [tuple(heads), *[tuple(value or "-" for value in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "  ".join(
            [value.ljust(width) for value, width in zip(row[:-1], widths, strict=False)]
            + [row[-1].rjust(widths[-1])]
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def size(amount: float) -> str:
    """Bytes with a binary unit, as ClickHouse's formatReadableSize writes them."""
    units = iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while amount >= 1024:
        amount, unit = amount / 1024, next(units)
    return f"{amount:.2f} {unit}"
