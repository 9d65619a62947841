"""What the command line of `kubenetmon top` accepts. Imported at every start: it imports next to nothing."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from kubenetmon.report.scope import KEYS

SORTS = ("total", "sent", "received", "name", "path")


def add_top(
    parser: argparse.ArgumentParser, add_config: Callable[[argparse.ArgumentParser], None]
) -> argparse.ArgumentParser:
    """The options of `kubenetmon top`."""
    parser.description = (
        "Who moves how much right now. Every workload shows as its own node saw it, what it sent and what it "
        "received; a path is the connection class, and within the VPC whether zones are crossed. Not on a "
        "terminal it prints a table."
    )
    parser.add_argument(
        "--server",
        default="127.0.0.1:8883",
        metavar="HOST:PORT",
        help="a server's metrics port, several separated by commas (default: 127.0.0.1:8883); a server tells "
        "only peers on its own loopback: kubectl port-forward deploy/kubenetmon-server 8883",
    )
    parser.add_argument(
        "--table", action="store_true", help="read the table in ClickHouse that --config and --set name"
    )
    parser.add_argument("--by", choices=KEYS, default="app", help="what to group by (default: app)")
    parser.add_argument("--sort", choices=SORTS, default="total", help="default: total")
    parser.add_argument("--filter", default="", metavar="WORDS", help="only rows that contain all of these")
    parser.add_argument("--bits", action="store_true", help="bit/s instead of bytes")
    parser.add_argument(
        "--interval",
        default="2s",
        metavar="DURATION",
        help="the shortest time between two pictures (default: 2s)",
    )
    parser.add_argument("--count", type=int, metavar="N", help="print N tables and end; 0: for ever")
    add_config(parser)
    return parser
