"""The command line. Every command imports what it needs when it runs: the agent stays small."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kubenetmon import __version__, logs
from kubenetmon.errors import ConfigurationError, printable

if TYPE_CHECKING:
    from kubenetmon.config.server import ServerConfig

_DESCRIPTION = """\
Exact data-transfer metering for Kubernetes: an agent on every node reads the kernel's conntrack counters, a
server attributes them to workloads, zones, cloud regions and services, and ClickHouse keeps the rows.
"""
_EPILOG = """\
to begin:
  kubenetmon demo                  a small world on this machine, metered end to end (root)
  kubenetmon --role all            meter this machine's own connections (root)
  kubenetmon --role server --set cloud=aws --set region=us-west-2 --set cluster=c1 \\
      --set environment=development --set clickhouse_endpoint=localhost:9000
"""


def run(arguments: Sequence[str]) -> int:
    """Parse and run; returns the exit status. Raises `KubenetmonError` for what an operator can mend."""
    parser = _parser()
    options = parser.parse_args(arguments)
    logs.configure(options.log_format, getattr(logging, options.log_level.upper()))
    if options.command is not None:
        handler: Callable[[argparse.Namespace], int] = options.handler
        return handler(options)
    if options.role is None:
        parser.print_help(sys.stderr)
        return 2
    return _run_role(options)


class _Parser(argparse.ArgumentParser):
    """Its commands' parsers are of this class too."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="kubenetmon",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(command=None)
    parser.add_argument("--version", action="version", version=f"kubenetmon {__version__}")
    parser.add_argument(
        "--log-format",
        choices=("auto", "json", "plain"),
        default="auto",
        help="json: an object a line; plain: for people; auto (default): plain on a terminal, else json",
    )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="default: info"
    )
    parser.add_argument(
        "--role",
        choices=("agent", "server", "all"),
        help="agent: on every node, configured by environment variables; server: configured by a file; "
        "all: both in one process, for one machine, needs no configuration",
    )
    _add_config_options(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_demo(commands)
    _add_ask(commands)
    _add_top(commands)
    _add_page(commands)
    _add_schema(commands)
    _add_ranges(commands)
    _add_explain(commands)
    for name, text, handler in (
        ("config", "list the agent's variables and the server's keys (Markdown)", _print_config),
        ("metrics", "list the metrics (Markdown)", _print_metrics),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(command=name, handler=handler)
    return parser


def _add_config_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="the server's configuration (default: /etc/kubenetmon-server/config.yaml)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="set one key of the configuration; repeatable; `kubenetmon config` lists the keys",
    )


def _add_demo(commands: Any) -> None:
    from kubenetmon.demo import arguments

    text = "build a small world of network namespaces, meter it end to end, and compare the sums (root)"
    slow = "On a slow machine KUBENETMON_DEMO_PATIENCE=N makes it wait N times longer for its own processes."
    command = commands.add_parser("demo", help=text, description=text, epilog=slow)
    arguments.add_arguments(command)

    def handler(options: argparse.Namespace) -> int:
        from kubenetmon.demo.run import main

        return main(options)

    command.set_defaults(command="demo", handler=handler)


def _add_top(commands: Any) -> None:
    from kubenetmon.report.top import arguments

    text = "who moves how much right now: rates by workload and path, live in the terminal"
    command = arguments.add_top(commands.add_parser("top", help=text), _add_config_options)
    command.set_defaults(command="top", action="top", handler=_top)


def _add_ask(commands: Any) -> None:
    from kubenetmon.report import arguments

    text = "ask the table: who talks to whom, across zones, to S3, how evenly, how near to a limit"
    arguments.add_ask(
        commands.add_parser("ask", help=text, formatter_class=argparse.RawDescriptionHelpFormatter),
        _add_config_options,
    ).set_defaults(command="ask", handler=_ask)
    text = "what the transfers cost, at list prices or your own; compare with a bill"
    arguments.add_cost(
        commands.add_parser("cost", help=text, formatter_class=argparse.RawDescriptionHelpFormatter),
        _add_config_options,
    ).set_defaults(command="cost", handler=_cost)


def _add_page(commands: Any) -> None:
    text = "serve the answers as a page, on this machine only"
    command = commands.add_parser(
        "page",
        help=text,
        description="Serve the answers of the table that --config and --set name as a page on "
        "http://127.0.0.1:8885/ (page_port, page_host). A server does it itself where page_port is set.",
    )
    _add_config_options(command)
    command.set_defaults(command="page", action="page", handler=_page)


def _add_schema(commands: Any) -> None:
    text = "print, check or create the table in ClickHouse"
    command = commands.add_parser("schema", help=text, description=text)
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    for action, meaning in (
        ("print", "print the statements, run nothing"),
        ("apply", "create the table, or add what an older one lacks; never destroys"),
        ("check", "say what the table lacks; exit 2 when rows would not fit"),
    ):
        sub = actions.add_parser(action, help=meaning, description=meaning)
        sub.set_defaults(command="schema", action=action, handler=_schema)
        _add_config_options(sub)
        sub.add_argument("--cluster", help="Replicated and Distributed tables on this ClickHouse cluster")
        sub.add_argument("--ipv6", action="store_true", help="with the columns localIPv6 and remoteIPv6")
        sub.add_argument(
            "--views", action="store_true", help="with hourly and daily rollups and a view for each answer"
        )
        sub.add_argument("--database", metavar="NAME", help="instead of clickhouse_database")
        sub.add_argument("--table", metavar="NAME", help="instead of clickhouse_table")
        sub.add_argument(
            "--ttl-days",
            type=int,
            metavar="N",
            help="keep rows so long, 0: for ever (a new table: 90; never shortened by apply)",
        )
        sub.add_argument(
            "--nodes",
            type=int,
            default=0,
            metavar="N",
            help="size the deduplication window for a week of so many nodes (at least 100,000 blocks, and "
            "what the table has seen come in)",
        )
        sub.add_argument(
            "--report-interval",
            default="60s",
            metavar="DURATION",
            help="the agents' KUBENETMON_REPORT_INTERVAL, for --nodes (60s)",
        )
        sub.add_argument("--fsync", action="store_true", help="an insert is on the disk before it is acked")


def _add_ranges(commands: Any) -> None:
    text = "download the providers' published address ranges"
    command = commands.add_parser("ranges", help=text, description=text)
    actions = command.add_subparsers(title="actions", metavar="ACTION", required=True)
    sub = actions.add_parser("download", help=text, description=text)
    sub.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the files go")
    sub.set_defaults(command="ranges", handler=_ranges)


def _add_explain(commands: Any) -> None:
    text = "ask a running server what it knows of an address: pods, prefixes, class, deciding rule"
    command = commands.add_parser("explain", help=text, description=text)
    command.add_argument("endpoint", metavar="IP[:PORT]", help="an IPv6 address with a port as [IP]:PORT")
    moment = command.add_mutually_exclusive_group()
    moment.add_argument(
        "--at",
        default="",
        metavar="TIME",
        help="then instead of now: 2026-01-31T12:00 (UTC), Unix seconds, or how long ago (5m)",
    )
    moment.add_argument(
        "--check",
        action="store_true",
        help="let the server ask the Kubernetes API whether it says the same of the pods, nodes and Services "
        "that have the address now",
    )
    command.add_argument(
        "--server",
        default="127.0.0.1:8883",
        metavar="HOST:PORT",
        help="the server's metrics_port on loopback (127.0.0.1:8883); kubectl port-forward brings it there",
    )
    command.add_argument("--json", action="store_true", help="the answer as JSON")

    def handler(options: argparse.Namespace) -> int:
        from kubenetmon.report import explain

        answer = explain.explain(
            options.endpoint, options.at, options.server, check=options.check, as_json=options.json
        )
        print(answer)
        return 0

    command.set_defaults(command="explain", handler=handler)


def _run_role(options: argparse.Namespace) -> int:
    environ: Mapping[str, str] = os.environ
    if options.role == "agent":
        if options.config or options.overrides:
            raise ConfigurationError(
                "the agent is configured by environment variables, not --config or --set"
            )
        from kubenetmon.app.agent import run_agent

        _run(run_agent(environ))
    elif options.role == "server":
        from kubenetmon.app.server import run_server

        _run(run_server(_server_config(options)))
    else:
        from kubenetmon.app.single import run_single

        _run(run_single(environ, options.config, options.overrides))
    return 0


def _run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(work)


def _server_config(options: argparse.Namespace) -> ServerConfig:
    from kubenetmon.config import server

    path = options.config
    if path is None and (server.DEFAULT_PATH.exists() or not options.overrides):
        path = server.DEFAULT_PATH
    return server.load(path, options.overrides)


def _clickhouse_config(options: argparse.Namespace) -> ServerConfig:
    """The configuration for commands that only talk to ClickHouse: the cluster's own keys may be missing."""
    from kubenetmon.config import server

    path = options.config or (server.DEFAULT_PATH if server.DEFAULT_PATH.exists() else None)
    placeholders = {"environment": "development", "cloud": "none", "region": "none", "cluster": "none"}
    if getattr(options, "action", "") == "print":
        placeholders["clickhouse_endpoint"] = "localhost:9000"
    elif options.command in ("ask", "cost") and server.SINGLE_MACHINE_DATABASE.is_dir():
        placeholders["clickhouse_endpoint"] = f"chdb:{server.SINGLE_MACHINE_DATABASE}"
    return server.load(path, options.overrides, placeholders)


def _schema(options: argparse.Namespace) -> int:
    from kubenetmon.app.schema import run_schema
    from kubenetmon.clickhouse.schema import SchemaOptions
    from kubenetmon.clickhouse.window import blocks_of_a_week
    from kubenetmon.config.values import duration

    for key in ("database", "table"):
        if getattr(options, key) is not None:
            options.overrides.append(f"clickhouse_{key}={getattr(options, key)}")
    config = _clickhouse_config(options)
    interval = duration("--report-interval", options.report_interval)
    if options.nodes < 0:
        raise ConfigurationError("--nodes: give the number of nodes that report")
    wanted = SchemaOptions(
        database=config.clickhouse_database,
        table=config.clickhouse_table,
        cluster=options.cluster or "",
        ipv6=options.ipv6,
        ttl_days=options.ttl_days,
        deduplication_window=blocks_of_a_week(options.nodes / interval),
        fsync=options.fsync,
    )
    return asyncio.run(run_schema(options.action, config, wanted, with_views=options.views))


def _top(options: argparse.Namespace) -> int:
    from kubenetmon.app.top import run_top

    _run(run_top(options, _clickhouse_config(options) if options.table else None))
    return 0


def _page(options: argparse.Namespace) -> int:
    from kubenetmon.app.page import run_page

    _run(run_page(_clickhouse_config(options)))
    return 0


def _ask(options: argparse.Namespace) -> int:
    from kubenetmon.app.report import run_ask

    return asyncio.run(run_ask(options, _clickhouse_config(options)))


def _cost(options: argparse.Namespace) -> int:
    from kubenetmon.app.report import run_cost

    return asyncio.run(run_cost(options, _clickhouse_config(options)))


def _ranges(options: argparse.Namespace) -> int:
    from kubenetmon.server.ranges.keeper import download

    asyncio.run(download(options.out))
    return 0


def _print_config(_: argparse.Namespace) -> int:
    from kubenetmon.config import markdown

    print(markdown.configuration())
    return 0


def _print_metrics(_: argparse.Namespace) -> int:
    from kubenetmon.metrics import markdown

    print(markdown.metrics())
    return 0
