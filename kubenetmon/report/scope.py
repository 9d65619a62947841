"""What a question is asked about: a span of time, filters, and by what the answer is grouped. Pure.

Contract: a `Scope` is checked when it is made; what it holds can go into SQL through `literal` only. Times
are Unix seconds, and `until` is not part of the span. A row belongs to the span in which its interval starts.
"""

from __future__ import annotations

import calendar
import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from kubenetmon.config.duration import parse_duration
from kubenetmon.errors import ConfigurationError

KEYS = ("app", "pod", "namespace", "node", "zone")
"""What answers can be grouped by."""

_MOST_TEXT = 1024
_LATEST = 2**32 - 1
_DAYS = re.compile(r"([0-9]{1,5})(d|w)(.*)", re.ASCII)
_DATE_FORMS = ("%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """`by` is one of `KEYS`, or empty for the question's own. Filters are exact names, empty for all.

    `namespace`, `app`, `node` (or `cluster/node`) and `zone` go together: one end of a connection matches all
    of them. `limit` is the number of rows, 0 for all. `service` and `client` are for the questions that say
    so. Raises `ConfigurationError`.
    """

    since: int
    until: int
    by: str = ""
    namespace: str = ""
    app: str = ""
    node: str = ""
    zone: str = ""
    client: str = ""
    service: str = ""
    limit: int = 20

    def __post_init__(self) -> None:
        if not 0 <= self.since < self.until <= _LATEST:
            raise ConfigurationError(
                f"the span from {moment(self.since)} to {moment(self.until)} is empty: "
                "give --since an earlier and --until a later time (UTC)"
            )
        if self.by and self.by not in KEYS:
            raise ConfigurationError(f"--by {self.by!r} is not one of {', '.join(KEYS)}")
        if self.limit < 0:
            raise ConfigurationError(f"--limit {self.limit} is negative; 0 shows all rows")
        for name in (*KEYS, "client", "service"):
            value = getattr(self, name, "")
            if len(value) > _MOST_TEXT or re.search(r"[\x00-\x1f\x7f]", value):
                raise ConfigurationError(f"--{name}: {value[:40]!r} is not a name")

    @property
    def filters(self) -> dict[str, str]:
        """The filters that are set, by key; `cluster/node` is both, since a node's own name has no slash."""
        cluster, _, node = self.node.rpartition("/")
        named = {"namespace": self.namespace, "app": self.app, "node": node, "cluster": cluster}
        named["zone"] = self.zone
        return {key: value for key, value in named.items() if value}


def parse_time(text: str, now: float, option: str = "--since") -> int:
    """A time in Unix seconds: `now`, `today`, `month`, how long ago (`90m`, `36h`, `7d`, `2w`), a date
    (`2026-11`, `2026-11-01`), a date with a time (`2026-11-01T08:30`, UTC), or Unix seconds as `@1700000000`.

    Raises `ConfigurationError` that names `option`.
    """
    word = text.strip().lower()
    today = int(now) - int(now) % 86400
    if word == "now":
        return int(now)
    if word == "today":
        return today
    if word == "month":
        return month_start(int(now))
    if re.fullmatch(r"@[0-9]{1,10}", word):
        return int(word[1:])
    for form in _DATE_FORMS:
        try:
            return calendar.timegm(time.strptime(word.upper().removesuffix("Z"), form))
        except ValueError:
            continue
    try:
        ago = _ago(word)
    except ValueError:
        raise ConfigurationError(
            f"{option} {text[:60]!r} is not a time: write how long ago (90m, 36h, 7d), a date (2026-11-01, "
            "2026-11-01T08:30, UTC), or now, today, month"
        ) from None
    return max(0, int(now - ago))


def _ago(word: str) -> float:
    if found := _DAYS.fullmatch(word):
        days = int(found[1]) * (7 if found[2] == "w" else 1)
        return days * 86400.0 + (parse_duration(found[3]) if found[3] else 0.0)
    return parse_duration(word)


def month_start(at: int) -> int:
    """The first second of the month (UTC) that `at` lies in."""
    day = datetime.fromtimestamp(at, UTC)
    return calendar.timegm((day.year, day.month, 1, 0, 0, 0))


def next_month(at: int) -> int:
    """The first second of the month after the one that `at` lies in."""
    day = datetime.fromtimestamp(at, UTC)
    year, month = (day.year + 1, 1) if day.month == 12 else (day.year, day.month + 1)
    return calendar.timegm((year, month, 1, 0, 0, 0))


def moment(at: int) -> str:
    """`2026-11-01 08:30` (UTC), with seconds where there are any."""
    try:
        shown = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(at)
    return shown.removesuffix(":00")
