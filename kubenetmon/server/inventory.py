"""The cluster's pods, nodes and services, and which of them an address belonged to when.

Contract: pure, no I/O, no task, nothing to shut down. Whoever watches the cluster
(`kubenetmon.server.watcher`) tells it what it saw and when (Unix seconds); attribution takes a `snapshot()`,
which is the same object until something changed that attribution can see. A relist (`begin_relist` …
`end_relist`) takes away what it did not see only at its end, so that nothing known is lost when it breaks
off. All calls come from one thread; a snapshot may be used from any. What is kept for each of 100,000 pods is
small and out of the garbage collector's sight.

Pods that have Succeeded or Failed and pods on the host's network own no address; the latter own the ports of
their node's addresses that they declare. A pod that ends keeps its addresses for `pod_grace` unless they are
taken again (rules in `kubenetmon.server.ownership`); what ended stays known for `history`, so that batches
sent late find the owner of their time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from kubenetmon.model import TCP, UDP
from kubenetmon.server.endpoints import Columns, Description, Endpoints
from kubenetmon.server.nodes import HOST_APP, KnownNodes, Node, NodeLookup
from kubenetmon.server.ownership import (
    ADDRESS_WIDTH,
    FOREVER,
    PORT_WIDTH,
    AddressHistory,
    Claim,
    Claims,
    OwnershipRows,
    Width,
    compact_claims,
    each_of,
    port_key,
)
from kubenetmon.server.pods import Pod, Uid, compact_uid, keys_of
from kubenetmon.server.services import KnownServices, Service
from kubenetmon.server.shrinking import Shrinking
from kubenetmon.server.snapshot import Addresses, Family, Moment

Kind = Literal["pods", "nodes", "services"]
KINDS: tuple[Kind, ...] = ("nodes", "pods", "services")
"""In the order they are best read: pods take their zone from nodes."""

_MOST_ENDED_CLAIMS = 50_000
"""Some 22 MB. 13 addresses a second may change hands before less than `history` is kept."""

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


class Tenure(NamedTuple):
    """That an endpoint owned an address from `start` to `end` (Unix seconds; None: still)."""

    owner: Description
    start: int
    end: int | None
    created: int


@dataclass(frozen=True, slots=True)
class ClusterSnapshot:
    """A `Snapshot`; see there."""

    table: Columns
    node_numbers: Mapping[str, int]
    ownership: Mapping[Width, OwnershipRows]
    node_lookup: NodeLookup

    def node_id(self, node_name: str) -> int:
        return self.node_numbers.get(node_name, 0)

    def node_zone(self, node_name: str) -> str:
        return self.node_lookup.zone(node_name)

    def pods(self, family: Family, addresses: Addresses, at: Moment) -> NDArray[np.int32]:
        return self.ownership[ADDRESS_WIDTH[family]].owners(addresses, at)

    def host_pods(
        self,
        family: Family,
        addresses: Addresses,
        protocols: NDArray[np.uint8],
        ports: NDArray[np.uint16],
        at: Moment,
    ) -> NDArray[np.int32]:
        return self.ownership[PORT_WIDTH[family]].owners_of_ports(addresses, protocols, ports, at)

    def nodes(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        return self.node_lookup.by_address.owners(family, addresses)

    def in_pod_cidrs(self, family: Family, addresses: Addresses, node_name: str) -> NDArray[np.bool_]:
        return self.node_lookup.in_pod_networks(family, addresses, node_name)

    def of_pod_cidrs(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        return self.node_lookup.by_pod_network.owners(family, addresses)


class _PodRecord(msgspec.Struct, eq=False, gc=False):
    pod: Pod
    generation: int
    endpoint: int = 0
    claims: Claims = ()


class Inventory:
    """Everything known of one cluster; a `ClusterView`."""

    def __init__(self, config: InventoryConfig) -> None:
        self._config = config
        self._endpoints = Endpoints()
        self._nodes = KnownNodes(self._endpoints)
        widths = (*ADDRESS_WIDTH.values(), *PORT_WIDTH.values())
        self._history: Mapping[Width, AddressHistory] = {
            width: AddressHistory(width, int(config.pod_grace)) for width in widths
        }
        self._pods: Shrinking[Uid, _PodRecord] = Shrinking()
        self._moved_nodes: set[str] = set()
        self._services = KnownServices()
        self._ended: deque[Claim] = deque()
        self._known_since = math.inf
        self._generation: dict[Kind, int] = dict.fromkeys(KINDS, 0)
        self._snapshot: ClusterSnapshot | None = None
        self._second = 0

    @property
    def inventory(self) -> Inventory:
        """Itself: as whoever holds one."""
        return self

    def counts(self) -> dict[Kind, int]:
        """How many objects of each kind exist now."""
        return {"pods": len(self._pods.held), "nodes": len(self._nodes), "services": len(self._services)}

    def snapshot(self) -> ClusterSnapshot:
        """The cluster as known now."""
        if self._snapshot is None:
            self._move_pods()
            self._compact()
            self._snapshot = ClusterSnapshot(
                self._endpoints.columns(),
                self._nodes.numbers,
                {width: history.rows() for width, history in self._history.items()},
                self._nodes.lookup(),
            )
        return self._snapshot

    def node_of_pod(self, uid: str) -> str | None:
        """The node of a pod that exists now; None: no such pod, or on no node yet."""
        record = self._pods.held.get(compact_uid(uid))
        return (record.pod.node or None) if record is not None else None

    def tenures(self, family: Family, address: int) -> list[Tenure]:
        """Who had the address that is still known, in the order they took it."""
        self._move_pods()
        return [self._tenure(claim) for claim in self._history[ADDRESS_WIDTH[family]].of(address)]

    def host_tenures(self, family: Family, address: int, protocol: int, port: int) -> list[Tenure]:
        """The same for one port of a node's address and the pods on the host's network."""
        self._move_pods()
        claims = self._history[PORT_WIDTH[family]].of(port_key(address, protocol, port))
        return [self._tenure(claim) for claim in claims]

    def holders(self, family: Family, address: int, port: int) -> list[Pod | Node | Service]:
        """What has the address now, or that port of it on the host's network (port 0: of none).

        Goes through all pods and Services where the address is a pod's: for questions, not for batches.
        """
        keys: list[tuple[Width, int]] = [(ADDRESS_WIDTH[family], address)]
        if port:
            keys += [(PORT_WIDTH[family], port_key(address, protocol, port)) for protocol in (TCP, UDP)]
        claims = [claim for width, key in keys for claim in self._history[width].of(key)]
        endpoints = {claim.endpoint for claim in claims if claim.end == FOREVER}
        pods: list[Pod | Node | Service] = []
        if endpoints:
            pods += [record.pod for record in self._pods.held.values() if record.endpoint in endpoints]
        return [*pods, *self._nodes.holders(family, address), *self._services.holders(family, address)]

    def _tenure(self, claim: Claim) -> Tenure:
        end = None if claim.end == FOREVER else claim.end
        return Tenure(self._endpoints.description(claim.endpoint), claim.start, end, claim.created)

    def history_reach(self, now: float) -> float:
        """For how many seconds back every owner is known: `history`, or less soon after the first list or
        where more addresses change hands than are kept."""
        return min(max(now - self._known_since, 0.0), self._history_kept)

    @property
    def _history_kept(self) -> float:
        return max(self._config.history, self._config.pod_grace)

    def begin_relist(self, kind: Kind) -> None:
        """What is put from here on has been seen in this list; a begun list may be abandoned for another."""
        self._generation[kind] += 1

    def end_relist(self, kind: Kind, now: float) -> int:
        """Everything not seen since `begin_relist` is gone; returns how many objects that were."""
        generation = self._generation[kind]
        if kind == "pods":
            self._known_since = min(self._known_since, now)
            unseen = [uid for uid, record in self._pods.held.items() if record.generation != generation]
            for pod in unseen:
                self.remove_pod(pod, now)
            return len(unseen)
        if kind == "nodes":
            gone = self._nodes.not_seen_in(generation)
            for name in gone:
                self.remove_node(name, now)
        else:
            unseen = self._services.not_seen_in(generation)
            for service in unseen:
                self.remove_service(service)
            return len(unseen)
        return len(gone)

    def put_pod(self, pod: Pod, now: float) -> None:
        """A pod was created, listed or changed."""
        generation = self._generation["pods"]
        record = self._pods.held.get(pod.uid)
        if record is None:
            record = self._pods.held[pod.uid] = _PodRecord(pod, generation)
            self._settle(record, now, seen_before=False)
            return
        record.generation = generation
        if record.pod == pod:
            return
        msgspec.structs.force_setattr(pod, "uid", record.pod.uid)  # lest there are two objects for each pod
        record.pod = pod
        self._settle(record, now, seen_before=True)

    def remove_pod(self, uid: Uid, now: float) -> None:
        """A pod was deleted; unknown ones are ignored."""
        record = self._pods.remove(uid)
        if record is None:
            return
        for claim in each_of(record.claims):
            self._end(claim, now)

    def put_node(self, node: Node) -> None:
        """A node was created, listed or changed."""
        previous_place = self._nodes.place(node.name)
        named_by_pods = node.name in self._nodes.numbers
        if not self._nodes.put(node, self._generation["nodes"]):
            return
        self._snapshot = None
        if named_by_pods and (node.zone, node.cell) != previous_place:
            self._moved_nodes.add(node.name)

    def remove_node(self, name: str, now: float) -> None:
        """A node was deleted; what is known of it stays for the grace time."""
        self._nodes.remove(name, now)
        self._snapshot = None

    def put_service(self, service: Service) -> None:
        """A service was created, listed or changed."""
        self._services.put(service, self._generation["services"])

    def remove_service(self, uid: Uid) -> None:
        """A service was deleted."""
        self._services.remove(uid)

    def expire(self, now: float) -> None:
        """Forget what ended longer ago than is kept; to be called every few seconds."""
        keep = self._history_kept
        while self._ended and (self._ended[0].end + keep < now or len(self._ended) > _MOST_ENDED_CLAIMS):
            claim = self._ended.popleft()
            self._known_since = max(self._known_since, claim.end)
            self._history[claim.width].forget(claim)
            self._snapshot = None
        if self._nodes.expire(now - self._config.pod_grace):
            self._snapshot = None

    def _settle(self, record: _PodRecord, now: float, *, seen_before: bool) -> None:
        """Make the claims of a pod fit its addresses."""
        pod = record.pod
        wanted: dict[tuple[Width, int], Claim | None] = dict.fromkeys(keys_of(pod))
        for claim in each_of(record.claims):
            if (claim.width, claim.key) in wanted:
                wanted[claim.width, claim.key] = claim
            else:
                self._end(claim, now)
        if not wanted:
            record.claims = ()
            record.endpoint = 0
            return
        self._describe(record)
        claims: list[Claim] = []
        for (width, key), held in wanted.items():
            if held is not None:
                claim = held
            else:
                start = self._start(pod, self._history[width].of(key), now, seen_before)
                claim = Claim(width, key, min(max(start, 0), FOREVER - 1), pod.created, record.endpoint)
                self._history[width].add(claim)
                self._snapshot = None
            claims.append(claim)
        record.claims = compact_claims(tuple(claims))

    def _start(self, pod: Pod, earlier: tuple[Claim, ...], now: float, seen_before: bool) -> int:
        """Since when a pod has what it is seen to have now.

        The API tells when a pod was started, not when it got its address, and tells the latter late: so since
        its start, but after everyone before; and not before now where another holds the address still.
        """
        start = pod.started or pod.created
        if not seen_before:
            return start
        ends = [claim.end for claim in earlier]
        return min(self._whole(now), max([start, *ends]))

    def _describe(self, record: _PodRecord) -> None:
        """Let the pod's endpoint say what is known of it now; its claims follow."""
        pod = record.pod
        zone, node_cell = self._nodes.place(pod.node)
        description = Description(
            pod.name,
            pod.namespace,
            pod.node,
            zone,
            pod.app or (HOST_APP if pod.host_ports else ""),
            pod.instance_id,
            pod.cell or node_cell,
        )
        if record.endpoint and self._endpoints.description(record.endpoint) == description:
            return
        record.endpoint = self._endpoints.add(description, self._nodes.number(pod.node))
        for claim in each_of(record.claims):
            if claim.end == FOREVER:
                self._history[claim.width].move(claim, record.endpoint)
        self._snapshot = None

    def _end(self, claim: Claim, now: float) -> None:
        self._history[claim.width].end(claim, self._whole(now))
        self._ended.append(claim)
        self._snapshot = None

    def _whole(self, now: float) -> int:
        """The second; one object for all that begins and ends within it."""
        if int(now) != self._second:
            self._second = int(now)
        return self._second

    def _move_pods(self) -> None:
        """Let pods follow their nodes to other zones: rare, so all pods are gone through once."""
        if not self._moved_nodes:
            return
        for record in self._pods.held.values():
            if record.claims and record.pod.node in self._moved_nodes:
                self._describe(record)
        self._moved_nodes.clear()

    def _compact(self) -> None:
        """Let go of endpoints that no claim and no node uses any more, once they are a ninth of all."""
        in_use = sum(len(history) for history in self._history.values()) + len(self._nodes) + len(self._ended)
        if len(self._endpoints) < COMPACT_ABOVE + in_use + in_use // 8:
            return
        used = np.zeros(len(self._endpoints), np.bool_)
        for history in self._history.values():
            history.mark_endpoints(used)
        self._nodes.renumber(self._endpoints.nodes_of(used))
        used[self._nodes.endpoints_used()] = True
        new_ids = self._endpoints.compact(used, self._nodes.numbers)
        for history in self._history.values():
            history.renumber(new_ids)
        self._nodes.move(new_ids)
        for claim in self._ended:
            claim.endpoint = new_ids.item(claim.endpoint)
        for record in self._pods.held.values():
            # One object for a pod and its claims, and the old one goes before the next is made.
            record.endpoint = new_ids.item(record.endpoint)
            for claim in each_of(record.claims):
                claim.endpoint = record.endpoint
