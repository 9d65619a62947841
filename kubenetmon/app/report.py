"""`kubenetmon ask` and `kubenetmon cost`: the table that the configuration names, asked and shown.

An embedded engine is opened here when no process holds it, and else asked through the one that does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

from kubenetmon.app.sinks import EMBEDDED_PREFIX, make_sink
from kubenetmon.clickhouse.local_queries import LocalQuerySink, answers
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import ConfigurationError, MachineError, printable
from kubenetmon.report.answers import Answer, render
from kubenetmon.report.arguments import scope_of
from kubenetmon.report.cost import cost
from kubenetmon.report.cost import statement as cost_statement
from kubenetmon.report.flows import Flows, Span, read_source
from kubenetmon.report.limits import instance_types_of, read_limits, read_nodes
from kubenetmon.report.prices import read_prices
from kubenetmon.report.questions import QUESTIONS, ask, refuse_options, statement
from kubenetmon.report.reconcile import read_bill, reconcile
from kubenetmon.report.scope import Scope

_CONNECT_TIMEOUT = 10.0
_READ_TIMEOUT = 60.0
_PAGE = 500
_MOST_VALUES = 50_000_000
"""Of one answer: who asks waits for it, and has the memory of a whole machine."""


@contextlib.asynccontextmanager
async def reading_sink(config: ServerConfig) -> AsyncIterator[Sink]:
    """A sink to ask. Raises `KubenetmonError`."""
    endpoint = config.clickhouse_endpoint
    directory = Path(endpoint.removeprefix(EMBEDDED_PREFIX))
    sink: Sink
    if endpoint.startswith(EMBEDDED_PREFIX):
        if not await asyncio.to_thread(directory.is_dir):
            raise ConfigurationError(
                f"{endpoint}: there is no such directory; name another clickhouse_endpoint"
            )
        sink = LocalQuerySink(directory) if await answers(directory) else make_sink(config)
    else:
        sink = make_sink(config, most_values=_MOST_VALUES)
    try:
        yield sink
    finally:
        await sink.close()


async def run_ask(options: argparse.Namespace, config: ServerConfig) -> int:
    """Answer one question on standard output. Raises `KubenetmonError`."""
    question = QUESTIONS[options.question]
    if options.by and options.by not in question.keys:
        raise ConfigurationError(
            f"{question.name} cannot be grouped by {options.by}"
            + (f": choose {', '.join(question.keys)}" if question.keys else "")
        )
    refuse_options(question, options.by, vars(options))
    scope = scope_of(options, by=options.by, client=options.client, service=options.service)
    limits = read_limits(await instance_types(options.nodes, config), options.instance_type, options.limits)
    async with reading_sink(config) as sink:
        source = await read_source(sink, config.clickhouse_database, config.clickhouse_table, raw=options.raw)
        if options.sql:
            print(statement(question, scope, source))
            return 0
        _show(await ask(sink, question, scope, source, limits), options.format)
    return 0


async def instance_types(nodes: str, config: ServerConfig) -> Mapping[str, str]:
    """By node, from a file or, for the word `kubernetes`, from where the configuration reads the cluster."""
    if nodes != "kubernetes":
        return read_nodes(Path(nodes)) if nodes else {}
    from kubenetmon.server.kubernetes import KubernetesClient
    from kubenetmon.server.kubernetes_source import DumpFile, choose_source

    named = config.kubernetes_source
    source = choose_source("" if named == "auto" else named, os.environ)
    if isinstance(source, DumpFile):
        return read_nodes(source.path)
    client = KubernetesClient(source, connect_timeout=_CONNECT_TIMEOUT, read_timeout=_READ_TIMEOUT)
    found: dict[str, str] = {}
    try:
        await client.open()
        token = ""
        while True:
            page = await client.list_page("nodes", _PAGE, token)
            found.update(instance_types_of(page))
            token = str(json.loads(page).get("metadata", {}).get("continue") or "")
            if not token:
                return found
    except ValueError as error:
        raise MachineError(f"{source}: the list of nodes cannot be read: {error}") from None
    finally:
        await client.close()


async def run_cost(options: argparse.Namespace, config: ServerConfig) -> int:
    """Price the span, or compare it with a bill. Raises `KubenetmonError`."""
    scope = scope_of(options)
    by = options.by or "workload"
    prices = read_prices(options.prices)
    if options.mtu and not 100 <= options.mtu <= 65_535:
        raise ConfigurationError(f"--mtu {options.mtu} is not a packet's size (100 to 65535)")
    _check_reconcile(options, scope)
    bill = list(read_bill(options.reconcile)) if options.reconcile else None
    async with reading_sink(config) as sink:
        source = await read_source(sink, config.clickhouse_database, config.clickhouse_table, raw=options.raw)
        if options.sql:
            print(cost_statement(Flows(source, Span.of(scope.since, scope.until)), scope, by))
        elif bill is not None:
            compared = await reconcile(
                sink, source, scope, prices, bill, options.mtu, explain=options.explain
            )
            _show(compared, options.format)
        else:
            _show(await cost(sink, source, scope, by, prices, explain=options.explain), options.format)
    return 0


def _check_reconcile(options: argparse.Namespace, scope: Scope) -> None:
    """Raise `ConfigurationError` for options that do not go with a bill, or with none."""
    if not options.reconcile:
        if options.mtu:
            raise ConfigurationError("--mtu is for --reconcile: leave it out")
        return
    if filters := list(scope.filters):
        raise ConfigurationError(
            f"--{filters[0]} does not go with --reconcile: a bill cannot be filtered by {filters[0]}, only "
            "what is metered can"
        )
    if options.by:
        raise ConfigurationError("--by does not go with --reconcile, which compares items of the bill")
    if options.sql:
        raise ConfigurationError(
            "--sql does not go with --reconcile, which asks several queries: `kubenetmon cost --by path "
            "--sql` prints the one of what is metered"
        )


def _show(answer: Answer, form: str) -> None:
    print(render(answer, form))
    if form == "csv":
        for note in answer.notes:
            print(printable(note), file=sys.stderr)
