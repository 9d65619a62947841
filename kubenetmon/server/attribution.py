"""Attribution: whose bytes a record's are, and over which class of path they went. Pure, on arrays.

Contract: `Attributor.attribute` reads a batch, a `Snapshot` and a `RangeTable`, all immutable, and says of
every record either who is local and remote or why it is ignored: packets and bytes kept + ignored = those of
the batch. No per-record Python, nothing to shut down. The rules are those of DESIGN section 7.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.errors import ConfigurationError
from kubenetmon.model import UDP, FlowBatch, FlowRecords
from kubenetmon.server.ranges.parse import CLOUDS, Label
from kubenetmon.server.ranges.table import PrefixMap, RangeTable
from kubenetmon.server.snapshot import EndpointTable, Snapshot

Network = IPv4Network | IPv6Network

CLASSES = ("UNKNOWN", "INTRA_VPC", "INTRA_REGION", "INTER_REGION", "PUBLIC_INTERNET")
"""connectionClass by code."""
UNKNOWN, INTRA_VPC, INTRA_REGION, INTER_REGION, PUBLIC_INTERNET = range(5)

OWN_LABEL = -1
"""The label id of what lies in our own cloud and region."""

GONE_POD = -1
"""The endpoint id of an address inside the reporting node's podCIDRs that no known pod owns."""

LOCAL_INITIATED = "LOCAL_INITIATED"
MOST_FLAGS = 15

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
class AttributionConfig:
    """How to attribute; `cloud` and `region` are in lower case.

    `private_cidrs` are private beside `PRIVATE_NETWORKS`; `connection_flags` names flags that are set where
    the remote address lies in their networks; `ipv6` says that the table can hold IPv6 records.
    """

    cloud: str
    region: str
    cluster: str
    ignore_udp: bool = True
    meter_host_network: bool = False
    private_cidrs: tuple[Network, ...] = CARRIER_GRADE_NAT
    connection_flags: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    ipv6: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """Records that make no rows, and what they counted in both directions."""

    records: int
    bytes: int
    packets: int


@dataclass(frozen=True, slots=True)
class Side:
    """One end of n records.

    `endpoint` int32: id in the `EndpointTable`, 0 = nothing known, or `GONE_POD`. `ipv4` uint32, 0 for IPv6
    records; `ipv6` uint64 of shape (n, 2), 0 for IPv4 records, or None where every record is IPv4. `port`
    uint16.
    """

    endpoint: NDArray[np.int32]
    ipv4: NDArray[np.uint32]
    ipv6: NDArray[np.uint64] | None
    port: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class Attributed:
    """The n records that make rows, and what became of the others. Arrays have shape (n,).

    `connection_class` indexes `CLASSES`; `label` indexes `labels` or is `OWN_LABEL`; `flag_code` indexes
    `flags`. `ignored` is by reason (udp, node, direction, ipv6), without those that took no record.
    `empty_region` counts the records kept as UNKNOWN because their range of our own cloud names no region.
    """

    table: EndpointTable
    labels: Sequence[Label]
    flags: Sequence[Mapping[str, bool]]
    node_name: str
    node_zone: str
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
    ignored: Mapping[str, Ignored]
    empty_region: int

    def __len__(self) -> int:
        return len(self.protocol)

    def total_bytes(self) -> int:
        """Bytes of both directions over the records that make rows."""
        return int(self.out_bytes.sum()) + int(self.in_bytes.sum())

    def total_packets(self) -> int:
        """Packets of both directions over the records that make rows."""
        return int(self.out_packets.sum()) + int(self.in_packets.sum())


