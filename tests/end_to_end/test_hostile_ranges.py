"""A real server and ranges files that mean ill: each is refused, the copy in use stays, little is spent."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.beds.pages import page
from tests.beds.server_process import RANGES, Server

MEBIBYTE = 1 << 20
PREFIX = b'{"ip_prefix": "10.0.0.0/24", "region": "r", "service": "s"}'


def sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(20 << 30)


def written(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


HOSTILE: dict[str, Callable[[Path], object]] = {
    "twenty gigabytes": sparse,
    "without an end": lambda path: path.symlink_to("/dev/zero"),
    "a pipe that nobody fills": os.mkfifo,
    "brackets": written(b"[" * (60 * MEBIBYTE)),
    "objects within objects": written(b'{"prefixes":' * (5 * MEBIBYTE)),
    "one string": written(b'{"prefixes": [{"ip_prefix": "' + b"1" * (60 * MEBIBYTE) + b'"}]}'),
    "a number": written(b'{"prefixes": [' + b"9" * (60 * MEBIBYTE) + b"]}"),
    "a prefix a million times": written(b'{"prefixes": [' + b",".join([PREFIX] * (1 << 20)) + b"]}"),
    "the whole internet": written(
        json.dumps(
            {"prefixes": [{"ip_prefix": f"{n}.0.0.0/8", "region": "us-west-2"} for n in range(224)]}
        ).encode()
    ),
    "nothing of ours": written(b'{"prefixes": [' + PREFIX + b"]}"),
}


@pytest.mark.slow
def test_each_is_refused_in_one_line_and_the_ranges_in_use_stay(tmp_path: Path) -> None:
    ranges = tmp_path / "ranges"
    shutil.copytree(RANGES, ranges)
    server = Server(
        tmp_path, cloud_ranges_dir=str(ranges), cloud_ranges_refresh="200ms", clickhouse_enabled=False
    )
    base = server.metrics_port

    def get(path: str) -> str:
        return page(base, path)[1].decode()

    def failures() -> float:
        found = re.search(
            r'^kubenetmon_public_ip_refreshes_total\{result="failed"\} (\S+)$', get("/metrics"), re.M
        )
        return float(found[1]) if found else 0.0

    with server.running() as process:
        server.wait_ready()
        before = server.checks()["cloud ranges"]
        for number, (name, make) in enumerate(HOSTILE.items(), 1):
            make(tmp_path / "new")
            os.replace(tmp_path / "new", ranges / "aws.json")
            deadline = time.monotonic() + 30
            while failures() < number:
                began = time.monotonic()
                assert get("/live") == "ok\n"
                assert time.monotonic() - began < 3, name
                assert time.monotonic() < deadline, name
                time.sleep(0.05)
            assert server.checks()["cloud ranges"] == before, name
        status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
    assert peak < 320, f"{peak} MB"
