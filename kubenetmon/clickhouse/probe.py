"""May rows go in by asynchronous inserts? Only where a repeated token is seen to count once.

Contract: `refusal` says why not, in words, or "" where they may. It inserts a row that counts nothing (no
bytes, no packets, today, its node named after the probe) several times under one token, one after another and
side by side, and counts what is there; summing takes the row away at the next merge.

Facts: before 26.2 asynchronous inserts with a token are refused where materialized views hang on the table,
or count twice in the views. `optimize_on_insert` would leave a row that counts nothing out at once.
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


async def refusal(sink: Sink, schema: TableSchema) -> str:
    """Why asynchronous inserts into the table would not be exact; raises what the sink raises."""
    version = str((await sink.query("SELECT version()"))[0][0])
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < FIRST_VERSION:
        return f"ClickHouse {version} is older than {FIRST_VERSION[0]}.{FIRST_VERSION[1]}"
    for _ in range(_TRIES):
        stored = await _insert_and_count(sink, schema)
        if stored == 1:
            return ""
        if stored > 1:
            return f"a row that was sent four times under one token was stored {stored} times"
    return "a row of the probe's could not be found again"


async def _insert_and_count(sink: Sink, schema: TableSchema) -> int:
    name = f"{_NODE}/{uuid.uuid4().hex}"
    now = int((await sink.query("SELECT toUnixTimestamp(now())"))[0][0])
    columns: dict[str, Column] = {
        "date": Constant(now // 86_400),
        "intervalStartTime": Constant(now - now % 60),
        "localNode": Constant(name),
        "bytes": Constant(0),
        "packets": Constant(0),
    }
    block = encode(columns, schema, 1)
    settings = {**insert_settings(schema, name, {}, asynchronous=True), "optimize_on_insert": 0}

    async def insert() -> None:
        await sink.insert(schema.database, schema.table, block, name, settings)

    await asyncio.gather(insert(), insert())
    await insert()
    await insert()
    counted = await sink.query(
        f"SELECT count() FROM {quoted(schema.database)}.{quoted(schema.table)} "  # noqa: S608 - quoted
        f"WHERE date = toDate({now // 86_400}) AND localNode = {literal(name)}"
    )
    return int(counted[0][0])
