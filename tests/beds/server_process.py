"""A server process as a user starts it, with a configuration of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.beds.pages import page
from tests.beds.ports import free_port

RANGES = Path(__file__).resolve().parents[2] / "kubenetmon" / "demo" / "ranges"
PATIENCE = 30.0


class Server:
    """A server process with a configuration of its own in `directory`."""

    def __init__(self, directory: Path, **changes: object) -> None:
        self.metrics_port = free_port()
        self.grpc_port = free_port()
        cluster = directory / "cluster.json"
        if not cluster.exists():
            cluster.write_text('{"kind": "List", "items": []}')
        settings: dict[str, object] = {
            "environment": "development",
            "cloud": "aws",
            "region": "us-west-2",
            "cluster": "test",
            "metrics_port": self.metrics_port,
            "grpc_port": self.grpc_port,
            "kubernetes_source": f"file:{cluster}",
            "cloud_ranges_dir": str(RANGES),
            "clickhouse_endpoint": f"127.0.0.1:{free_port()}",
            "clickhouse_disable_tls": True,
            "clickhouse_credentials_dir": str(directory),
            **changes,
        }
        config = directory / "config.yaml"
        config.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        self.command = [sys.executable, "-m", "kubenetmon", "--role", "server", "--config", str(config)]
        self._environment = {"PATH": os.environ["PATH"], "HOME": str(directory)}

    def outcome(self) -> tuple[int, str]:
        """Exit status and what was said, of a server that does not start."""
        result = subprocess.run(
            self.command, capture_output=True, text=True, timeout=PATIENCE, env=self._environment
        )
        return result.returncode, result.stderr

    @contextmanager
    def running(self) -> Iterator[subprocess.Popen[str]]:
        """The process, stopped in order at the end, when it must not have said a traceback."""
        process = subprocess.Popen(
            self.command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=self._environment
        )
        try:
            yield process
        finally:
            process.terminate()
            _, said = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in said
        assert process.returncode == 0

    def reason(self, check: str) -> str:
        """What /ready says of a check that does not pass, once it says more than that it waits."""
        deadline = time.monotonic() + PATIENCE
        found = ""
        while time.monotonic() < deadline:
            found = self._ready().get(check, {}).get("detail", "")
            if found and "not answered yet" not in found and "being loaded" not in found:
                return found
            time.sleep(0.1)
        return found

    def wait_ready(self) -> None:
        """Return once every check passes; fails after a while."""
        deadline = time.monotonic() + PATIENCE
        while not ((checks := self._ready()) and all(check["ok"] for check in checks.values())):
            assert time.monotonic() < deadline, checks
            time.sleep(0.1)

    def checks(self) -> dict[str, Any]:
        """The checks in the body of /ready; none where it is not served."""
        return self._ready()

    def ready(self) -> bool:
        """Whether /ready says so."""
        return page(self.metrics_port, "/ready")[0] == 200

    def explain(self, *arguments: str) -> str:
        """What `kubenetmon explain` prints of an address that this server knows."""
        command = [
            sys.executable,
            "-m",
            "kubenetmon",
            "explain",
            "--server",
            f"127.0.0.1:{self.metrics_port}",
        ]
        result = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=PATIENCE)
        assert result.returncode == 0, result.stderr
        return result.stdout

    def explained(self, *arguments: str) -> dict[str, Any]:
        """The same, decoded."""
        found: dict[str, Any] = json.loads(self.explain("--json", *arguments))
        return found

    def _ready(self) -> dict[str, Any]:
        try:
            _, body = page(self.metrics_port, "/ready")
        except OSError:
            return {}
        checks: dict[str, Any] = json.loads(body)["checks"]
        return checks
