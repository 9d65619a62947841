"""The cluster at one moment, as attribution sees it.

Contract: a `Snapshot` never changes once taken, and all its answers belong together. `Inventory` makes them
from Kubernetes objects (or from this machine's own addresses); attribution only reads. Pure data: no task,
nothing to shut down. Addresses are as in `kubenetmon.model`: uint32 of shape (n,) for IPv4, uint64 of shape
(n, 2), high half first, for IPv6.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from kubenetmon.clickhouse.block import Words
from kubenetmon.server.endpoints import Description

Family = Literal[4, 6]
Addresses = NDArray[np.uint32] | NDArray[np.uint64]

Moment = int | NDArray[np.int64]
"""Unix seconds: one for all addresses asked about, or one for each, of shape (n,)."""


class EndpointTable(Protocol):
    """What is known of each endpoint; the index is the endpoint's id.

    Id 0 is "nothing known": every string is empty and the node is 0. Ids stay valid, and their entries
    unchanged, for the life of the `Snapshot` that holds the table.
    """

    def describe(self, endpoint: int) -> Description:
        """What an id stands for."""
        ...

    def column(self, field: str, ids: NDArray[np.integer[Any]]) -> Words:
        """One field of `Description` for some ids of shape (m,)."""
        ...

    @property
    def node_id(self) -> NDArray[np.int32]:
        """The number of each endpoint's node, as `Snapshot.node_id` gives it; 0 = no node."""
        ...


class Snapshot(Protocol):
    """Which endpoint an address belongs to."""

    @property
    def table(self) -> EndpointTable:
        """The endpoints that the ids below point into."""
        ...

    def node_id(self, node_name: str) -> int:
        """The number of the node with that name; 0 = never heard of."""
        ...

    def node_zone(self, node_name: str) -> str:
        """The zone of the node with that name; empty when unknown."""
        ...

    def pods(self, family: Family, addresses: Addresses, at: Moment) -> NDArray[np.int32]:
        """Endpoint id of the pod that owned each address then; 0 = none."""
        ...

    def nodes(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """Endpoint id of the node with each address as InternalIP (pod "", app "host"); 0 = none."""
        ...

    def host_pods(
        self,
        family: Family,
        addresses: Addresses,
        protocols: NDArray[np.uint8],
        ports: NDArray[np.uint16],
        at: Moment,
    ) -> NDArray[np.int32]:
        """Endpoint id of the pod on the host's network that alone had each port of a node's address then; 0 =
        none, or several."""
        ...

    def in_pod_cidrs(self, family: Family, addresses: Addresses, node_name: str) -> NDArray[np.bool_]:
        """Whether each address lies inside that node's spec.podCIDRs."""
        ...

    def of_pod_cidrs(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """Endpoint id of an unknown pod (pod "", app "") of the node whose spec.podCIDRs hold each address.

        0 = no node's do.
        """
        ...


class ClusterView(Protocol):
    """Whoever knows the cluster now."""

    def snapshot(self) -> Snapshot:
        """The cluster as known now: consistent, and cheap when nothing changed since the last call."""
        ...
