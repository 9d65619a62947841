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
from dataclasses import dataclass, field
from typing import Any, Literal

from kubenetmon.errors import printable
from kubenetmon.report import text
from kubenetmon.report.scope import moment

Kind = Literal["text", "bytes", "count", "share", "rate", "time", "ratio", "money", "price", "seconds"]
"""text; bytes (int); count (int); share (float, 1 = all); rate (bit/s); time (Unix seconds, 0 = none); ratio
(float); money and price (US dollars as decimal text, so that no cent is rounded away)."""

_NOTE_WIDTH = 100
FORMATS = ("table", "json", "csv")


@dataclass(frozen=True, slots=True)
class Column:
    """`name` is the key in JSON and CSV, `title` the head of the table's column; `wide` columns are in JSON
    and CSV only."""

    name: str
    kind: Kind = "text"
    title: str = ""
    wide: bool = False

    @property
    def head(self) -> str:
        """What stands above the column."""
        return self.title or self.name.replace("_", " ")


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows under columns. `notes` say what is and is not in them, a sentence each, and may hold names as the
    table has them: who prints them makes them `printable`. `sql` is the query;
    `summary` are amounts over all rows, as decimal text; `cut`: there are more rows than these."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: Sequence[tuple[Any, ...]]
    since: int
    until: int
    notes: tuple[str, ...] = ()
    sql: str = ""
    summary: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False

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
            "summary": dict(self.summary),
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
    lines.append(render_rows(answer))
    if answer.notes:
        lines += ["", *(_wrapped(note) for note in answer.notes)]
    return "\n".join(lines)


def render_rows(answer: Answer) -> str:
    """The rows alone, as a table for people."""
    if not answer.rows:
        return "Nothing was found."
    kept = [(index, column) for index, column in enumerate(answer.columns) if not column.wide]
    shown = [[cell(row[index], column.kind) for index, column in kept] for row in answer.rows]
    right = [at for at, (_, column) in enumerate(kept) if column.kind not in ("text", "time")]
    return text.table([column.head for _, column in kept], shown, right=right)


def _wrapped(note: str) -> str:
    """A note in lines; what it is indented by, the following ones are by twice as much. Names in it move no
    cursor."""
    note = printable(note)
    indent = len(note) - len(note.lstrip())
    return textwrap.fill(
        note,
        _NOTE_WIDTH,
        subsequent_indent=" " * 2 * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


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
    amount = float(value)
    return f"${amount:,.2f}" if abs(amount) >= 0.1 or not amount else f"${amount:.6f}"


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
    "price": lambda value: f"${value}" if value else "",
}
