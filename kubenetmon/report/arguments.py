"""What the command line of the answers accepts. Imported at every start, so it imports next to nothing."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kubenetmon.report.answers import FORMATS
from kubenetmon.report.scope import KEYS, Scope, parse_time

DEFAULT_LIMIT = 20
COST_KEYS = ("workload", "namespace", "app", "pod", "node", "zone", "path")

QUESTIONS_HELP = {
    "cross-zone": "how much crosses availability zones, from whom to whom",
    "s3": "how much goes to S3, or another cloud service (--service NAME, any)",
    "openers": "who opens connections, and who only receives them",
    "balance": "are connections and bytes even over a server app's replicas (--app SERVER, --client APP)",
    "throughput": "peak minute and 95th percentile of minutes, against the instance type's limit",
    "top": "who sends most to whom, over which class of path",
    "classes": "how much goes over each class of path",
    "unattributed": "what lacks a pod, an app, a zone or a path, and why",
}
"""The questions, by name."""

FILTERS_HELP = (
    ("either end of a transfer", ("cross-zone", "top", "classes")),
    ("the end that the row is about", ("s3", "openers", "throughput", "unattributed")),
    ("the server's replicas", ("balance",)),
)
"""What --namespace, --app, --node and --zone, all of them together, hold for, by question."""


def add_scope(
    parser: argparse.ArgumentParser, *, since: str, whose: str, keys: tuple[str, ...] = KEYS
) -> None:
    """Span, filters, grouping and form; `since` is the default, `whose` says what the filters hold for."""
    parser.add_argument(
        "--since",
        default=since,
        metavar="TIME",
        help="how long ago (90m, 36h, 7d), a date (2026-11, 2026-11-01, 2026-11-01T08:30, UTC), today or "
        f"month (default: {since})",
    )
    parser.add_argument("--until", default="now", metavar="TIME", help="the end, not included (default: now)")
    for key in ("namespace", "app", "node", "zone"):
        parser.add_argument(
            f"--{key}",
            default="",
            metavar="NAME",
            help=f"only this {key}{whose}" + (", or cluster/node" if key == "node" else ""),
        )
    parser.add_argument("--by", choices=keys, default="", help="what to group by")
    parser.add_argument(
        "--limit",
        type=int,
        default=DEFAULT_LIMIT,
        metavar="N",
        help=f"rows to show, 0: all (default: {DEFAULT_LIMIT})",
    )
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")
    parser.add_argument("--sql", action="store_true", help="print the query, run nothing")
    parser.add_argument(
        "--raw",
        action="store_true",
        help="ask the rows themselves, not their rollups (slower, to the minute)",
    )


def scope_of(options: argparse.Namespace, **more: Any) -> Scope:
    """The scope that the options name. Raises `ConfigurationError`."""
    now = time.time()
    given = {
        "since": parse_time(options.since, now, "--since"),
        "until": parse_time(options.until, now, "--until"),
        "namespace": options.namespace,
        "app": options.app,
        "node": options.node,
        "zone": options.zone,
        "limit": options.limit,
    }
    return Scope(**{**given, **more})


def add_ask(
    parser: argparse.ArgumentParser, add_config: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The options of `kubenetmon ask`."""
    questions = "\n".join(f"  {name:<13} {text}" for name, text in QUESTIONS_HELP.items())
    filters = "\n".join(f"  {', '.join(names)}: {end}" for end, names in FILTERS_HELP)
    parser.description = (
        f"Ask the table of flows.\n\nquestions:\n{questions}\n\n"
        f"what --namespace, --app, --node and --zone, all together, name:\n{filters}"
    )
    parser.epilog = (
        "examples:\n"
        "  kubenetmon ask cross-zone --since 7d --by namespace\n"
        "  kubenetmon ask balance --app catalog --client frontend\n"
        "  kubenetmon ask throughput --nodes kubernetes\n"
        "  kubenetmon ask top --set clickhouse_endpoint=clickhouse.example.org:9440 --format csv"
    )
    parser.add_argument(
        "question", choices=list(QUESTIONS_HELP), metavar="QUESTION", help="one of those above"
    )
    add_scope(parser, since="1h", whose=" (whose: see above)")
    parser.add_argument(
        "--client", default="", metavar="APP", help="balance: only this client (an app, or namespace/app)"
    )
    parser.add_argument(
        "--service", default="", metavar="NAME", help="s3: another cloud service, or any (default: s3)"
    )
    parser.add_argument(
        "--nodes",
        default="",
        metavar="FILE",
        help="throughput by node: `kubectl get nodes -o json`, for instance types; `kubernetes`: ask its API",
    )
    parser.add_argument(
        "--instance-type",
        default="",
        metavar="TYPE",
        help="throughput by node: the type of nodes not in --nodes",
    )
    parser.add_argument(
        "--limits", type=Path, metavar="FILE", help="throughput by node: limits of further instance types"
    )
    add_config(parser)
    return parser


def add_cost(
    parser: argparse.ArgumentParser, add_config: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The options of `kubenetmon cost`."""
    parser.description = "What the transfers cost, at list prices or your own, and the month projected."
    parser.epilog = (
        "examples:\n"
        "  kubenetmon cost                                       this month, by workload\n"
        "  kubenetmon cost --by path --explain                   the arithmetic of each price\n"
        "  kubenetmon cost --prices ours.yaml --namespace shop   with your organisation's prices\n"
        "  kubenetmon cost --reconcile cur.csv.gz --since 2026-10 --until 2026-11\n"
    )
    add_scope(parser, since="month", whose=", at the end that pays", keys=COST_KEYS)
    parser.add_argument(
        "--prices",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="prices of your own (JSON or YAML, as the built-in file is); repeatable, the last wins",
    )
    parser.add_argument("--explain", action="store_true", help="show the arithmetic")
    parser.add_argument(
        "--reconcile",
        type=Path,
        metavar="FILE",
        help="compare with a bill: an AWS Cost and Usage Report (CSV, .gz) or a CSV with item, usage (GB) "
        "and cost; without filters, --by and --sql",
    )
    parser.add_argument(
        "--mtu", type=int, default=0, metavar="N", help="reconcile: largest packet, for hidden headers"
    )
    add_config(parser)
    return parser
