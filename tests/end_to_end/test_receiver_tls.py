"""TLS at the gRPC port: who may in, certificates that change while it runs, and peers that only wait."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import resource
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpclib.client
import pytest
import trustme
from grpclib.exceptions import GRPCError, StreamTerminatedError

from kubenetmon.agent.credentials import Credentials
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import catalogue
from kubenetmon.proto import FlowCollectorStub, Outcome
from kubenetmon.server import transport
from kubenetmon.server.doorway import Certificates, Doorway, DoorwayLimits
from kubenetmon.server.receiver import ReceiverConfig
from tests.beds.pages import page
from tests.beds.receiving import Rig, batch_message, running_receiver
from tests.beds.server_process import Server

QUICK = ReceiverConfig(stop_grace=2.0, message_timeout=0.5)
CROWDED = 'kubenetmon_server_refused_total{reason="crowded"}'
FAILURES = (OSError, GRPCError, StreamTerminatedError, asyncio.CancelledError)


class Files:
    """Certificates of both sides in files, as a Secret that is mounted holds them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = trustme.CA()
        self.issue()

    def issue(self) -> None:
        """New certificates of the CA as it is now, in place of the old."""
        for side, names in (("server", ("127.0.0.1", "localhost")), ("agent", ("node-a",))):
            issued = self.authority.issue_cert(*names)
            self._write(f"{side}.key", issued.private_key_pem.bytes())
            self._write(f"{side}.crt", b"".join(part.bytes() for part in issued.cert_chain_pems))
        self._write("ca.crt", self.authority.cert_pem.bytes())

    def _write(self, name: str, content: bytes) -> None:
        fresh = self.directory / f"{name}.new"
        fresh.write_bytes(content)
        fresh.replace(self.directory / name)

    def path(self, name: str) -> Path:
        return self.directory / name

    def certificates(self, *, mutual: bool = True) -> Certificates:
        """The server's side; looks for changes at every connection."""
        ticks = iter(range(10**9))
        client_ca = self.path("ca.crt") if mutual else None
        return Certificates(
            self.path("server.crt"), self.path("server.key"), client_ca, now=lambda: float(next(ticks))
        )

    def agent(self, *, certificate: bool = True) -> ssl.SSLContext:
        """The agent's side, as the agent itself makes it."""
        credentials = Credentials(
            ca=self.path("ca.crt"),
            certificate=self.path("agent.crt") if certificate else None,
            key=self.path("agent.key") if certificate else None,
        )
        credentials.check()
        context, _ = credentials.current()
        assert context is not None
        return context


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


@contextlib.asynccontextmanager
async def serving(
    files: Files, limits: DoorwayLimits | None = None, *, mutual: bool = True
) -> AsyncIterator[Rig]:
    context = files.certificates(mutual=mutual).context
    async with running_receiver(
        QUICK, doorway=lambda refusals: Doorway(context, refusals, limits)
    ) as running:
        yield running


async def push(port: int, tls: ssl.SSLContext | None) -> Outcome:
    """One batch; its outcome. Raises what the connection fails with."""
    now = int(time.time())
    async with asyncio.timeout(10):
        channel = grpclib.client.Channel("127.0.0.1", port, ssl=tls)
        try:
            async for ack in FlowCollectorStub(channel).push([batch_message(5, start=now - 60, end=now)]):
                return ack.outcome
        finally:
            channel.close()
    raise AssertionError("no answer")


def refused(rig: Rig, reason: str) -> float:
    return rig.metrics.value(catalogue.SERVER_REFUSED, reason=reason)


async def until(condition: Callable[[], bool], within: float = 10.0) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


async def assert_refused(rig: Rig, tls: ssl.SSLContext | None, reason: str) -> None:
    before = refused(rig, reason)
    with pytest.raises(FAILURES):
        await push(rig.port, tls)
    await until(lambda: refused(rig, reason) == before + 1)
    assert not rig.pipeline.batches
    assert rig.receiver.connections == 0


async def test_agents_of_the_ca_are_served_and_nobody_else(files: Files) -> None:
    async with serving(files) as rig:
        stranger = files.agent(certificate=False)
        trustme.CA().issue_cert("node-a").configure_cert(stranger)
        await assert_refused(rig, stranger, "certificate")
        await assert_refused(rig, files.agent(certificate=False), "certificate")
        yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
        expired = files.agent(certificate=False)
        files.authority.issue_cert("node-a", not_after=yesterday).configure_cert(expired)
        await assert_refused(rig, expired, "certificate")
        await assert_refused(rig, None, "plain_text")
        old_version = files.agent()
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old_version.minimum_version = ssl.TLSVersion.TLSv1_1
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old_version.maximum_version = ssl.TLSVersion.TLSv1_1
        await assert_refused(rig, old_version, "handshake")
        assert await push(rig.port, files.agent()) is Outcome.COMMITTED
        assert rig.readiness.ready


async def test_an_agent_trusts_only_its_ca(files: Files) -> None:
    async with serving(files, mutual=False) as rig:
        elsewhere = ssl.create_default_context(cafile=None)
        trustme.CA().configure_trust(elsewhere)
        await assert_refused(rig, elsewhere, "handshake")
        assert await push(rig.port, files.agent(certificate=False)) is Outcome.COMMITTED


