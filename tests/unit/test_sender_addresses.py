"""Spreading over a Service's addresses, TLS and the token: real servers, only the name server is replaced."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from kubenetmon.agent.addresses import Addresses
from kubenetmon.agent.connection import Connection, Timeouts
from kubenetmon.agent.credentials import Credentials
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.errors import ConfigurationError
from tests.beds.collector_server import CollectorServer
from tests.unit.sending import FAST, Bed, sending


def names_resolve_to(monkeypatch: pytest.MonkeyPatch, addresses: list[str]) -> None:
    """Every name is these addresses, as the list stands at each look-up."""

    async def getaddrinfo(host: str, port: int, **_: object) -> list[tuple[object, ...]]:
        if not addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    loop = asyncio.get_running_loop()
    real = loop.getaddrinfo

    async def by_name(host: object, port: object, **options: object) -> object:
        if host == "replicas":
            return await getaddrinfo(str(host), int(str(port)), **options)
        return await real(host, port, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "getaddrinfo", by_name)


@asynccontextmanager
async def fleet(port: int, agents: int) -> AsyncIterator[list[Bed]]:
    async with AsyncExitStack() as stack:
        beds = []
        for number in range(agents):
            config = replace(FAST, host="replicas", push=replace(FAST.push, longest_session=0.5))
            bed = await stack.enter_async_context(sending(port, config, chance=random.Random(number)))
            beds.append(bed)
        yield beds


async def test_agents_spread_move_when_a_replica_dies_and_find_a_new_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    addresses = ["127.0.0.1", "127.0.0.2", "127.0.0.3"]
    names_resolve_to(monkeypatch, addresses)
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(CollectorServer(host=addresses[0]))]
        port = servers[0].port
        servers += [
            await stack.enter_async_context(CollectorServer(host=address, port=port))
            for address in addresses[1:]
        ]
        async with fleet(port, 24) as beds:

            async def report() -> Counter[str]:
                before = [len(server.batches) for server in servers]
                for bed in beds:
                    bed.seal()
                for bed in beds:
                    await bed.until_empty()
                return Counter(
                    {
                        server.host: len(server.batches) - count
                        for server, count in zip(servers, before, strict=True)
                    }
                )

            spread = await report()
            assert spread.total() == 24
            assert min(spread.values()) >= 2
            await servers[0].stop()
            moved = await report()
            assert moved["127.0.0.1"] == 0
            assert moved.total() == 24
            await servers[0].start()
            found: Counter[str] = Counter()
            async with asyncio.timeout(10):
                while not found["127.0.0.1"]:
                    found += await report()
                    await asyncio.sleep(0.1)


async def test_a_name_that_does_not_resolve_is_said_and_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    addresses: list[str] = []
    names_resolve_to(monkeypatch, addresses)
    async with CollectorServer() as server, sending(server.port, replace(FAST, host="replicas")) as bed:
        bed.seal()
        await asyncio.sleep(0.1)
        assert "replicas does not resolve" in caplog.text
        addresses.append("127.0.0.1")
        await bed.until_empty()
        assert bed.readiness.ready


async def test_the_address_that_failed_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    names_resolve_to(monkeypatch, ["192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.2"])
    addresses = Addresses("replicas", 1, clock=SYSTEM_CLOCK, chance=random.Random(1))
    assert {tuple(sorted(await addresses.candidates())) for _ in range(5)} == {
        ("192.0.2.1", "192.0.2.2", "192.0.2.3")
    }
    assert len({(await addresses.candidates())[0] for _ in range(50)}) == 3
    addresses.failed("192.0.2.2")
    assert {(await addresses.candidates())[-1] for _ in range(20)} == {"192.0.2.2"}


def server_context(authority: trustme.CA, *, clients: trustme.CA | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    authority.issue_cert("localhost").configure_cert(context)
    if clients is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        clients.configure_trust(context)
    return context


async def test_tls_with_a_client_certificate_and_a_token_that_rotates(tmp_path: Path) -> None:
    authority, clients = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    own = clients.issue_cert("agent@cluster.local")
    own.private_key_pem.write_to_path(tmp_path / "key.pem")
    own.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    (tmp_path / "token").write_text("first\n")
    credentials = Credentials(
        ca=tmp_path / "ca.pem",
        certificate=tmp_path / "cert.pem",
        key=tmp_path / "key.pem",
        token=tmp_path / "token",
    )
    config = replace(
        FAST, host="localhost", credentials=credentials, push=replace(FAST.push, longest_session=0.2)
    )
    tls = server_context(authority, clients=clients)
    async with CollectorServer(tls=tls) as server, sending(server.port, config) as bed:
        bed.seal()
        await bed.until_empty()
        assert server.metadata[-1]["authorization"] == "Bearer first"
        (tmp_path / "token").write_text("second\n")
        async with asyncio.timeout(10):
            while server.metadata[-1]["authorization"] != "Bearer second":
                bed.seal()
                await bed.until_empty()
                await asyncio.sleep(0.05)
        (tmp_path / "token").unlink()
        streams = server.streams
        async with asyncio.timeout(10):
            while server.streams == streams:
                bed.seal()
                await bed.until_empty()
                await asyncio.sleep(0.05)
        assert server.metadata[-1]["authorization"] == "Bearer second"


async def test_a_server_that_the_ca_did_not_sign_gets_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    config = replace(FAST, host="localhost", credentials=Credentials(ca=tmp_path / "ca.pem"))
    async with (
        CollectorServer(tls=server_context(trustme.CA())) as server,
        sending(server.port, config) as bed,
    ):
        bed.seal()
        await asyncio.sleep(0.2)
        assert not server.batches
        assert "certificate verify failed" in caplog.text


@pytest.mark.parametrize("content", ["", "two words", "a\nb", "caf\u00e9", "x" * 20_000])
def test_a_file_without_a_token_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "token").write_text(content)
    with pytest.raises(ConfigurationError, match=r"KUBENETMON_TOKEN_FILE: .*token"):
        Credentials(token=tmp_path / "token").check()


def test_tls_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "nonsense").write_text("nonsense")
    with pytest.raises(ConfigurationError, match=r"KUBENETMON_TLS_CA: .*missing.*No such file"):
        Credentials(ca=tmp_path / "missing").check()
    with pytest.raises(ConfigurationError, match=r"KUBENETMON_TLS_CA: .*nonsense is not"):
        Credentials(ca=tmp_path / "nonsense").check()
    with pytest.raises(ConfigurationError, match=r"KUBENETMON_TLS_CERT and _KEY: .*nonsense is not"):
        Credentials(certificate=tmp_path / "nonsense", key=tmp_path / "nonsense").check()


async def test_the_kernel_is_asked_to_notice_peers_that_are_gone() -> None:
    timeouts = Timeouts(dead_peer=12)
    async with CollectorServer() as server:
        connection = Connection(
            server.host,
            server.port,
            server_name=server.host,
            tls=None,
            metadata={},
            timeouts=timeouts,
            clock=SYSTEM_CLOCK,
        )
        await connection.open()
        protocol = connection._channel._protocol
        assert protocol is not None
        sock = protocol.connection._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 12_000
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 6
        connection.close()
