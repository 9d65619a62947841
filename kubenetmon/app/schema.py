"""`kubenetmon schema print|apply|check`."""

from __future__ import annotations

import sys
from typing import Literal

from kubenetmon.app.sinks import make_sink
from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.config.server import ServerConfig


async def run_schema(
    action: Literal["print", "apply", "check"], config: ServerConfig, wanted: SchemaOptions
) -> int:
    """Do it and say what was done; 2 when `check` finds something. Raises `KubenetmonError`."""
    if action == "print":
        print(schema.ddl(wanted), end="")
        return 0
    sink = make_sink(config)
    try:
        if action == "apply":
            statements = await schema.apply(sink, wanted)
            for statement in statements:
                print(f"{statement};")
            if not statements:
                print(f"{wanted.database}.{wanted.table} is as it should be", file=sys.stderr)
            return 0
        findings = await schema.check(sink, wanted)
        for finding in findings:
            print(finding)
        return 2 if findings else 0
    finally:
        await sink.close()
