"""Our agent reports to a server of the original: it notices, falls back to Submit, and every byte arrives."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc.aio
import pytest

from kubenetmon.demo.network import Namespace
from tests.beds.machine import COUNTERS, PEER, TALK, machine_and_peer
from tests.beds.original_server import OriginalServer, compile_messages

pytestmark = pytest.mark.root

PORTS = {7000, 7001}
_PATIENCE = 30.0


class PeersServer(OriginalServer):
    """Listens in the peer's namespace."""

    peer: Namespace

    def _bind(self, server: grpc.aio.Server) -> int:
        return self.peer.call(lambda: super(PeersServer, self)._bind(server))


async def test_an_original_server_gets_every_byte_by_submit(tmp_path: Path) -> None:
    with machine_and_peer() as (machine, peer):
        server = PeersServer(compile_messages(tmp_path), host=PEER, port=8884)
        server.peer = peer
        async with server:
            # The original meters what rules have switched on; here the test's own counters do.
            machine.nft(COUNTERS.replace("th sport", "ct state != invalid th sport"))
            for name in ("acct", "events", "timestamp"):
                machine.sysctl(f"net.netfilter.nf_conntrack_{name}", 1)
            log = tmp_path / "log"
            with log.open("wb") as output:
                agent = machine.popen(
                    [sys.executable, "-m", "kubenetmon", "--role", "agent"],
                    environment={
                        "PATH": os.environ["PATH"],
                        "NODE_NAME": "node-a",
                        "COLLECTION_INTERVAL": "1s",
                        "KUBENETMON_REPORT_INTERVAL": "2s",
                        "KUBENETMON_SERVER_SERVICE_HOST": PEER,
                        "KUBENETMON_SERVER_SERVICE_PORT": "8884",
                    },
                    stdout=output,
                    stderr=subprocess.STDOUT,
                )
            try:
                async with asyncio.timeout(_PATIENCE):
                    while b"Submit" not in log.read_bytes():  # noqa: ASYNC110 - another process says it
                        await asyncio.sleep(0.1)
                await asyncio.to_thread(machine.run, [sys.executable, "-c", TALK])
            finally:
                agent.send_signal(signal.SIGTERM)
                status = await asyncio.to_thread(agent.wait, 40)
            said = log.read_text()
            assert status == 0, said
            seen = machine.counters()["seen"]
            flows = [
                observation.flow
                for observation in server.observations()
                if observation.flow.original.destination.port in PORTS
            ]
            assert {observation.node_name for observation in server.observations()} == {"node-a"}
    assert sum(flow.original.bytes + flow.reply.bytes for flow in flows) == seen.bytes
    assert sum(flow.original.packets + flow.reply.packets for flow in flows) == seen.packets
    assert "Traceback" not in said
