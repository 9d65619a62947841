"""Where a remote is and over which class of path it was reached: rule 8 of DESIGN section 7.

Contract: pure, on arrays. The rules are asked in the order of `RULES`; the first that knows the remote
decides, and its number goes beside the answer, so that `kubenetmon explain` shows what attribution did.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.attributed import (
    BY_NETWORK,
    BY_NOTHING,
    BY_OWN,
    BY_PEER,
    BY_POD_NETWORK,
    BY_PRIVATE,
    BY_RANGE,
    CLASSES,
    FIRST_NETWORK,
    INTER_REGION,
    INTRA_REGION,
    INTRA_VPC,
    OWN_LABEL,
    PUBLIC_INTERNET,
    UNKNOWN,
    NamedNetwork,
    Peer,
    World,
)
from kubenetmon.server.ranges.parse import CLOUDS, Label
from kubenetmon.server.ranges.table import Network, PrefixMap, RangeTable, packed_network
from kubenetmon.server.snapshot import Addresses, Moment, Snapshot
from kubenetmon.server.working import Working, at

PRIVATE_NETWORKS: tuple[Network, ...] = (
    *map(ip_network, ("0.0.0.0/32", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12")),
    ip_network("192.168.0.0/16"),
    # Multicast of local scope: link-local, source-specific (first /24 reserved, RFC 4607), administrative.
    ip_network("224.0.0.0/24"),
    *IPv4Network("232.0.0.0/8").address_exclude(IPv4Network("232.0.0.0/24")),
    ip_network("239.0.0.0/8"),
    *map(ip_network, ("::/128", "::1/128", "fc00::/7", "fe80::/10")),
    # ffXY::/16, Y the scope: interface to organisation (RFC 7346).
    *(ip_network(f"ff{flags:x}{scope:x}::/16") for flags in range(16) for scope in (1, 2, 3, 4, 5, 8)),
)
"""A remote in these is INTRA_VPC; the IPv4 ones are the original's."""

CARRIER_GRADE_NAT: tuple[Network, ...] = (ip_network("100.64.0.0/10"),)


@dataclass(frozen=True, slots=True)
class Placed:
    """How the labels and classes of one batch are numbered: the ranges' own, then networks', then peers'."""

    labels: Sequence[Label]
    classes: Sequence[str]
    class_of_label: NDArray[np.uint8]
    lacks_region: NDArray[np.bool_]
    first_network: int
    first_peer: int


class Classifier:
    """Knows the configuration's networks; what changes (cluster, peers, ranges) is given with each batch."""

    def __init__(
        self, cloud: str, region: str, private: Sequence[Network], networks: Sequence[NamedNetwork]
    ) -> None:
        self._cloud, self._region = cloud, region
        self._private = PrefixMap.of_networks((*PRIVATE_NETWORKS, *private))
        self._networks = networks
        self._network_of = PrefixMap(
            {
                packed_network(network): number
                for number, named in enumerate(networks, 1)
                for network in named.networks
            }
        )
        # Keyed by the table's identity: worked out once a refresh.
        self._classes = functools.lru_cache(maxsize=1)(self._classes_of_labels)

    def placed(self, ranges: RangeTable, peers: Sequence[Peer]) -> Placed:
        """The numbers of labels and classes while these ranges and peers hold."""
        of_ranges, lacks_region = self._classes(ranges)
        if not self._networks and not peers:
            return Placed(ranges.labels, CLASSES, of_ranges, lacks_region, 0, 0)
        named: tuple[NamedNetwork | Peer, ...] = (*self._networks, *peers)
        classes = list(dict.fromkeys((*CLASSES, *(one.connection_class for one in named))))
        of_named = np.array([classes.index(one.connection_class) for one in named], np.uint8)
        first = len(ranges.labels)
        return Placed(
            (*ranges.labels, *(one.label for one in named)),
            classes,
            np.concatenate([of_ranges, of_named]),
            np.concatenate([lacks_region, np.zeros(len(named), np.bool_)]),
            first,
            first + len(self._networks),
        )

    def classify(
        self,
        part: Working,
        *,
        cluster: Snapshot,
        world: World,
        peers: Sequence[Peer],
        ranges: RangeTable,
        placed: Placed,
    ) -> int:
        """Add remote_endpoint, class, label and rule to the records; returns how many lack their region."""
        remote, moments = part.of_remote(""), part.moments() if peers else 0
        endpoint = part.of_remote("_endpoint")
        label = np.full(len(part), OWN_LABEL, np.int32)
        rule = np.full(len(part), BY_OWN, np.uint8)
        left = np.flatnonzero(endpoint == 0)
        address = remote[left]

        def decided(by: int, hit: NDArray[np.bool_]) -> None:
            nonlocal left, address
            rule[left[hit]] = by
            left, address = left[~hit], address[~hit]

        def found(hit: NDArray[np.bool_], ids: NDArray[np.int32], labels: NDArray[np.int32]) -> None:
            endpoint[left[hit]] = ids[hit]
            label[left[hit]] = labels[hit]

        ids = cluster.of_pod_cidrs(part.family, address)
        hit = ids != 0
        if hit.any():
            endpoint[left[hit]] = ids[hit]
            decided(BY_POD_NETWORK, hit)
        for number, peer in enumerate(peers):
            ids = _endpoints_of(peer.snapshot, part, address, at(moments, left))
            hit = ids != 0
            if hit.any():
                labels = np.full(len(ids), placed.first_peer + number, np.int32)
                found(hit, ids + np.int32(world.first_of_peer(number)), labels)
                decided(BY_PEER, hit)
        if self._networks:
            numbers = self._network_of.lookup(part.family, address)
            hit = numbers != 0
            found(hit, np.int32(FIRST_NETWORK + 1) - numbers, numbers + np.int32(placed.first_network - 1))
            decided(BY_NETWORK, hit)
        decided(BY_PRIVATE, self._private.lookup(part.family, address) != 0)
        of_range = ranges.lookup(part.family, address)
        label[left] = of_range
        rule[left] = np.where(of_range != 0, BY_RANGE, BY_NOTHING)
        connection_class = placed.class_of_label.take(label, mode="wrap")
        connection_class[label == OWN_LABEL] = INTRA_VPC
        part.columns |= {
            "remote_endpoint": endpoint,
            "class": connection_class,
            "label": label,
            "rule": rule,
        }
        return int(np.count_nonzero(placed.lacks_region[of_range]))

    def _classes_of_labels(self, ranges: RangeTable) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """By label id: the class of such a remote, and whether the label is our cloud without a region."""
        cloud, region = self._cloud, self._region
        classes = np.full(len(ranges.labels), PUBLIC_INTERNET, np.uint8)
        lacks_region = np.zeros(len(ranges.labels), np.bool_)
        # To miss says "the internet" only where a hit would have said "our cloud".
        if not len(ranges) or (cloud in CLOUDS and not ranges.covers(cloud)):
            classes[0] = UNKNOWN
        for index, label in enumerate(ranges.labels):
            if index == 0 or label.cloud != cloud:
                continue
            lacks_region[index] = label.region == ""
            if lacks_region[index]:
                classes[index] = UNKNOWN
            else:
                classes[index] = INTRA_REGION if label.region in ("global", region) else INTER_REGION
        return classes, lacks_region


def _endpoints_of(peer: Snapshot, part: Working, address: Addresses, moments: Moment) -> NDArray[np.int32]:
    """A peer's pod at each address, else its node; 0 = neither."""
    nodes = peer.nodes(part.family, address)
    return np.where(nodes != 0, nodes, peer.pods(part.family, address, moments))
