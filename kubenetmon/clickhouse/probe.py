"""May rows go in by asynchronous inserts? Only where a repeated token is seen to count once.

Contract: `refusal` says why not, in words, or "" where they may. It inserts two rows that count nothing (no
bytes, no packets, today, their nodes named after the probe) several times, each under a token of its own, one
after another and side by side, and counts what is there; summing takes the rows away at the next merge.

Facts: before 26.2 asynchronous inserts with a token are refused where materialized views hang on the table,
or count twice in the views. A Distributed table passes a flush of several batches on under the token of one
of them (26.9): the others are lost where that token is known, and count twice where they come again; which
batches share a flush is chance, so that no probe can show it surely. `optimize_on_insert` would leave a row
that counts nothing out at once.
"""

from __future__ import annotations

import asyncio
import re
import uuid

from kubenetmon.clickhouse.block import Column, Constant, encode
from kubenetmon.clickhouse.insert_settings import insert_settings
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import TableSchema, literal, quoted

FIRST_VERSION = (26, 2)
_NODE = "kubenetmon-probe"
_TRIES = 3
_ROWS = 2


async def refusal(sink: Sink, schema: TableSchema) -> str:
    """Why asynchronous inserts into the table would not be exact; raises what the sink raises."""
    if schema.engine == "Distributed":
        return f"{schema} is a Distributed table, which sends batches on under the token of one of them"
    version = str((await sink.query("SELECT version()"))[0][0])
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < FIRST_VERSION:
        return f"ClickHouse {version} is older than {FIRST_VERSION[0]}.{FIRST_VERSION[1]}"
    for _ in range(_TRIES):
        stored = await _insert_and_count(sink, schema)
        if stored == [1] * _ROWS:
            return ""
        if max(stored, default=0) > 1:
            return f"a row that was sent again under its token was stored {max(stored)} times"
    return "a row of the probe's could not be found again"


async def _insert_and_count(sink: Sink, schema: TableSchema) -> list[int]:
    """How often each row is there, of those that are."""
    probe = f"{_NODE}/{uuid.uuid4().hex}"
    now = int((await sink.query("SELECT toUnixTimestamp(now())"))[0][0])

    async def insert(number: int) -> None:
        name = f"{probe}/{number}"
        columns: dict[str, Column] = {
            "date": Constant(now // 86_400),
            "intervalStartTime": Constant(now - now % 60),
            "localNode": Constant(name),
            "bytes": Constant(0),
            "packets": Constant(0),
        }
        settings = {**insert_settings(schema, name, {}, asynchronous=True), "optimize_on_insert": 0}
        await sink.insert(schema.database, schema.table, encode(columns, schema, 1), name, settings)

    sends = ((0, 0), (0, 1), (1,))  # the fewest that show it: merges take rows away
    for together in sends:
        await asyncio.gather(*map(insert, together))
    counted = await sink.query(
        f"SELECT count() FROM {quoted(schema.database)}.{quoted(schema.table)} "  # noqa: S608 - quoted
        f"WHERE date = toDate({now // 86_400}) AND startsWith(localNode, {literal(probe)}) GROUP BY localNode"
    )
    return [int(row[0]) for row in counted]
