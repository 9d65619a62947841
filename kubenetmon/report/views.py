"""A view for each answer, for SQL of one's own, Grafana and the like: the questions' SQL with times to give.

    SELECT * FROM default.network_flows_0_cross_zone(since = '2026-11-01', until = '2026-11-08')

Contract: pure but for `apply_views`, which makes the rollups too and may be run again at any time. Views are
replaced, never filled; they use the rollups where those stand for all days.
"""

from __future__ import annotations

import dataclasses

from kubenetmon.clickhouse.rollup_tables import apply_rollups, rollup_ddl
from kubenetmon.clickhouse.rollups import HOUR, Coverage, qualified
from kubenetmon.clickhouse.schema import SchemaOptions
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clickhouse.table import quoted
from kubenetmon.report import cost, series
from kubenetmon.report.flows import Flows, Source, Span, read_source
from kubenetmon.report.questions import QUESTIONS
from kubenetmon.report.scope import Scope

_INNER_NAMES = {
    "bytes": "total",
    "opened": "opens",
    "accepted": "accepts",
    "connections_share": "links_share",
    "bytes_share": "volume_share",
}
"""What the questions' SQL calls a column where the answer's name would hide the table's."""
_OPENERS_NAMES = {"sent": "bytes_sent", "received": "bytes_received"}
_COST_COLUMNS = "month, name, path, way, own, cloud, region, other_region, service, flags, total AS bytes"


def view_name(table: str, question: str) -> str:
    """The name of a question's view; `cost` too has one (its bytes, by what a price depends on)."""
    return f"{table}_{question.replace('-', '_')}"


def view_ddl(options: SchemaOptions, coverage: Coverage | None) -> list[str]:
    """The statements that make all views, each with the parameters `since` and `until` (DateTime)."""
    source = Source(options.database, options.table, options.ipv6, coverage)
    flows, scope = Flows(source, Span.parameters()), Scope(since=0, until=1, limit=0)
    on_cluster = f" ON CLUSTER {quoted(options.cluster)}" if options.cluster else ""
    statements = []
    for question in QUESTIONS.values():
        inner = _INNER_NAMES | (_OPENERS_NAMES if question.name == "openers" else {})
        names = [column.name for column in question.columns(question.by(scope))]
        columns = ", ".join(f"{inner.get(name, name)} AS {name}" for name in names)
        statements.append((question.name, f"SELECT {columns}\nFROM (\n{question.statement(flows, scope)}\n)"))
    statements.append(
        ("cost", f"SELECT {_COST_COLUMNS}\nFROM (\n{cost.statement(flows, scope, 'workload')}\n)")
    )
    paths = series.view_statement(Flows(source, Span.parameters(), coarsest=HOUR), scope)
    statements.append(
        ("paths", f"SELECT toDateTime(slot, 'UTC') AS time, path, total AS bytes\nFROM (\n{paths}\n)")
    )
    return [
        f"CREATE OR REPLACE VIEW {qualified(options.database, view_name(options.table, name))}{on_cluster} "
        f"AS {select}"
        for name, select in statements
    ]


def ddl(options: SchemaOptions) -> str:
    """What `apply_views` runs on a new table, each statement ended by a semicolon and a line break."""
    statements = [*rollup_ddl(options), *view_ddl(options, Coverage(0, 0))]
    return "".join(f"{statement};\n" for statement in statements)


async def apply_views(sink: Sink, options: SchemaOptions, now: float) -> list[str]:
    """Rollups, filled, and views; returns the statements that were run. Raises what the sink raises."""
    done = await apply_rollups(sink, options, now)
    source = await read_source(sink, options.database, options.table)
    found = dataclasses.replace(options, ipv6=source.ipv6)
    for statement in view_ddl(found, source.coverage):
        await sink.query(statement)
        done.append(statement)
    return done
