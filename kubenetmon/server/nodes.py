"""The cluster's nodes: their numbers, addresses, zones and pod networks.

Contract: as `kubenetmon.server.inventory`, of which this is a part: pure, told what happened and when. A node
that was deleted stays known until `expire`, because its agent's last batches are still to come. A node
that is only named by a pod has a number too.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.endpoints import Description, Endpoints
from kubenetmon.server.ranges.table import PrefixMap
from kubenetmon.server.snapshot import Addresses, Family

HOST_APP = "host"


class Network(NamedTuple):
    """An address prefix: the network's number and the prefix length in bits."""

    family: Family
    address: int
    prefix_length: int


class Node(NamedTuple):
    """What is kept of a node. Addresses are its InternalIPs as numbers."""

    name: str
    zone: str
    created: int
    ipv4: tuple[int, ...]
    ipv6: tuple[int, ...]
    pod_networks: tuple[Network, ...]
    cell: str = ""


class _NodeRecord:
    __slots__ = ("deleted_at", "endpoint", "generation", "node", "of_pods")

    def __init__(self, node: Node, endpoint: int, of_pods: int, generation: int) -> None:
        self.node = node
        self.endpoint = endpoint
        self.of_pods = of_pods  # the endpoint of pods that are not known and have an address of the node's
        self.generation = generation
        self.deleted_at: float | None = None


