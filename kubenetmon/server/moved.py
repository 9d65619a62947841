"""What a batch moved, by workload and path: the batch's share in the live view (`rates`). Pure, on arrays.

Each workload counts as its own node saw it: what it sent, what it received. The pod at the other end of a
connection within one node, which no record of its own describes, is credited from the one that there is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.attributed import GONE_POD, INTRA_VPC, Attributed, World
from kubenetmon.server.snapshot import Snapshot

_PATH_OF_CLASS = {
    "INTRA_VPC": "unknown-zone",
    "INTRA_REGION": "region-service",
    "INTER_REGION": "inter-region",
    "PUBLIC_INTERNET": "internet",
    "UNKNOWN": "unknown",
}
"""INTRA_VPC is split where the zones of both ends are known; classes of the configuration are class:NAME."""


class Workload(NamedTuple):
    """Whose bytes, over which path."""

    namespace: str
    app: str
    pod: str
    node: str
    zone: str
    path: str


@dataclass(frozen=True, slots=True)
class Digest:
    """One batch: what each workload sent and received (bytes) in [start, end), Unix seconds."""

    node: str
    start: int
    end: int
    amounts: dict[Workload, tuple[float, float]]


def digest(attributed: Attributed, cluster: Snapshot, node_name: str, start: int, end: int) -> Digest:
    """Sum the records of one batch of that node, whose interval is [start, end); `cluster` is the one that it
    was attributed with."""
    places = _Places(attributed, cluster, node_name)
    local, remote = attributed.local.endpoint, attributed.remote.endpoint
    path = attributed.connection_class.astype(np.int64)
    zones = places.zone(local), places.zone(remote)
    zoned = (path == INTRA_VPC) & (zones[0] != 0) & (zones[1] != 0)
    same_zone = len(attributed.classes)
    path[zoned] = np.where(zones[0][zoned] == zones[1][zoned], same_zone, same_zone + 1)
    paths = [_PATH_OF_CLASS.get(name, f"class:{name}") for name in attributed.classes]
    sums = _Sums(attributed.world, node_name, [*paths, "same-zone", "cross-zone"])
    sums.add(local, path, attributed.out_bytes, attributed.in_bytes)
    nodes = places.node(local), places.node(remote)
    mirrored = np.flatnonzero((remote > 0) & (nodes[1] != 0) & (nodes[1] == nodes[0]))
    if len(mirrored):
        sums.add(
            remote[mirrored], path[mirrored], attributed.in_bytes[mirrored], attributed.out_bytes[mirrored]
        )
    return Digest(node_name, start, max(end, start + 1), sums.amounts)


class _Places:
    """Numbers for the zones and nodes of the endpoints of a batch, 0 where nobody knows."""

    def __init__(self, attributed: Attributed, cluster: Snapshot, node_name: str) -> None:
        world, table = attributed.world, cluster.table
        self._lowest = world.lowest
        count = world.end - self._lowest
        self._zone, self._node = np.zeros(count, np.int64), np.zeros(count, np.int64)
        present = np.zeros(count, np.bool_)
        for side in (attributed.local, attributed.remote):
            present[side.endpoint - self._lowest] = True
        ids = np.flatnonzero(present) + self._lowest
        own = ids[(ids >= 0) & (ids < len(table.node_id))]
        self._node[own - self._lowest] = table.node_id[own]
        self._node[GONE_POD - self._lowest] = cluster.node_id(node_name)
        numbers = {"": 0}
        zones = world.column("zone", ids)
        each = [numbers.setdefault(zone, len(numbers)) for zone in zones.strings]
        self._zone[ids - self._lowest] = np.array(each, np.int64)[zones.codes]

    def zone(self, endpoint: NDArray[np.int32]) -> NDArray[np.int64]:
        """The number of each endpoint's zone."""
        return self._zone[endpoint - self._lowest]

    def node(self, endpoint: NDArray[np.int32]) -> NDArray[np.int64]:
        """The number of each endpoint's node in the own cluster."""
        return self._node[endpoint - self._lowest]


class _Sums:
    """Bytes by workload and path."""

    def __init__(self, world: World, node_name: str, paths: Sequence[str]) -> None:
        self._world, self._node_name, self._paths = world, node_name, paths
        self.amounts: dict[Workload, tuple[float, float]] = {}

    def add(
        self,
        endpoint: NDArray[np.int32],
        path: NDArray[np.int64],
        sent: NDArray[np.uint64],
        received: NDArray[np.uint64],
    ) -> None:
        """Records' ends, and what each sent and received."""
        lowest, width = self._world.lowest, len(self._paths)
        code = (endpoint.astype(np.int64) - lowest) * width + path
        sums = [np.bincount(code, weights=counter) for counter in (sent, received)]
        found = np.flatnonzero(sums[0] + sums[1])
        ids, position = np.unique(found // width + lowest, return_inverse=True)
        fields = (self._world.column(field, ids).each() for field in Workload._fields[:-1])
        endpoints = list(zip(*fields, strict=True))
        columns = (position, found % width, sums[0][found], sums[1][found])
        for at, of_path, more_sent, more_received in zip(*(one.tolist() for one in columns), strict=True):
            namespace, app, pod, node, zone = endpoints[at]
            key = Workload(namespace, app, pod, node or self._node_name, zone, self._paths[of_path])
            before = self.amounts.get(key, (0.0, 0.0))
            self.amounts[key] = (before[0] + more_sent, before[1] + more_received)
