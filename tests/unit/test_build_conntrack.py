"""Building without what the shim needs ends with one line that names the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

COMPILER_WITHOUT = """#!/bin/sh
# A compiler on a machine where one header is not installed.
if grep -q '{header}'; then echo 'fatal error: {header}: No such file or directory' >&2; exit 1; fi
"""


@pytest.mark.parametrize(
    ("header", "package"),
    [
        ("libmnl/libmnl.h", "libmnl-dev"),
        ("libnetfilter_conntrack/libnetfilter_conntrack.h", "libnetfilter-conntrack-dev"),
    ],
)
def test_a_missing_header_is_one_line_that_names_its_package(
    tmp_path: Path, header: str, package: str
) -> None:
    compiler = tmp_path / "cc"
    compiler.write_text(COMPILER_WITHOUT.format(header=header))
    compiler.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "csrc/build_conntrack.py"],
        cwd=ROOT,
        env={"CC": str(compiler), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert header in line
    assert package in line
