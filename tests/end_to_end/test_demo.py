"""`kubenetmon demo` as a user runs it, interrupts it and kills it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from kubenetmon.demo import network, plan
from kubenetmon.demo.actors import python_environment

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.timeout(240)]

SUMS = re.compile(r"Bytes seen by the nodes' packet counters: (\d+) {2}in ClickHouse: (\d+) {2}equal")

# A signal that comes when the directory is made and nobody has its name yet.
INTERRUPTED_EARLY = """
import os, signal, sys, tempfile
from kubenetmon.__main__ import main
make = tempfile.mkdtemp
def interrupted(**options):
    made = make(**options)
    os.kill(os.getpid(), signal.SIGINT)
    return made
tempfile.mkdtemp = interrupted
sys.exit(main(["demo"]))
"""


@contextmanager
def demo(scratch: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """A running demo whose temporary files are in `scratch`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "kubenetmon", "demo", "--seconds", "5", *options],
        env=python_environment({"TMPDIR": str(scratch)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        with process:
            yield process
    finally:
        process.kill()


def namespaces_of(process: int) -> list[str]:
    """Those that this process made."""
    return [name for name in network.list_namespaces() if (network.owner_of(name) or (0, 0))[0] == process]


def descendants(process: int) -> list[int]:
    """All processes below one."""
    found = []
    try:
        tasks = list(Path(f"/proc/{process}/task").iterdir())
    except FileNotFoundError:
        return []
    for task in tasks:
        with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


def runs(process: int) -> bool:
    """Whether it lives: what an init that does not wait for orphans leaves (state Z of proc(5)) does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def assert_gone(processes: list[int]) -> None:
    """Soon, at least."""
    deadline = time.monotonic() + 10
    while left := [each for each in processes if runs(each)]:
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.05)


def read_to(process: subprocess.Popen[str], beginning: str) -> None:
    """Read lines up to one that begins so."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    pytest.fail(f"the demo never said {beginning!r}")


def test_the_demo_answers_with_equal_sums_and_offers_the_page(tmp_path: Path) -> None:
    kept, scratch = tmp_path / "kept", tmp_path / "scratch"
    scratch.mkdir()
    with demo(scratch, "--keep", str(kept)) as process:
        output, _ = process.communicate(timeout=180)
    assert process.returncode == 0, output
    lines = output.splitlines()
    sums = SUMS.fullmatch(lines[-2])
    assert sums is not None, output
    assert sums[1] == sums[2]
    assert int(sums[1]) > 10_000_000
    assert lines[-1] == "To look at these answers as a page: kubenetmon demo --page"
    words = [" ".join(line.split()) for line in lines]
    for beginning in (
        "shop/backup-0 - INTER_REGION ec2 ",
        "shop/backup-0 s3 aws us-west-2 INTRA_REGION ",
        "checkout us-west-2b frontend us-west-2a ",
        "catalog only receives 0 ",
        "shop/checkout shop/catalog shop/catalog-5f6b-8qv2m ",
        "node-a 20",
        "cross-zone aws/cross-zone-out ",
    ):
        assert any(line.startswith(beginning) for line in words), (beginning, output)
    follow_up = next(line for line in lines if "kubenetmon ask top --since" in line)
    assert f"chdb:{kept}/clickhouse" in follow_up
    assert namespaces_of(process.pid) == []
    assert list(scratch.iterdir()) == []
    assert {"clickhouse", "config.yaml", "cluster.json", "server.log"} <= {
        each.name for each in kept.iterdir()
    }
    assert {f"agent-{node.name}.log" for node in plan.NODES} <= {each.name for each in kept.iterdir()}
    logs = "".join(path.read_text() for path in kept.glob("*.log"))
    assert '"level":"error"' not in logs
    assert "Traceback" not in logs


@pytest.mark.parametrize(
    ("said", "number"),
    [
        ("Building", signal.SIGINT),
        ("Starting an agent", signal.SIGTERM),
        ("Connections", signal.SIGINT),
    ],
    ids=["while building", "while starting", "in the middle of traffic"],
)
def test_a_signal_ends_it_and_nothing_is_left(tmp_path: Path, said: str, number: signal.Signals) -> None:
    with demo(tmp_path) as process:
        read_to(process, said)
        time.sleep(0.5)
        below = descendants(process.pid)
        os.kill(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number, output
    assert output.splitlines()[-1] == "Interrupted; everything that the demo had made is removed"
    assert "Traceback" not in output
    assert namespaces_of(process.pid) == []
    assert list(tmp_path.iterdir()) == []
    assert_gone(below)


def test_a_signal_between_two_steps_leaves_nothing_either(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_EARLY],
        env=python_environment({"TMPDIR": str(tmp_path)}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 128 + signal.SIGINT, result.stdout
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_demo_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with demo(tmp_path) as killed:
        read_to(killed, "Connections")
        below = descendants(killed.pid)
        killed.kill()
        killed.communicate(timeout=30)
    assert namespaces_of(killed.pid)
    assert list(tmp_path.iterdir())
    with demo(tmp_path) as process:
        read_to(process, "Removed ")
        os.kill(process.pid, signal.SIGINT)
        process.communicate(timeout=60)
    assert namespaces_of(killed.pid) == namespaces_of(process.pid) == []
    assert list(tmp_path.iterdir()) == []
    assert_gone(below)


def test_a_directory_to_keep_must_be_empty(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("data")
    with demo(tmp_path, "--keep", str(tmp_path)) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert output == f"kubenetmon: --keep {tmp_path}: the directory is not empty, name another\n"


@pytest.mark.parametrize("seconds", ["0", "ten", "1e9", "-5"])
def test_seconds_that_make_no_sense_are_refused(tmp_path: Path, seconds: str) -> None:
    with demo(tmp_path, "--seconds", seconds) as process:
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "--seconds" in output
