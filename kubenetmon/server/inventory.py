"""The cluster's pods, nodes and services, and which of them an address belonged to when.

Contract: pure, no I/O, no task, nothing to shut down. Whoever watches the cluster
(`kubenetmon.server.watcher`) tells it what it saw and when (Unix seconds); attribution takes a `snapshot()`,
which is the same object until something changed that attribution can see. A relist (`begin_relist` …
`end_relist`) takes away what it did not see only at its end, so that nothing known is lost when it breaks
off. All calls come from one thread; a snapshot may be used from any.

Pods that have Succeeded or Failed and pods on the host's network own no address. A pod that ends keeps its
addresses for `pod_grace` unless they are taken again (rules in `kubenetmon.server.ownership`); what
ended stays known for `history`, so that batches sent late find the owner of their time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.endpoints import Columns, Description, Endpoints
from kubenetmon.server.nodes import KnownNodes, Node, NodeLookup
from kubenetmon.server.ownership import FOREVER, AddressHistory, Claim, OwnershipRows
from kubenetmon.server.snapshot import Addresses, Family

Kind = Literal["pods", "nodes", "services"]
KINDS: tuple[Kind, ...] = ("nodes", "pods", "services")
"""In the order they are best read: pods take their zone from nodes."""

_MOST_ENDED_CLAIMS = 200_000
COMPACT_ABOVE = 10_000


@dataclass(frozen=True, slots=True)
class InventoryConfig:
    """Which labels mean what, and how long the past is kept (seconds). An empty label name: never set.

    App and instance id are labels of pods, the zone of nodes; the cell is the pod's label, else its node's.
    """

    app_labels: tuple[str, ...] = ("app.kubernetes.io/name", "k8s-app")
    instance_id_label: str = "control-plane-id"
    zone_label: str = "topology.kubernetes.io/zone"
    cell_label: str = ""
    pod_grace: float = 300.0
    history: float = 3600.0


class Pod(NamedTuple):
    """What is kept of a pod. Times are Unix seconds, 0 = unknown; addresses are numbers."""

    uid: str
    namespace: str
    name: str
    node: str
    app: str
    instance_id: str
    cell: str
    created: int
    started: int
    owns_addresses: bool
    ipv4: tuple[int, ...]
    ipv6: tuple[int, ...]


class Service(NamedTuple):
    """What is kept of a service."""

    uid: str


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """A `Snapshot`; see there."""

    table: Columns
    node_numbers: Mapping[str, int]
    ownership: Mapping[Family, OwnershipRows]
    node_lookup: NodeLookup

    def node_id(self, node_name: str) -> int:
        return self.node_numbers.get(node_name, 0)

    def node_zone(self, node_name: str) -> str:
        return self.node_lookup.zones.get(node_name, "")

    def pods(self, family: Family, addresses: Addresses, at: int) -> NDArray[np.int32]:
        return self.ownership[family].owners(addresses, at)

    def nodes(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        return self.node_lookup.owners(family, addresses)

    def in_pod_cidrs(self, family: Family, addresses: Addresses, node_name: str) -> NDArray[np.bool_]:
        return self.node_lookup.in_pod_networks(family, addresses, node_name)


class _PodRecord:
    __slots__ = ("claims", "endpoint", "generation", "pod")

    def __init__(self, pod: Pod, generation: int) -> None:
        self.pod = pod
        self.generation = generation
        self.endpoint = 0
        self.claims: tuple[Claim, ...] = ()


class Inventory:
    """Everything known of one cluster; a `ClusterView`."""

    def __init__(self, config: InventoryConfig) -> None:
        self._config = config
        self._endpoints = Endpoints()
        self._nodes = KnownNodes(self._endpoints)
        self._history: Mapping[Family, AddressHistory] = {
            4: AddressHistory(4, int(config.pod_grace)),
            6: AddressHistory(6, int(config.pod_grace)),
        }
        self._pods: dict[str, _PodRecord] = {}
        self._pods_on: dict[str, set[str]] = {}
        self._services: dict[str, int] = {}
        self._ended: deque[tuple[float, Claim]] = deque()
        self._generation: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._snapshot: ClusterSnapshot | None = None

    def counts(self) -> dict[Kind, int]:
        """How many objects of each kind exist now."""
        return {"pods": len(self._pods), "nodes": len(self._nodes), "services": len(self._services)}

    def snapshot(self) -> ClusterSnapshot:
        """The cluster as known now."""
        if self._snapshot is None:
            self._compact()
            self._snapshot = ClusterSnapshot(
                self._endpoints.columns(),
                self._nodes.numbers,
                {family: history.rows() for family, history in self._history.items()},
                self._nodes.lookup(),
            )
        return self._snapshot

    def node_of_pod(self, uid: str) -> str | None:
        """The node of a pod that exists now; None: no such pod, or on no node yet."""
        record = self._pods.get(uid)
        return (record.pod.node or None) if record is not None else None

    def begin_relist(self, kind: Kind) -> None:
        """What is put from here on has been seen in this list; a begun list may be abandoned for another."""
        self._generation[kind] += 1

    def end_relist(self, kind: Kind, now: float) -> int:
        """Everything not seen since `begin_relist` is gone; returns how many objects that were."""
        generation = self._generation[kind]
        if kind == "pods":
            gone = [uid for uid, record in self._pods.items() if record.generation != generation]
            for uid in gone:
                self.remove_pod(uid, now)
        elif kind == "nodes":
            gone = self._nodes.not_seen_in(generation)
            for name in gone:
                self.remove_node(name, now)
        else:
            gone = [uid for uid, seen in self._services.items() if seen != generation]
            for uid in gone:
                self.remove_service(uid)
        return len(gone)

    def put_pod(self, pod: Pod, now: float) -> None:
        """A pod was created, listed or changed."""
        generation = self._generation["pods"]
        record = self._pods.get(pod.uid)
        if record is None:
            record = self._pods[pod.uid] = _PodRecord(pod, generation)
            self._pods_on.setdefault(pod.node, set()).add(pod.uid)
            self._settle(record, pod.started or pod.created, now)
            return
        record.generation = generation
        if record.pod == pod:
            return
        if record.pod.node != pod.node:
            self._leave_node(record.pod)
            self._pods_on.setdefault(pod.node, set()).add(pod.uid)
        record.pod = pod
        self._settle(record, int(now), now)

    def remove_pod(self, uid: str, now: float) -> None:
        """A pod was deleted; unknown ones are ignored."""
        record = self._pods.pop(uid, None)
        if record is None:
            return
        self._leave_node(record.pod)
        for claim in record.claims:
            self._end(claim, now)

    def put_node(self, node: Node) -> None:
        """A node was created, listed or changed."""
        previous_place = self._nodes.place(node.name)
        if not self._nodes.put(node, self._generation["nodes"]):
            return
        self._snapshot = None
        if (node.zone, node.cell) != previous_place:
            for uid in self._pods_on.get(node.name, ()):
                record = self._pods[uid]
                if record.claims:
                    self._describe(record)

    def remove_node(self, name: str, now: float) -> None:
        """A node was deleted; what is known of it stays for the grace time."""
        self._nodes.remove(name, now)
        self._snapshot = None

    def put_service(self, service: Service) -> None:
        """A service was created, listed or changed."""
        self._services[service.uid] = self._generation["services"]

    def remove_service(self, uid: str) -> None:
        """A service was deleted."""
        self._services.pop(uid, None)

    def expire(self, now: float) -> None:
        """Forget what ended longer ago than is kept; to be called every few seconds."""
        keep = max(self._config.history, self._config.pod_grace)
        while self._ended and (self._ended[0][0] + keep < now or len(self._ended) > _MOST_ENDED_CLAIMS):
            _, claim = self._ended.popleft()
            self._history[claim.family].forget(claim)
            self._snapshot = None
        if self._nodes.expire(now - self._config.pod_grace):
            self._snapshot = None

    def _settle(self, record: _PodRecord, start: int, now: float) -> None:
        """Make the claims of a pod fit its addresses; new ones hold from `start`."""
        pod = record.pod
        wanted: dict[tuple[Family, int], Claim | None] = {}
        if pod.owns_addresses:
            wanted.update({(4, address): None for address in pod.ipv4})
            wanted.update({(6, address): None for address in pod.ipv6})
        for claim in record.claims:
            if (claim.family, claim.address) in wanted:
                wanted[claim.family, claim.address] = claim
            else:
                self._end(claim, now)
        if not wanted:
            record.claims = ()
            record.endpoint = 0
            return
        self._describe(record)
        claims: list[Claim] = []
        for (family, address), held in wanted.items():
            if held is not None:
                claim = held
            else:
                claim = Claim(family, address, min(max(start, 0), FOREVER - 1), pod.created, record.endpoint)
                self._history[family].add(claim)
                self._snapshot = None
            claims.append(claim)
        record.claims = tuple(claims)

    def _describe(self, record: _PodRecord) -> None:
        """Let the pod's endpoint say what is known of it now; its claims follow."""
        pod = record.pod
        zone, node_cell = self._nodes.place(pod.node)
        description = Description(
            pod.name, pod.namespace, pod.node, zone, pod.app, pod.instance_id, pod.cell or node_cell
        )
        if record.endpoint and self._endpoints.description(record.endpoint) == description:
            return
        record.endpoint = self._endpoints.add(description, self._nodes.number(pod.node))
        for claim in record.claims:
            if claim.end == FOREVER:
                self._history[claim.family].move(claim, record.endpoint)
        self._snapshot = None

    def _end(self, claim: Claim, now: float) -> None:
        self._history[claim.family].end(claim, int(now))
        self._ended.append((now, claim))
        self._snapshot = None

    def _leave_node(self, pod: Pod) -> None:
        on_node = self._pods_on.get(pod.node)
        if on_node is not None:
            on_node.discard(pod.uid)
            if not on_node:
                del self._pods_on[pod.node]

    def _compact(self) -> None:
        """Let go of endpoints that no claim and no node uses any more, once they are the greater part."""
        in_use = sum(len(history) for history in self._history.values()) + len(self._nodes)
        if len(self._endpoints) < COMPACT_ABOVE + 2 * in_use + 2 * len(self._ended):
            return
        used = {claim.endpoint for history in self._history.values() for claim in history.claims()}
        named_by_pods = {self._endpoints.description(endpoint).node for endpoint in used}
        self._nodes.renumber(named_by_pods)
        new_ids = self._endpoints.compact([*used, *self._nodes.endpoints_used()], self._nodes.numbers)
        for history in self._history.values():
            history.renumber(new_ids)
        self._nodes.move(new_ids)
        for record in self._pods.values():
            record.endpoint = int(new_ids[record.endpoint])
