"""Answers over 30 days from rollups against the same answers from rows, in the embedded engine.

Contract: `make_table` writes rows once into a directory and rolls them up as `schema apply --views` does;
`measure` asks every question both ways and says how the answers and the times compare. Bytes must be equal;
counts of connections come from a sketch and may differ by 2 %.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, statement
from kubenetmon.report.scope import Scope
from tests.bench.line import Line

Returned = TypeVar("Returned")
WANTED = 20
DAYS = 31
DAY = 86_400
OPTIONS = SchemaOptions(ipv6=True, ttl_days=0)
PODS, APPS, NODES, ZONES = 400, 40, 20, 3

_COUNTS = {"openers": (2, 3, 4), "balance": (3, 4)}
"""Columns that count connections, or derive from such a count, by question."""

_ROWS = """
INSERT INTO default.network_flows_0
SELECT
    toDate(start, 'UTC') AS date, toDateTime(start) AS intervalStartTime, 60 AS intervalSeconds,
    'production' AS environment, if(h0 % 20 = 0, 'udp', 'tcp') AS proto, class AS connectionClass,
    CAST(if(opened, map('LOCAL_INITIATED', true), map()), 'Map(LowCardinality(String), Bool)')
        AS connectionFlags,
    CAST(if(number % 2 = 0, 'out', 'in'), 'Enum8(\\'out\\' = 1, \\'in\\' = 2)') AS direction,
    'aws' AS localCloud, 'us-west-2' AS localRegion, 'main' AS localCluster, '' AS localCell,
    zones[1 + localPodNumber % {nodes} % {zones}] AS localAvailabilityZone,
    nodes[1 + localPodNumber % {nodes}] AS localNode, '' AS localInstanceID,
    spaces[1 + localPodNumber % {apps} % 7] AS localNamespace, pods[1 + localPodNumber] AS localPod,
    toIPv4(toUInt32(167772160 + localPodNumber)) AS localIPv4,
    if(opened, 32768 + port, 8080) AS localPort, apps[1 + localPodNumber % {apps}] AS localApp,
    'aws' AS remoteCloud, if(class = 'INTER_REGION', 'eu-west-1', 'us-west-2') AS remoteRegion,
    'main' AS remoteCluster, '' AS remoteCell,
    if(known, zones[1 + remotePodNumber % {nodes} % {zones}], '') AS remoteAvailabilityZone,
    if(known, nodes[1 + remotePodNumber % {nodes}], '') AS remoteNode, '' AS remoteInstanceID,
    if(known, spaces[1 + remotePodNumber % {apps} % 7], '') AS remoteNamespace,
    if(known, pods[1 + remotePodNumber], '') AS remotePod,
    toIPv4(toUInt32(if(known, 167772160 + remotePodNumber, 872415232 + h0 % 5000))) AS remoteIPv4,
    if(opened, if(known, 8080, 443), 32768 + port) AS remotePort,
    if(known, apps[1 + remotePodNumber % {apps}], '') AS remoteApp,
    if(class = 'INTRA_REGION', 's3', '') AS remoteCloudService,
    40 + h % 100000 AS bytes, 1 + h % 70 AS packets,
    toIPv6('::') AS localIPv6, toIPv6('::') AS remoteIPv6
FROM (
    SELECT number, cityHash64(number) AS h, cityHash64(intDiv(number, 2)) AS h0,
        h0 % 28000 AS port, {start} + intDiv(number * 1440, {rows}) * 60 AS start,
        intDiv(h0, 100) % {pods} AS localPodNumber,
        (localPodNumber * 7 + intDiv(h0, 100000) % 5 * 31) % {pods} AS remotePodNumber,
        intDiv(h0, 1000000) % 10 AS kind, kind < 6 AS known, intDiv(h0, 10000000) % 3 != 0 AS opened,
        multiIf(known, 'INTRA_VPC', kind = 6, 'INTRA_REGION', kind = 7, 'INTER_REGION', 'PUBLIC_INTERNET')
            AS class
    FROM numbers({rows})
)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One question: seconds from rows and from rollups, and whether the answers agree."""

    question: str
    raw: float
    rolled: float
    equal: bool


async def make_table(sink: EmbeddedSink, rows: int, now: float) -> None:
    """Fill the table with so many rows over `DAYS` whole days before today, and roll them up."""
    await apply(sink, OPTIONS)
    today = int(now) // DAY * DAY
    names = {
        "zones": [f"us-west-2{chr(97 + number)}" for number in range(ZONES)],
        "nodes": [f"ip-10-0-{number}-7.us-west-2.compute.internal" for number in range(NODES)],
        "spaces": [f"team-{number}" for number in range(7)],
        "pods": [f"app-{number % APPS}-7c9d5f6b-{number:05d}" for number in range(PODS)],
        "apps": [f"app-{number}" for number in range(APPS)],
    }
    for day in range(DAYS):
        sql = _ROWS.format(
            rows=rows // DAYS,
            start=today - (DAYS - day) * DAY,
            pods=PODS,
            apps=APPS,
            nodes=NODES,
            zones=ZONES,
        )
        arrays = "".join(f"{values} AS {name}, " for name, values in names.items())
        sql = sql.replace("SELECT\n", f"WITH {arrays.removesuffix(', ')} SELECT\n", 1)
        await sink.query(sql)
    await apply_rollups(sink, OPTIONS, now)


async def measure(sink: EmbeddedSink) -> list[Measured]:
    """Every question over 30 days that begin and end within an hour."""
    first = await sink.query("SELECT toUnixTimestamp(min(intervalStartTime)) FROM default.network_flows_0")
    begin = int(first[0][0]) + 6 * 3600 + 17 * 60
    scope = Scope(since=begin, until=begin + 30 * DAY, limit=0)
    raw = await read_source(sink, "default", "network_flows_0", raw=True)
    rolled = await read_source(sink, "default", "network_flows_0")
    assert rolled.coverage is not None
    found = []
    for name, question in QUESTIONS.items():
        times, answers = [], []
        for source in (raw, rolled):
            sql = statement(question, scope, source)
            began = time.monotonic()
            answers.append(await sink.query(sql))
            times.append(time.monotonic() - began)
        equal = _agree(answers[0], answers[1], _COUNTS.get(name, ()))
        found.append(Measured(name, times[0], times[1], equal))
    return found


def lines(rows: int, directory: Path) -> list[Line]:
    """The bench's lines. The table is made once and kept in `directory`."""
    whole = directory / f"rows-{rows}"
    if not whole.is_dir():
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        asyncio.run(_with(directory / "making", lambda sink: make_table(sink, rows, time.time())))
        (directory / "making").rename(whole)
    measured = asyncio.run(_with(whole, measure))
    return [
        Line(
            f"`ask {one.question}` over 30 days, {rows / 1e6:g} million rows: rollups against rows",
            f"1/{one.raw / one.rolled:.1f} of the time, {'equal' if one.equal else 'NOT EQUAL'}",
            f"1/{WANTED}, equal",
            "-",
            one.equal and one.rolled * WANTED <= one.raw,
        )
        for one in measured
    ]


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
        if any(abs(one[index] - other[index]) > 2 + 0.02 * max(one[index], other[index]) for index in counts):
            return False
    return True


def _without(counts: tuple[int, ...]) -> Any:
    def key(row: tuple[Any, ...]) -> list[str]:
        return [repr(value) for index, value in enumerate(row) if index not in counts]

    return key
