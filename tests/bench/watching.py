"""A very large cluster: how long until it is known, what its changes cost, and how much memory it takes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from kubenetmon.demo import plan
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Namespace, create_namespace
from kubenetmon.demo.processes import GRPC_PORT, METRICS_PORT, Role
from tests.bench.accounting import cpu_seconds, memory_bytes
from tests.bench.follower import Measured
from tests.bench.line import Line, megabytes

RATE = 1000
_SECONDS = 600.0
_FOLLOWED, _CHURN = 30.0, 60.0
_FILL_RATE, _FILLED = 4 * RATE, 100.0
"""Until as much is known of the past as ever is."""


@contextlib.contextmanager
def published(pods: int, nodes: int, rate: int, namespace: Namespace | None = None) -> Iterator[int]:
    """A made-up cluster, served by a process of its own; gives its port."""
    command = [sys.executable, "-m", "tests.beds.large_cluster", *map(str, (pods, nodes, rate))]
    if namespace is not None:
        command = namespace.command(command)
    process = subprocess.Popen(
        command, env=python_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def follow(port: int, pods: int, nodes: int, seconds: float) -> Measured:
    """Measure a watcher against that cluster. Raises `RuntimeError` when it fails."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.bench.follower", *map(str, (port, pods, nodes, seconds))],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=_SECONDS,
        check=False,
    )
    if result.returncode != 0:
        raise RuntimeError(f"the watcher that is measured failed:\n{result.stderr}")
    return Measured(**json.loads(result.stdout.splitlines()[-1]))


def measure(pods: int, nodes: int, directory: Path, ranges: Path) -> list[Line]:
    """The watcher alone, then a whole server; a small cluster is watched for less long."""
    part = min(1.0, max(0.1, pods / 100_000))
    with published(pods, nodes, RATE) as port:
        measured = follow(port, pods, nodes, part * _FOLLOWED)
    share = measured.followed_cpu / measured.followed
    each = measured.followed_cpu / max(measured.changes, 1)
    right = "all" if not measured.wrong else f"all but {measured.wrong}"
    most, shares = _whole_server(pods, nodes, part, directory, ranges)
    return [
        Line(
            f"{pods:,} pods and {nodes:,} nodes known, against reading and decoding their JSON",
            f"{measured.synced / measured.floor:.2f} x ({measured.synced:.1f} s : {measured.floor:.1f} s)",
            "3.00 x",
            "-",
            measured.synced <= 3 * measured.floor,
        ),
        Line(
            f"{measured.changes / measured.followed:,.0f} pod changes and"
            f" {measured.snapshots / measured.followed:.0f} snapshots a second, share of a core",
            f"{share:.1%} ({right} of {measured.checked:,} addresses right)",
            "20 %",
            "-",
            share <= 0.2 and not measured.wrong and measured.changes >= 0.95 * RATE * measured.followed,
        ),
        Line(
            "a pod change read, decoded and put into the inventory, snapshots included, CPU",
            f"{each * 1e6:.0f} us",
            "100 us",
            "-",
            each <= 100e-6,
        ),
        Line(
            f"a whole server with them, {ranges.name} and all the history that is kept, resident at most",
            f"{megabytes(most)} (at {shares:.1%} of a core)",
            "200 MB",
            "-",
            most <= 200_000_000,
        ),
    ]


def _whole_server(pods: int, nodes: int, part: float, directory: Path, ranges: Path) -> tuple[int, float]:
    """The most memory in bytes, and the share of a core at `RATE`; `part` of the usual time is taken."""
    with contextlib.ExitStack() as stack:
        namespace = create_namespace("bench-watch")
        stack.callback(namespace.delete)
        port = stack.enter_context(published(pods, nodes, RATE, namespace))
        server = Role(
            "the server",
            namespace,
            ["--role", "server", "--config", str(_config(directory, port, ranges))],
            log=directory / "watching.log",
        )
        stack.callback(server.kill)
        server.wait_ready()

        def change(rate: int, seconds: float) -> float:
            ask = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{port}/begin?rate={rate}')"
            subprocess.run(namespace.command([sys.executable, "-c", ask]), check=True)
            before, began = cpu_seconds(server.process_id), time.monotonic()
            time.sleep(seconds)
            return (cpu_seconds(server.process_id) - before) / (time.monotonic() - began)

        share = change(RATE, part * _CHURN)
        change(_FILL_RATE, part * _FILLED)
        change(RATE, part * _CHURN)
        return memory_bytes(server.process_id, "VmHWM"), share


def _config(directory: Path, port: int, ranges: Path) -> Path:
    kubeconfig = directory / "kubeconfig"
    content = {
        "current-context": "bench",
        "contexts": [{"name": "bench", "context": {"cluster": "bench"}}],
        "clusters": [{"name": "bench", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
    }
    kubeconfig.write_text(json.dumps(content))
    config = directory / "watching.yaml"
    config.write_text(
        f"environment: development\ncloud: aws\nregion: {plan.REGION}\ncluster: bench\n"
        f"grpc_port: {GRPC_PORT}\nmetrics_port: {METRICS_PORT}\nclickhouse_enabled: false\n"
        f"kubernetes_source: kubeconfig:{kubeconfig}\ncloud_ranges_dir: {ranges}\n"
    )
    return config
