"""Simulate what the command line says."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
import tempfile
from pathlib import Path

from tests.beds.shipped import hide_test_packages
from tests.simulate.run import Plan, render, simulate


def main() -> int:
    """Run; the exit code."""
    usual = Plan()
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description=__doc__)
    parser.add_argument("--agents", type=int, default=usual.agents, help="nodes (%(default)s)")
    parser.add_argument("--flows", type=int, default=usual.flows, help="of each node (%(default)s)")
    parser.add_argument(
        "--interval", type=int, default=usual.interval, help="seconds between reports (%(default)s)"
    )
    parser.add_argument("--seconds", type=float, default=usual.seconds, help="to run (%(default)s)")
    parser.add_argument(
        "--outage", type=float, default=0.0, help="seconds that ClickHouse is away, in the middle (none)"
    )
    parser.add_argument("--replicas", type=int, default=1, help="servers (%(default)s)")
    parser.add_argument(
        "--pods-per-node", type=int, default=usual.pods_per_node, help="in the inventory (%(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=float,
        default=250.0,
        metavar="MB",
        help="what a server may take at most; more is a failure (%(default)g)",
    )
    parser.add_argument(
        "--discard", action="store_true", help="a ClickHouse that keeps nothing: measures servers alone"
    )
    options = parser.parse_args()
    hide_test_packages()
    logging.disable(logging.WARNING)  # agents by the dozen that say that they wait
    plan = Plan(
        agents=options.agents,
        flows=options.flows,
        interval=options.interval,
        seconds=options.seconds,
        outage=options.outage,
        replicas=options.replicas,
        pods_per_node=options.pods_per_node,
        discard=options.discard,
    )
    with tempfile.TemporaryDirectory(prefix="kubenetmon-simulate-") as directory:
        figures = asyncio.run(simulate(plan, Path(directory)))
    print(render(plan, figures))
    within = figures.server_memory <= options.memory * 1e6
    if not within:
        print(f"a server took {figures.server_memory / 1e6:.0f} MB, {options.memory:g} MB are allowed")
    return 0 if figures.exact and within else 1


if __name__ == "__main__":
    sys.exit(main())
