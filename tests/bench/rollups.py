"""Answers over 30 days from rollups against the same answers from rows, in the embedded engine.

Contract: `make_rows` writes rows once into a directory, `make_rollups` rolls them up as `schema apply
--views` does; `measure` asks every question both ways and says how the answers and the times compare. Bytes
must be equal; counts of connections come from a sketch and may differ by five of its standard errors, 4 %.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kubenetmon.clickhouse.rollup_tables import apply_rollups, rollup_ddl
from kubenetmon.clickhouse.rollups import RollupNames
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report import cost, series
from kubenetmon.report.flows import Flows, Source, Span, read_source
from kubenetmon.report.questions import QUESTIONS, Question, statement
from kubenetmon.report.scope import Scope
from tests.bench.line import Line

Returned = TypeVar("Returned")
WANTED = 20
TIMES, SECONDS = 5, 20.0
"""A question is asked so often, or until so many seconds are over; the best counts."""
DAYS = 31
DAY = 86_400
OPTIONS = SchemaOptions(ipv6=True, ttl_days=0)
PODS, APPS, NODES, ZONES, PEERS = 200, 20, 10, 3, 12
"""100 million rows in 31 days are 11 a minute for each of these pods; docs/capacity.md reckons with 80, of
which rollups would save more."""

SKETCH_ERROR = 1.04 / 2**7
"""The standard error of uniqCombined64(14): of 2^14 cells."""
_COUNTS = {"ask openers": (2, 3, 4), "ask balance": (3, 4)}
"""Columns that count connections, or derive from such a count, by question."""

_ROWS = """
INSERT INTO default.network_flows_0
SELECT
    toDate(start, 'UTC') AS date, toDateTime(start) AS intervalStartTime, 60 AS intervalSeconds,
    'production' AS environment, if(h % 20 = 0, 'udp', 'tcp') AS proto, class AS connectionClass,
    CAST(if(opened, map('LOCAL_INITIATED', true), map()), 'Map(LowCardinality(String), Bool)')
        AS connectionFlags,
    CAST(if(sending, 'out', 'in'), 'Enum8(\\'out\\' = 1, \\'in\\' = 2)') AS direction,
    'aws' AS localCloud, 'us-west-2' AS localRegion, 'main' AS localCluster, '' AS localCell,
    zones[1 + here % {nodes} % {zones}] AS localAvailabilityZone,
    nodes[1 + here % {nodes}] AS localNode, '' AS localInstanceID,
    spaces[1 + here % {apps} % 7] AS localNamespace, pods[1 + here] AS localPod,
    toIPv4(toUInt32({network} + here)) AS localIPv4,
    if(opened, port, 8080) AS localPort, apps[1 + here % {apps}] AS localApp,
    if(class = 'PUBLIC_INTERNET', '', 'aws') AS remoteCloud,
    multiIf(class = 'INTER_REGION', 'eu-west-1', class = 'PUBLIC_INTERNET', '', 'us-west-2') AS remoteRegion,
    if(known, 'main', '') AS remoteCluster, '' AS remoteCell,
    if(known, zones[1 + there % {nodes} % {zones}], '') AS remoteAvailabilityZone,
    if(known, nodes[1 + there % {nodes}], '') AS remoteNode, '' AS remoteInstanceID,
    if(known, spaces[1 + there % {apps} % 7], '') AS remoteNamespace,
    if(known, pods[1 + there], '') AS remotePod,
    toIPv4(toUInt32(multiIf(
        known, {network} + there, kind = 6, 180879360 + client % 25 * 2 + peer % 2, 872415232 + h % 5000)))
        AS remoteIPv4,
    if(opened, if(kind < 7, 8080, 443), port) AS remotePort,
    if(known, apps[1 + there % {apps}], '') AS remoteApp,
    if(class = 'INTRA_REGION', 's3', '') AS remoteCloudService,
    toUInt64(40 + exp2(cityHash64(h, sending != at_server) % 2000 / 100)) AS bytes,
    1 + intDiv(bytes, 1400) AS packets,
    toIPv6('::') AS localIPv6, toIPv6('::') AS remoteIPv6
