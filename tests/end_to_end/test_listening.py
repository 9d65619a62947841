"""Ports are served where the operator says, and nowhere else; without a word, on every address."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.beds.machine import MACHINE, machine_and_peer
from tests.beds.ports import free_port
from tests.beds.server_process import PATIENCE, Server


def open_at(host: str, port: int) -> bool:
    """Whether somebody listens there."""
    try:
        socket.create_connection((host, port), timeout=5).close()
    except OSError:
        return False
    return True


def wait_open(host: str, *ports: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(open_at(host, port) for port in ports):
        assert time.monotonic() < deadline, (host, ports)
        time.sleep(0.1)


def test_a_server_listens_where_it_is_told_and_nowhere_else(tmp_path: Path) -> None:
    page = free_port()
    server = Server(
        tmp_path, metrics_host="127.0.0.2", grpc_host="127.0.0.3", page_host="127.0.0.4", page_port=page
    )
    with server.running():
        wait_open("127.0.0.2", server.metrics_port)
        wait_open("127.0.0.3", server.grpc_port)
        wait_open("127.0.0.4", page)
        told = {
            ("127.0.0.2", server.metrics_port), ("127.0.0.3", server.grpc_port), ("127.0.0.4", page)
        }  # fmt: skip
        for host in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.4", "::1"):
            for port in (server.metrics_port, server.grpc_port, page):
                assert open_at(host, port) == ((host, port) in told), (host, port)


def test_a_server_that_is_told_nothing_listens_on_every_address(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with server.running():
        for host in ("127.0.0.1", "127.0.0.2", "::1"):
            wait_open(host, server.metrics_port, server.grpc_port)


@pytest.mark.parametrize("key", ["metrics", "grpc", "page"])
def test_an_address_of_another_machine_is_one_line(tmp_path: Path, key: str) -> None:
    server = Server(tmp_path, **{"page_port": free_port(), f"{key}_host": "192.0.2.77"})
    status, said = server.outcome()
    last = said.strip().splitlines()[-1]
    name = "gRPC" if key == "grpc" else key
    assert status == 2, said
    assert last.startswith(f"kubenetmon: {name} port ")
    assert "cannot be served on 192.0.2.77" in last
    assert last.endswith("give an address of this machine, or none for all")


@pytest.mark.root
@pytest.mark.parametrize("host", ["", "127.0.0.1", MACHINE])
def test_an_agent_serves_its_metrics_where_it_is_told(host: str) -> None:
    with machine_and_peer() as (machine, _):
        machine.ip("link", "set", "lo", "up")
        machine.sysctl("net.netfilter.nf_conntrack_acct", 1)
        agent = machine.popen(
            [sys.executable, "-m", "kubenetmon", "--role", "agent"],
            environment={"PATH": os.environ["PATH"], "NODE_NAME": "a", "KUBENETMON_METRICS_HOST": host},
            stderr=subprocess.PIPE,
        )
        try:
            machine.call(lambda: wait_open(host or MACHINE, 8883))
            for other in ("127.0.0.1", MACHINE):
                found = machine.call(lambda at=other: open_at(at, 8883))  # type: ignore[misc]
                assert found == (host in ("", other)), other
        finally:
            agent.terminate()
            _, said = agent.communicate(timeout=40)
    assert b"Traceback" not in said
