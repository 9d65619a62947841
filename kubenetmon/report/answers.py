"""What an answer is: typed columns, rows, and what to know about them; and how it is shown. Pure.

Contract: an `Answer` holds plain values (int, float, str), so that JSON and CSV carry exact numbers; `table`
writes them for people. JSON and CSV are for programs and keep their keys.
"""

from __future__ import annotations

import csv
import io
import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from kubenetmon.report import text
from kubenetmon.report.scope import moment

Kind = Literal["text", "bytes", "count", "share", "rate", "time", "ratio", "money", "price", "seconds"]
"""text; bytes (int); count (int); share (float, 1 = all); rate (bit/s); time (Unix seconds, 0 = none); ratio
(float); money and price (US dollars as decimal text, so that no cent is rounded away)."""

_NOTE_WIDTH = 100
FORMATS = ("table", "json", "csv")


@dataclass(frozen=True, slots=True)
class Column:
    """`name` is the key in JSON and CSV, `title` the head of the table's column."""

    name: str
    kind: Kind = "text"
    title: str = ""

    @property
    def head(self) -> str:
        """What stands above the column."""
        return self.title or self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows under columns. `notes` say what is and is not in them, a sentence each; `sql` is the query."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Any, ...]]
    since: int
    until: int
    notes: tuple[str, ...] = ()
    sql: str = ""

    def records(self) -> list[dict[str, Any]]:
        """The rows as objects."""
        names = [column.name for column in self.columns]
        return [dict(zip(names, row, strict=True)) for row in self.rows]

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {
            "question": self.name,
            "title": self.title,
            "since": self.since,
            "until": self.until,
            "columns": [{"name": one.name, "kind": one.kind, "title": one.head} for one in self.columns],
            "rows": self.records(),
            "notes": list(self.notes),
        }


def render(answer: Answer, form: str) -> str:
    """The answer in one of `FORMATS`, without a line break at the end."""
    if form == "json":
        return json.dumps(answer.document(), indent=2, ensure_ascii=False)
    if form == "csv":
        return _csv(answer)
    return _table(answer)


def cell(value: Any, kind: Kind) -> str:
    """A value for people; None is not known."""
    if value is None:
        return ""
    show = _SHOWN.get(kind)
    return str(value) if show is None else show(value)


def _table(answer: Answer) -> str:
    lines = [f"{answer.title}, {moment(answer.since)} to {moment(answer.until)} UTC", ""]
    if answer.rows:
        kinds = [column.kind for column in answer.columns]
        shown = [[cell(value, kind) for value, kind in zip(row, kinds, strict=True)] for row in answer.rows]
        right = [index for index, kind in enumerate(kinds) if kind not in ("text", "time")]
        lines.append(text.table([column.head for column in answer.columns], shown, right=right))
    else:
        lines.append("Nothing was found.")
    if answer.notes:
        lines += ["", *(textwrap.fill(note, _NOTE_WIDTH) for note in answer.notes)]
    return "\n".join(lines)


def _csv(answer: Answer) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([column.name for column in answer.columns])
    writer.writerows([_safe(value) for value in row] for row in answer.rows)
    return buffer.getvalue().removesuffix("\n")


def _safe(value: Any) -> Any:
    """Text that a spreadsheet would run as a formula gets an apostrophe before it."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") and not _number(value):
        return f"'{value}"
    return value


def _number(value: str) -> bool:
    try:
        float(value)
    except ValueError:
        return False
    return True


def _money(value: Any) -> str:
    return f"${float(value):,.2f}" if abs(float(value)) >= 0.005 or not float(value) else "<$0.01"


def _rate(bits: Any) -> str:
    amount, units = float(bits), iter(("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s", "Pbit/s"))
    unit = next(units)
    while amount >= 1000:
        amount, unit = amount / 1000, next(units, "Ebit/s")
    return f"{amount:.2f} {unit}" if unit != "bit/s" else f"{amount:.0f} {unit}"


_SHOWN: Mapping[str, Any] = {
    "bytes": text.size,
    "count": lambda value: f"{value:,}",
    "share": lambda value: f"{100 * value:.1f} %",
    "rate": _rate,
    "time": lambda value: moment(value) if value else "",
    "ratio": lambda value: f"{value:.2f}",
    "seconds": lambda value: f"{value:,} s",
    "money": _money,
    "price": lambda value: f"${value}",
}