FROM (
    SELECT
        {first} + number AS row, {start} + intDiv(number * 1440, {rows}) * 60 AS start,
        row % 2 = 0 AS sending, cityHash64(intDiv(row, 4)) AS who, who % {pods} AS client,
        least(intDiv(who, 1000) % {peers}, intDiv(who, 100000) % {peers}) AS peer,
        (client * 7 + 1 + peer * 31) % {pods} AS server,
        intDiv(who, 10000000) % 10 AS kind, kind < 6 AS known,
        known AND client % {nodes} != server % {nodes} AS twice,
        twice AND intDiv(row, 2) % 2 = 1 AS at_server,
        if(twice, who, cityHash64(intDiv(row, 2), 1)) AS h,
        if(at_server, server, client) AS here, if(at_server, client, server) AS there,
        kind != 9 AND NOT at_server AS opened, intDiv(h, 100) % 10 < 6 AS lasting,
        32768 + if(lasting, cityHash64(client, server, kind, intDiv(h, 7000) % 4), h) % 28000 AS port,
        multiIf(kind < 7, 'INTRA_VPC', kind = 7, 'INTRA_REGION', kind = 8, 'INTER_REGION', 'PUBLIC_INTERNET')
            AS class
    FROM numbers({rows})
)
"""
"""Of ten connections six are between pods, each seen on both nodes where they are two; one is to an address
in the network that nobody is known to own, one to S3, one to another region, one from the internet. Of
ten six live long: four between two pods. Sizes are log-uniform up to 1 MB a minute. Pods are replaced
once a week."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One question: how many times longer rows take than rollups, by the clock and in processor time (the
    best of several each), and whether the answers agree."""

    question: str
    clock: float
    processor: float
    equal: bool


async def make_rows(sink: EmbeddedSink, rows: int, now: float) -> None:
    """Fill the table with so many rows over `DAYS` whole days before today."""
    await apply(sink, OPTIONS)
    today, of_day = int(now) // DAY * DAY, rows // DAYS
    for day in range(DAYS):
        await _make_day(sink, today, day, day * of_day, of_day)
    await top_up(sink, rows, today)


async def top_up(sink: EmbeddedSink, rows: int, today: int) -> None:
    """The engine adds up rows of one key: twice as many as are missing are put into the last two days."""
    stored = int((await sink.query("SELECT count() FROM default.network_flows_0"))[0][0])
    missing = rows - stored
    for day in range(DAYS - 2, DAYS) if missing > 0 else ():
        await _make_day(sink, today, day, 2 * rows + day * missing, missing)


async def _make_day(sink: EmbeddedSink, today: int, day: int, first: int, rows: int) -> None:
    week = (today // DAY - DAYS + day) // 7
    names = {
        "zones": [f"us-west-2{chr(97 + number)}" for number in range(ZONES)],
        "nodes": [f"ip-10-0-{number}-7.us-west-2.compute.internal" for number in range(NODES)],
        "spaces": [f"team-{number}" for number in range(7)],
        "pods": [f"app-{number % APPS}-{7919 * week % 65536:04x}-{number:05d}" for number in range(PODS)],
        "apps": [f"app-{number}" for number in range(APPS)],
    }
    sql = _ROWS.format(
        rows=rows,
        first=first,
        start=today - (DAYS - day) * DAY,
        network=(10 << 24) + week % 100 * PODS,
        pods=PODS,
        apps=APPS,
        nodes=NODES,
        zones=ZONES,
        peers=PEERS,
    )
    arrays = "".join(f"{values} AS {name}, " for name, values in names.items())
    await sink.query(sql.replace("SELECT\n", f"WITH {arrays.removesuffix(', ')} SELECT\n", 1))


async def make_rollups(sink: EmbeddedSink, now: float) -> None:
    """Make the rollups anew, as `schema apply --views` fills those of a table that has rows."""
    for name in RollupNames("network_flows_0").all:
        await sink.query(f"DROP TABLE IF EXISTS default.{name}_view SYNC")
        await sink.query(f"DROP TABLE IF EXISTS default.{name} SYNC")
    await apply_rollups(sink, OPTIONS, now)


async def measure(sink: EmbeddedSink, times: int = TIMES) -> list[Measured]:
    """Every question, the costs and the page's chart over 30 days that begin and end within an hour."""
    first = await sink.query("SELECT toUnixTimestamp(min(intervalStartTime)) FROM default.network_flows_0")
    begin = int(first[0][0]) + 6 * 3600 + 17 * 60
    scope = Scope(since=begin, until=begin + 30 * DAY, limit=0)
    raw = await read_source(sink, "default", "network_flows_0", raw=True)
    rolled = await read_source(sink, "default", "network_flows_0")
    assert rolled.coverage is not None
    found = []
    for name, write in _asked(scope).items():
        clocks, processors, answers = [], [], []
        for source in (raw, rolled):
            rows, clock, processor = await _best(sink, write(source), times)
            answers.append(rows)
            clocks.append(clock)
            processors.append(processor)
        equal = bool(answers[0]) and _agree(answers[0], answers[1], _COUNTS.get(name, ()))
        found.append(Measured(name, clocks[0] / clocks[1], processors[0] / processors[1], equal))
        print(f"  {found[-1]}", file=sys.stderr, flush=True)
    return found


