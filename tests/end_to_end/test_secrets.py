"""Real processes meet every failure with secrets in hand, at log level debug; nothing that they show has one.

And what /metrics tells to whoever reads it: sums, of no pod and no address.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpclib.client
import numpy as np
import pytest
import trustme
import yaml
from grpclib.exceptions import GRPCError, StreamTerminatedError

from kubenetmon.proto import FlowCollectorStub
from tests.beds.clickhouse_server import User, clickhouse_server
from tests.beds.pages import page
from tests.beds.ports import free_port
from tests.beds.receiving import batch_message
from tests.beds.server_process import PATIENCE, Server
from tests.clickhouse.test_hostile_server import hostile, text

PASSWORD = "word-of-clickhouse-7d1f"
API_TOKEN = "token-of-the-api-93aa"
SIGNATURE = "signature-of-an-agent-c40e"
OPAQUE = "token-that-is-none-5b2c"
PROXY_PASSWORD = "word-of-the-proxy-e8d0"
FAILURES = (OSError, GRPCError, StreamTerminatedError, asyncio.CancelledError)


def agent_token() -> str:
    """As an agent's own would look; what it is worth only the API could say, which is away."""

    def encoded(content: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).rstrip(b"=").decode()

    claims = {
        "aud": ["kubenetmon-server"],
        "exp": int(time.time()) + 3600,
        "sub": "system:serviceaccount:kubenetmon-agent:kubenetmon-agent",
    }
    signature = base64.urlsafe_b64encode(SIGNATURE.encode()).decode()
    return f"{encoded({'alg': 'RS256'})}.{encoded(claims)}.{signature}"


def write_tls(directory: Path) -> Path:
    """Certificates of both sides in `directory`, and the keys' text as what must not be seen."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    for side, name in (("server", "127.0.0.1"), ("agent", "node-a")):
        issued = authority.issue_cert(name)
        issued.private_key_pem.write_to_path(str(directory / f"{side}.key"))
        issued.cert_chain_pems[0].write_to_path(str(directory / f"{side}.pem"))
    return directory


def secrets_of(directory: Path) -> list[str]:
    """Everything that must never be seen."""
    keys = [(directory / f"{side}.key").read_text().splitlines()[2] for side in ("server", "agent")]
    signature = base64.urlsafe_b64encode(SIGNATURE.encode()).decode()
    return [PASSWORD, API_TOKEN, SIGNATURE, signature, OPAQUE, PROXY_PASSWORD, *keys]


def kubeconfig(directory: Path) -> Path:
    """Of an API that is away."""
    path = directory / "kubeconfig"
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
        "clusters": [{"name": "test", "cluster": {"server": f"https://127.0.0.1:{free_port()}"}}],
        "users": [{"name": "test", "user": {"token": API_TOKEN}}],
    }
    path.write_text(yaml.safe_dump(content))
    return path


def fetch(port: int, path: str) -> str:
    return page(port, path)[1].decode(errors="replace")


def every_page(port: int) -> str:
    """All that a port has to say, once it is served; who asks for what is not there is told what is."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "nobody serves the port"
            time.sleep(0.1)
    known = fetch(port, "/nothing").partition("there are ")[2].strip().split(", ")
    assert "/live" in known
    return "\n".join(fetch(port, path) for path in known)


async def knock(port: int, directory: Path) -> None:
    """Be refused in every way: plain text, without a token, with one that is none, with one for the API."""
    tls = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    tls.load_cert_chain(str(directory / "agent.pem"), str(directory / "agent.key"))
    tls.set_alpn_protocols(["h2"])
    for context, token in ((None, OPAQUE), (tls, ""), (tls, OPAQUE), (tls, agent_token())):
        channel = grpclib.client.Channel("127.0.0.1", port, ssl=context)
        metadata = {"authorization": f"Bearer {token}"} if token else {}
        with contextlib.suppress(*FAILURES):
            async with asyncio.timeout(10):
                async for _ in FlowCollectorStub(channel).push([batch_message(1)], metadata=metadata):
                    pass
        channel.close()


