"""Server and agent as the charts with `secure: true` run them: the server in a cluster under its own service
account, certificates of deploy/certificates, a projected token; real processes, a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import IO

import pytest
import yaml

from kubenetmon.demo.network import Namespace
from tests.beds.charts import environment
from tests.beds.kubernetes import Cluster
from tests.beds.machine import COUNTERS, MACHINE, TALK, machine_and_peer
from tests.beds.manifests import BASE_VALUES, ROOT, pick, render_chart
from tests.beds.pages import page
from tests.beds.ports import free_port
from tests.beds.server_process import RANGES

pytestmark = [pytest.mark.apiserver, pytest.mark.root, pytest.mark.slow]

SECURE = {"secure": True}
SERVER_HOST = "kubenetmon-server.kubenetmon-server.svc.cluster.local"
# $1: directory with ca.crt and token, as kubelet mounts it; $2: a file to be /etc/hosts; the rest: a command.
AS_POD = """
mount -t tmpfs tmpfs /run
mkdir -p /run/secrets/kubernetes.io
cp -r "$1" /run/secrets/kubernetes.io/serviceaccount
mount --bind "$2" /etc/hosts
shift 2
exec "$@"
"""


class Pods:
    """The two processes' surroundings."""

    def __init__(self, cluster: Cluster, directory: Path) -> None:
        self.cluster = cluster
        self.directory = directory
        self.metrics_port, self.grpc_port = free_port(), free_port()
        self.agents: list[subprocess.Popen[bytes]] = []
        self._files: list[IO[bytes]] = []
        subprocess.run([ROOT / "deploy" / "certificates", "1", directory / "tls"], check=True)
        for side in ("agent", "server"):
            mounted = directory / f"{side}-tls"
            mounted.mkdir()
            for file, key in (("tls.crt", f"{side}.crt"), ("tls.key", f"{side}.key"), ("ca.crt", "ca.crt")):
                (mounted / file).write_bytes((directory / "tls" / key).read_bytes())
        account = directory / "account"
        account.mkdir()
        (account / "ca.crt").write_bytes(cluster.certificate_authority.read_bytes())
        (account / "token").write_text(cluster.token("kubenetmon-server", "kubenetmon-server"))
        (directory / "hosts").write_text(f"127.0.0.1 localhost {SERVER_HOST}\n")

    def _command(self, *command: str) -> list[str]:
        surroundings = [str(self.directory / "account"), str(self.directory / "hosts")]
        return ["unshare", "--mount", "sh", "-ec", AS_POD, "sh", *surroundings, *command]

    def server(self) -> subprocess.Popen[bytes]:
        """With the chart's configuration; only places and ports are the test's."""
        objects = render_chart("server", {**BASE_VALUES["server"], **SECURE, "inserter": {"enabled": False}})
        config = self.directory / "config.yaml"
        config.write_text(pick(objects, "ConfigMap")["data"]["config.yaml"])
        tls = self.directory / "server-tls"
        changes = {
            "metrics_port": self.metrics_port,
            "grpc_port": self.grpc_port,
            "cloud_ranges_dir": RANGES,
            "tls_cert": tls / "tls.crt",
            "tls_key": tls / "tls.key",
            "tls_client_ca": tls / "ca.crt",
        }
        assert set(changes) - {"cloud_ranges_dir"} <= set(yaml.safe_load(config.read_text()))
        overrides = [f"--set={name}={value}" for name, value in changes.items()]
        program = [sys.executable, "-m", "kubenetmon", "--role=server", f"--config={config}"]
        return subprocess.Popen(
            self._command(*program, *overrides),
            stdin=subprocess.DEVNULL,
            stderr=self._log("server"),
            env={
                "PATH": os.environ["PATH"],
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(self.cluster.port),
            },
        )

    def agent(self, machine: Namespace, node: str) -> subprocess.Popen[bytes]:
        """With the chart's environment, on a node of that name."""
        token = self.directory / "token"
        account = ("kubenetmon-agent", "kubenetmon-agent")
        token.write_text(self.cluster.token(*account, pod="agent", audience="kubenetmon-server"))
        variables = environment(pick(render_chart("agent", SECURE), "DaemonSet"))
        assert variables["KUBENETMON_SERVER_SERVICE_HOST"] == SERVER_HOST
        tls = self.directory / "agent-tls"
        variables |= {
            "PATH": os.environ["PATH"],
            "NODE_NAME": node,
            "COLLECTION_INTERVAL": "1s",
            "KUBENETMON_REPORT_INTERVAL": "2s",
            "KUBENETMON_STATE_DIR": str(self.directory / f"state-{node}"),
            "KUBENETMON_TLS_CA": str(tls / "ca.crt"),
            "KUBENETMON_TLS_CERT": str(tls / "tls.crt"),
            "KUBENETMON_TLS_KEY": str(tls / "tls.key"),
            "KUBENETMON_TOKEN_FILE": str(token),
        }
        process = machine.popen(
            self._command(sys.executable, "-m", "kubenetmon", "--role=agent"),
            environment=variables,
            stderr=self._log(f"agent-{node}"),
        )
        self.agents.append(process)
        return process

    def _log(self, who: str) -> IO[bytes]:
        file = (self.directory / f"{who}.log").open("wb")
        self._files.append(file)
        return file

    def close(self) -> None:
        """End the agents and let the logs go."""
        for process in self.agents:
            process.kill()
            process.wait()
        for file in self._files:
            file.close()

    def metric(self, name: str) -> float:
        """One of the server's."""
        text = page(self.metrics_port, "/metrics")[1].decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def said(self, who: str) -> str:
        """A log."""
        return (self.directory / f"{who}.log").read_text()


