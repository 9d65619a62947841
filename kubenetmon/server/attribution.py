"""Attribution: whose bytes a record's are, and over which class of path they went. Pure, on arrays.

Contract: `Attributor.attribute` reads a batch, a `Snapshot`, the peers' snapshots and a `RangeTable`, all
immutable, and says of every record either who is local and remote or why it is ignored: packets and bytes
kept + ignored = those of the batch. No per-record Python, nothing to shut down. The rules are those of DESIGN
section 7.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from kubenetmon.errors import ConfigurationError
from kubenetmon.model import UDP, FlowBatch
from kubenetmon.server.attributed import (
    GONE_POD,
    NO_SIDE_CAUSES,
    NOTHING_IGNORED,
    Attributed,
    Ignored,
    NamedNetwork,
    NoSide,
    Peer,
    Remote,
    World,
)
from kubenetmon.server.classification import CARRIER_GRADE_NAT, Classifier
from kubenetmon.server.ranges.parse import Label
from kubenetmon.server.ranges.table import Network, PrefixMap, RangeTable
from kubenetmon.server.snapshot import Addresses, Family, Snapshot
from kubenetmon.server.working import Working, at, joined, one_record, side

LOCAL_INITIATED = "LOCAL_INITIATED"
MOST_FLAGS = 15
MOST_STRANGERS = 500
SAMPLES = 3
"""Records shown of a batch for each cause of having no side."""


@dataclass(frozen=True, slots=True)
class AttributionConfig:
    """How to attribute; `cloud` and `region` are in lower case.

    `private_cidrs` are private beside `PRIVATE_NETWORKS`; `networks` come before both and before any
    provider's ranges; `connection_flags` names flags that are set where the remote address lies in their
    networks; `ipv6` says that the table can hold IPv6 records.
    """

    cloud: str
    region: str
    cluster: str
    ignore_udp: bool = True
    meter_host_network: bool = False
    private_cidrs: tuple[Network, ...] = CARRIER_GRADE_NAT
    networks: tuple[NamedNetwork, ...] = ()
    connection_flags: Mapping[str, tuple[Network, ...]] = field(default_factory=dict)
    ipv6: bool = False


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
        self._classifier = Classifier(config.cloud, config.region, config.private_cidrs, config.networks)
        self._flag_names = (LOCAL_INITIATED, *config.connection_flags)
        self._flag_maps = [PrefixMap.of_networks(networks) for networks in config.connection_flags.values()]

    def attribute(
        self, batch: FlowBatch, cluster: Snapshot, ranges: RangeTable, peers: Sequence[Peer] = ()
    ) -> Attributed:
        """Who sent and received what in this batch, as the clusters and the ranges given know it."""
        ignored: dict[str, Ignored] = {}
        no_side: dict[str, NoSide] = {}
        strangers: dict[Family, Addresses] = {}
        empty_region = 0
        interval = (batch.interval_start, batch.interval_end)
        parts = [Working(records, ignored, interval) for records in (batch.ipv4, batch.ipv6)]
        node_name = batch.identity.node_name
        ambiguous = NOTHING_IGNORED
        world = World(cluster, self._config.cluster, node_name, peers, self._config.networks)
        placed = self._classifier.placed(ranges, peers)
        for part in parts:
            if self._config.ignore_udp:
                part.ignore("udp", part["protocol"] == UDP)
            if part.family == 6 and not self._config.ipv6:
                part.ignore("ipv6", np.ones(len(part), np.bool_))
            self._find_endpoints(part, cluster)
            homeless = _find_sides(part, cluster, node_name, no_side)
            part.columns["local_endpoint"] = part.of_local("_endpoint")
            strangers[part.family] = _strangers(part, homeless)
            ambiguous += _handed_over(part, cluster, interval)
            empty_region += self._classifier.classify(
                part, cluster=cluster, world=world, peers=peers, ranges=ranges, placed=placed
            )
        if len(parts[1]) == 0:
            parts = parts[:1]
        code, flags = self._flag_codes(parts)
        return Attributed(
            world=world,
            labels=placed.labels,
            classes=placed.classes,
            flags=flags,
            protocol=joined([part["protocol"] for part in parts]),
            local=side(parts, Working.of_local, "local_endpoint"),
            remote=side(parts, Working.of_remote, "remote_endpoint"),
            # Counters belong to who sent: the local side's are "out", the remote side's "in".
            out_bytes=joined([part.of_local("_bytes") for part in parts]),
            out_packets=joined([part.of_local("_packets") for part in parts]),
            in_bytes=joined([part.of_remote("_bytes") for part in parts]),
            in_packets=joined([part.of_remote("_packets") for part in parts]),
            connection_class=joined([part["class"] for part in parts]),
            label=joined([part["label"] for part in parts]),
            flag_code=code,
            rule=joined([part["rule"] for part in parts]),
            ignored=ignored,
            no_side=no_side,
            empty_region=empty_region,
            ambiguous=ambiguous,
            strangers={part.family: some for part in parts if len(some := strangers[part.family])},
        )

    def as_remote(
        self,
        family: Family,
        address: int,
        port: int,
        moment: int,
        cluster: Snapshot,
        ranges: RangeTable,
        peers: Sequence[Peer] = (),
    ) -> Remote | None:
        """What would be said at Unix second `moment` of a remote with that address (a number), for TCP.

        None where its records are ignored as node traffic.
        """
        part = Working(one_record(family, address, port), {}, (moment, moment + 1))
        self._find_endpoints(part, cluster)
        if not len(part):
            return None
        part.columns["local_is_source"] = np.zeros(1, np.bool_)
        world = World(cluster, self._config.cluster, "", peers, self._config.networks)
        placed = self._classifier.placed(ranges, peers)
        self._classifier.classify(
            part, cluster=cluster, world=world, peers=peers, ranges=ranges, placed=placed
        )
        endpoint = part["remote_endpoint"]

        def known(field: str) -> str:
            return world.column(field, endpoint)[0]

        label = int(part["label"][0])
        place = Label(self._config.cloud, self._config.region, "") if label < 0 else placed.labels[label]
        code, flags = self._flag_codes([part])
        return Remote(
            cloud=place.cloud,
            region=place.region,
            service=place.service,
            zone=known("zone"),
            cluster=known("cluster"),
            node=known("node"),
            namespace=known("namespace"),
            pod=known("pod"),
            app=known("app"),
            connection_class=placed.classes[int(part["class"][0])],
            flags=tuple(flags[int(code[0])]),
            rule=int(part["rule"][0]),
        )

    def _find_endpoints(self, part: Working, cluster: Snapshot) -> None:
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
        moments = part.moments()
        for end in ("source", "destination"):
            endpoint = cluster.pods(part.family, part[end], moments)
            if self._config.meter_host_network:
                node = cluster.nodes(part.family, part[end])
                at_node = np.flatnonzero(node)
                if len(at_node):
                    address, port = part[end][at_node], part[f"{end}_port"][at_node]
                    protocol, then = part["protocol"][at_node], at(moments, at_node)
                    pod = cluster.host_pods(part.family, address, protocol, port, then)
                    endpoint[at_node] = np.where(pod != 0, pod, node[at_node])
            part.columns[f"{end}_endpoint"] = endpoint

    def _flag_codes(self, parts: Sequence[Working]) -> tuple[NDArray[np.intp], list[dict[str, bool]]]:
        """Rule 10: a code for each combination of flags, and each code's flags. Only set flags are named."""
        masks = []
        for part in parts:
            mask = part["local_is_source"].astype(np.intp)
            for bit, networks in enumerate(self._flag_maps, start=1):
                mask |= (networks.lookup(part.family, part.of_remote("")) != 0).astype(np.intp) << bit
            masks.append(mask)
        mask = joined(masks)
        combinations = np.arange(2)
        if self._flag_maps:
            combinations, mask = np.unique(mask, return_inverse=True)
        flags = [
            {name: True for bit, name in enumerate(self._flag_names) if int(combination) >> bit & 1}
            for combination in combinations
        ]
        return mask, flags


