"""One node moves from the original's agent to ours and back: connections live through it, no byte is lost or
counted twice, and each side's agent reports to the other side's server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import grpclib.client
import pytest

from kubenetmon.demo.network import Namespace
from kubenetmon.proto import FlowHandlerStub, L4Endpoint, Observation, ObservedFlow, ObservedTuple
from tests.beds.machine import COUNTERS, PEER, machine_and_peer
from tests.beds.original_server import compile_messages
from tests.beds.receiving import Rig, running_receiver
from tests.end_to_end.test_original_server import PeersServer

pytestmark = pytest.mark.root

TALKER = f"""
import socket, sys
with socket.create_connection(("{PEER}", 7000)) as connection:
    for line in sys.stdin:
        left = int(line)
        connection.sendall(bytes(left))
        back = 0
        while back < left // 2 - 64:
            back += len(connection.recv(65536))
        print(back, flush=True)
"""


class Talker:
    """One connection that stays open."""

    def __init__(self, machine: Namespace) -> None:
        self._process = machine.popen(
            [sys.executable, "-c", TALKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def say(self, size: int) -> None:
        """So many bytes there, half of them back."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{size}\n".encode())
        self._process.stdin.flush()
        assert self._process.stdout.readline()
        time.sleep(0.2)  # acknowledgements on their way

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


def read_and_reset(machine: Namespace) -> list[tuple[int, int]]:
    """What the original does every 5 s: read the counters of all flows and set them to zero."""
    listed = machine.run(["conntrack", "-L", "-z"]).stdout
    counts = [re.findall(r"bytes=(\d+)", line) for line in listed.splitlines() if "dport=7000 " in line]
    return [(int(original), int(reply)) for original, reply in counts]


async def submit(rig: Rig, counts: list[tuple[int, int]]) -> None:
    """Report as the original's agent does."""
    client, server = L4Endpoint(v4=0xC6336401, port=40000), L4Endpoint(v4=0xC6336402, port=7000)
    observations = [
        Observation(
            flow=ObservedFlow(
                proto=6,
                original=ObservedTuple(source=client, destination=server, packets=1, bytes=original),
                reply=ObservedTuple(source=server, destination=client, packets=1, bytes=reply),
            ),
            node_name="node-a",
            timestamp=int(time.time()),
        )
        for original, reply in counts
        if original or reply
    ]
    channel = grpclib.client.Channel("127.0.0.1", rig.port)
    summary = await FlowHandlerStub(channel).submit(observations)
    assert summary.observation_count == len(observations)
    channel.close()


async def run_ours(machine: Namespace, directory: Path, talker: Talker, size: int) -> None:
    """Our agent on the node while the connection talks; it is stopped in order at the end."""
    log = directory / "log"
    with log.open("wb") as output:
        agent = machine.popen(
            [sys.executable, "-m", "kubenetmon", "--role", "agent"],
            environment={
                "PATH": os.environ["PATH"],
                "NODE_NAME": "node-a",
                "COLLECTION_INTERVAL": "1s",
                "KUBENETMON_REPORT_INTERVAL": "2s",
                "KUBENETMON_SERVER_SERVICE_HOST": PEER,
                "KUBENETMON_COUNT_EXISTING": "true",
                "KUBENETMON_STATE_DIR": str(directory / "state"),
            },
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        async with asyncio.timeout(30):
            while b"Submit" not in log.read_bytes():  # noqa: ASYNC110 - another process says it
                await asyncio.sleep(0.1)
        await asyncio.to_thread(talker.say, size)
    finally:
        agent.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(agent.wait, 40)
    assert status == 0, log.read_text()


async def test_a_node_moves_to_our_agent_and_back_without_losing_or_doubling(tmp_path: Path) -> None:
    with machine_and_peer() as (machine, peer):
        machine.nft(COUNTERS.replace("th sport", "ct state != invalid th sport"))
        for name in ("acct", "events", "timestamp"):
            machine.sysctl(f"net.netfilter.nf_conntrack_{name}", 1)
        theirs = PeersServer(compile_messages(tmp_path), host=PEER, port=8884)
        theirs.peer = peer
        talker = Talker(machine)
        try:
            async with running_receiver() as ours, theirs:
                # The original's agent, to our server.
                talker.say(100_000)
                await submit(ours, read_and_reset(machine))
                talker.say(70_000)
                await submit(ours, read_and_reset(machine))
                # Its last words are said; what follows nobody reads until ours is there.
                talker.say(50_000)
                await run_ours(machine, tmp_path, talker, 30_000)
                # Back: ours leaves the counters as they are, so they are set to zero.
                read_and_reset(machine)
                talker.say(20_000)
                await submit(ours, read_and_reset(machine))
                seen = machine.counters()["seen"].bytes
                by_original = sum(batch.total_bytes() for batch in ours.pipeline.batches)
                flows = [
                    observation.flow
                    for observation in theirs.observations()
                    if observation.flow.original.destination.port == 7000
                ]
                by_ours = sum(flow.original.bytes + flow.reply.bytes for flow in flows)
        finally:
            talker.end()
    assert by_original > 190_000
    assert by_ours > 80_000
    assert by_original + by_ours == seen
