"""The embedded engine, strict about what it is asked: a server over TCP may send only some types."""

from __future__ import annotations

from typing import Any

from kubenetmon.clickhouse.received import takes
from kubenetmon.clickhouse.sinks import Settings
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink


class DescribedSink(EmbeddedSink):
    """Fails for a query whose answer could not come from a server, while it is `strict`."""

    strict = True

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        if self.strict and sql.lstrip().upper().startswith(("SELECT", "WITH")):
            for name, kind, *_ in await super().query(f"DESCRIBE TABLE ({sql})"):
                assert takes(kind), (name, kind, sql)
        return await super().query(sql, settings)
