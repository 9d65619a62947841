"""Durations as Go writes them (`300s`, `5m`, `1h30m`, `1.5h`, `100ms`), because the original's
configuration is full of them. Pure functions on text and seconds.

The form is that of Go's `time.ParseDuration`: one or more decimal numbers, each with a unit out of ns, us,
ms, s, m, h, at most 2**63 - 1 nanoseconds in all; `0` needs no unit. Nothing here has a use for negative
durations, and they are refused.
"""

from __future__ import annotations

import re

_NANOSECONDS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek letter mu: Go takes both
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_MAX_NANOSECONDS = 2**63 - 1
_MAX_TEXT = 64
_PART = re.compile(r"([0-9]*)(?:\.([0-9]*))?(ns|us|\u00b5s|\u03bcs|ms|s|m|h)", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds, not negative. Raises `ValueError` for anything that Go would not read as such a duration."""
    unsigned = text.removeprefix("+")
    if unsigned == "0":
        return 0.0
    if not unsigned or len(unsigned) > _MAX_TEXT:
        raise ValueError(_message(text))
    nanoseconds, position = 0, 0
    while position < len(unsigned):
        part = _PART.match(unsigned, position)
        if part is None or not (part[1] or part[2]):
            raise ValueError(_message(text))
        unit = _NANOSECONDS[part[3]]
        nanoseconds += int(part[1] or "0") * unit
        fraction = part[2] or ""
        nanoseconds += int(fraction or "0") * unit // 10 ** len(fraction)
        position = part.end()
    if nanoseconds > _MAX_NANOSECONDS:
        raise ValueError(_message(text))
    return nanoseconds / 1e9


def format_duration(seconds: float) -> str:
    """The shortest such text of whole hours, minutes, seconds, and below that ms, us or ns.

    `seconds` is finite and not negative, else `ValueError`; it is rounded to a nanosecond. What this
    returns, `parse_duration` reads back as the same number of nanoseconds.
    """
    if not 0 <= seconds <= _MAX_NANOSECONDS / 1e9:
        raise ValueError(f"{seconds} seconds are no duration")
    nanoseconds = min(round(seconds * 1e9), _MAX_NANOSECONDS)
    if nanoseconds == 0:
        return "0s"
    text = ""
    for unit in ("h", "m", "s", "ms", "us", "ns"):
        count, nanoseconds = divmod(nanoseconds, _NANOSECONDS[unit])
        if count:
            text += f"{count}{unit}"
    return text


def _message(text: str) -> str:
    shown = repr(text if len(text) <= _MAX_TEXT else text[:_MAX_TEXT] + "…")
    return f"{shown} is not a duration: write numbers with units, such as 300s, 5m, 1h30m or 100ms"
