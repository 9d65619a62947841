"""A real server with five thousand pods: processor time per observation, received to sent, and memory."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

from kubenetmon.demo import plan
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Namespace, create_namespace
from kubenetmon.demo.processes import GRPC_PORT, METRICS_PORT, Role
from tests.bench import cluster
from tests.bench.accounting import cpu_seconds, memory_bytes
from tests.bench.kernel import Floor
from tests.bench.line import Line, megabytes, ratio_of

_CLICKHOUSE_PORT = 9000
_NODES = 10
_RECORDS = 10_000
_WARM_UP, _INTERVALS = 3, 15
_SECONDS = 300.0


def measure(floor: Floor, directory: Path, ranges: Path) -> list[Line]:
    """Push a hundred thousand observations an interval through the server into a ClickHouse that discards."""
    with contextlib.ExitStack() as stack:
        namespace = create_namespace("bench-server")
        stack.callback(namespace.delete)
        _start_clickhouse(namespace, directory, stack)
        config = _config(directory, ranges)
        _apply_schema(namespace, config)
        server = Role(
            "the server",
            namespace,
            ["--role", "server", "--config", str(config)],
            log=directory / "server.log",
        )
        stack.callback(server.kill)
        server.wait_ready()
        pushed = _push(namespace, _WARM_UP, first=1)["bytes"]
        before = cpu_seconds(server.process_id)
        measured = _push(namespace, _INTERVALS, first=1 + _WARM_UP)
        used = cpu_seconds(server.process_id) - before
        peak = memory_bytes(server.process_id, "VmHWM")
        pushed += measured["bytes"]
        _check_committed(server, pushed)
    per_observation = used / measured["records"]
    return [
        Line(
            "server, CPU per observation: receive, attribute, two rows sent to ClickHouse",
            ratio_of(per_observation, floor.per_flow),
            "1.50 x",
            "23 x",
            per_observation <= 1.5 * floor.per_flow,
        ),
        Line(
            f"server, peak memory, {cluster.NODES * cluster.PODS_PER_NODE:,} pods,"
            f" {_NODES * _RECORDS:,} flows an interval",
            megabytes(peak),
            "250 MB",
            "1,192 MB",
            peak <= 250_000_000,
        ),
    ]


def _start_clickhouse(namespace: Namespace, directory: Path, stack: contextlib.ExitStack) -> None:
    process = namespace.popen(
        [sys.executable, "-m", "tests.bench.discard", str(directory / "clickhouse"), str(_CLICKHOUSE_PORT)],
        environment=python_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def end() -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()

    stack.callback(end)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("the bench's ClickHouse has ended: its error is above")


def _config(directory: Path, ranges: Path) -> Path:
    objects = directory / "cluster.json"
    objects.write_text(json.dumps(cluster.document()))
    config = directory / "config.yaml"
    config.write_text(
        f"environment: development\ncloud: aws\nregion: {plan.REGION}\ncluster: bench\n"
        f"grpc_port: {GRPC_PORT}\nmetrics_port: {METRICS_PORT}\n"
        f"clickhouse_endpoint: 127.0.0.1:{_CLICKHOUSE_PORT}\nclickhouse_disable_tls: true\n"
        f"clickhouse_credentials_dir: {directory}\n"
        f"kubernetes_source: file:{objects}\ncloud_ranges_dir: {ranges}\n"
    )
    return config


def _apply_schema(namespace: Namespace, config: Path) -> None:
    _run(namespace, ["-m", "kubenetmon", "schema", "apply", "--config", str(config)])


def _push(namespace: Namespace, intervals: int, *, first: int) -> dict[str, int]:
    arguments = ["127.0.0.1", *map(str, (GRPC_PORT, _NODES, _RECORDS, intervals, first))]
    answer: dict[str, int] = json.loads(_run(namespace, ["-m", "tests.bench.pusher", *arguments]))
    return answer


def _run(namespace: Namespace, arguments: list[str]) -> str:
    result = subprocess.run(
        namespace.command([sys.executable, *arguments]),
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments[:3])} failed:\n{result.stderr}")
    return result.stdout


def _check_committed(server: Role, pushed: int) -> None:
    metrics = server.metrics()
    accounted = sum(
        value
        for name, value in metrics.items()
        if name.startswith(("kubenetmon_server_committed_total{", "kubenetmon_server_ignored_total{"))
        and 'unit="bytes"' in name
    )
    if accounted != pushed:
        raise RuntimeError(f"the server accounts for {accounted:.0f} bytes, {pushed} were pushed")
