"""Inserts batch after batch into the embedded engine and says so, until it is killed.

Arguments: the engine's directory, the first batch's number, the number of rows a batch, on how many days
they lie, and 1 for a materialized view on the table. Prints `ready`, then the number of each batch whose
insert has returned.
"""

from __future__ import annotations

import asyncio
import sys

import numpy as np

from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.block import Constant, Values, encode
from kubenetmon.clickhouse.insert_settings import insert_settings
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink

SETTINGS = {"insert_deduplicate": 1, "async_insert": 0}


VIEW = (
    "CREATE TABLE IF NOT EXISTS by_node (node String, total UInt64) ENGINE = SummingMergeTree ORDER BY node "
    "SETTINGS non_replicated_deduplication_window = 100000",
    "CREATE MATERIALIZED VIEW IF NOT EXISTS to_by_node TO by_node AS "
    "SELECT localNode AS node, sum(bytes) AS total FROM network_flows_0 GROUP BY node",
)


async def main(path: str, number: int, rows: int, days: int, view: int) -> None:
    sink = EmbeddedSink(path)
    await schema.apply(sink, schema.SchemaOptions())
    for statement in VIEW if view else ():
        await sink.query(statement)
    table = await schema.read_table(sink, "default", "network_flows_0")
    print("ready", flush=True)
    while True:
        dates = 25_000 + np.arange(rows) % days
        columns = {
            "date": Values(dates),
            "intervalStartTime": Values(dates * 86400),
            "localNode": Constant(f"batch-{number}"),
            "localPort": Values(np.arange(rows)),
            "bytes": Constant(1),
        }
        token = f"token-{number}"
        settings = insert_settings(table, token, {}) if view else SETTINGS
        await sink.insert("default", "network_flows_0", encode(columns, table, rows), token, settings)
        print(number, flush=True)
        number += 1


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
