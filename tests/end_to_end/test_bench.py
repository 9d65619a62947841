"""The yardstick itself works; what it says about speed is for quiet machines."""

from __future__ import annotations

import subprocess
import sys

import pytest

from kubenetmon.demo.actors import python_environment

pytestmark = [
    pytest.mark.alone,
    pytest.mark.root,
    pytest.mark.chdb,
    pytest.mark.slow,
    pytest.mark.timeout(240),
]


def test_it_measures_and_no_byte_is_missed() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--flows", "2000", "--only", "bursts", "--only", "server"],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    [bursts] = [line for line in result.stdout.splitlines() if "bytes metered" in line]
    assert "100 % / 100 % (" in bursts
    assert "| reached" in bursts
    assert sum("x the receive floor" in line for line in result.stdout.splitlines()) == 2


def test_it_measures_ranges_and_a_large_cluster_that_is_right_throughout() -> None:
    arguments = ["--only", "ranges", "--only", "watching", "--pods", "2000", "--nodes", "100"]
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench", *arguments],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    [changes] = [line for line in lines if "pod changes" in line]
    assert "(all of " in changes
    assert "addresses right)" in changes
    assert sum("matched a CPU second" in line for line in lines) == 2
    [server] = [line for line in lines if "a whole server" in line]
    assert "| reached" in server


def test_attribution_and_inventory_reach_their_targets_with_room_to_spare() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench", "--only", "attribution"],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = [line for line in result.stdout.splitlines() if line.endswith("reached |")]
    assert len(lines) == 4
    assert not [line for line in lines if "NOT" in line], result.stdout