@dataclass(frozen=True)
class NodeLookup:
    """Sorted InternalIPs and their endpoints per family, each node's pod networks and zone. Immutable.

    keys: uint32 for IPv4, 16 bytes big-endian as "S16" for IPv6; endpoints: int32 of the same length.
    """

    keys: dict[Family, NDArray[Any]]
    endpoints: dict[Family, NDArray[np.int32]]
    pod_networks: dict[str, tuple[Network, ...]]
    zones: dict[str, str]
    of_pods: dict[str, int]

    def owners(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """Endpoint id of the node with each address; 0 = none. Shape (n,)."""
        keys = self.keys[family]
        if len(keys) == 0:
            return np.zeros(len(addresses), np.int32)
        wanted = addresses if family == 4 else _ipv6_keys(addresses)
        row = np.minimum(keys.searchsorted(wanted), len(keys) - 1)
        found: NDArray[np.int32] = self.endpoints[family].take(row)
        found *= keys.take(row) == wanted
        return found

    @cached_property
    def all_pod_networks(self) -> PrefixMap:
        """Endpoint id of an unknown pod in any node's pod networks; made when first asked for."""
        return PrefixMap(
            {
                address.to_bytes(4 if family == 4 else 16) + bytes((length,)): self.of_pods[name]
                for name, networks in self.pod_networks.items()
                for family, address, length in networks
            }
        )

    def in_pod_networks(self, family: Family, addresses: Addresses, node_name: str) -> NDArray[np.bool_]:
        """Whether each address lies in a pod network of that node. Shape (n,)."""
        inside = np.zeros(len(addresses), np.bool_)
        for network in self.pod_networks.get(node_name, ()):
            if network.family != family:
                continue
            bits = 32 if family == 4 else 128
            mask = (1 << bits) - (1 << (bits - network.prefix_length))
            if family == 4:
                inside |= (addresses & np.uint32(mask)) == np.uint32(network.address)
            else:
                halves = [(number >> 64, number & (2**64 - 1)) for number in (mask, network.address)]
                masks, networks = np.array(halves, np.uint64)
                inside |= ((addresses & masks) == networks).all(axis=1)
        return inside


def _ipv6_keys(addresses: Addresses) -> NDArray[np.bytes_]:
    return np.ascontiguousarray(addresses).astype(">u8").view("S16").reshape(-1)


class KnownNodes:
    """Every node there is or was a moment ago."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._records: dict[str, _NodeRecord] = {}
        self._alive = 0
        self._lookup: NodeLookup | None = None
        self.numbers: dict[str, int] = {}

    def __len__(self) -> int:
        """Nodes that exist now."""
        return self._alive

    def number(self, name: str) -> int:
        """The number of that node, given now if it has none; 0 for the empty name."""
        if not name:
            return 0
        return self.numbers.setdefault(name, len(self.numbers) + 1)

    def place(self, name: str) -> tuple[str, str]:
        """The node's zone and cell, empty when unknown."""
        record = self._records.get(name)
        return (record.node.zone, record.node.cell) if record else ("", "")

    def put(self, node: Node, generation: int) -> bool:
        """A node was seen; True when attribution can see the difference."""
        record = self._records.get(node.name)
        if record is not None and record.deleted_at is None:
            record.generation = generation
            if record.node == node:
                return False
        else:
            self._alive += 1
        number = self.number(node.name)
        of_pods = Description(node=node.name, zone=node.zone, cell=node.cell)
        self._records[node.name] = _NodeRecord(
            node,
            self._endpoints.add(of_pods._replace(app=HOST_APP), number),
            self._endpoints.add(of_pods, number),
            generation,
        )
        self._lookup = None
        return True

    def remove(self, name: str, now: float) -> None:
        """A node was deleted; it stays known until `expire`."""
        record = self._records.get(name)
        if record is not None and record.deleted_at is None:
            record.deleted_at = now
            self._alive -= 1
            self._lookup = None

    def not_seen_in(self, generation: int) -> list[str]:
        """Names of the nodes that the list of that generation did not show."""
        return [
            name
            for name, record in self._records.items()
            if record.deleted_at is None and record.generation != generation
        ]

    def expire(self, deleted_before: float) -> bool:
        """Forget nodes deleted before that Unix second; True when there were any."""
        gone = [
            name
            for name, record in self._records.items()
            if record.deleted_at is not None and record.deleted_at < deleted_before
        ]
        for name in gone:
            del self._records[name]
            self._lookup = None
        return bool(gone)

    def endpoints_used(self) -> list[int]:
        """The endpoint ids of all nodes."""
        return [id for record in self._records.values() for id in (record.endpoint, record.of_pods)]

    def renumber(self, named_by_pods: set[str]) -> None:
        """Number the nodes anew that are known or named by pods; others lose their number."""
        names = [name for name in self.numbers if name in self._records or name in named_by_pods]
        self.numbers = {name: number for number, name in enumerate(names, 1)}

    def move(self, new_ids: NDArray[np.int32]) -> None:
        """Endpoint id i is called new_ids[i] from now on."""
        for record in self._records.values():
            record.endpoint = int(new_ids[record.endpoint])
            record.of_pods = int(new_ids[record.of_pods])
        self._lookup = None

    def lookup(self) -> NodeLookup:
        """The answers as arrays; the same object while nothing changed."""
        if self._lookup is None:
            self._lookup = self._build()
        return self._lookup

    def _build(self) -> NodeLookup:
        # Of several nodes with one address the living own it, then the newest: they come last.
        records = sorted(
            self._records.values(), key=lambda record: (record.deleted_at is None, record.node.created)
        )
        ipv4 = {address: record.endpoint for record in records for address in record.node.ipv4}
        ipv6 = {address: record.endpoint for record in records for address in record.node.ipv6}
        sorted_ipv4, sorted_ipv6 = sorted(ipv4), sorted(ipv6)
        return NodeLookup(
            {
                4: np.array(sorted_ipv4, np.uint32),
                6: np.array([address.to_bytes(16, "big") for address in sorted_ipv6], "S16"),
            },
            {
                4: np.array([ipv4[address] for address in sorted_ipv4], np.int32),
                6: np.array([ipv6[address] for address in sorted_ipv6], np.int32),
            },
            {record.node.name: record.node.pod_networks for record in records if record.node.pod_networks},
            {record.node.name: record.node.zone for record in records},
            {record.node.name: record.of_pods for record in records},
        )
