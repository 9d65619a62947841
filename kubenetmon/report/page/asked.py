"""What a caller of the page may ask, and the answer as it is sent.

Contract: `parse` checks every parameter and raises `ConfigurationError` with one line; `Answers.body` asks
the table and returns JSON, CSV or SQL. Times are taken to the minute, so that callers share answers.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import ConfigurationError
from kubenetmon.report import cost
from kubenetmon.report.answers import Answer, render
from kubenetmon.report.arguments import COST_KEYS
from kubenetmon.report.flows import Flows, Source, Span
from kubenetmon.report.limits import NO_LIMITS, Limits
from kubenetmon.report.page.health import NODES
from kubenetmon.report.prices import PriceList
from kubenetmon.report.questions import OBSERVATION, QUESTIONS, Question, ask, one_more
from kubenetmon.report.scope import KEYS, Scope, parse_time
from kubenetmon.report.series import PATHS_OVER_TIME, series_flows, step_of

FORMATS = ("json", "csv", "sql")
MOST_ROWS = 5000
COST = "cost"
_OWN = {PATHS_OVER_TIME.name: PATHS_OVER_TIME, NODES.name: NODES}
_ALL = {**QUESTIONS, **_OWN}
_DEFAULT_ROWS = 100
_MINUTE = 60
_FILTERS = ("namespace", "app", "node", "zone", "client", "service")
_PARAMETERS = frozenset(("question", "since", "until", "by", "limit", "format", *_FILTERS))


@dataclass(frozen=True, slots=True)
class Asked:
    """One question, checked; equal when the answer is the same."""

    name: str
    by: str
    scope: Scope
    form: str

    @property
    def command(self) -> str:
        """The same question on the command line; empty where only the page asks it."""
        if self.name in _OWN:
            return ""
        words = ["kubenetmon", *((COST,) if self.name == COST else ("ask", self.name))]
        words += ["--since", f"@{self.scope.since}", "--until", f"@{self.scope.until}"]
        if self.by:
            words += ["--by", self.by]
        for name in _FILTERS:
            if value := getattr(self.scope, name):
                words += [f"--{name}", value]
        return shlex.join([*words, "--limit", str(self.scope.limit)])


def parse(parameters: Mapping[str, str], now: float) -> Asked:
    """What the parameters ask. Raises `ConfigurationError`."""
    if unknown := sorted(set(parameters) - _PARAMETERS):
        raise ConfigurationError(f"there is no parameter {unknown[0][:40]!r}")
    name = parameters.get("question", "")
    if name != COST and name not in _ALL:
        raise ConfigurationError(f"question is one of {', '.join((*_ALL, COST))}")
    form = parameters.get("format", "json")
    if form not in FORMATS:
        raise ConfigurationError(f"format is one of {', '.join(FORMATS)}")
    limit = parameters.get("limit", str(_DEFAULT_ROWS))
    short = limit.isascii() and limit.isdecimal() and len(limit) <= len(str(MOST_ROWS))
    if not (short and 1 <= int(limit) <= MOST_ROWS):
        raise ConfigurationError(f"limit is a number from 1 to {MOST_ROWS}")
    minute = int(now) // _MINUTE * _MINUTE
    scope = Scope(
        since=parse_time(parameters.get("since", "24h"), minute, "since") // _MINUTE * _MINUTE,
        until=parse_time(parameters.get("until", "now"), minute, "until"),
        limit=int(limit),
        **{each: parameters.get(each, "") for each in _FILTERS},
    )
    options = () if name == COST else _ALL[name].options
    for each in ("client", "service"):
        if getattr(scope, each) and each not in options:
            raise ConfigurationError(f"{each} is not for the question {name}")
    by = _grouping(name, parameters.get("by", ""))
    return Asked(name, by, scope if name == COST else dataclasses.replace(scope, by=by), form)


def _grouping(name: str, by: str) -> str:
    """What to group by; the question's own where it cannot be grouped by what is wanted elsewhere."""
    keys = COST_KEYS if name == COST else _ALL[name].keys
    if by and by not in (*KEYS, *COST_KEYS):
        raise ConfigurationError(f"by is one of {', '.join(KEYS)}")
    return by if by in keys else (keys[0] if keys else "")


class Answers:
    """Asks the table."""

    def __init__(
        self,
        sink: Sink,
        *,
        prices: PriceList,
        limits: Callable[[], Awaitable[Limits]],
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """`limits` gives what the nodes can move, as it is known now."""
        self._sink, self._prices, self._limits, self._clock = sink, prices, limits, clock

    async def body(self, asked: Asked, source: Source) -> bytes:
        """The answer in its form. Raises what the sink raises."""
        scope = asked.scope
        if asked.form == "sql":
            return f"{_statement(asked, source)}\n".encode()
        if asked.name == COST:
            answer = await cost.cost(self._sink, source, scope, asked.by, self._prices, clock=self._clock)
        elif asked.name in _OWN:
            answer = await self._own(_OWN[asked.name], asked, source)
        else:
            limits = await self._limits() if asked.name == "throughput" else NO_LIMITS
            answer = await ask(self._sink, QUESTIONS[asked.name], scope, source, limits)
        if asked.form == "csv":
            return f"{render(answer, 'csv')}\n".encode()
        return json.dumps(_document(asked, answer), ensure_ascii=False, separators=(",", ":")).encode()

    async def _own(self, question: Question, asked: Asked, source: Source) -> Answer:
        scope = asked.scope
        more = dataclasses.replace(asked, scope=one_more(scope))
        found = await self._sink.query(_statement(more, source))
        # Slots are few by themselves.
        rows = found if asked.name == PATHS_OVER_TIME.name else found[: scope.limit]
        return Answer(
            question.name,
            question.title,
            question.columns(""),
            rows,
            scope.since,
            scope.until,
            question.notes,
            _statement(asked, source),
            cut=len(found) > len(rows),
        )


def _statement(asked: Asked, source: Source) -> str:
    scope = asked.scope
    if asked.name == PATHS_OVER_TIME.name:
        return PATHS_OVER_TIME.statement(series_flows(source, scope), scope)
    flows = Flows(source, Span.of(scope.since, scope.until))
    if asked.name == COST:
        return cost.statement(flows, scope, asked.by)
    return _ALL[asked.name].statement(flows, scope)


def _document(asked: Asked, answer: Answer) -> dict[str, Any]:
    """Rows as arrays; `general` notes hold for many questions, `notes` for this answer."""
    general = {OBSERVATION, *(QUESTIONS[asked.name].notes if asked.name in QUESTIONS else ())}
    return {
        **answer.document(),
        "rows": [list(row) for row in answer.rows],
        "general": [note for note in answer.notes if note in general],
        "notes": [
            note
            for note in answer.notes
            if note not in general and not note.startswith("These are the first")
        ],
        "cut": answer.cut,
        "by": asked.by,
        "sql": answer.sql,
        "command": asked.command,
        "step": step_of(asked.scope.since, asked.scope.until),
    }
