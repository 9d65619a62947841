"""How a `TopView` looks on a terminal of some size. Pure: a view and a `State` in, lines out.

Names come from the cluster: what is not printable is shown escaped, so that no pod can move the cursor.
"""

from __future__ import annotations

import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from kubenetmon.errors import printable
from kubenetmon.report.paths import PATHS
from kubenetmon.report.scope import KEYS
from kubenetmon.report.text import size, text_width
from kubenetmon.report.top.arguments import SORTS
from kubenetmon.report.top.view import TopRow, TopView

_SHORT_BYTES = ("B", "KiB", "MiB", "GiB", "TiB")
_SHORT_BITS = ("bit", "kbit", "Mbit", "Gbit", "Tbit")
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS = "_.:-=+*#"
HELP = ("q quit", "/ filter", "t s r n p sort", "b by", "u units", "space pause")
"""The keys, the most wanted first: what there is no room for is left out from the end."""
_WIDEST_PATH = 16


class Style(Enum):
    """What a terminal may set off, if it can."""

    PLAIN = "plain"
    DIM = "dim"
    HEAD = "head"
    TITLE = "title"
    PROMPT = "prompt"
    WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the screen."""

    text: str
    style: Style = Style.PLAIN


@dataclass(frozen=True, slots=True)
class State:
    """What the person at the keyboard has chosen.

    `typing`: keys go into the filter; `at`: the first row shown.
    """

    by: str = "app"
    sort: str = "total"
    needle: str = ""
    typing: bool = False
    bits: bool = False
    paused: bool = False
    at: int = 0

    def pressed(self, key: str) -> State:
        """The state after a key: a character, or one of up, down, page up, page down, home, enter, escape,
        backspace."""
        if self.typing:
            return self._typed(key)
        match key:
            case "t" | "s" | "r" | "n" | "p":
                return replace(self, sort=next(one for one in SORTS if one[0] == key), at=0)
            case "/":
                return replace(self, typing=True)
            case "escape":
                return replace(self, needle="", at=0)
            case "b":
                return replace(self, by=KEYS[(KEYS.index(self.by) + 1) % len(KEYS)], at=0)
            case "u":
                return replace(self, bits=not self.bits)
            case " ":
                return replace(self, paused=not self.paused)
            case "up" | "down" | "page up" | "page down":
                step = {"up": -1, "down": 1, "page up": -10, "page down": 10}[key]
                return replace(self, at=max(0, self.at + step))
            case "home":
                return replace(self, at=0)
        return self

    def _typed(self, key: str) -> State:
        if key in ("enter", "up", "down"):
            return replace(self, typing=False)
        if key == "escape":
            return replace(self, typing=False, needle="", at=0)
        if key == "backspace":
            return replace(self, needle=self.needle[:-1], at=0)
        if len(key) == 1 and key.isprintable() and len(self.needle) < 100:
            return replace(self, needle=self.needle + key, at=0)
        return self


def chosen(view: TopView, state: State) -> list[TopRow]:
    """The rows that match the filter, sorted."""
    words = state.needle.lower().split()
    found = [
        row
        for row in view.rows
        if all(word in f"{row.namespace} {row.name} {row.path_name}".lower() for word in words)
    ]
    order = {path: number for number, path in enumerate(PATHS)}
    return sorted(
        found,
        key={
            "total": lambda row: (-row.total, row.name, row.path),
            "sent": lambda row: (-row.sent, row.name, row.path),
            "received": lambda row: (-row.received, row.name, row.path),
            "name": lambda row: (row.name.lower(), row.namespace, order.get(row.path, 99)),
            "path": lambda row: (-order.get(row.path, 99), -row.total, row.name),
        }[state.sort],
    )


def lines(
    view: TopView, state: State, width: int, height: int, now: float, *, unicode: bool = True, error: str = ""
) -> list[Line]:
    """The whole screen, at most `height` lines of at most `width` columns."""
    rows = chosen(view, state)
    head = [_title(view, state, width, now), _sums(view, rows, state, width)]
    for said in (*([error] if error else []), *view.notes[:2]):
        head += [Line(_cut(part, width), Style.WARNING) for part in _wrapped(f"! {said}", width)]
    room = max(0, height - len(head) - 2)
    at = min(state.at, max(0, len(rows) - room))
    shown = rows[at : at + room]
    layout = _Layout(width, view, state)
    body = [layout.row(row, unicode) for row in shown]
    if not body:
        body = [Line(_cut(part, width), Style.DIM) for part in _wrapped(_nothing(view, state), width)]
    screen = [*head, layout.head(), *body]
    screen += [Line("")] * (height - 1 - len(screen))
    more = f"{at + 1}-{at + len(shown)} of {len(rows)}" if len(rows) > len(shown) else ""
    return [*screen[: max(0, height - 1)], _foot(state, more, len(rows), width)][:height]


def _foot(state: State, more: str, found: int, width: int) -> Line:
    """The filter while it is typed, where nothing moves for it; else which rows these are, and the keys."""
    if state.typing:
        typed = f"filter: {state.needle}_"
        hint = f"{found} row{'s' if found != 1 else ''}   enter keeps it   escape drops it"
        # The end of what is typed is what one looks at.
        over = max(0, text_width(printable(typed)) - width)
        fits = text_width(printable(typed)) + 3 + len(hint) <= width
        return Line(_cut(f"{typed}   {hint}" if fits else printable(typed)[over:], width), Style.PROMPT)
    parts = [f"filter: {state.needle} (escape drops it)"] if state.needle else []
    parts += [more] if more else []
    keys = list(HELP)
    while len(keys) > 1 and text_width(printable("   ".join([*parts, *keys]))) > width:
        keys.pop()
    return Line(_cut("   ".join([*parts, *keys]), width), Style.TITLE if state.needle else Style.DIM)


def _wrapped(text: str, width: int) -> list[str]:
    """What is said in full, in words, over as many lines as it needs (three at most)."""
    return textwrap.wrap(printable(text), max(1, width), subsequent_indent="  "[: max(0, width - 1)])[:3]


def rate(value: float, *, bits: bool = False, short: bool = False) -> str:
    """Bytes/s with a binary unit, or bit/s with a decimal one; nothing for none. `short`: without `/s`."""
    if not value:
        return ""
    if short:
        return _short(value * 8, 1000, _SHORT_BITS) if bits else _short(value, 1024, _SHORT_BYTES)
    if not bits:
        return f"{size(value)}/s" if value >= 1024 else f"{value:.0f} B/s"
    amount, units = value * 8, iter(("bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"))
    unit = next(units)
    while amount >= 1000 and unit != "Tbit/s":
        amount, unit = amount / 1000, next(units)
    return f"{amount:.1f} {unit}" if unit != "bit/s" else f"{amount:.0f} {unit}"


def _short(value: float, step: int, units: Sequence[str]) -> str:
    at = 0
    while value >= step and at < len(units) - 1:
        value, at = value / step, at + 1
    return f"{value:.0f}{units[at]}" if value >= 10 or not at else f"{value:.1f}{units[at]}"


def sparkline(history: Sequence[float], width: int, *, unicode: bool = True) -> str:
    """The newest values of the history in `width` columns, each row on a scale of its own; blank: nothing."""
    blocks = BLOCKS if unicode else ASCII_BLOCKS
    values = list(history)
    if len(values) > width > 0:
        # Several slots a column, counted from the newest, so that a column never changes its neighbours.
        each = -(-len(values) // width)
        values = [0.0] * (-len(values) % each) + values
        values = [max(values[index : index + each]) for index in range(0, len(values), each)]
    most = max(values, default=0.0)
    drawn = "".join(
        " " if value <= 0 else blocks[min(len(blocks) - 1, int(value / most * len(blocks)))]
        for value in values
    )
    return drawn.rjust(width)[-width:] if width > 0 else ""


class _Layout:
    """Which columns there is room for, and how wide they are: by all rows, so that columns stand still while
    one scrolls and filters."""

    def __init__(self, width: int, view: TopView, state: State) -> None:
        rows = view.rows
        self._state, self._width = state, width
        self._path = min(_WIDEST_PATH, max([len("same zone"), *(text_width(row.path_name) for row in rows)]))
        self._short = width < 60
        self._rate = 7 if self._short else 12
        left = width - self._path - 2 * (self._rate + 2) - 2
        self._space = 0
        wanted = max([0, *(text_width(printable(row.namespace)) for row in rows)])
        if wanted and left >= 44:
            self._space = min(max(wanted, len("NAMESPACE")), 20)
        left -= self._space + 2 if self._space else 0
        self._spark = min(60, left - 26) if left >= 36 else 0
        left -= self._spark + 2 if self._spark else 0
        # Without a column for them, namespaces are told where a name alone says too little.
        self._ambiguous: set[str] = set()
        if not self._space:
            names = {(row.name, row.namespace) for row in rows}
            self._ambiguous = {name for name, many in Counter(name for name, _ in names).items() if many > 1}
        longest = max([24, *(text_width(self._named(row)) for row in rows)])
        self._name = max(8, min(left, longest))

    def _named(self, row: TopRow) -> str:
        name = printable(row.name) or "-"
        return f"{printable(row.namespace)}/{name}" if row.name in self._ambiguous else name

    def head(self) -> Line:
        sort = self._state.sort
        names = {"name": self._state.by.upper(), "path": "PATH", "sent": "SENT", "received": "RECEIVED"}
        if self._short:
            names |= {"sent": "SENT/s", "received": "RECV/s"}
        # The mark says by which column it is sorted; the sum of both directions marks both.
        shown = {
            key: f"{name}*" if sort == key or (sort == "total" and key in ("sent", "received")) else name
            for key, name in names.items()
        }
        heads = (shown["name"], "NAMESPACE", shown["path"], shown["sent"], shown["received"], "HISTORY")
        return Line(self._join(*heads), Style.HEAD)

    def row(self, row: TopRow, unicode: bool) -> Line:
        bits = self._state.bits
        spark = sparkline(row.history, self._spark, unicode=unicode) if self._spark else ""
        return Line(
            self._join(
                self._named(row),
                printable(row.namespace),
                row.path_name,
                rate(row.sent, bits=bits, short=self._short),
                rate(row.received, bits=bits, short=self._short),
                spark,
            )
        )

    def _join(self, name: str, space: str, path: str, sent: str, received: str, spark: str) -> str:
        cells = [_fit(name, self._name)]
        if self._space:
            cells.append(_fit(space, self._space))
        cells += [_fit(path, self._path), sent.rjust(self._rate), received.rjust(self._rate)]
        if self._spark:
            cells.append(spark.rjust(self._spark))
        return _cut("  ".join(cells).rstrip(), self._width)


def _title(view: TopView, state: State, width: int, now: float) -> Line:
    """What it is on the left, how new on the right; what there is no room for is left out as a whole."""
    name, source = f"kubenetmon top by {state.by}", printable(view.source)
    if not view.horizon:
        return Line(_cut(f"{name}   {source}", width), Style.TITLE)
    age = f"{max(0, int(now) - view.horizon)} s ago" + (", PAUSED" if state.paused else "")
    until = time.strftime("%H:%M:%S", time.gmtime(view.horizon))
    nodes = f"{view.nodes} node{'s' if view.nodes != 1 else ''}"
    for left, right in (
        (f"{name}   {source}", f"{nodes}, to {until} UTC, {age}"),
        (name, f"{nodes}, to {until} UTC, {age}"),
        (name, f"{nodes}, {age}"),
        (f"by {state.by}", age),
    ):
        gap = width - text_width(left) - len(right)
        if gap >= 2:
            break
    return Line(_cut(left + " " * max(2, gap) + right, width), Style.TITLE)


def _sums(view: TopView, rows: Sequence[TopRow], state: State, width: int) -> Line:
    bits = state.bits
    parts = [
        f"sent {rate(sum(row.sent for row in rows), bits=bits) or '0'}",
        f"received {rate(sum(row.received for row in rows), bits=bits) or '0'}",
    ]
    by_path: dict[str, float] = {}
    for row in rows:
        by_path[row.path] = by_path.get(row.path, 0.0) + row.total
    parts += [
        f"{PATHS[path]} {rate(by_path[path], bits=bits)}"
        for path in ("internet", "inter-region", "cross-zone")
        if by_path.get(path)
    ]
    if view.interval:
        parts.insert(2, f"over {view.interval} s")
    while len(parts) > 1 and len("   ".join(parts)) > width:
        parts.pop()
    return Line(_cut("   ".join(parts), width), Style.DIM)


def _nothing(view: TopView, state: State) -> str:
    if not view.horizon:
        return "Waiting for the first report of an agent (a minute, unless the report interval is shorter)"
    return (
        "Nothing matches the filter; escape drops it"
        if state.needle
        else "No traffic in the last ten minutes"
    )


def _fit(text: str, width: int) -> str:
    """Exactly that many columns; what is too long loses its middle, since pods differ at their ends."""
    if text_width(text) > width:
        if not text.isascii():
            return _cut(text, width).ljust(width)
        half = (width - 1) // 2
        text = f"{text[: width - 1 - half]}~{text[len(text) - half :]}" if width > 4 else text[:width]
    return text + " " * (width - text_width(text))


def _cut(text: str, width: int) -> str:
    text = printable(text)
    while text_width(text) > width:
        text = text[: max(0, len(text) - max(1, text_width(text) - width))]
    return text
