"""What the demo asks the table, and how it prints the answers: those of `kubenetmon ask` and `cost`."""

from __future__ import annotations

import asyncio
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.answers import Answer, render_rows
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import read_source
from kubenetmon.report.prices import read_prices
from kubenetmon.report.questions import OBSERVATION, QUESTIONS, ask
from kubenetmon.report.scope import Scope

_TOTAL = "SELECT sum(bytes) FROM default.network_flows_0"
_ASKED = (
    ("top", "pod", "Who talks to whom? (a dash is someone outside of the cluster)"),
    ("cross-zone", "app", "How much crosses zones, and from whom?"),
    ("s3", "pod", "How much goes to S3?"),
    ("openers", "app", "Who opens connections, and who only receives them?"),
    ("balance", "", "Are clients balanced over the replicas of their servers?"),
    ("throughput", "node", "How near are the nodes to their limits? (these have no instance type)"),
)


@dataclass(frozen=True, slots=True)
class Answers:
    """Each question with its answer, and the sum over the whole table."""

    answers: Sequence[tuple[str, Answer]]
    total_bytes: int


def answers(path: Path) -> Answers:
    """Open the embedded ClickHouse that the server has let go of, and ask. Raises `KubenetmonError`."""
    return asyncio.run(_answers(path))


async def _answers(path: Path) -> Answers:
    sink = EmbeddedSink(path)
    try:
        total = (await sink.query(_TOTAL))[0][0]
        source = await read_source(sink, "default", "network_flows_0")
        now = int(time.time())
        found = []
        for name, by, words in _ASKED:
            scope = Scope(since=now - 86_400, until=now + 60, by=by, limit=12)
            found.append((words, await ask(sink, QUESTIONS[name], scope, source)))
        priced = await cost(sink, source, Scope(since=now - 86_400, until=now + 60), "path", read_prices())
        found.append(("What does it cost? (list prices of AWS)", priced))
        return Answers(found, int(total))
    finally:
        await sink.close()


def print_answers(found: Answers) -> None:
    """All tables, each under its question."""
    for words, answer in found.answers:
        print(f"\n{words}   [kubenetmon {'' if answer.name == 'cost' else 'ask '}{answer.name}]\n")
        print(render_rows(answer))
    print(f"\n{textwrap.fill(OBSERVATION, 100)}\n")


def follow_ups(database: Path) -> list[str]:
    """What can be done with a database that was kept, a line each: commands to type."""
    endpoint = f"--set clickhouse_endpoint=chdb:{database}"
    return [
        f"kubenetmon ask top --since 1d {endpoint}",
        f"kubenetmon cost --by path --explain {endpoint}",
        f"kubenetmon page {endpoint}",
    ]
