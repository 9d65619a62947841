"""The cluster's nodes: their numbers, addresses, zones and pod networks.

Contract: as `kubenetmon.server.inventory`, of which this is a part: pure, told what happened and when. A node
that was deleted stays known until `expire`, because its agent's last batches are still to come. A node
that is only named by a pod has a number too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.endpoints import Description, Endpoints
from kubenetmon.server.node_prefixes import (
    Holder,
    Network,
    NodePrefixes,
    PrefixLookup,
    as_addresses,
    mask,
)
from kubenetmon.server.pods import Uid
from kubenetmon.server.snapshot import Addresses, Family

HOST_APP = "host"


class Node(NamedTuple):
    """What is kept of a node. Addresses are its InternalIPs as numbers; `uid` is empty where unknown."""

    name: str
    zone: str
    created: int
    ipv4: tuple[int, ...]
    ipv6: tuple[int, ...]
    pod_networks: tuple[Network, ...]
    cell: str = ""
    uid: Uid = ""

    def addresses(self) -> list[Network]:
        """Its InternalIPs as prefixes."""
        return [Network(4, one, 32) for one in self.ipv4] + [Network(6, one, 128) for one in self.ipv6]


class _NodeRecord:
    __slots__ = ("deleted_at", "endpoint", "generation", "node", "of_pods")

    def __init__(self, node: Node, endpoint: int, of_pods: int, generation: int) -> None:
        self.node = node
        self.endpoint = endpoint
        self.of_pods = of_pods  # the endpoint of pods that are not known and have an address of the node's
        self.generation = generation
        self.deleted_at: float | None = None


@dataclass(frozen=True, slots=True)
class NodeLookup:
    """Nodes by name, their endpoints by InternalIP, those of unknown pods by pod network. Immutable."""

    nodes: Mapping[str, Node]
    by_address: PrefixLookup
    by_pod_network: PrefixLookup

    def zone(self, name: str) -> str:
        """The node's zone, empty when unknown."""
        node = self.nodes.get(name)
        return node.zone if node else ""

    def in_pod_networks(self, family: Family, addresses: Addresses, node_name: str) -> NDArray[np.bool_]:
        """Whether each address lies in a pod network of that node. Shape (n,)."""
        inside = np.zeros(len(addresses), np.bool_)
        node = self.nodes.get(node_name)
        for network in node.pod_networks if node else ():
            if network.family != family:
                continue
            same = (addresses & mask(family, network.prefix_length)) == as_addresses(
                family, [network.address]
            )
            inside |= same if family == 4 else same.all(axis=1)
        return inside


class KnownNodes:
    """Every node there is or was a moment ago."""

    def __init__(self, endpoints: Endpoints) -> None:
        self._endpoints = endpoints
        self._records: dict[str, _NodeRecord] = {}
        self._alive = 0
        self._nodes: dict[str, Node] = {}
        self._by_address = NodePrefixes()
        self._by_pod_network = NodePrefixes()
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
        if record is not None:
            self._let_go(record)
        record = self._records[node.name] = _NodeRecord(
            node,
            self._endpoints.add(of_pods._replace(app=HOST_APP), number),
            self._endpoints.add(of_pods, number),
            generation,
        )
        self._hold(record)
        return True

    def remove(self, name: str, now: float) -> None:
        """A node was deleted; it stays known until `expire`."""
        record = self._records.get(name)
        if record is not None and record.deleted_at is None:
            self._let_go(record)
            record.deleted_at = now
            self._hold(record)
            self._alive -= 1

    def holders(self, family: Family, address: int) -> list[Node]:
        """The nodes that exist and have that InternalIP."""
        return [
            record.node
            for record in self._records.values()
            if record.deleted_at is None
            and address in (record.node.ipv4 if family == 4 else record.node.ipv6)
        ]

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
            self._let_go(self._records.pop(name))
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
        self._by_address, self._by_pod_network = NodePrefixes(), NodePrefixes()
        for record in self._records.values():
            record.endpoint = int(new_ids[record.endpoint])
            record.of_pods = int(new_ids[record.of_pods])
            self._hold(record)

    def lookup(self) -> NodeLookup:
        """The answers; the same object while nothing changed."""
        if self._lookup is None:
            self._lookup = NodeLookup(
                self._nodes.copy(), self._by_address.lookup(), self._by_pod_network.lookup()
            )
        return self._lookup

    def _hold(self, record: _NodeRecord) -> None:
        node, alive = record.node, record.deleted_at is None
        self._nodes[node.name] = node
        self._by_address.add(node.addresses(), Holder(alive, node.created, record.endpoint))
        self._by_pod_network.add(node.pod_networks, Holder(alive, node.created, record.of_pods))
        self._lookup = None

    def _let_go(self, record: _NodeRecord) -> None:
        """Undo `_hold`."""
        node, alive = record.node, record.deleted_at is None
        del self._nodes[node.name]
        self._by_address.remove(node.addresses(), Holder(alive, node.created, record.endpoint))
        self._by_pod_network.remove(node.pod_networks, Holder(alive, node.created, record.of_pods))
        self._lookup = None
