"""The questions that `kubenetmon ask`, the page and the views in ClickHouse share.

Contract: `QUESTIONS` maps a name to a `Question`; `statement` is its SQL for a scope, pure; `ask` runs it and
returns an `Answer`. `statement` takes a `Flows` over any span, so that the same SQL with parameters for times
is a view. Which observation of a byte counts is `kubenetmon.report.flows`' to say, once for all questions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.errors import ConfigurationError
from kubenetmon.report import statements
from kubenetmon.report.answers import Answer, Column
from kubenetmon.report.arguments import QUESTIONS_HELP
from kubenetmon.report.flows import Flows, Source, Span
from kubenetmon.report.limits import NO_LIMITS, Limits
from kubenetmon.report.scope import KEYS, Scope
from kubenetmon.report.text import size

OBSERVATION = (
    "Bytes between pods are counted once, as the sender's node saw them; what only the receiver's node saw "
    "(from outside, replies within a node, nodes without an agent) is counted there."
)
OWN_VIEW = "Each end of a connection is counted as its own node saw it."
SUM = Column("bytes", "bytes")

Statement = Callable[[Flows, Scope], str]


@dataclass(frozen=True, slots=True)
class Question:
    """`keys` are what it can be grouped by, the first is its own; () where it cannot. `columns` are those of
    the statement; `options` are those of the command that it takes and not every question does."""

    name: str
    title: str
    help: str
    keys: tuple[str, ...]
    columns: Callable[[str], tuple[Column, ...]]
    statement: Statement
    notes: tuple[str, ...] = (OBSERVATION,)
    options: tuple[str, ...] = ()

    def by(self, scope: Scope) -> str:
        """What it is grouped by under a scope."""
        return scope.by if scope.by in self.keys else (self.keys[0] if self.keys else "")


def statement(question: Question, scope: Scope, source: Source) -> str:
    """The query, one statement without a semicolon."""
    return question.statement(Flows(source, Span.of(scope.since, scope.until)), scope)


async def ask(
    sink: Sink, question: Question, scope: Scope, source: Source, limits: Limits = NO_LIMITS
) -> Answer:
    """Run the query and what its notes need. Raises what the sink raises."""
    sql = statement(question, scope, source)
    flows = Flows(source, Span.of(scope.since, scope.until))
    # One row more than is shown tells whether there are more.
    found = await sink.query(statement(question, one_more(scope), source))
    rows: Sequence[tuple[object, ...]] = [tuple(row) for row in found[: scope.limit or None]]
    cut = len(found) > len(rows)
    columns = question.columns(question.by(scope))
    notes = [*question.notes, *await _notes(sink, question, scope, flows)]
    if cut:
        notes.append(f"These are the first {scope.limit} rows; --limit 0 shows all.")
    if question.name == "throughput":
        columns, rows, more = limits.judge(columns, rows, question.by(scope))
        notes += [*more, *_partial_nodes(question, scope)]
    span = (scope.since, scope.until)
    return Answer(question.name, question.title, columns, rows, *span, tuple(notes), sql, cut=cut)


def one_more(scope: Scope) -> Scope:
    """The same with a row more."""
    return dataclasses.replace(scope, limit=scope.limit + 1) if scope.limit else scope


def _columns(*columns: Column) -> Callable[[str], tuple[Column, ...]]:
    return lambda _: columns


def _cross_zone_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("source", title=f"from {by}"),
        Column("source_zone", title="in zone"),
        Column("destination", title=f"to {by}"),
        Column("destination_zone", title="in zone"),
        SUM,
        Column("share", "share"),
    )


def _service_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("local", title=by),
        Column("service"),
        Column("cloud"),
        Column("region"),
        Column("class"),
        Column("sent", "bytes"),
        Column("received", "bytes"),
    )


def _openers_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("end", title=by),
        Column("role"),
        Column("opened", "count"),
        Column("accepted", "count"),
        Column("unclear", "count"),
        Column("sent", "bytes"),
        Column("received", "bytes"),
    )


def _throughput_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("name", title=by),
        Column("peak_minute", "time"),
        Column("peak_sent", "rate"),
        Column("peak_received", "rate"),
        Column("p95_sent", "rate"),
        Column("p95_received", "rate"),
    )


def _top_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("source", title=f"from {by}"),
        Column("destination", title=f"to {by}"),
        Column("class"),
        Column("service"),
        SUM,
        Column("share", "share"),
    )


def _unattributed_columns(by: str) -> tuple[Column, ...]:
    return (
        Column("reason"),
        Column("local", title=by),
        Column("example", title="example address"),
        SUM,
        Column("share", "share"),
    )


_BALANCE_COLUMNS = (
    Column("client"),
    Column("server"),
    Column("replica"),
    Column("connections", "count"),
    Column("connections_share", "share", "share"),
    SUM,
    Column("bytes_share", "share", "share"),
    Column("spread", "ratio"),
    Column("odd"),
    Column("replicas", "count", wide=True),
)
_CLASSES_COLUMNS = (
    Column("class"),
    Column("sent", "bytes"),
    Column("received", "bytes"),
    SUM,
    Column("share", "share"),
)

QUESTIONS: Mapping[str, Question] = {
    question.name: question
    for question in (
        Question(
            "cross-zone",
            "Between zones",
            QUESTIONS_HELP["cross-zone"],
            KEYS,
            _cross_zone_columns,
            statements.cross_zone,
        ),
        Question(
            "s3",
            "To and from a cloud service",
            QUESTIONS_HELP["s3"],
            KEYS,
            _service_columns,
            statements.s3,
            (),
            ("service",),
        ),
        Question(
            "openers",
            "Who opens connections",
            QUESTIONS_HELP["openers"],
            KEYS,
            _openers_columns,
            statements.openers,
            (OWN_VIEW,),
        ),
        Question(
            "balance",
            "Balance over replicas",
            QUESTIONS_HELP["balance"],
            (),
            _columns(*_BALANCE_COLUMNS),
            statements.balance,
            (
                "spread is the busiest replica's bytes over the mean; odd is below half or above one and a "
                "half times an even share (connections also beyond chance).",
                OBSERVATION,
            ),
            ("client",),
        ),
        Question(
            "throughput",
            "Throughput",
            QUESTIONS_HELP["throughput"],
            ("node", "pod", "app", "namespace", "zone"),
            _throughput_columns,
            statements.throughput,
            ("Rates are means over whole minutes; what stays within a node is left out of nodes and zones.",),
            ("nodes", "instance_type", "limits"),
        ),
        Question(
            "top",
            "Top talkers",
            QUESTIONS_HELP["top"],
            KEYS,
            _top_columns,
            statements.top,
        ),
        Question(
            "classes",
            "By class of path",
            QUESTIONS_HELP["classes"],
            (),
            _columns(*_CLASSES_COLUMNS),
            statements.classes,
        ),
        Question(
            "unattributed",
            "Not attributed",
            QUESTIONS_HELP["unattributed"],
            KEYS,
            _unattributed_columns,
            statements.unattributed,
        ),
    )
}


def _partial_nodes(question: Question, scope: Scope) -> list[str]:
    """That a node's rates are not all that it moves, where the filters leave some of it out."""
    left = [f"{key} {value}" for key, value in scope.filters.items() if key in ("namespace", "app")]
    if not left or question.by(scope) != "node":
        return []
    return [
        f"The rates are those of {', '.join(left)} alone, and so is what is compared with the node's limit: "
        "what else the node moves is left out."
    ]


