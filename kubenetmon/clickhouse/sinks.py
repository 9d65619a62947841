"""What the rest of the program asks of a ClickHouse: the `Sink` protocol and its errors.

Contract: `sinks_tcp` (a server) and `sinks_embedded` (the engine in this process) behave alike towards their
callers: `insert` returns only after ClickHouse has committed the block, raises `ClickHouseError` when
ClickHouse says no and `ClickHouseUnreachableError` when the outcome is unknown or no one answers, both with
`before_rows` set when that was before a row was sent, so that nothing can be stored. Repeating an insert with
the same token and bytes is always safe within the table's deduplication window.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from asynch.errors import ErrorCode

from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.table import quoted
from kubenetmon.errors import KubenetmonError

Settings = Mapping[str, str | int]

# A server does not send them over TCP, and asynch's are of 2019. ClickHouse, src/Common/ErrorCodes.cpp.
_NAMES = {code: name for name, code in vars(ErrorCode).items() if isinstance(code, int)} | {
    201: "QUOTA_EXCEEDED",
    285: "TOO_FEW_LIVE_REPLICAS",
    452: "SETTING_CONSTRAINT_VIOLATION",
    469: "VIOLATED_CONSTRAINT",
    497: "ACCESS_DENIED",
    516: "AUTHENTICATION_FAILED",
    691: "UNKNOWN_ELEMENT_OF_ENUM",
    745: "SERVER_OVERLOADED",
    774: "TABLE_IS_PERMANENTLY_READ_ONLY",
}
_TRAILING_NAME = re.compile(r"\(([A-Z][A-Z0-9_]+)\)\s*$")
_NOISE = re.compile(r"(DB::Exception: |\s*\(version [^)]*\)|\.? ?Stack trace:.*)", re.DOTALL)


class ClickHouseError(KubenetmonError):
    """ClickHouse answered with an exception; `code` and `name` are its own, the latter "" where not known."""

    before_rows = False

    def __init__(self, code: int, message: str) -> None:
        found = _TRAILING_NAME.search(_NOISE.sub("", message))
        self.code = code
        self.name: str = found[1] if found else _NAMES.get(code, "")
        self.message = one_line(message)
        named = f" ({self.name})" if self.name else ""
        super().__init__(f"ClickHouse error {code}{named}: {self.message}")


class ClickHouseUnreachableError(KubenetmonError):
    """No answer from ClickHouse, or the connection ended before one: what was asked may have happened."""

    before_rows = False


class Sink(Protocol):
    """A ClickHouse that takes blocks and answers small queries. Safe for concurrent use by tasks of one loop.

    All methods raise `ClickHouseError` and `ClickHouseUnreachableError`.
    """

    @property
    def address(self) -> str:
        """How to name it to an operator."""
        ...

    @property
    def servers(self) -> int:
        """How many servers may take an insert."""
        ...

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        """All rows of a small result, or [] for a statement without one.

        Values are int, float, bool, str, None, list, tuple or dict; other types come as ClickHouse's text.
        """
        ...

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        """Return once the block is committed as one block under its deduplication token."""
        ...

    async def ping(self) -> None:
        """Return once ClickHouse has answered."""
        ...

    async def close(self) -> None:
        """Let go of connections or engine; what is in flight has an unknown outcome."""
        ...


def insert_statement(database: str, table: str, block: Block) -> str:
    """The INSERT that names the block's columns; data and format follow."""
    names = ", ".join(quoted(name) for name in block.columns)
    return f"INSERT INTO {quoted(database)}.{quoted(table)} ({names})"


def one_line(message: str) -> str:
    """A server's message without prefix, version, stack trace and line breaks, at most 500 characters."""
    text = _TRAILING_NAME.sub("", " ".join(_NOISE.sub("", message).split())).rstrip(". ")
    return text if len(text) <= 500 else text[:499] + "…"