async def _best(sink: EmbeddedSink, sql: str, times: int) -> tuple[list[tuple[Any, ...]], float, float]:
    """Rows, seconds by the clock, seconds of the processor."""
    taken, first = [], time.monotonic()
    while len(taken) < times and time.monotonic() - first < SECONDS:
        began = time.monotonic(), time.process_time()
        rows = await sink.query(sql)
        taken.append((time.monotonic() - began[0], time.process_time() - began[1]))
    return rows, min(clock for clock, _ in taken), min(processor for _, processor in taken)


def _asked(scope: Scope) -> dict[str, Callable[[Source], str]]:
    def of(question: Question) -> Callable[[Source], str]:
        return lambda source: statement(question, scope, source)

    def costs(source: Source) -> str:
        return cost.statement(Flows(source, Span.of(scope.since, scope.until)), scope, "workload")

    def over_time(source: Source) -> str:
        return series.PATHS_OVER_TIME.statement(series.series_flows(source, scope), scope)

    return {**{f"ask {name}": of(one) for name, one in QUESTIONS.items()}, "cost": costs, "paths": over_time}


def lines(rows: int, directory: Path) -> list[Line]:
    """The bench's lines. The rows are made once and kept in `directory`, the rollups as long as they are made
    the same way."""
    whole = directory / f"rows-{rows}-{_digest(_ROWS)}"
    if not whole.is_dir():
        shutil.rmtree(directory / "making", ignore_errors=True)
        directory.mkdir(parents=True, exist_ok=True)
        asyncio.run(_with(directory / "making", lambda sink: make_rows(sink, rows, time.time())))
        (directory / "making").rename(whole)
    made = whole / "rollups-made-by"
    wanted = _digest(*rollup_ddl(OPTIONS))
    if not made.is_file() or made.read_text() != wanted:
        made.unlink(missing_ok=True)
        asyncio.run(_with(whole, lambda sink: make_rollups(sink, time.time())))
        made.write_text(wanted)
    measured = asyncio.run(_with(whole, measure))
    return [
        Line(
            f"`{one.question}` over 30 days, {rows / 1e6:g} million rows: rollups against rows",
            f"1/{one.clock:.0f} of the time, 1/{one.processor:.0f} of the processor's, "
            f"{'equal' if one.equal else 'NOT EQUAL'}",
            f"1/{WANTED}, equal",
            "-",
            one.equal and min(one.clock, one.processor) >= WANTED,
        )
        for one in measured
    ]


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]


async def _with(directory: Path, work: Callable[[EmbeddedSink], Awaitable[Returned]]) -> Returned:
    sink = EmbeddedSink(directory)
    try:
        return await work(sink)
    finally:
        await sink.close()


def _agree(first: list[tuple[Any, ...]], second: list[tuple[Any, ...]], counts: tuple[int, ...]) -> bool:
    if len(first) != len(second):
        return False
    key = _without(counts)
    for one, other in zip(sorted(first, key=key), sorted(second, key=key), strict=True):
        if key(one) != key(other):
            return False
        if any(abs(one[at] - other[at]) > 5 * SKETCH_ERROR * max(one[at], other[at]) for at in counts):
            return False
    return True


def _without(counts: tuple[int, ...]) -> Any:
    def key(row: tuple[Any, ...]) -> list[str]:
        return [repr(value) for index, value in enumerate(row) if index not in counts]

    return key
