"""`kubenetmon top`: which source, and terminal or plain."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import AsyncIterator

from kubenetmon.app.report import reading_sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config import values
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import ConfigurationError
from kubenetmon.report.top.plain import print_views
from kubenetmon.report.top.screen import State
from kubenetmon.report.top.sources import StreamSource, TableSource, TopSource

_SHORTEST_INTERVAL = 0.2


async def run_top(options: argparse.Namespace, table: ServerConfig | None) -> None:
    """Show what `kubenetmon.report.top.arguments` asks for; `table`: the table that it names, or None.

    Raises `KubenetmonError`.
    """
    count = options.count
    if count is not None and count < 0:
        raise ConfigurationError(f"--count {count} is negative; 0 prints for ever")
    interval = max(_SHORTEST_INTERVAL, values.duration("--interval", options.interval))
    state = State(by=options.by, sort=options.sort, needle=options.filter, bits=options.bits)
    async with _source(options, table) as source:
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


@contextlib.asynccontextmanager
async def _source(options: argparse.Namespace, table: ServerConfig | None) -> AsyncIterator[TopSource]:
    if table is not None:
        async with reading_sink(table) as sink:
            yield TableSource(sink, table.clickhouse_database, table.clickhouse_table, clock=SYSTEM_CLOCK)
        return
    addresses = [one.strip() for one in values.endpoint("--server", options.server).split(",")]
    stream = StreamSource(addresses)
    try:
        yield stream
    finally:
        await stream.close()
