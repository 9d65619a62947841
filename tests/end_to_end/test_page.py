"""The page's port of a real server, off unless wanted; `kubenetmon page` beside one; and the live view."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.beds.pages import page
from tests.beds.ports import free_port
from tests.beds.server_process import PATIENCE, Server

pytestmark = pytest.mark.chdb


def _get(port: int, path: str) -> tuple[int, bytes]:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return page(port, path, timeout=20)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def test_a_server_serves_the_page_on_a_port_of_its_own_and_no_page_on_the_others(tmp_path: Path) -> None:
    port = free_port()
    server = Server(tmp_path, clickhouse_endpoint=f"chdb:{tmp_path / 'engine'}", page_port=port)
    metrics = server.metrics_port
    with server.running():
        assert b"<h1>kubenetmon</h1>" in _get(port, "/")[1]
        about = json.loads(_get(port, "/api/about")[1])["about"]
        assert about == {"environment": "development", "cluster": "test", "place": "aws us-west-2"}
        status, body = _get(port, "/api/ask?question=classes")
        assert (status, json.loads(body)["rows"]) == (200, [])
        assert json.loads(_get(port, "/api/health")[1])["identity"][0]["unaccounted"] == 0
        assert json.loads(_get(port, "/rates")[1])["rows"] == []
        for path in ("/metrics", "/ready"):
            assert _get(port, path)[0] == 404
        for path in ("/", "/api/ask?question=classes", "/api/health"):
            assert _get(metrics, path)[0] == 404
        assert page(port, "/api/health", host="evil.example")[0] == 403
        # The live view is on the metrics port for loopback, so that `top` needs no page.
        assert json.loads(_get(metrics, "/rates")[1])["by"] == "app"
        top = subprocess.run(
            [sys.executable, "-m", "kubenetmon", "top", "--server", f"127.0.0.1:{server.metrics_port}"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=True,
        )
        assert "no report of an agent has come yet" in top.stdout


def test_without_a_page_port_nothing_more_listens(tmp_path: Path) -> None:
    server = Server(tmp_path, clickhouse_endpoint=f"chdb:{tmp_path / 'engine'}")
    with server.running() as process:
        _get(server.metrics_port, "/live")
        sockets = {
            os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir() if link.exists()
        } | {""}
        listening = set()
        for table in ("tcp", "tcp6"):
            for line in Path(f"/proc/{process.pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                    listening.add(int(fields[1].rpartition(":")[2], 16))
        assert listening <= {server.metrics_port, server.grpc_port}
        assert server.metrics_port in listening


def test_a_page_port_that_is_taken_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = Server(tmp_path, clickhouse_endpoint=f"chdb:{tmp_path / 'engine'}", page_port=port)
        status, said = server.outcome()
    assert status == 2, said
    assert f"page port {port} cannot be served" in said
    assert "Traceback" not in said


def test_the_page_beside_a_server_and_by_itself(tmp_path: Path) -> None:
    endpoint = f"clickhouse_endpoint=chdb:{tmp_path / 'engine'}"
    port = free_port()
    command = [sys.executable, "-m", "kubenetmon", "page", "--set", endpoint, "--set", f"page_port={port}"]

    def look() -> None:
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            status, body = _get(port, "/api/ask?question=classes")
            assert (status, json.loads(body)["rows"]) == (200, [])
            assert "No server serves this page" in json.loads(_get(port, "/api/health")[1])["absent"]
        finally:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "Traceback" not in said

    server = Server(tmp_path, clickhouse_endpoint=f"chdb:{tmp_path / 'engine'}")
    with server.running():
        assert _get(server.metrics_port, "/ready")[0] in (200, 503)
        look()  # through the process that holds the engine
    look()  # and alone
