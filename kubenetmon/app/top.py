"""`kubenetmon top`: which source, and terminal or plain."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from kubenetmon.app.sinks import make_sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import ConfigurationError
from kubenetmon.report.top.plain import print_views
from kubenetmon.report.top.screen import State
from kubenetmon.report.top.sources import StreamSource, TableSource, TopSource


async def run_top(
    servers: Sequence[str], table: ServerConfig | None, state: State, *, interval: float, count: int | None
) -> None:
    """Show `table`, or else the servers' live view. `count` None: on a terminal until quit, else once.

    Raises `KubenetmonError`.
    """
    source: TopSource
    if table is not None:
        source = TableSource(
            make_sink(table), table.clickhouse_database, table.clickhouse_table, clock=SYSTEM_CLOCK
        )
    else:
        source = StreamSource(servers)
    try:
        if count is None and sys.stdout.isatty() and sys.stdin.isatty():
            if os.environ.get("TERM", "dumb") == "dumb":
                raise ConfigurationError(
                    "TERM names no terminal that can be drawn on: set it, or use --count 1"
                )
            from kubenetmon.report.top.terminal import show

            await show(source, state, interval=interval, clock=SYSTEM_CLOCK)
        else:
            await print_views(
                source, state, count=1 if count is None else count, interval=interval, clock=SYSTEM_CLOCK
            )
    finally:
        await source.close()
