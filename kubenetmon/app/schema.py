"""`kubenetmon schema print|apply|check`."""

from __future__ import annotations

import sys
from typing import Literal

from kubenetmon.app.sinks import make_sink
from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.rollups import coverage_of
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import printable
from kubenetmon.report import views


async def run_schema(
    action: Literal["print", "apply", "check"],
    config: ServerConfig,
    wanted: SchemaOptions,
    *,
    with_views: bool = False,
) -> int:
    """Do it and say what was done; 2 when `check` finds something. Raises `KubenetmonError`.

    `with_views`: the rollups and the answers' views too.
    """
    if action == "print":
        print(schema.ddl(wanted) + (views.ddl(wanted) if with_views else ""), end="")
        return 0
    sink = make_sink(config)
    try:
        if action == "apply":
            statements = await schema.apply(sink, wanted)
            if with_views:
                statements += await views.apply_views(sink, wanted, SYSTEM_CLOCK.time())
            for statement in statements:
                print(f"{statement};")
            if not statements:
                print(f"{wanted.database}.{wanted.table} is as it should be", file=sys.stderr)
            return 0
        findings = await schema.check(sink, wanted)
        if with_views and await coverage_of(sink, wanted.database, wanted.table) is None:
            findings.append("there are no rollups: run `kubenetmon schema apply --views`")
        for finding in findings:
            print(printable(finding))
        return 2 if findings else 0
    finally:
        await sink.close()
