"""`--role all`: a machine without any rules or configuration, metered to the byte, and left as it was."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.demo.network import Namespace, create_namespace, veth_pair

pytestmark = [pytest.mark.root, pytest.mark.chdb]

MACHINE, PEER = "198.51.100.1", "198.51.100.2"
COUNTERS = """
table inet truth {
  counter seen { }
  chain in {
    type filter hook prerouting priority -150;
    iifname "wire" meta l4proto { tcp, udp } counter name "seen";
  }
  chain out {
    type filter hook postrouting priority 150;
    oifname "wire" meta l4proto { tcp, udp } counter name "seen";
  }
}
"""
SERVE = """
import socket, threading
def tcp():
    with socket.create_server(("", 7000)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data[: len(data) // 2])
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(("", 7001))
        while True:
            data, peer = endpoint.recvfrom(2048)
            endpoint.sendto(data[:100], peer)
threading.Thread(target=tcp, daemon=True).start()
print("ready", flush=True)
udp()
"""
TALK = f"""
import socket
for number in range(20):
    with socket.create_connection(("{PEER}", 7000)) as connection:
        for _ in range(5):
            connection.sendall(bytes(10_000 + number))
            connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
    endpoint.settimeout(5)
    for number in range(50):
        endpoint.sendto(bytes(500 + number), ("{PEER}", 7001))
        endpoint.recv(2048)
"""


@pytest.fixture
def machine() -> Iterator[Namespace]:
    made, peer = create_namespace("machine"), create_namespace("peer")
    server = None
    try:
        veth_pair(made, "wire", peer, "wire")
        made.address("wire", f"{MACHINE}/24")
        peer.address("wire", f"{PEER}/24")
        server = peer.popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE)
        assert server.stdout is not None
        with server.stdout:
            assert server.stdout.readline() == b"ready\n"
        yield made
    finally:
        made.delete()
        peer.delete()
        if server is not None:
            server.wait(10)


async def test_this_machines_connections_are_metered_with_no_configuration(
    machine: Namespace, tmp_path: Path
) -> None:
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


def _wait_until_reading(machine: Namespace, process: subprocess.Popen[bytes]) -> None:
    """Until /ready says that conntrack is read and the server is connected."""

    def ready() -> bool:
        try:
            with urllib.request.urlopen("http://127.0.0.1:8883/ready", timeout=2) as answer:
                return bool(json.load(answer)["ready"])
        except OSError:
            return False

    deadline = time.monotonic() + 60
    while not machine.call(ready):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
