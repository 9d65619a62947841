"""What attribution says of a batch, as arrays: who is local, who remote, over which class, and what is left.

Contract: plain data and its lookups, immutable once made. Ids of endpoints are those of the cluster's own
`EndpointTable` from 0 on, then those of the peer clusters' tables one behind the other; below 0 lie what no
table describes: `GONE_POD`, and the named networks of the configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.clickhouse.block import Words
from kubenetmon.server.ranges.parse import Label
from kubenetmon.server.ranges.table import Network
from kubenetmon.server.snapshot import Addresses, EndpointTable, Family, Snapshot

CLASSES = ("UNKNOWN", "INTRA_VPC", "INTRA_REGION", "INTER_REGION", "PUBLIC_INTERNET")
"""connectionClass by code; classes that the configuration names come behind these."""
UNKNOWN, INTRA_VPC, INTRA_REGION, INTER_REGION, PUBLIC_INTERNET = range(5)

OWN_LABEL = -1
"""The label id of what lies in our own cloud and region."""

GONE_POD = -1
"""The endpoint id of an address inside the reporting node's podCIDRs that no known pod owns."""

FIRST_NETWORK = -2
"""The endpoint id of the first named network; the others follow downwards."""

UNKNOWN_CLUSTER = "UNKNOWN"
"""remoteCluster of what is in no cluster we know, as in the original."""

RULES = (
    "own cluster",
    "own pod network",
    "peer cluster",
    "named network",
    "private address",
    "provider range",
    "no range",
)
"""What decided over a remote, by code, in the order they are asked."""
BY_OWN, BY_POD_NETWORK, BY_PEER, BY_NETWORK, BY_PRIVATE, BY_RANGE, BY_NOTHING = range(7)

NO_SIDE_CAUSES = ("unknown_node", "both_unknown", "both_elsewhere", "no_node")
"""Why a record has no local side: the cluster does not know the reporting node; neither end is known; both
ends live on other nodes; an end is a pod without a node."""


@dataclass(frozen=True, slots=True)
class NamedNetwork:
    """Networks that the configuration names, and what a remote inside them is.

    `cloud`, `region` and `service` are in lower case; `zone`, `cluster`: empty where nobody said.
    """

    name: str
    networks: tuple[Network, ...]
    cloud: str
    region: str
    connection_class: str
    zone: str = ""
    service: str = ""
    cluster: str = ""

    @property
    def label(self) -> Label:
        """Where it is, as a range would say it."""
        return Label(self.cloud, self.region, self.service)


@dataclass(frozen=True, slots=True)
class Peer:
    """Another cluster as it is now, and what a remote in it is; `cloud` and `region` in lower case."""

    name: str
    cloud: str
    region: str
    connection_class: str
    snapshot: Snapshot

    @property
    def label(self) -> Label:
        """Where it is, as a range would say it."""
        return Label(self.cloud, self.region, "")


@dataclass(frozen=True, slots=True)
class Ignored:
    """Records that make no rows, and what they counted in both directions."""

    records: int
    bytes: int
    packets: int

    def __add__(self, other: Ignored) -> Ignored:
        return Ignored(self.records + other.records, self.bytes + other.bytes, self.packets + other.packets)


