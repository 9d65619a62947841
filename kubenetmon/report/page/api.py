"""What the page asks the server: parameters in, an answer as JSON, CSV or SQL out.

Contract: every statement is one of the questions', read-only and under limits of ClickHouse's own; what a
caller may choose is checked by `Scope`. Times are taken to the minute, so that callers share answers. Nothing
that a caller sends can make the server do more than `Answering` allows. Errors are one line, as JSON.
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from kubenetmon import __version__
from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.sinks import Settings, Sink
from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.http import JSON, TEXT, Page, Response
from kubenetmon.report.answers import Answer, render
from kubenetmon.report.flows import Flows, Source, Span, read_source
from kubenetmon.report.limits import NO_LIMITS, Limits
from kubenetmon.report.page.answering import Answering, AnsweringConfig, BusyError
from kubenetmon.report.page.health import NODES, Health
from kubenetmon.report.page.series import PATHS_OVER_TIME, series_flows, step_of
from kubenetmon.report.questions import QUESTIONS, Question, ask
from kubenetmon.report.scope import KEYS, Scope, parse_time

_MINUTE = 60
_MOST_ROWS = 5000
_DEFAULT_ROWS = 100
_KEEP_SECONDS = 30.0
_KEEP_LONG_SPAN = 300.0
_LONG_SPAN = 3 * 86_400
_FORMATS = ("json", "csv", "sql")
_OWN = {PATHS_OVER_TIME.name: PATHS_OVER_TIME, NODES.name: NODES}
_FILTERS = ("namespace", "app", "node", "zone", "client", "service")
_PARAMETERS = frozenset(("question", "since", "until", "by", "limit", "format", *_FILTERS))

_POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = (
    ("content-security-policy", _POLICY),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)
_BUNDLE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/charts.js": ("charts.js", "text/javascript; charset=utf-8"),
    "/tables.js": ("tables.js", "text/javascript; charset=utf-8"),
    "/views.js": ("views.js", "text/javascript; charset=utf-8"),
}


@dataclass(frozen=True, slots=True)
class PageConfig:
    """`query_seconds` and `query_memory` (bytes) bound one query inside ClickHouse; `about` is shown in the
    page's head, a word to a value."""

    database: str = "default"
    table: str = "network_flows_0"
    query_seconds: int = 25
    query_memory: int = 2 << 30
    about: Mapping[str, str] = field(default_factory=dict)
    answering: AnsweringConfig = field(default_factory=AnsweringConfig)


