"""Bytes over time by path, for the page and as a view. SQL, pure.

Times are cut into at most `_MOST_SLOTS` slots; slots of hours and days come from rollups where there are any.
A row counts in the slot in which its interval begins.
"""

from __future__ import annotations

from kubenetmon.clickhouse.rollups import HOUR
from kubenetmon.report.answers import Column
from kubenetmon.report.cost import PATH_OF_TRANSFER
from kubenetmon.report.flows import Flows, Source, Span
from kubenetmon.report.questions import OBSERVATION, Question
from kubenetmon.report.scope import Scope
from kubenetmon.report.statements import either_end

_STEPS = (60, 300, 900, 3600, 3 * 3600, 6 * 3600, 86_400, 7 * 86_400)
_MOST_SLOTS = 64


def step_of(since: int, until: int) -> int:
    """Seconds of a slot for such a span."""
    return next((step for step in _STEPS if (until - since) / step <= _MOST_SLOTS), _STEPS[-1])


def _paths_over_time(flows: Flows, scope: Scope) -> str:
    return _statement(flows, scope, str(step_of(scope.since, scope.until)))


def view_statement(flows: Flows, scope: Scope) -> str:
    """The same over a span that is not known yet; slots of less than an hour need the rows themselves."""
    shortest = HOUR if flows.from_rollups else _STEPS[0]
    span = "toUnixTimestamp({until:DateTime}) - toUnixTimestamp({since:DateTime})"
    steps = [step for step in _STEPS if step >= shortest]
    chosen = ", ".join(f"{span} <= {step * _MOST_SLOTS}, {step}" for step in steps[:-1])
    return _statement(flows, scope, f"multiIf({chosen}, {steps[-1]})")


def _statement(flows: Flows, scope: Scope, step: str) -> str:
    return flows.define() + (
        f"SELECT toInt64(intDiv(toUnixTimestamp(intervalStartTime), {step}) * {step}) AS slot,\n"
        f"  {PATH_OF_TRANSFER} AS path,\n  sum(bytes) AS total\n"
        f"FROM (\n{flows.transfers('zone', 'region', *scope.filters)}\n)\nWHERE {either_end(scope)}\n"
        "GROUP BY slot, path\nORDER BY slot, path"
    )


def series_flows(source: Source, scope: Scope) -> Flows:
    """The relations at the grain that the slots need."""
    step = step_of(scope.since, scope.until)
    return Flows(source, Span.of(scope.since, scope.until), coarsest=step)


PATHS_OVER_TIME = Question(
    "paths",
    "Bytes by path over time",
    "how much goes over each path, over time",
    (),
    lambda _: (Column("time", "time"), Column("path"), Column("bytes", "bytes")),
    _paths_over_time,
    (OBSERVATION,),
)
