"""Logs: one JSON object a line on standard error, with `level`, `time` and `message` as the original writes.

On a terminal the same lines come as plain text unless the format is asked for: people read there, machines
elsewhere. Nothing here starts a task or keeps state beyond logging's own.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Literal, TextIO

import msgspec

from kubenetmon.errors import printable

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LEVELS = {"WARNING": "warn", "CRITICAL": "fatal"}


def _extra(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _time(record: logging.LogRecord) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a call passes as `extra` becomes further keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "level": _LEVELS.get(record.levelname, record.levelname.lower()),
            "time": _time(record),
            "message": record.getMessage(),
            **_extra(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class PlainFormatter(logging.Formatter):
    """Time, level, message and extra fields for a person at a terminal, who sees no control characters."""

    def format(self, record: logging.LogRecord) -> str:
        extra = "".join(f" {name}={value}" for name, value in _extra(record).items())
        lines = [f"{_time(record)} {record.levelname.lower():7} {record.getMessage()}{extra}"]
        if record.exc_info:
            lines += self.formatException(record.exc_info).split("\n")
        return "\n".join(map(printable, lines))


def configure(
    style: Literal["json", "plain", "auto"] = "auto", level: int = logging.INFO, stream: TextIO | None = None
) -> None:
    """Send every log of the process to `stream` (standard error), once."""
    stream = stream or sys.stderr
    plain = style == "plain" or (style == "auto" and stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.setFormatter(PlainFormatter() if plain else JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Libraries speak up only when something is wrong; their debug lines would drown ours.
    for name in ("asyncio", "grpclib", "h2", "hpack", "aiohttp", "asynch", "kubernetes_asyncio"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
