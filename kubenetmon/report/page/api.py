"""The page's paths: the static bundle, and what its scripts ask.

Contract: every statement is one of the questions', read-only and under limits of ClickHouse's own; what a
caller may choose is checked first (`asked`), and nothing that callers send can make the server do more than
`Answering` allows. Errors are one line, as JSON. No task of its own but answers that are being made.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from kubenetmon import __version__
from kubenetmon.clickhouse.block import Block
from kubenetmon.clickhouse.sinks import Settings, Sink
from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.http import JSON, TEXT, Page, Response
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.limits import Limits
from kubenetmon.report.page.answering import Answering, AnsweringConfig, BusyError
from kubenetmon.report.page.asked import MOST_ROWS, Answers, parse
from kubenetmon.report.page.health import Health
from kubenetmon.report.prices import PriceList
from kubenetmon.report.scope import KEYS

_SOURCE_SECONDS = 60.0
_KEEP_SECONDS = 30.0
_KEEP_LONG_SPAN = 300.0
_LONG_SPAN = 3 * 86_400
_CONTENT_TYPES = {"json": JSON, "sql": TEXT}

_POLICY = (
    "default-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SECURITY = (
    ("content-security-policy", _POLICY),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)
_SCRIPT = "text/javascript; charset=utf-8"
_BUNDLE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, _SCRIPT) for name in ("page.js", "charts.js", "tables.js", "views.js")},
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
    """All pages of the page's port; `close` cancels what is being answered."""

    def __init__(
        self,
        config: PageConfig,
        *,
        sink: Sink | None,
        health: Health | None,
        clock: Clock,
        prices: PriceList,
        limits: Callable[[], Awaitable[Limits]],
    ) -> None:
        """Without a sink the page shows what needs no table, without `health` only what the table knows."""
        self._config, self._health, self._clock = config, health, clock
        settings: dict[str, str | int] = {
            "readonly": 2,
            "max_execution_time": config.query_seconds,
            "timeout_before_checking_execution_speed": 0,
            "max_memory_usage": config.query_memory,
            "max_result_rows": 20 * MOST_ROWS,
            "result_overflow_mode": "throw",
        }
        self._sink = None if sink is None else _LimitedSink(sink, settings)
        self._answers = (
            None if self._sink is None else Answers(self._sink, prices=prices, limits=limits, clock=clock)
        )
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
        return _json({"version": __version__, "about": dict(self._config.about), "keys": KEYS})

    def _show_health(self, parameters: Mapping[str, str]) -> Response:
        form = parameters.get("format", "json")
        if parameters.keys() - {"format"} or form not in ("json", "csv"):
            return _json({"error": "the only parameter is format, json or csv"}, 400)
        if self._health is None:
            return _json(
                {"absent": "No server serves this page; each knows its own health: see /metrics there."}
            )
        now = self._clock.time()
        if form == "csv":
            return _csv(f"{self._health.csv(now)}\n".encode(), "health")
        return _json(self._health.document(now))

    async def _ask(self, parameters: Mapping[str, str]) -> Response:
        try:
            asked = parse(parameters, self._clock.time())
        except ConfigurationError as error:
            return _json({"error": str(error).replace("--", "")}, 400)
        scope = asked.scope
        keep = _KEEP_LONG_SPAN if scope.until - scope.since > _LONG_SPAN else _KEEP_SECONDS

        async def work() -> bytes:
            if self._sink is None or self._answers is None:
                raise ConfigurationError("nothing is stored here (clickhouse_enabled: false): nothing to ask")
            return await self._answers.body(asked, await self._current_source(self._sink))

        try:
            body = await self._answering.get(asked, keep, work)
        except BusyError as error:
            return _json({"error": str(error)}, 503, (("retry-after", "5"),))
        except TimeoutError:
            return _json({"error": "this takes too long: choose a shorter span, or make rollups with "
                          "`kubenetmon schema apply --views`"}, 504)  # fmt: skip
        except KubenetmonError as error:
            return _json({"error": str(error)}, 502)
        if asked.form == "csv":
            return _csv(body, asked.name)
        return Response(body, _CONTENT_TYPES[asked.form], headers=_SECURITY)

    async def _current_source(self, sink: Sink) -> Source:
        now = self._clock.monotonic()
        if self._source is None or now - self._source[0] > _SOURCE_SECONDS:
            self._source = now, await read_source(sink, self._config.database, self._config.table)
        return self._source[1]


class _LimitedSink:
    """A `Sink` whose queries all run under the same settings, and which takes no rows."""

    def __init__(self, sink: Sink, settings: Settings) -> None:
        self._sink, self._settings = sink, settings

    @property
    def address(self) -> str:
        return self._sink.address

    @property
    def servers(self) -> int:
        return self._sink.servers

    async def query(self, sql: str, settings: Settings | None = None) -> list[tuple[Any, ...]]:
        return await self._sink.query(sql, {**self._settings, **(settings or {})})

    async def insert(self, database: str, table: str, block: Block, token: str, settings: Settings) -> None:
        raise NotImplementedError("the page reads only")

    async def ping(self) -> None:
        await self._sink.ping()

    async def close(self) -> None:
        """The sink is another's."""


def _static(name: str, kind: str) -> Page:
    body = (resources.files("kubenetmon.report.page") / "static" / name).read_bytes()
    response = Response(body, kind, headers=_SECURITY)
    return lambda _: response


def _csv(body: bytes, name: str) -> Response:
    disposition = ("content-disposition", f'attachment; filename="kubenetmon-{name}.csv"')
    return Response(body, "text/csv; charset=utf-8", headers=(*_SECURITY, disposition))


def _json(document: object, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    body = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, JSON, status, (*_SECURITY, *headers))