@contextlib.contextmanager
def secured(
    directory: Path, endpoint: str, **changes: object
) -> Iterator[tuple[Server, int, Callable[[], str]]]:
    """A server that has all the secrets and reaches nobody; also the page's port, and what it logged."""
    (directory / "username").write_text("metering")
    (directory / "password").write_text(PASSWORD + "\n")
    write_tls(directory)
    page_port = free_port()
    server = Server(
        directory,
        clickhouse_endpoint=endpoint,
        kubernetes_source=f"kubeconfig:{kubeconfig(directory)}",
        cloud_ranges_dir=None,
        cloud_ranges_cache=str(directory / "cache"),
        require_token=True,
        tls_cert=str(directory / "server.pem"),
        tls_key=str(directory / "server.key"),
        tls_client_ca=str(directory / "ca.pem"),
        page_port=page_port,
        **changes,
    )
    log = directory / "log"
    proxy = f"http://operator:{PROXY_PASSWORD}@127.0.0.1:{free_port()}"
    environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "HTTPS_PROXY": proxy}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*server.command, "--log-level", "debug"], stdout=output, stderr=output, env=environment
        )
        try:
            yield server, page_port, log.read_text
        except BaseException:
            print(log.read_text())
            raise
        finally:
            process.terminate()
            process.wait(PATIENCE)


def assert_keeps(said: str, secrets: list[str]) -> None:
    assert len(said) > 1000
    for secret in secrets:
        assert secret not in said, said[max(0, said.index(secret) - 300) : said.index(secret) + 100]


async def go_through(server: Server, page_port: int, directory: Path, says: str) -> str:
    """All that the server shows after it met everybody."""
    await asyncio.to_thread(server.reason, "clickhouse")
    await knock(server.grpc_port, directory)
    shown = await asyncio.to_thread(lambda: every_page(server.metrics_port) + every_page(page_port))
    shown += await asyncio.to_thread(fetch, page_port, "/api/ask?question=top")
    assert says in shown, shown
    return shown


@pytest.mark.chdb
async def test_a_server_shows_no_secret_whatever_fails(tmp_path: Path) -> None:
    with (
        clickhouse_server(tmp_path / "clickhouse", users=[User("metering", "another")]) as clickhouse,
        secured(tmp_path, clickhouse.endpoint, clickhouse_disable_tls=True) as (server, page_port, log),
    ):
        shown = await go_through(server, page_port, tmp_path, "metering")
        deadline = time.monotonic() + PATIENCE
        while "cannot be read" not in log() and time.monotonic() < deadline:  # noqa: ASYNC110 - a process
            await asyncio.sleep(0.2)
    assert "516" in shown
    said = log()
    assert "cannot be read" in said, "the ranges, through the proxy"
    assert_keeps(shown + said, secrets_of(tmp_path))


async def test_a_clickhouse_that_says_the_password_aloud_is_not_quoted(tmp_path: Path) -> None:
    refusal = b"\x02" + struct.pack("<i", 516) + text("DB::Exception")
    refusal += text(f"metering: wrong password {PASSWORD}") + text("") + b"\x00"
    with hostile(lambda: b"", refusal) as port:
        endpoint = f"127.0.0.1:{port}"
        with secured(tmp_path, endpoint, clickhouse_disable_tls=True) as (server, page_port, log):
            shown = await go_through(server, page_port, tmp_path, "wrong password")
    assert_keeps(shown + log(), secrets_of(tmp_path))


async def test_a_clickhouse_without_tls_gets_no_password(tmp_path: Path) -> None:
    """TLS with checked certificates is the default: whoever is there in its place learns nothing."""
    heard: list[bytes] = []
    visits: set[asyncio.Task[None] | None] = set()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        visits.add(asyncio.current_task())
        with contextlib.suppress(OSError):
            heard.append(await reader.read(1 << 16))
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    listener = await asyncio.start_server(listen, "127.0.0.1", 0)
    endpoint = f"127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    with secured(tmp_path, endpoint, clickhouse_disable_tls=None) as (server, page_port, log):
        shown = await go_through(server, page_port, tmp_path, "clickhouse")
    listener.close()
    await listener.wait_closed()
    await asyncio.gather(*filter(None, visits))  # the server that they came from is gone
    assert heard
    assert all(first[:1] == b"\x16" for first in heard if first)  # a TLS handshake
    assert not any(PASSWORD.encode() in first for first in heard)
    assert_keeps(shown + log(), secrets_of(tmp_path))