def _find_sides(
    part: Working, cluster: Snapshot, node_name: str, no_side: dict[str, NoSide]
) -> list[Addresses]:
    """Rule 6: which end lives on the reporting node.

    Returns the ends of the records taken out of which neither is known: one of them may be a pod of the node.
    """
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
    nowhere = ~(local_is_source | local_is_destination)
    if not nowhere.any():
        return []
    both_unknown = nowhere & unknown["source"] & unknown["destination"]
    both_elsewhere = nowhere & elsewhere["source"] & elsewhere["destination"]
    causes = dict.fromkeys(NO_SIDE_CAUSES, np.zeros(len(part), np.bool_))
    if here:
        causes |= {"both_unknown": both_unknown, "both_elsewhere": both_elsewhere}
        causes["no_node"] = nowhere & ~both_unknown & ~both_elsewhere
    else:
        causes["unknown_node"] = nowhere
    for cause, which in causes.items():
        if which.any():
            before = no_side.get(cause, NoSide(Ignored(0, 0, 0), ()))
            samples = (*before.samples, *part.largest(which, SAMPLES))
            no_side[cause] = NoSide(before.total + part.total(which), samples)
    homeless = [part[end][both_unknown] for end in ("source", "destination")] if here else []
    part.ignore("direction", nowhere)
    return homeless


def _handed_over(part: Working, cluster: Snapshot, interval: tuple[int, int]) -> Ignored:
    """The records of which it cannot be told whose they are, and which are taken for the last owner's: an
    address changed hands within the interval, and no one knows when the flow began."""
    untimed = part.untimed()
    if not len(untimed):
        return NOTHING_IGNORED
    ambiguous = np.zeros(len(part), np.bool_)
    for end in ("source", "destination"):
        addresses = part[end][untimed]
        first = cluster.pods(part.family, addresses, interval[0])
        last = cluster.pods(part.family, addresses, max(interval[1] - 1, interval[0]))
        ambiguous[untimed] |= (first != last) & (first != 0) & (last != 0)
    return part.total(ambiguous)


def _strangers(part: Working, homeless: Sequence[Addresses]) -> Addresses:
    unknown = np.flatnonzero(part["local_endpoint"] <= 0)
    if not len(unknown) and not homeless:
        return part["source"][:0]
    found: Addresses = np.unique(np.concatenate([part.of_local("")[unknown], *homeless]), axis=0)
    return found[:MOST_STRANGERS]
