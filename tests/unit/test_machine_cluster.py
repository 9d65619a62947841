"""The machine as its own one-node cluster."""

from __future__ import annotations

import asyncio
import ipaddress
import socket

import numpy as np

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.errors import MachineError
from kubenetmon.server.machine import Addresses, MachineCluster, MachineConfig, machine_addresses
from tests.kubernetes.conftest import eventually


def of(text: str) -> int:
    return int(ipaddress.IPv4Address(text))


def node_at(cluster: MachineCluster, address: str) -> str:
    known = cluster.snapshot()
    return str(known.table.describe(known.nodes(4, np.array([of(address)], np.uint32))[0]).node)


def test_addresses_are_the_interfaces_own_without_loopback() -> None:
    found = machine_addresses()
    assert (4, of("127.0.0.1")) not in found
    assert (6, 1) not in found
    for family, number in found:
        version = socket.AF_INET if family == 4 else socket.AF_INET6
        address = ipaddress.ip_address(number.to_bytes(4 if family == 4 else 16, "big"))
        if not address.is_link_local:
            with socket.socket(version, socket.SOCK_DGRAM) as probe:
                probe.bind((str(address), 0))


async def test_addresses_are_read_again_and_a_failed_look_takes_nothing_away() -> None:
    answers: list[Addresses | MachineError] = [
        frozenset({(4, of("192.0.2.1"))}),
        MachineError("no answer"),
        frozenset({(4, of("192.0.2.2"))}),
    ]
    failed = asyncio.Event()

    def read() -> Addresses:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, MachineError):
            failed.set()
            raise answer
        return answer

    cluster = MachineCluster(MachineConfig("me", "zone", 0.01), clock=SYSTEM_CLOCK, read_addresses=read)
    assert node_at(cluster, "192.0.2.1") == "me"
    task = asyncio.create_task(cluster.run())
    await failed.wait()
    assert node_at(cluster, "192.0.2.1") == "me"
    await eventually(lambda: node_at(cluster, "192.0.2.2") == "me")
    assert node_at(cluster, "192.0.2.1") == ""
    known = cluster.snapshot()
    assert known.node_id("me") == 1
    assert known.table.describe(1).zone == "zone"
    await cluster.stop()
    task.cancel()