NOTHING_IGNORED = Ignored(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One record as people look at it; the destination is the one after DNAT, both directions are counted."""

    protocol: int
    source: str
    source_port: int
    destination: str
    destination_port: int
    bytes: int
    packets: int


@dataclass(frozen=True, slots=True)
class NoSide:
    """The records of a batch that have no local side for one of `NO_SIDE_CAUSES`, and the largest few."""

    total: Ignored
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Remote:
    """What a row says of one remote; `rule` indexes `RULES`."""

    cloud: str
    region: str
    service: str
    zone: str
    cluster: str
    node: str
    namespace: str
    pod: str
    app: str
    connection_class: str
    flags: tuple[str, ...]
    rule: int


@dataclass(frozen=True, slots=True)
class Side:
    """One end of n records.

    `endpoint` int32: see the module. `ipv4` uint32, 0 for IPv6 records; `ipv6` uint64 of shape (n, 2), 0 for
    IPv4 records, or None where every record is IPv4. `port` uint16.
    """

    endpoint: NDArray[np.int32]
    ipv4: NDArray[np.uint32]
    ipv6: NDArray[np.uint64] | None
    port: NDArray[np.uint16]


class World:
    """What the endpoint ids of one batch stand for."""

    def __init__(
        self,
        cluster: Snapshot,
        cluster_name: str,
        node_name: str,
        peers: Sequence[Peer] = (),
        networks: Sequence[NamedNetwork] = (),
    ) -> None:
        """`node_name` is the reporting node's."""
        self._networks = networks
        self._tables: list[tuple[int, EndpointTable, str]] = []
        self.end = 0
        for table, name in (
            (cluster.table, cluster_name),
            *((peer.snapshot.table, peer.name) for peer in peers),
        ):
            self._tables.append((self.end, table, name))
            self.end += len(table.node_id)
        self._cluster_name = cluster_name
        self._cluster, self._node_name = cluster, node_name

    @property
    def lowest(self) -> int:
        """The lowest id there is; `end` is one above the highest."""
        return FIRST_NETWORK - len(self._networks) + 1

    def first_of_peer(self, number: int) -> int:
        """The id that a peer's endpoint 0 has here; peers count from 0."""
        return self._tables[1 + number][0]

    def column(self, field: str, ids: NDArray[np.integer[Any]]) -> Words:
        """A field of `Description`, or "cluster", for ids of shape (n,) in ascending order."""
        below = int(np.searchsorted(ids, 0))
        strings = [self._special(field, endpoint) for endpoint in ids[:below].tolist()]
        codes: list[NDArray[Any]] = [np.arange(below)]
        at = below
        for first, table, cluster in self._tables:
            until = int(np.searchsorted(ids, first + len(table.node_id)))
            if until == at:
                continue
            own = ids[at:until] - first
            part = (
                Words((own != 0).astype(np.uint8), (UNKNOWN_CLUSTER, cluster))
                if field == "cluster"
                else table.column(field, own)
            )
            codes.append(part.codes + np.int64(len(strings)))
            strings += part.strings
            at = until
        return Words(np.concatenate(codes), strings)

    def _special(self, field: str, endpoint: int) -> str:
        """Of an id that no table describes."""
        if endpoint == GONE_POD:
            known = {
                "node": self._node_name,
                "zone": self._cluster.node_zone(self._node_name),
                "cluster": self._cluster_name,
            }
        else:
            network = self._networks[FIRST_NETWORK - endpoint]
            known = {"zone": network.zone, "cluster": network.cluster or UNKNOWN_CLUSTER}
        return known.get(field, "")


@dataclass(frozen=True, slots=True)
class Attributed:
    """The n records that make rows, and what became of the others. Arrays have shape (n,).

    `connection_class` indexes `classes`; `label` indexes `labels` or is `OWN_LABEL`; `flag_code` indexes
    `flags`; `rule` indexes `RULES`. `ignored` is by reason (udp, node, direction, ipv6), without those that
    took no record; `no_side` tells the causes of "direction" apart. `empty_region` counts the records kept as
    UNKNOWN because their range of our own cloud names no region. `ambiguous`: records (which make rows) whose
    address changed hands within the interval, of flows with unknown start. `strangers`: by family, distinct
    addresses (some, if there are very many) that are or may be local and that no pod is known to have.
    """

    world: World
    labels: Sequence[Label]
    classes: Sequence[str]
    flags: Sequence[Mapping[str, bool]]
    protocol: NDArray[np.uint8]
    local: Side
    remote: Side
    out_bytes: NDArray[np.uint64]
    out_packets: NDArray[np.uint64]
    in_bytes: NDArray[np.uint64]
    in_packets: NDArray[np.uint64]
    connection_class: NDArray[np.uint8]
    label: NDArray[np.int32]
    flag_code: NDArray[np.intp]
    rule: NDArray[np.uint8]
    ignored: Mapping[str, Ignored]
    no_side: Mapping[str, NoSide]
    empty_region: int
    ambiguous: Ignored
    strangers: Mapping[Family, Addresses]

    def __len__(self) -> int:
        return len(self.protocol)

    def total_bytes(self) -> int:
        """Bytes of both directions over the records that make rows."""
        return int(self.out_bytes.sum()) + int(self.in_bytes.sum())

    def total_packets(self) -> int:
        """Packets of both directions over the records that make rows."""
        return int(self.out_packets.sum()) + int(self.in_packets.sum())
