"""The program's own processes in the demo's world: a server and agents, started as a user would.

Contract: a `Role` is one `python -m kubenetmon --role …` in a namespace, with its log in a file. `wait_ready`
returns when its /ready says so; `stop` asks it to finish (SIGTERM) and returns when it has. One that dies
or dawdles is a `MachineError` with the last line of its log.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.demo import plan
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Namespace
from kubenetmon.demo.patience import patience
from kubenetmon.demo.plan import NodePlan
from kubenetmon.errors import MachineError

METRICS_PORT = 8883
GRPC_PORT = 8884
READY_SECONDS = 90.0
STOP_SECONDS = 60.0

_POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Intervals:
    """The agent's two intervals in seconds."""

    collection: int = 1
    report: int = 5


class Role:
    """One process; making the object starts it."""

    def __init__(
        self,
        name: str,
        namespace: Namespace,
        arguments: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self._namespace = namespace
        with log.open("ab") as output:
            self._process = namespace.popen(
                [sys.executable, "-m", "kubenetmon", *arguments],
                environment=python_environment(environment),
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    @property
    def process_id(self) -> int:
        """Of the Python process itself."""
        return self._process.pid

    def get(self, path: str, *, timeout: float = 5.0) -> tuple[int, bytes]:
        """(status, body) of a page of the process's HTTP port; raises `OSError` when nobody answers."""

        def inside() -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", METRICS_PORT, timeout=timeout)
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                return response.status, response.read()
            except http.client.HTTPException as error:
                raise ConnectionError(str(error)) from error
            finally:
                connection.close()

        return self._namespace.call(inside)

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels, as Prometheus writes it."""
        samples: dict[str, float] = {}
        for line in self.get("/metrics")[1].decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def check(self) -> None:
        """Raise `MachineError` when the process has ended on its own."""
        code = self._process.poll()
        if code is not None:
            raise MachineError(f"{self.name} ended (exit code {code}): {self._last_words()}")

    def wait_ready(self) -> None:
        """Return once /ready answers 200."""
        limit = patience(READY_SECONDS)
        deadline = time.monotonic() + limit
        detail = "it does not answer"
        while time.monotonic() < deadline:
            self.check()
            try:
                status, body = self.get("/ready")
            except OSError:
                pass
            else:
                if status == 200:
                    return
                detail = _unmet(body)
            time.sleep(_POLL_SECONDS)
        raise MachineError(f"{self.name} is not ready after {limit:g}s ({detail}): {self._last_words()}")

    def stop(self) -> None:
        """Ask the process to finish and wait until it has."""
        self.check()
        self._process.send_signal(signal.SIGTERM)
        limit = patience(STOP_SECONDS)
        try:
            code = self._process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            raise MachineError(f"{self.name} did not stop within {limit:g}s: {self._last_words()}") from None
        if code != 0:
            raise MachineError(f"{self.name} stopped with exit code {code}: {self._last_words()}")

    def kill(self) -> None:
        """End the process at once, wherever it is (SIGKILL)."""
        self._process.kill()
        self._process.wait()

    def _last_words(self) -> str:
        lines = self.log.read_text(errors="replace").splitlines()
        return lines[-1][:500] if lines else "it wrote nothing"


def start_agent(
    node: NodePlan,
    namespace: Namespace,
    directory: Path,
    intervals: Intervals | None = None,
    *,
    state: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Role:
    """The agent of a node, reporting over the management link; `state`: what it knows outlives it.

    `environment` comes on top of what it is started with.
    """
    chosen = intervals or Intervals()
    kept = {"KUBENETMON_STATE_DIR": str(directory / f"state-{node.name}")} if state else {}
    return Role(
        f"the agent of {node.name}",
        namespace,
        ["--role", "agent"],
        log=directory / f"agent-{node.name}.log",
        environment={
            "NODE_NAME": node.name,
            "COLLECTION_INTERVAL": f"{chosen.collection}s",
            "KUBENETMON_REPORT_INTERVAL": f"{chosen.report}s",
            "KUBENETMON_SERVER_SERVICE_HOST": node.server,
            "KUBENETMON_SERVER_SERVICE_PORT": str(GRPC_PORT),
            "METRICS_PORT": str(METRICS_PORT),
            "UPTIME_WAIT_DURATION": "1s",
            # At the start there is no flow yet, and so none that shows counters.
            "SKIP_CONNTRACK_SANITY_CHECK": "true",
            **kept,
            **(environment or {}),
        },
    )


def write_server_files(directory: Path, clickhouse_endpoint: str) -> Path:
    """The server's configuration and the cluster's JSON in a directory; the configuration's path.

    UDP is metered too (the original leaves it out by default), so that all that the counters saw is found.
    """
    cluster = directory / "cluster.json"
    cluster.write_text(json.dumps(plan.cluster_document(), indent=1))
    config = directory / "config.yaml"
    config.write_text(
        f"environment: development\n"
        f"cloud: aws\n"
        f"region: {plan.REGION}\n"
        f"cluster: {plan.CLUSTER}\n"
        f"grpc_port: {GRPC_PORT}\n"
        f"metrics_port: {METRICS_PORT}\n"
        f"ignore_udp: false\n"
        f"clickhouse_endpoint: {clickhouse_endpoint}\n"
        f"kubernetes_source: file:{cluster}\n"
        f"cloud_ranges_dir: {plan.RANGES_DIRECTORY}\n"
    )
    return config


def start_server(namespace: Namespace, config: Path, directory: Path) -> Role:
    """The server, with a configuration of `write_server_files`."""
    return Role(
        "the server",
        namespace,
        ["--role", "server", "--config", str(config)],
        log=directory / "server.log",
    )


def _unmet(body: bytes) -> str:
    """What /ready says is missing."""
    try:
        checks = json.loads(body)["checks"]
        return "; ".join(f"{name}: {check['detail']}" for name, check in checks.items() if not check["ok"])
    except (ValueError, KeyError, TypeError):
        return "it answers something else"
