"""`kubenetmon demo`: a small cluster on this machine, metered end to end, and the sums compared.

Contract: `main` leaves nothing behind: namespaces with all that runs in them, and the directory with
database and logs, unless it is to be kept. SIGINT, SIGTERM and SIGHUP end it in order; what a demo that was
killed has left is removed by the next one. The exit code is 0 only when ClickHouse holds exactly the bytes
that the nodes' packet counters saw.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from kubenetmon.demo import network, plan, processes, report, scenario
from kubenetmon.demo.actors import Actors
from kubenetmon.demo.patience import patience
from kubenetmon.demo.progress import Progress, say
from kubenetmon.demo.world import World
from kubenetmon.errors import ConfigurationError, KubenetmonError, MachineError
from kubenetmon.report import text

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_QUIET_SECONDS = 0.5
_QUIET_PATIENCE = 15.0


class _InterruptedError(BaseException):
    """A signal asks for the end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def main(options: argparse.Namespace) -> int:
    """Run the demo with the options of `kubenetmon.demo.arguments`; the exit code."""
    network.require_machine()
    if importlib.util.find_spec("chdb") is None:
        raise MachineError(
            "the demo stores into an embedded ClickHouse, which is not installed: "
            "pip install 'kubenetmon[embedded]'"
        )
    try:
        with _signals(), _nothing_left(), _directory(options.keep) as directory:
            status = _run(directory, float(options.seconds), options.keep is not None)
            _offer_page(directory, show=options.page)
            return status
    except _InterruptedError as interruption:
        say("\nInterrupted; everything that the demo had made is removed")
        return 128 + interruption.number


def _run(directory: Path, seconds: float, kept: bool) -> int:
    with contextlib.ExitStack() as stack:
        say(
            f"Building {len(plan.NODES)} nodes in {len(plan.NODES)} zones, {len(plan.PODS)} pods, "
            f"{len(plan.SERVICES)} Services and an internet in network namespaces"
        )
        world = World()
        stack.callback(world.close)
        database = directory / "clickhouse"
        config = processes.write_server_files(directory, f"chdb:{database}")
        say("Starting a server on an embedded ClickHouse")
        server = processes.start_server(world.server, config, directory)
        server.wait_ready()
        say("Starting an agent on each node")
        agents = [processes.start_agent(node, world.nodes[node.name], directory) for node in plan.NODES]
        for agent in agents:
            agent.wait_ready()
        _make_traffic(world, seconds, [server, *agents])
        say("The traffic has ended; agents report what is left, and the server commits it")
        wait_until_quiet(world)
        for role in [*agents, server]:
            role.stop()
        seen = world.tracked_bytes()
        retransmitted = world.retransmitted_handshakes()
    answers = report.answers(database)
    report.print_answers(answers)
    if kept:
        say(f"Database, configuration and logs are in {directory}; ask on:")
        for line in report.follow_ups(database):
            say(f"  {line}")
    return _compare(seen, answers.total_bytes, retransmitted)


def _offer_page(directory: Path, *, show: bool) -> None:
    """Serve the page until told to stop, or say how to have it."""
    if not show:
        say("To look at these answers as a page: kubenetmon demo --page")
        return
    from kubenetmon.app.page import run_page
    from kubenetmon.config import server

    config = server.load(directory / "config.yaml")
    say("The answers as a page are at http://127.0.0.1:8885/ until you press Ctrl-C")
    asyncio.run(run_page(config))


def _make_traffic(world: World, seconds: float, roles: list[processes.Role]) -> None:
    with contextlib.ExitStack() as stack:
        actors = Actors()
        stack.callback(actors.close)
        actors.begin(scenario.scripts(world))
        say(f"Connections of every kind for {seconds:.0f} s: short and long, TCP and UDP, in and out")
        line = Progress("Traffic", seconds)
        stack.callback(line.end)
        actors.go()
        while line.elapsed() < seconds:
            time.sleep(min(1.0, max(0.0, seconds - line.elapsed())))
            actors.check()
            for role in roles:
                role.check()
            tally = actors.tally()
            line.show(
                f"{line.elapsed():.0f} of {seconds:.0f} s, {tally.connections:,} connections, "
                f"{text.size(world.tracked_bytes())}"
            )
        actors.stop()


def wait_until_quiet(world: World) -> None:
    """Return once no tracked packet has passed any node for half a second."""
    deadline = time.monotonic() + patience(_QUIET_PATIENCE)
    before = world.totals()
    while time.monotonic() < deadline:
        time.sleep(_QUIET_SECONDS)
        now = world.totals()
        if now == before:
            return
        before = now
    raise MachineError("the traffic does not end: packets still pass the nodes; this is a defect, report it")


def _compare(seen: int, stored: int, retransmitted: int) -> int:
    verdict = "equal" if seen == stored else f"NOT EQUAL: {stored - seen:+d}"
    if seen != stored and retransmitted:
        say(
            f"{retransmitted} handshake packets were sent twice; these the counters may see and conntrack not"
        )
    say(f"Bytes seen by the nodes' packet counters: {seen}  in ClickHouse: {stored}  {verdict}")
    return 0 if seen == stored else 1


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """Turn the first signal into an exception and ignore those that follow, so that cleaning up ends."""

    def interrupt(number: int, _: object) -> None:
        _ignore_signals()
        raise _InterruptedError(number)

    previous = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def _nothing_left() -> Iterator[None]:
    """Remove what earlier demos left, and at the end whatever this process still has.

    At the end everything is looked for by its name: a signal comes between any two steps, so that what has
    just been made may be known to nobody.
    """
    removed = network.remove_leftovers()
    _remove_directories(network.is_leftover)
    if removed:
        say(f"Removed {len(removed)} network namespaces that a demo left when it was killed")
    try:
        yield
    finally:
        _ignore_signals()
        network.remove_own()
        _remove_directories(network.is_own)


def _remove_directories(chosen: Callable[[str], bool]) -> None:
    """Remove the demos' directories whose names are chosen."""
    for path in Path(tempfile.gettempdir()).glob(f"{network.PREFIX}*"):
        if path.is_dir() and not path.is_symlink() and chosen(path.name):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _directory(keep: Path | None) -> Iterator[Path]:
    """Where database, configuration and logs go, for `_nothing_left` to remove unless it is to be kept.

    On failure the logs' place is said.
    """
    if keep is not None:
        try:
            keep.mkdir(parents=True, exist_ok=True)
            if any(keep.iterdir()):
                raise ConfigurationError(f"--keep {keep}: the directory is not empty, name another")
        except OSError as error:
            raise ConfigurationError(f"--keep {keep}: {error.strerror}, name another directory") from error
        yield keep.resolve()
        return
    path = Path(tempfile.mkdtemp(prefix=f"{network.own_prefix()}demo-"))
    try:
        yield path
    except KubenetmonError:
        kept = path.with_name(f"kubenetmon-demo-failed-{os.getpid()}")
        with contextlib.suppress(OSError):
            path.rename(kept)
            say(f"The logs of the failed run are in {kept}")
        raise