class _Working:
    """The records of one family while they are sorted out.

    `source` is the original tuple's source, `destination` the reply tuple's: after DNAT, so that a Service's
    address is the pod behind it.
    """

    def __init__(self, records: FlowRecords, ignored: dict[str, Ignored]) -> None:
        self.family = records.family
        self._ignored = ignored
        self.columns: dict[str, NDArray[Any]] = {
            "protocol": records.protocol,
            "source": records.original_source_address,
            "source_port": records.original_source_port,
            "source_bytes": records.original_bytes,
            "source_packets": records.original_packets,
            "destination": records.reply_source_address,
            "destination_port": records.reply_source_port,
            "destination_bytes": records.reply_bytes,
            "destination_packets": records.reply_packets,
        }

    def __len__(self) -> int:
        return len(self.columns["protocol"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def ignore(self, reason: str, which: NDArray[np.bool_]) -> None:
        """Take records out, and count them."""
        count = int(np.count_nonzero(which))
        if not count:
            return
        before = self._ignored.get(reason, Ignored(0, 0, 0))
        totals = [
            int(self.columns[f"source_{unit}"][which].sum())
            + int(self.columns[f"destination_{unit}"][which].sum())
            for unit in ("bytes", "packets")
        ]
        self._ignored[reason] = Ignored(
            before.records + count, before.bytes + totals[0], before.packets + totals[1]
        )
        rest = np.flatnonzero(~which)
        self.columns = {name: column[rest] for name, column in self.columns.items()}

    def of_local(self, quantity: str) -> NDArray[Any]:
        """What the local side's column of this name holds."""
        return self._choose(f"source{quantity}", f"destination{quantity}")

    def of_remote(self, quantity: str) -> NDArray[Any]:
        """What the remote side's column of this name holds."""
        return self._choose(f"destination{quantity}", f"source{quantity}")

    def _choose(self, if_source: str, otherwise: str) -> NDArray[Any]:
        first = self.columns[if_source]
        choice = self.columns["local_is_source"]
        return np.where(choice if first.ndim == 1 else choice[:, None], first, self.columns[otherwise])


class Attributor:
    """Attributes batches under one configuration; holds no state of theirs."""

    def __init__(self, config: AttributionConfig) -> None:
        """Raises `ConfigurationError` for flags that cannot be told apart."""
        if len(config.connection_flags) > MOST_FLAGS:
            raise ConfigurationError(f"connection_flags: at most {MOST_FLAGS} flags are possible")
        if LOCAL_INITIATED in config.connection_flags:
            raise ConfigurationError(
                f"connection_flags: {LOCAL_INITIATED} is set by kubenetmon itself; give yours another name"
            )
        self._config = config
        self._private = PrefixMap.of_networks((*PRIVATE_NETWORKS, *config.private_cidrs))
        self._flag_names = (LOCAL_INITIATED, *config.connection_flags)
        self._flag_maps = [PrefixMap.of_networks(networks) for networks in config.connection_flags.values()]
        # Keyed by the table's identity: worked out once a refresh.
        self._classes = functools.lru_cache(maxsize=1)(self._classes_of_labels)

    def attribute(self, batch: FlowBatch, cluster: Snapshot, ranges: RangeTable) -> Attributed:
        """Who sent and received what in this batch, as the cluster and the ranges given know it."""
        ignored: dict[str, Ignored] = {}
        empty_region = 0
        parts = [_Working(records, ignored) for records in (batch.ipv4, batch.ipv6)]
        node_name = batch.identity.node_name
        at = max(batch.interval_end - 1, batch.interval_start)
        for part in parts:
            if self._config.ignore_udp:
                part.ignore("udp", part["protocol"] == UDP)
            if part.family == 6 and not self._config.ipv6:
                part.ignore("ipv6", np.ones(len(part), np.bool_))
            self._find_endpoints(part, cluster, at)
            _find_sides(part, cluster, node_name)
            empty_region += self._classify(part, ranges)
        if len(parts[1]) == 0:
            parts = parts[:1]
        code, flags = self._flag_codes(parts)
        local, remote = _side(parts, _Working.of_local), _side(parts, _Working.of_remote)
        gone = bool((local.endpoint == GONE_POD).any() or (remote.endpoint == GONE_POD).any())
        return Attributed(
            table=cluster.table,
            labels=ranges.labels,
            flags=flags,
            node_name=node_name,
            node_zone=cluster.node_zone(node_name) if gone else "",
            protocol=_joined([part["protocol"] for part in parts]),
            local=local,
            remote=remote,
            # Counters belong to who sent: the local side's are "out", the remote side's "in".
            out_bytes=_joined([part.of_local("_bytes") for part in parts]),
            out_packets=_joined([part.of_local("_packets") for part in parts]),
            in_bytes=_joined([part.of_remote("_bytes") for part in parts]),
            in_packets=_joined([part.of_remote("_packets") for part in parts]),
            connection_class=_joined([part["class"] for part in parts]),
            label=_joined([part["label"] for part in parts]),
            flag_code=code,
            ignored=ignored,
            empty_region=empty_region,
        )

    def _find_endpoints(self, part: _Working, cluster: Snapshot, at: int) -> None:
        """Rules 3 to 5: the pod (or node) at both ends; node traffic is ignored unless it is metered.

        An end is a node only when `meter_host_network` is on: both ends are looked at here, so a record with
        a node as its remote end is node traffic just as well.
        """
        if not self._config.meter_host_network:
            part.ignore(
                "node",
                (cluster.nodes(part.family, part["source"]) != 0)
                | (cluster.nodes(part.family, part["destination"]) != 0),
            )
        for end in ("source", "destination"):
            endpoint = cluster.pods(part.family, part[end], at)
            if self._config.meter_host_network:
                node = cluster.nodes(part.family, part[end])
                endpoint = np.where(node != 0, node, endpoint)
            part.columns[f"{end}_endpoint"] = endpoint

    def _classify(self, part: _Working, ranges: RangeTable) -> int:
        """Rule 8: cloud, region, service and class of the remote; returns how many lack their region."""
        count = len(part)
        connection_class, label = np.full(count, INTRA_VPC, np.uint8), np.full(count, OWN_LABEL, np.int32)
        address = part.of_remote("")
        outside = np.flatnonzero(part.of_remote("_endpoint") == 0)
        outside = outside[self._private.lookup(part.family, address[outside]) == 0]
        found = ranges.lookup(part.family, address[outside])
        classes, lacks_region = self._classes(ranges)
        label[outside] = found
        connection_class[outside] = classes[found]
        part.columns["class"], part.columns["label"] = connection_class, label
        return int(np.count_nonzero(lacks_region[found]))

    def _classes_of_labels(self, ranges: RangeTable) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """By label id: the class of such a remote, and whether the label is our cloud without a region."""
        cloud, region = self._config.cloud, self._config.region
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

    def _flag_codes(self, parts: Sequence[_Working]) -> tuple[NDArray[np.intp], list[dict[str, bool]]]:
        """Rule 10: a code for each combination of flags, and each code's flags. Only set flags are named."""
        masks = []
        for part in parts:
            mask = part["local_is_source"].astype(np.intp)
            for bit, networks in enumerate(self._flag_maps, start=1):
                mask |= (networks.lookup(part.family, part.of_remote("")) != 0).astype(np.intp) << bit
            masks.append(mask)
        mask = _joined(masks)
        combinations = np.arange(2)
        if self._flag_maps:
            combinations, mask = np.unique(mask, return_inverse=True)
        flags = [
            {name: True for bit, name in enumerate(self._flag_names) if int(combination) >> bit & 1}
            for combination in combinations
        ]
        return mask, flags


def _find_sides(part: _Working, cluster: Snapshot, node_name: str) -> None:
    """Rule 6: which end lives on the reporting node."""
    here = cluster.node_id(node_name)
    node_of = cluster.table.node_id
    on_node, elsewhere, unknown, gone = {}, {}, {}, {}
    for end in ("source", "destination"):
        endpoint = part[f"{end}_endpoint"]
        node = node_of[endpoint]
        on_node[end] = (node == here) if here else np.zeros(len(part), np.bool_)
        elsewhere[end] = (node != 0) & ~on_node[end]
        unknown[end] = endpoint == 0
        gone[end] = np.zeros(len(part), np.bool_)
        candidates = np.flatnonzero(unknown[end])
        if len(candidates):
            inside = cluster.in_pod_cidrs(part.family, part[end][candidates], node_name)
            if inside.any():
                gone[end][candidates] = inside
                endpoint = part.columns[f"{end}_endpoint"] = endpoint.copy()
                endpoint[candidates[inside]] = GONE_POD
    # A pod that is known to be here comes before an address that only looks like one (which can also be the
    # node's own address on the pod network).
    local_is_source = on_node["source"] | ~on_node["destination"] & (
        gone["source"] | ~gone["destination"] & unknown["source"] & elsewhere["destination"]
    )
    local_is_destination = (
        on_node["destination"] | gone["destination"] | elsewhere["source"] & unknown["destination"]
    )
    part.columns["local_is_source"] = local_is_source
    part.ignore("direction", ~(local_is_source | local_is_destination))


def _side(parts: Sequence[_Working], of: Callable[[_Working, str], NDArray[Any]]) -> Side:
    addresses = [of(part, "") for part in parts]
    ipv6 = None
    if len(parts) == 2:
        ipv6 = np.concatenate([np.zeros((len(addresses[0]), 2), np.uint64), addresses[1]])
        addresses[1] = np.zeros(len(addresses[1]), np.uint32)
    return Side(
        endpoint=_joined([of(part, "_endpoint") for part in parts]),
        ipv4=_joined(addresses),
        ipv6=ipv6,
        port=_joined([of(part, "_port") for part in parts]),
    )


def _joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays end to end; without a copy where there is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
