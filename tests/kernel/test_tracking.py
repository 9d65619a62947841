"""The nft table that switches tracking on: it works, and it never outlives its owner."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from kubenetmon.demo.network import Namespace, create_namespace

pytestmark = pytest.mark.root

_HOLD = """
import asyncio
from kubenetmon.agent.tracking import Tracking
async def main():
    tracking = Tracking()
    await tracking.switch_on()
    print("on", flush=True)
    await asyncio.to_thread(input)
    await tracking.switch_off()
    print("off", flush=True)
asyncio.run(main())
"""


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    made = create_namespace("tracking")
    yield made
    made.delete()


def _tables(namespace: Namespace) -> str:
    return str(namespace.run(["nft", "list", "ruleset"]).stdout)


def _hold(namespace: Namespace) -> subprocess.Popen[bytes]:
    process = namespace.popen([sys.executable, "-c", _HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"on\n"
    return process


def test_tracking_starts_and_the_table_goes_at_the_end(namespace: Namespace) -> None:
    namespace.run(["ip", "link", "set", "lo", "up"])
    process = _hold(namespace)
    assert "table inet kubenetmon" in _tables(namespace)
    namespace.run(
        [
            sys.executable,
            "-c",
            "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM);"
            "s.sendto(b'x', ('127.0.0.1', 9))",
        ]
    )
    count = namespace.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"]).stdout
    assert int(count) == 1
    process.communicate(b"\n", timeout=10)
    assert "kubenetmon" not in _tables(namespace)


def test_the_table_goes_when_the_owner_is_killed(namespace: Namespace) -> None:
    process = _hold(namespace)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=10)
    deadline = time.monotonic() + 5
    while "kubenetmon" in _tables(namespace) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "kubenetmon" not in _tables(namespace)
