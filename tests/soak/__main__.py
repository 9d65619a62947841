"""Run the world for so many minutes, kill agents on the way, and compare sums with the nodes' counters."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from kubenetmon.demo import network, plan
from kubenetmon.demo.processes import Intervals
from kubenetmon.errors import KubenetmonError
from tests.beds.metered_world import MeteredWorld
from tests.beds.shipped import hide_test_packages
from tests.soak.faults import Fault, schedule
from tests.soak.run import ENDED_FLOWS_STAY, Soak

KILLS_PER_MINUTE = 100 / 60
_SAMPLES = 240
_SAMPLE_SECONDS = (3.0, 15.0)


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the traffic runs (60)")
    parser.add_argument("--seed", type=int, default=1, help="of sizes, and of whom is killed when (1)")
    parser.add_argument("--kills", type=int, help="agents killed (SIGKILL) and started again (100 an hour)")
    parser.add_argument(
        "--outage", type=float, default=0.0, metavar="MINUTES", help="no server for so long in the middle (0)"
    )
    parser.add_argument(
        "--short-connections",
        type=float,
        default=0.0,
        metavar="RATE",
        help="so many more short connections a second (0)",
    )
    parser.add_argument(
        "--without-state",
        action="store_true",
        help="agents forget all when they are killed: a control, whose sums must differ",
    )
    options = parser.parse_args()
    seconds = options.minutes * 60
    kills = round(options.minutes * KILLS_PER_MINUTE) if options.kills is None else options.kills
    nodes = tuple(node.name for node in plan.NODES)
    try:
        faults = schedule(seconds, kills=kills, outage=options.outage * 60, nodes=nodes, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    hide_test_packages()
    network.require_machine()
    network.remove_leftovers()
    directory = Path(tempfile.mkdtemp(prefix=f"{network.own_prefix()}soak-"))
    code = 1
    try:
        code = _soak(directory, seconds, faults, options)
    except KubenetmonError as error:
        print(f"the soak failed: {error}", file=sys.stderr)
    finally:
        network.remove_own()
        if code == 0:
            shutil.rmtree(directory, ignore_errors=True)
        else:
            print(f"logs, state and database are in {directory}", file=sys.stderr)
    return code


def _soak(directory: Path, seconds: float, faults: list[Fault], options: argparse.Namespace) -> int:
    shortest, longest = _SAMPLE_SECONDS
    with MeteredWorld(
        directory, Intervals(collection=1, report=5), state=not options.without_state, ipv6=True
    ) as metered:
        metered.keep_ended_flows(ENDED_FLOWS_STAY)
        metered.start()
        soak = Soak(
            metered,
            faults,
            seed=options.seed,
            short_rate=options.short_connections,
            sample=min(max(seconds / _SAMPLES, shortest), longest),
        )
        outcome = soak.run(seconds)
    for problem in outcome.problems:
        print(problem, file=sys.stderr)
    print(
        f"soak of {options.minutes:g} min, seed {options.seed}, server away {options.outage:g} min: "
        f"{outcome.figures}: {'FAILED' if outcome.problems else 'passed'}"
    )
    return 1 if outcome.problems else 0


if __name__ == "__main__":
    sys.exit(main())