@contextlib.asynccontextmanager
async def relay(machine: Namespace, port: int) -> AsyncIterator[None]:
    """Port 8884 of the machine's loopback leads to a port of this one's."""
    tasks: set[asyncio.Task[None]] = set()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        there, back = await asyncio.open_connection("127.0.0.1", port)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # asyncio's streams take it ill
                await asyncio.gather(forward(reader, back), forward(there, writer))
        finally:
            writer.close()
            back.close()

    listener = machine.call(lambda: socket.create_server(("127.0.0.1", 8884)))
    server = await asyncio.start_server(serve, sock=listener)
    try:
        yield
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool], what: Callable[[], str], within: float = 60.0) -> None:
    deadline = time.monotonic() + within
    while True:
        with contextlib.suppress(OSError):
            if await asyncio.to_thread(condition):
                return
        assert time.monotonic() < deadline, what()
        await asyncio.sleep(0.2)


def end(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(40)


@pytest.mark.timeout(240)
async def test_an_agent_meters_its_node_and_is_refused_another(cluster: Cluster, tmp_path: Path) -> None:
    for part in ("agent", "server"):
        cluster.create_namespace(f"kubenetmon-{part}")
        cluster.create_service_account(f"kubenetmon-{part}", f"kubenetmon-{part}")
    for one in render_chart("server", {**BASE_VALUES["server"], **SECURE}):
        if "ClusterRole" in one["kind"]:
            cluster.apply_server_side(one)
    cluster.create_node("node-a", address=MACHINE)
    cluster.create_node("node-b", address="198.51.100.9")
    cluster.create_pod(
        "agent",
        node="node-a",
        address=MACHINE,
        namespace="kubenetmon-agent",
        host_network=True,
        account="kubenetmon-agent",
    )
    pods = Pods(cluster, tmp_path)
    with machine_and_peer() as (machine, _):
        machine.nft(COUNTERS.replace("th sport", "ct state != invalid th sport"))
        machine.ip("link", "set", "lo", "up")
        for name in ("acct", "events", "timestamp"):
            machine.sysctl(f"net.netfilter.nf_conntrack_{name}", 1)
        server = pods.server()
        try:
            await until(lambda: page(pods.metrics_port, "/ready")[0] == 200, lambda: pods.said("server"))
            async with relay(machine, pods.grpc_port):
                agent = pods.agent(machine, "node-a")
                await until(
                    lambda: pods.metric("kubenetmon_server_agents") >= 1, lambda: pods.said("agent-node-a")
                )
                await asyncio.sleep(1.5)  # the agent's first read is its baseline
                await asyncio.to_thread(machine.run, [sys.executable, "-c", TALK])
                assert await asyncio.to_thread(end, agent) == 0, pods.said("agent-node-a")
                seen = machine.counters()["seen"].bytes
                received = 'kubenetmon_server_received_total{unit="bytes"}'
                await until(
                    lambda: pods.metric(received) == seen, lambda: f"{pods.metric(received)} of {seen}"
                )
                pods.agent(machine, "node-b")
                refused = 'kubenetmon_server_refused_total{reason="node"}'
                await until(
                    lambda: pods.metric("kubenetmon_server_agents") >= 1, lambda: pods.said("agent-node-b")
                )
                await asyncio.sleep(1.5)
                await asyncio.to_thread(machine.run, [sys.executable, "-c", TALK])
                await until(lambda: pods.metric(refused) >= 1, lambda: pods.said("agent-node-b"))
                await until(
                    lambda: "PERMISSION_DENIED" in pods.said("agent-node-b"),
                    lambda: pods.said("agent-node-b"),
                )
            assert pods.metric(received) == seen
        finally:
            stopped = await asyncio.to_thread(end, server)
            pods.close()
    assert stopped == 0
    everything_said = pods.said("server") + pods.said("agent-node-a") + pods.said("agent-node-b")
    assert "Traceback" not in everything_said
    for secret in (tmp_path / "token", tmp_path / "account" / "token", tmp_path / "tls" / "agent.key"):
        lines = secret.read_text().strip().splitlines()
        assert lines[1 if secret.suffix == ".key" else 0] not in everything_said