def test_a_secret_in_the_wrong_place_is_not_repeated(tmp_path: Path) -> None:
    for changes in ({"clickhouse_password": PASSWORD}, {"tls_key": str(tmp_path / "agent.key")}):
        write_tls(tmp_path)
        server = Server(tmp_path, tls_cert=str(tmp_path / "server.pem"),
                        **{"tls_key": str(tmp_path / "server.key"), **changes})  # fmt: skip
        status, said = server.outcome()
        assert status == 2
        for secret in secrets_of(tmp_path):
            assert secret not in said


@pytest.mark.root
def test_an_agent_shows_no_secret_whatever_fails(tmp_path: Path) -> None:
    from tests.beds.machine import machine_and_peer

    write_tls(tmp_path)
    (tmp_path / "token").write_text(agent_token())
    with machine_and_peer() as (machine, _):
        machine.ip("link", "set", "lo", "up")
        machine.sysctl("net.netfilter.nf_conntrack_acct", 1)
        log = tmp_path / "log"
        with log.open("wb") as output:
            agent = machine.popen(
                [sys.executable, "-m", "kubenetmon", "--role", "agent", "--log-level", "debug"],
                environment={
                    "PATH": os.environ["PATH"],
                    "NODE_NAME": "node-a",
                    "COLLECTION_INTERVAL": "1s",
                    "KUBENETMON_REPORT_INTERVAL": "1s",
                    "KUBENETMON_TLS_CA": str(tmp_path / "ca.pem"),
                    "KUBENETMON_TLS_CERT": str(tmp_path / "agent.pem"),
                    "KUBENETMON_TLS_KEY": str(tmp_path / "agent.key"),
                    "KUBENETMON_TOKEN_FILE": str(tmp_path / "token"),
                },
                stdout=output,
                stderr=output,
            )
            try:
                deadline = time.monotonic() + PATIENCE
                while b"refused" not in log.read_bytes().lower():
                    assert time.monotonic() < deadline, log.read_text()
                    time.sleep(0.1)
                shown = machine.call(lambda: every_page(8883))
            finally:
                agent.terminate()
                agent.wait(40)
    assert_keeps(shown + log.read_text(), secrets_of(tmp_path))


async def test_metrics_tell_no_address_no_pod_and_no_node(tmp_path: Path) -> None:
    pods = [
        {
            "kind": "Pod",
            "metadata": {
                "name": f"till-{n}",
                "namespace": "shop",
                "uid": str(n),
                "labels": {"k8s-app": "till"},
            },
            "spec": {"nodeName": "node-of-till"},
            "status": {"phase": "Running", "podIP": f"10.1.0.{n}", "podIPs": [{"ip": f"10.1.0.{n}"}]},
        }
        for n in range(1, 11)
    ]
    node: dict[str, Any] = {
        "kind": "Node",
        "metadata": {"name": "node-of-till"},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.10"}]},
    }
    (tmp_path / "cluster.json").write_text(json.dumps({"kind": "List", "items": [node, *pods]}))
    server = Server(tmp_path, clickhouse_enabled=False, pod_wait="10ms")
    with server.running():
        await asyncio.to_thread(server.wait_ready)
        now = int(time.time())
        message = batch_message(10, node="node-of-till", start=now - 60, end=now)
        assert message.ipv4 is not None
        sources = np.arange(1, 11, dtype="<u4") + 0x0A010000
        message.ipv4.original_source_address = sources.tobytes()
        message.ipv4.reply_destination_address = sources.tobytes()
        channel = grpclib.client.Channel("127.0.0.1", server.grpc_port)
        async for _ in FlowCollectorStub(channel).push([message]):
            pass
        channel.close()
        metrics = await asyncio.to_thread(fetch, server.metrics_port, "/metrics")
        rates = await asyncio.to_thread(fetch, server.metrics_port, "/rates")
    assert re.search(r'^kubenetmon_server_received_total\{unit="bytes"\} [1-9]', metrics, re.MULTILINE)
    assert "till" in rates, "the server knows whose it is, and tells those on its loopback"
    assert "till" not in metrics
    assert "shop" not in metrics
    assert not re.search(r"\b[0-9]{1,3}(\.[0-9]{1,3}){3}\b", metrics)