def refuse_options(question: Question, by: str, given: Mapping[str, object]) -> None:
    """Raise `ConfigurationError` where an option is given that the question would not read."""
    for name in (one for one, value in given.items() if value and one not in question.options):
        takers = [one.name for one in QUESTIONS.values() if name in one.options]
        if takers:
            raise ConfigurationError(
                f"--{name.replace('_', '-')} is for {' and '.join(takers)}, not for {question.name}: "
                "leave it out"
            )
    limits = next((name for name in ("nodes", "instance_type", "limits") if given.get(name)), None)
    if limits and by not in ("", "node"):
        raise ConfigurationError(
            f"--{limits.replace('_', '-')} is for --by node, not for --by {by}: limits are a node's"
        )


async def _notes(sink: Sink, question: Question, scope: Scope, flows: Flows) -> list[str]:
    notes = []
    if question.name in ("openers", "balance"):
        notes.append(await _opener_note(sink, flows))
        if flows.from_rollups:
            notes.append("Connections are counted from rollups, mostly within 1 %, seldom 3 % off.")
    if question.name == "cross-zone":
        unknown = await _sum(
            sink,
            f"{flows.define()}SELECT sum(bytes) FROM (\n{flows.transfers('zone', *scope.filters)}\n) "
            "WHERE connectionClass = 'INTRA_VPC' "
            "AND (sourceAvailabilityZone = '' OR destinationAvailabilityZone = '') "
            f"AND {statements.either_end(scope)}",
        )
        if unknown:
            notes.append(
                f"{size(unknown)} more went between ends of which one has no known zone "
                "(`kubenetmon ask unattributed`)."
            )
    if OBSERVATION in question.notes:
        silent = [
            str(row[0])
            for row in await sink.query(f"{flows.define()}{flows.silent_nodes()} ORDER BY 1 LIMIT 6")
        ]
        if silent:
            named = ", ".join(silent[:5]) + (", …" if len(silent) > 5 else "")
            notes.append(f"No agent reports from {named}: their bytes are those that others saw of them.")
    return notes


async def _opener_note(sink: Sink, flows: Flows) -> str:
    rows = await sink.query(
        f"{flows.define()}SELECT uniqExactIf((date, localNode), connectionFlags['LOCAL_INITIATED']), "
        "uniqExact((date, localNode)) FROM flows"
    )
    flagged, total = (int(value) for value in rows[0])
    if flagged == total:
        return "Who opened is as the nodes' connection tracking said."
    rule = "from ports (the side with an ephemeral port, 32768 and up, opened)"
    if not flagged:
        return f"Who opened is inferred {rule}: the table's rows do not say it."
    return f"Who opened is inferred {rule} for {total - flagged} of {total} days of nodes."


async def _sum(sink: Sink, sql: str) -> int:
    rows = await sink.query(sql)
    return int(rows[0][0] or 0)
