"""Measure everything and print the table; fails when something cannot be measured, and with `--strict` also
when a bound is not reached."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from kubenetmon.demo import network, plan
from kubenetmon.errors import KubenetmonError
from tests.beds.injector import InjectionBed
from tests.beds.shipped import hide_test_packages
from tests.bench import agent, attribution, encoder, fleet, kernel, ranges, rollups, server, watching
from tests.bench.line import Line, render
from tests.conftest import SHARED_DATA

_PARTS = ("agent", "bursts", "encoder", "server", "fleet", "attribution", "ranges", "watching", "rollups")
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kubenetmon-bench"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line (or `arguments`) says; the exit code."""
    real_ranges = SHARED_DATA / "cloud-ranges"
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--flows", type=int, default=100_000, help="flows on the agent's node (100000)")
    parser.add_argument(
        "--ranges",
        type=Path,
        default=real_ranges if real_ranges.is_dir() else plan.RANGES_DIRECTORY,
        metavar="DIR",
        help="the providers' files for the server; real ones if there are any, else the demo's few",
    )
    parser.add_argument("--pods", type=int, default=100_000, help="pods of the large cluster (100000)")
    parser.add_argument("--nodes", type=int, default=5_000, help="nodes of the large cluster (5000)")
    parser.add_argument("--only", choices=_PARTS, action="append", help="leave the other parts out")
    parser.add_argument(
        "--rows",
        type=int,
        default=100_000_000,
        metavar="N",
        help="rows behind the rollups (100000000: half an hour of two cores, once)",
    )
    parser.add_argument(
        "--keep", type=Path, default=_CACHE, metavar="DIR", help=f"where those rows are kept ({_CACHE})"
    )
    parser.add_argument(
        "--strict", action="store_true", help="exit with 1 when a bound is not reached; for a quiet machine"
    )
    options = parser.parse_args(arguments)
    parts = options.only or _PARTS
    hide_test_packages()
    network.require_machine()
    network.remove_leftovers()
    try:
        with tempfile.TemporaryDirectory(prefix=f"{network.own_prefix()}bench-") as directory:
            lines = _measure(Path(directory), options, parts)
    except KubenetmonError as error:
        print(f"the bench cannot measure: {error}", file=sys.stderr)
        return 1
    finally:
        network.remove_own()
    print(render(lines))
    missed = [line.work for line in lines if not line.reached]
    if missed and options.strict:
        print(f"not reached: {'; '.join(missed)}", file=sys.stderr)
        return 1
    return 0


def _measure(directory: Path, options: argparse.Namespace, parts: Sequence[str]) -> list[Line]:
    lines: list[Line] = []
    if {"agent", "bursts", "server"} & set(parts):
        lines += _measure_flows(directory, options.flows, options.ranges, parts)
    if "fleet" in parts:
        _say("A server before 50 and before 1,000 agents")
        lines += fleet.measure(directory)
    if "encoder" in parts:
        _say("The encoder")
        lines += encoder.measure()
    if "attribution" in parts:
        _say("Attribution and inventory alone")
        lines += attribution.measure(options.ranges)
    if "ranges" in parts:
        _say("All cloud ranges")
        lines += ranges.measure(options.ranges, directory)
    if "watching" in parts:
        _say(f"A cluster of {options.pods:,} pods and {options.nodes:,} nodes")
        lines += watching.measure(options.pods, options.nodes, directory, options.ranges)
    if "rollups" in parts:
        _say(f"Answers over {options.rows:,} rows, and from their rollups")
        lines += rollups.lines(options.rows, options.keep)
    return lines


def _measure_flows(directory: Path, flows: int, ranges: Path, parts: Sequence[str]) -> list[Line]:
    idle: list[Line] = []
    with InjectionBed("bench") as bed:
        if "agent" in parts:
            _say("An agent on a node without flows")
            idle = agent.measure_idle(bed, directory)
        _say(f"Reading {flows:,} flows")
        floor, lines = asyncio.run(kernel.measure(bed, flows))
        if "agent" in parts:
            _say(f"An agent on a node of {flows:,} flows, all changing")
            lines += agent.measure(bed, floor, directory) + idle
            _say(f"Reading {flows * 5 // 2:,} flows")
            lines += asyncio.run(kernel.measure_growth(bed, flows))
    if "bursts" in parts:
        _say("An agent through bursts over 20,000 flows")
        with InjectionBed("bench") as bed:
            lines += agent.measure_bursts(bed, directory)
    if "server" in parts:
        _say("A server with 5,000 pods")
        lines += server.measure(floor, directory, ranges)
    return lines


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
