"""The live view without a terminal: a table, once or again and again."""

from __future__ import annotations

import time

from kubenetmon.clock import Clock
from kubenetmon.errors import printable
from kubenetmon.report import text
from kubenetmon.report.top.screen import State, chosen, rate
from kubenetmon.report.top.sources import TopSource
from kubenetmon.report.top.view import TopView


async def print_views(source: TopSource, state: State, *, count: int, interval: float, clock: Clock) -> None:
    """Print `count` answers (0: for ever), one every `interval` seconds. Raises what the source raises."""
    printed = 0
    while True:
        print(table(await source.fetch(state.by), state), flush=True)
        printed += 1
        if printed == count:
            return
        print()
        await clock.sleep(interval)


def table(view: TopView, state: State) -> str:
    """One answer; the first line says what it is."""
    notes = [printable(note) for note in view.notes]
    if not view.horizon:
        return "\n".join([f"{view.source}: no report of an agent has come yet", *notes])
    moment = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(view.horizon))
    rows = [
        (
            row.name,
            row.namespace,
            row.path_name,
            rate(row.sent, bits=state.bits),
            rate(row.received, bits=state.bits),
        )
        for row in chosen(view, state)
    ]
    heads = (state.by, "namespace", "path", "sent", "received")
    said = f"{view.source}: rates over {view.interval} s up to {moment} UTC, {view.nodes} nodes"
    body = text.table(heads, rows, right=(3, 4)) if rows else "Nothing was found."
    return "\n".join([said, *notes, "", body])