class PageApi:
    """All pages of the page's port. No task of its own; `close` cancels what runs."""

    def __init__(
        self,
        config: PageConfig,
        *,
        sink: Sink | None,
        health: Health,
        clock: Clock,
        limits: Limits = NO_LIMITS,
    ) -> None:
        """Without a sink the page shows what needs no table."""
        self._config, self._health, self._clock, self._limits = config, health, clock, limits
        settings: dict[str, str | int] = {
            "readonly": 2,
            "max_execution_time": config.query_seconds,
            "timeout_before_checking_execution_speed": 0,
            "max_memory_usage": config.query_memory,
            "max_result_rows": 4 * _MOST_ROWS,
            "result_overflow_mode": "throw",
        }
        self._sink = None if sink is None else _LimitedSink(sink, settings)
        self._answering = Answering(config.answering, clock=clock)
        self._source: tuple[float, Source] | None = None

    def pages(self) -> dict[str, Page]:
        """Path to page."""
        static = {path: _static(name, kind) for path, (name, kind) in _BUNDLE.items()}
        return {
            **static,
            "/api/about": self._about,
            "/api/health": self._show_health,
            "/api/ask": self._ask,
        }

    async def close(self) -> None:
        """Cancel the questions that are being answered."""
        await self._answering.close()

    def _about(self, _: Mapping[str, str]) -> Response:
        questions = [
            {"name": one.name, "title": one.title, "help": one.help, "keys": one.keys}
            for one in (*QUESTIONS.values(), *_OWN.values())
        ]
        return _json(
            {"version": __version__, "about": dict(self._config.about), "questions": questions, "keys": KEYS}
        )

    def _show_health(self, _: Mapping[str, str]) -> Response:
        return _json(self._health.document(self._clock.time()))

    async def _ask(self, parameters: Mapping[str, str]) -> Response:
        try:
            question, scope, form = self._asked(parameters)
        except ConfigurationError as error:
            return _json({"error": str(error).replace("--", "")}, 400)
        keep = _KEEP_LONG_SPAN if scope.until - scope.since > _LONG_SPAN else _KEEP_SECONDS
        try:
            body = await self._answering.get(
                (question.name, scope, form), keep, lambda: self._answer(question, scope, form)
            )
        except BusyError as error:
            return _json({"error": str(error)}, 503, (("retry-after", "5"),))
        except TimeoutError:
            return _json(
                {
                    "error": "this took too long: ask for a shorter span, or make the rollups with "
                    "`kubenetmon schema apply --views`"
                },
                504,
            )
        except KubenetmonError as error:
            return _json({"error": str(error)}, 502)
        if form == "json":
            return Response(body, JSON, headers=_SECURITY)
        if form == "sql":
            return Response(body, TEXT, headers=_SECURITY)
        name = f'attachment; filename="kubenetmon-{question.name}.csv"'
        return Response(body, "text/csv; charset=utf-8", headers=(*_SECURITY, ("content-disposition", name)))

    def _asked(self, parameters: Mapping[str, str]) -> tuple[Question, Scope, str]:
        """Raises `ConfigurationError`."""
        if unknown := sorted(set(parameters) - _PARAMETERS):
            raise ConfigurationError(f"there is no parameter {unknown[0][:40]!r}")
        questions = {**QUESTIONS, **_OWN}
        question = questions.get(parameters.get("question", ""))
        if question is None:
            raise ConfigurationError(f"question is one of {', '.join(questions)}")
        form = parameters.get("format", "json")
        if form not in _FORMATS:
            raise ConfigurationError(f"format is one of {', '.join(_FORMATS)}")
        limit = parameters.get("limit", str(_DEFAULT_ROWS))
        if not (limit.isascii() and limit.isdecimal() and 1 <= int(limit[:9]) <= _MOST_ROWS):
            raise ConfigurationError(f"limit is a number from 1 to {_MOST_ROWS}")
        by = parameters.get("by", "")
        now = int(self._clock.time()) // _MINUTE * _MINUTE
        scope = Scope(
            since=parse_time(parameters.get("since", "24h"), now, "since") // _MINUTE * _MINUTE,
            until=parse_time(parameters.get("until", "now"), now, "until"),
            by=by if by in question.keys or by not in KEYS else "",
            limit=int(limit),
            **{name: parameters.get(name, "") for name in _FILTERS},
        )
        return question, scope, form

    async def _answer(self, question: Question, scope: Scope, form: str) -> bytes:
        if self._sink is None:
            raise ConfigurationError(
                "nothing is stored here (clickhouse_enabled: false), so there is nothing to ask"
            )
        source = await self._current_source(self._sink)
        if form == "sql":
            return f"{question.statement(_flows(question, source, scope), scope)}\n".encode()
        if question.name in _OWN:
            sql = question.statement(_flows(question, source, scope), scope)
            rows = await self._sink.query(sql)
            columns = question.columns("")
            answer = Answer(
                question.name, question.title, columns, rows, scope.since, scope.until, question.notes, sql
            )
        else:
            answer = await ask(self._sink, question, scope, source, self._limits)
        if form == "csv":
            return f"{render(answer, 'csv')}\n".encode()
        document: dict[str, Any] = answer.document()
        document["rows"] = [list(row) for row in answer.rows]
        document |= {"by": question.by(scope), "sql": answer.sql, "command": _command(question, scope)}
        if question is PATHS_OVER_TIME:
            document["step"] = step_of(scope.since, scope.until)
        return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()

    async def _current_source(self, sink: Sink) -> Source:
        now = self._clock.monotonic()
        if self._source is None or now - self._source[0] > _MINUTE:
            self._source = now, await read_source(sink, self._config.database, self._config.table)
        return self._source[1]


class _LimitedSink:
    """A `Sink` whose queries all run under the same settings, and which takes no rows."""

    def __init__(self, sink: Sink, settings: Settings) -> None:
        self._sink, self._settings = sink, settings

    @property
    def address(self) -> str:
        return self._sink.address

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        return await self._sink.query(sql, {**self._settings, **(settings or {})})

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        raise NotImplementedError("the page reads only")

    async def ping(self) -> None:
        await self._sink.ping()

    async def close(self) -> None:
        """The sink is another's."""


def _flows(question: Question, source: Source, scope: Scope) -> Flows:
    if question is PATHS_OVER_TIME:
        return series_flows(source, scope)
    return Flows(source, Span.of(scope.since, scope.until))


def _command(question: Question, scope: Scope) -> str:
    """The same question on the command line; empty where only the page asks it."""
    if question.name in _OWN:
        return ""
    words = ["kubenetmon", "ask", question.name, "--since", f"@{scope.since}", "--until", f"@{scope.until}"]
    for item in dataclasses.fields(scope):
        value = getattr(scope, item.name)
        if item.name in ("by", *_FILTERS) and value:
            words += [f"--{item.name}", value]
    return shlex.join([*words, "--limit", str(scope.limit)])


def _static(name: str, kind: str) -> Page:
    body = (resources.files("kubenetmon.report.page") / "static" / name).read_bytes()
    response = Response(body, kind, headers=_SECURITY)
    return lambda _: response


def _json(document: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, JSON, status, (*_SECURITY, *headers))
