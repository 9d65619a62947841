"""Certificates, credentials and servers that change under a sink, which is never restarted."""

from __future__ import annotations

import asyncio
import datetime
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink, TlsConfig
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.clickhouse_server import ClickHouseServer
from tests.clickhouse.conftest import INSERT_SETTINGS, make_block
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

HOST = "127.0.0.1"
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)


class Certificates:
    """An authority of this test's own, whose certificates lie in files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._authority = trustme.CA()
        self.ca = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str, *, expired: bool = False, authority: trustme.CA | None = None) -> str:
        path = self._directory / f"{name}.pem"
        path.unlink(missing_ok=True)
        certificate = (authority or self._authority).issue_cert(
            HOST, not_after=YESTERDAY if expired else None
        )
        certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
        return str(path)

    def replace_authority(self) -> None:
        """As a cluster's issuer does: another CA in the same file."""
        self._authority = trustme.CA()
        self.ca.unlink()
        self._authority.cert_pem.write_to_path(str(self.ca))


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


async def test_an_expired_certificate_is_named_and_its_successor_taken(
    tmp_path: Path, certificates: Certificates
) -> None:
    server = certificates.issue("server")
    async with clickhouse_front(tmp_path / "engine", "--certificate", server) as front:
        tls = TlsConfig(ca=str(certificates.ca))
        config = TcpConfig((front.endpoint,), tls=tls, dial_timeout=3, request_timeout=5)
        sink = TcpSink(config)
        await apply(sink, SchemaOptions("rotated"))
        running = Running(quick("rotated"), sink)
        assert await running.commit("before") is CommitOutcome.COMMITTED

        await front.command(certificate=certificates.issue("expired", expired=True), drop=True)
        waiting = [asyncio.create_task(running.commit(f"waits-{number}")) for number in range(3)]
        await running.until("certificate has expired")
        assert not any(task.done() for task in waiting)
        await front.command(certificate=certificates.issue("renewed"))
        assert set(await asyncio.gather(*waiting)) == {CommitOutcome.COMMITTED}

        certificates.replace_authority()
        await front.command(certificate=certificates.issue("other"), drop=True)
        assert await running.commit("other authority") is CommitOutcome.COMMITTED
        assert await running.total() == 50
        await running.end()


async def answer(sink: TcpSink) -> list[tuple[object, ...]]:
    """What is asked first over a connection that the other end is dropping is asked again."""
    try:
        return await sink.query("SELECT 1")
    except ClickHouseUnreachableError:
        return await sink.query("SELECT 1")


async def test_a_client_certificate_is_read_at_every_connect(
    tmp_path: Path, certificates: Certificates
) -> None:
    server = certificates.issue("server")
    options = ("--certificate", server, "--client-ca", str(certificates.ca))
    async with clickhouse_front(tmp_path / "engine", *options) as front:
        mounted = certificates.issue("client", expired=True)
        tls = TlsConfig(ca=str(certificates.ca), certificate=mounted)
        sink = TcpSink(TcpConfig((front.endpoint,), tls=tls, dial_timeout=3, request_timeout=5))
        with pytest.raises(ClickHouseUnreachableError):
            await sink.query("SELECT 1")
        certificates.issue("client")
        assert await answer(sink) == [(1,)]
        (tmp_path / "client.pem").write_text("half a file")
        await front.command(drop=True)
        with pytest.raises(ConfigurationError, match="clickhouse_cert"):
            await answer(sink)
        certificates.issue("client")
        assert await answer(sink) == [(1,)]
        await sink.close()


async def test_a_key_with_a_password_is_refused_and_asks_nobody(
    tmp_path: Path, certificates: Certificates
) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = tmp_path / "locked.pem"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    tls = TlsConfig(certificate=certificates.issue("client"), key=str(key))
    with pytest.raises(ConfigurationError, match="clickhouse_cert"):
        await TcpSink(TcpConfig(("127.0.0.1:1",), tls=tls)).ping()


async def test_a_password_changed_in_the_mounted_secret_is_taken_up(
    tmp_path: Path, server: ClickHouseServer
) -> None:
    (tmp_path / "username").write_text("ann")
    (tmp_path / "password").write_text("old")
    sink = TcpSink(TcpConfig((server.endpoint,), tls=None, credentials_dir=str(tmp_path)))
    running = Running(quick("secret"), sink)
    await running.until("clickhouse_credentials_dir")
    (tmp_path / "password").write_text("first")
    await apply(sink, SchemaOptions("secret"))
    assert await running.commit("first") is CommitOutcome.COMMITTED
    assert running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="516") == 0  # no batch was tried
    assert await running.total() == 10
    await running.end()


@pytest.mark.parametrize(
    "fault",
    [
        {"at": "query", "do": "exception", "code": 242, "kind": "insert", "times": 0},
        {"at": "before_commit", "do": "stall", "kind": "insert", "times": 0},
        {"at": "hello", "do": "drop", "times": 0},
    ],
    ids=["read-only", "silent", "refusing"],
)
async def test_the_next_server_is_used_when_one_fails(
    tmp_path: Path,
    front: RunningFront,
    config: TcpConfig,
    remote_table: TableSchema,
    fault: dict[str, object],
) -> None:
    async with clickhouse_front(tmp_path / "other") as failing:
        endpoints = (failing.endpoint, front.endpoint)
        sink = TcpSink(replace(config, endpoints=endpoints, silence=3, dial_timeout=2))
        direct = TcpSink(TcpConfig((failing.endpoint,), tls=None))
        await apply(direct, SchemaOptions(remote_table.database))
        await direct.close()
        await failing.command(fault=fault)
        block = make_block(remote_table, 10)
        into = (remote_table.database, remote_table.table, block, "token", INSERT_SETTINGS)
        for attempt in range(2):
            try:
                await sink.insert(*into)
                break
            except (ClickHouseError, ClickHouseUnreachableError):
                assert attempt == 0
        for _ in range(3):  # and it stays in use
            await sink.insert(*into)
        assert await sink.query(f"SELECT sum(bytes) FROM {remote_table}") == [(10,)]
        assert (await failing.command())["commits"] == 0
        await sink.close()
