"""`--role all`: a machine without any rules or configuration, metered to the byte, and left as it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.demo.network import Namespace
from tests.beds.machine import COUNTERS, PEER, TALK, machine_and_peer
from tests.beds.pages import page

pytestmark = [pytest.mark.root, pytest.mark.chdb]


async def test_this_machines_connections_are_metered_with_no_configuration(tmp_path: Path) -> None:
    with machine_and_peer() as (machine, _):
        await _meter(machine, tmp_path)


async def _meter(machine: Namespace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    settings = ("--set", f"clickhouse_endpoint=chdb:{tmp_path / 'engine'}")
    settings += ("--set", f"cloud_ranges_cache={tmp_path / 'ranges'}")
    with log.open("wb") as output:
        process = machine.popen(
            [sys.executable, "-m", "kubenetmon", "--role", "all", *settings],
            environment={
                "COLLECTION_INTERVAL": "1s",
                "KUBENETMON_REPORT_INTERVAL": "2s",
                "NODE_NAME": "laptop",
            }
            | {"PATH": os.environ["PATH"]},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            _wait_until_reading(machine, process)
            # The truth is counted from here on, before anyone has spoken.
            machine.nft(COUNTERS)
            machine.run([sys.executable, "-c", TALK])
            await asyncio.sleep(1)
            # While it runs its directory is asked through it: a Unix socket, so from any namespace.
            answer = await asyncio.to_thread(_ask, tmp_path / "engine")
            assert answer["question"] == "classes"
        finally:
            process.send_signal(signal.SIGINT)
            status = process.wait(40)
    said = log.read_text(errors="replace")
    assert status == 0, said
    assert "Traceback" not in said
    assert f"chdb:{tmp_path / 'engine'}" in said
    seen = machine.counters()["seen"]
    assert "table inet kubenetmon" not in str(machine.run(["nft", "list", "ruleset"]).stdout)
    sink = EmbeddedSink(tmp_path / "engine")
    try:
        rows = await sink.query(
            "SELECT sum(bytes), sum(packets) FROM default.network_flows_0 WHERE localNode = 'laptop' "
            f"AND localApp = 'host' AND remoteIPv4 = toIPv4('{PEER}')"
        )
        everything = await sink.query("SELECT sum(bytes), sum(packets) FROM default.network_flows_0")
    finally:
        await sink.close()
    assert rows == [(seen.bytes, seen.packets)] == everything
    assert seen.bytes > 20 * 5 * 15_000


def _ask(engine: Path) -> dict[str, object]:
    """`kubenetmon ask` on a directory that another process holds."""
    shown = subprocess.run(
        [
            *(sys.executable, "-m", "kubenetmon", "ask", "classes", "--format", "json"),
            *("--set", f"clickhouse_endpoint=chdb:{engine}"),
        ],
        capture_output=True,
        timeout=60,
    )
    assert shown.returncode == 0, shown.stderr
    return dict(json.loads(shown.stdout))


def _wait_until_reading(machine: Namespace, process: subprocess.Popen[bytes]) -> None:
    """Until /ready says that conntrack is read and the server is connected."""

    def ready() -> bool:
        try:
            return page(8883, "/ready")[0] == 200
        except OSError:
            return False

    deadline = time.monotonic() + 60
    while not machine.call(ready):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
