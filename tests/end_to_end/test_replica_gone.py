"""A server whose host vanishes without a word: its packets are dropped in a network of real namespaces.

Agents are the real sender, the first time under time limits as shipped.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import pytest

from kubenetmon.agent.connection import Timeouts
from kubenetmon.agent.push import PushConfig
from kubenetmon.agent.sender import SenderConfig
from kubenetmon.demo.network import Namespace, create_namespace, veth_pair
from tests.beds.collector_server import CollectorServer
from tests.unit.sending import FAST, Bed, sending
from tests.unit.test_sender_addresses import names_resolve_to

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

GONE, THERE, AGENTS = "192.0.2.1", "192.0.2.2", "192.0.2.100"
PORT = 8884
AS_SHIPPED = replace(FAST, host="replicas", push=PushConfig(), timeouts=Timeouts())
SOONER = replace(AS_SHIPPED, timeouts=replace(Timeouts(), connect=1.0, dead_peer=7))


@dataclass
class Replicas:
    """Two servers in a namespace, in a thread of their own."""

    namespace: Namespace
    servers: dict[str, CollectorServer] = field(default_factory=dict)
    listening: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)

    def serve(self) -> None:
        self.namespace.call(lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        async with AsyncExitStack() as stack:
            for host in (GONE, THERE):
                self.servers[host] = await stack.enter_async_context(CollectorServer(host=host, port=PORT))
            self.listening.set()
            await asyncio.to_thread(self.ended.wait)

    def vanish(self, host: str) -> None:
        """No packet from or to the address any more, and nobody is told."""
        rules = f"ip saddr {host} drop; ip daddr {host} drop;"
        chains = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority 0; {rules} }}" for hook in ("input", "output")
        )
        self.namespace.nft(f"table ip vanished {{\n{chains}\n}}")


@pytest.fixture
def network() -> Iterator[tuple[Namespace, Replicas]]:
    agents, servers = create_namespace("agents"), create_namespace("servers")
    try:
        veth_pair(agents, "eth0", servers, "eth0")
        agents.address("eth0", f"{AGENTS}/24")
        for host in (GONE, THERE):
            servers.address("eth0", f"{host}/24")
        replicas = Replicas(servers)
        thread = threading.Thread(target=replicas.serve)
        thread.start()
        assert replicas.listening.wait(10)
        yield agents, replicas
        replicas.ended.set()
        thread.join(10)
    finally:
        agents.delete()
        servers.delete()


def connected(beds: list[Bed], host: str) -> list[Bed]:
    """Those whose /ready says so."""
    return [bed for bed in beds if f"connected to {host}" in str(bed.readiness.report()["checks"])]


@pytest.mark.parametrize(
    ("idle", "config", "within"), [(False, AS_SHIPPED, 20.0), (True, SOONER, 6.5)], ids=["on the way", "idle"]
)
def test_agents_move_within_seconds(
    network: tuple[Namespace, Replicas],
    monkeypatch: pytest.MonkeyPatch,
    idle: bool,
    config: SenderConfig,
    within: float,
) -> None:
    agents, replicas = network

    async def work() -> None:
        names_resolve_to(monkeypatch, [GONE, THERE])
        async with AsyncExitStack() as stack:
            beds = [
                await stack.enter_async_context(sending(PORT, config, chance=random.Random(number)))
                for number in range(6)
            ]
            for bed in beds:
                bed.seal()
                await bed.until_empty()
            assert 0 < len(connected(beds, GONE)) < 6
            replicas.vanish(GONE)
            if idle:
                await asyncio.sleep(9)  # what is noticed meanwhile costs the next report no time
            for bed in beds:
                bed.seal()
            await asyncio.gather(*(bed.until_empty(within) for bed in beds))
            assert len(connected(beds, THERE)) == 6

    agents.call(lambda: asyncio.run(work()))
    arrived = [batch for server in replicas.servers.values() for batch in server.batches]
    assert len({(batch.epoch, batch.sequence) for batch in arrived}) == 12