async def test_certificates_rotate_without_restart(files: Files) -> None:
    async with serving(files) as rig:
        before = files.agent()
        assert await push(rig.port, before) is Outcome.COMMITTED
        files.issue()
        assert await push(rig.port, before) is Outcome.COMMITTED
        assert await push(rig.port, files.agent()) is Outcome.COMMITTED
        rig.pipeline.batches.clear()
        files.authority = trustme.CA()  # and now the CA itself
        files.issue()
        trusting = files.agent(certificate=False)
        before.load_verify_locations(files.path("ca.crt"))
        await assert_refused(rig, before, "certificate")
        await assert_refused(rig, trusting, "certificate")
        assert await push(rig.port, files.agent()) is Outcome.COMMITTED


async def test_certificates_that_cannot_be_read_leave_the_old_ones_in_use(
    files: Files, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(files) as rig:
        agent = files.agent()
        files.path("server.key").write_text("no key")
        assert await push(rig.port, agent) is Outcome.COMMITTED
        assert "the one before stays in use" in caplog.text
        files.path("server.key").unlink()
        assert await push(rig.port, agent) is Outcome.COMMITTED
        files.issue()
        assert await push(rig.port, files.agent()) is Outcome.COMMITTED


@pytest.mark.parametrize(("broken", "named"), [("server.key", "tls_key"), ("ca.crt", "tls_client_ca")])
def test_a_broken_file_is_named_at_start(files: Files, broken: str, named: str) -> None:
    files.path(broken).write_text("nothing of the kind")
    with pytest.raises(ConfigurationError, match=named):
        files.certificates()


async def test_an_old_context_stays_good_for_connections_that_use_it(files: Files) -> None:
    async with serving(files) as rig:
        channel = grpclib.client.Channel("127.0.0.1", rig.port, ssl=files.agent())
        now = int(time.time())
        stub = FlowCollectorStub(channel)
        for _ in range(2):
            async for ack in stub.push([batch_message(5, start=now - 60, end=now)]):
                assert ack.outcome is Outcome.COMMITTED
            files.authority = trustme.CA()
            files.issue()
        channel.close()
        assert rig.receiver.connections_accepted == 1


def resident(process: int) -> int:
    """Bytes of a process in memory now."""
    statm = Path(f"/proc/{process}/statm").read_text()
    return int(statm.split()[1]) * resource.getpagesize()


def metric(server: Server, name: str) -> float:
    lines = page(server.metrics_port, "/metrics")[1].decode().splitlines()
    return next(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))


async def test_ten_thousand_idle_connections_keep_no_agent_out(files: Files) -> None:
    """A server as users run it; each idle connection comes from one of two hundred addresses."""
    server = Server(
        files.directory,
        clickhouse_enabled=False,
        tls_cert=str(files.path("server.crt")),
        tls_key=str(files.path("server.key")),
        tls_client_ca=str(files.path("ca.crt")),
    )
    agent = files.agent()
    with server.running() as process:
        await asyncio.to_thread(server.wait_ready)
        assert await push(server.grpc_port, agent) is Outcome.COMMITTED
        before = resident(process.pid)
        idle: list[socket.socket] = []
        try:
            for number in range(10_000):
                one = socket.socket()
                one.setblocking(False)
                one.bind((f"127.0.{number % 200}.1", 0))
                one.connect_ex(("127.0.0.1", server.grpc_port))
                idle.append(one)
                if number % 200 == 0:
                    await asyncio.sleep(0.01)
                if number % 2500 == 0:
                    assert await push(server.grpc_port, agent) is Outcome.COMMITTED
            assert await push(server.grpc_port, agent) is Outcome.COMMITTED
            assert resident(process.pid) - before < 96 << 20
            assert await asyncio.to_thread(metric, server, CROWDED) > 2000  # the rest the kernel holds off
        finally:
            for one in idle:
                one.close()


async def test_a_handshake_that_does_not_go_on_is_given_up(files: Files) -> None:
    async with serving(files, DoorwayLimits(handshake_timeout=0.3)) as rig:
        for beginning in (b"", b"\x16\x03\x01\x02\x00\x01\x00"):
            before = refused(rig, "slow_handshake")
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(beginning)
            async with asyncio.timeout(5):
                with contextlib.suppress(ConnectionError):
                    await reader.read()
            writer.close()
            assert refused(rig, "slow_handshake") == before + 1


async def test_connections_that_ask_for_nothing_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain text: they are closed after a while, and at once where others want in."""
    monkeypatch.setattr(transport, "FIRST_REQUEST_WITHIN", 0.5)
    async with running_receiver(ReceiverConfig(max_connections=20)) as rig:
        talking = grpclib.client.Channel("127.0.0.1", rig.port)
        now = int(time.time())
        async for _ in FlowCollectorStub(talking).push([batch_message(5, start=now - 60, end=now)]):
            pass
        idle = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(50)]
        assert await push(rig.port, None) is Outcome.COMMITTED
        assert rig.receiver.connections <= 20
        assert refused(rig, "idle") >= 30
        await until(lambda: rig.receiver.connections == 1)
        async for _ in FlowCollectorStub(talking).push([batch_message(5, start=now - 60, end=now)]):
            pass
        assert rig.receiver.connections == 1
        talking.close()
        for _, writer in idle:
            writer.close()
