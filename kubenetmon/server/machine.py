"""A cluster of one: this machine as the only node, for `--role all` where there is no Kubernetes.

Contract: `MachineCluster` is a `ClusterView` from the moment it is made and a component whose `run` reads the
machine's addresses again every few seconds. It owns nothing that needs to be closed.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

from kubenetmon.clock import Clock
from kubenetmon.errors import MachineError
from kubenetmon.server.inventory import ClusterSnapshot, Inventory, InventoryConfig
from kubenetmon.server.nodes import Node
from kubenetmon.server.snapshot import Family

logger = logging.getLogger(__name__)

# rtnetlink(7), linux/rtnetlink.h, linux/if_addr.h.
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_MESSAGE_HEADER = struct.Struct("=IHHII")
_ADDRESS_HEADER = struct.Struct("=BBBBI")
_ATTRIBUTE_HEADER = struct.Struct("=HH")

Addresses = frozenset[tuple[Family, int]]


def machine_addresses() -> Addresses:
    """Every address of this network namespace's interfaces as (family, number), loopback left out.

    Raises `MachineError` when the kernel does not answer.
    """
    found: set[tuple[Family, int]] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as route:
            route.settimeout(5)
            body = _ADDRESS_HEADER.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
            length = _MESSAGE_HEADER.size + len(body)
            route.send(_MESSAGE_HEADER.pack(length, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0) + body)
            while _read_dump(route.recv(1 << 17), found):
                pass
    except OSError as error:
        raise MachineError(f"cannot read this machine's addresses from the kernel: {error}") from error
    return frozenset(found)


def _read_dump(data: bytes, found: set[tuple[Family, int]]) -> bool:
    """Add the addresses of one datagram of the dump; False when it was the last."""
    offset = 0
    while offset + _MESSAGE_HEADER.size <= len(data):
        length, kind, _, _, _ = _MESSAGE_HEADER.unpack_from(data, offset)
        if kind in (_NLMSG_DONE, _NLMSG_ERROR) or length < _MESSAGE_HEADER.size:
            return False
        if kind == _RTM_NEWADDR:
            _read_address(data[offset + _MESSAGE_HEADER.size : offset + length], found)
        offset += (length + 3) & ~3
    return True


def _read_address(message: bytes, found: set[tuple[Family, int]]) -> None:
    version = message[0]
    attributes: dict[int, bytes] = {}
    offset = _ADDRESS_HEADER.size
    while offset + _ATTRIBUTE_HEADER.size <= len(message):
        length, kind = _ATTRIBUTE_HEADER.unpack_from(message, offset)
        if length < _ATTRIBUTE_HEADER.size:
            return
        attributes[kind] = message[offset + _ATTRIBUTE_HEADER.size : offset + length]
        offset += (length + 3) & ~3
    # On a point-to-point link IFA_ADDRESS is the peer's and IFA_LOCAL ours.
    packed = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if packed is None:
        return
    number = int.from_bytes(packed, "big")
    if version == socket.AF_INET and number >> 24 != 127:
        found.add((4, number))
    elif version == socket.AF_INET6 and number != 1:
        found.add((6, number))


@dataclass(frozen=True, slots=True)
class MachineConfig:
    """The machine's name as a node, its zone if it has one, and how often it is looked at (seconds)."""

    node_name: str
    zone: str = ""
    reread_interval: float = 10.0


class MachineCluster:
    """This machine's own addresses as the one node's."""

    name = "machine addresses"

    def __init__(
        self,
        config: MachineConfig,
        *,
        clock: Clock,
        read_addresses: Callable[[], Addresses] = machine_addresses,
    ) -> None:
        self._config = config
        self._clock = clock
        self._read_addresses = read_addresses
        self._inventory = Inventory(InventoryConfig())
        self._known: Addresses | None = None

    @property
    def inventory(self) -> Inventory:
        """The machine as one node."""
        return self._inventory

    def snapshot(self) -> ClusterSnapshot:
        """The machine as last looked at; the first call looks. Raises `MachineError` then only."""
        if self._known is None:
            self._read()
        return self._inventory.snapshot()

    async def run(self) -> None:
        """Look again every `reread_interval` seconds."""
        while True:
            try:
                self._read()
            except MachineError as error:
                logger.warning("Keeping the addresses known: %s", error)
            await self._clock.sleep(self._config.reread_interval)

    async def stop(self) -> None:
        """Nothing to finish."""

    def _read(self) -> None:
        addresses = self._read_addresses()
        if addresses == self._known:
            return
        self._known = addresses
        of_family = {
            version: tuple(sorted(number for family, number in addresses if family == version))
            for version in (4, 6)
        }
        self._inventory.put_node(
            Node(self._config.node_name, self._config.zone, 0, of_family[4], of_family[6], ())
        )
