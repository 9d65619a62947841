"""All rules of attribution in plain Python, a record at a time, against the arrays."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.model import UDP
from kubenetmon.server.attribution import AttributionConfig
from tests.beds.attribution import Flow, Tuple
from tests.beds.small_cluster import (
    GONE,
    HOST_PODS,
    NETWORKS,
    NODES,
    PEER,
    PEER_NODES,
    PEER_PODS,
    PODS,
    RANGES,
    attribute,
)


def is_in(address: str, networks: Sequence[str]) -> bool:
    one = ipaddress.ip_address(address)
    return any(one in ipaddress.ip_network(text) for text in networks)


PRIVATE = [
    "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "127.0.0.0/8", "224.0.0.0/24",
    "239.0.0.0/8", "0.0.0.0/32", "fc00::/7", "fe80::/10", "::1/128", "::/128", "ff02::/16",
]  # fmt: skip


def is_private(address: str, config: AttributionConfig) -> bool:
    if is_in(address, ["232.0.0.0/8"]) and not is_in(address, ["232.0.0.0/24"]):
        return True
    return is_in(address, [*PRIVATE, *map(str, config.private_cidrs)])


def label_of(address: str) -> tuple[str, str, str]:
    one = ipaddress.ip_address(address)
    number = int(one)
    if one.version == 4:
        found = RANGES.lookup(4, np.array([number], np.uint32))
    else:
        found = RANGES.lookup(6, np.array([[number >> 64, number & (2**64 - 1)]], np.uint64))
    return RANGES.labels[int(found[0])]


def of_peer(address: str) -> dict[str, str] | None:
    for name, (zone, addresses, _) in PEER_NODES.items():
        if address in addresses:
            return {"Pod": "", "Node": name, "AvailabilityZone": zone, "App": "host"}
    if address in PEER_PODS:
        pod, on, app = PEER_PODS[address]
        return {"Pod": pod, "Node": on, "AvailabilityZone": PEER_NODES[on][0], "App": app}
    return None


def by_the_rules(one: Flow, node: str, config: AttributionConfig, peers: bool) -> str | dict[str, Any]:
    source, destination = one.original.source, one.reply.source
    if config.ignore_udp and one.protocol == UDP:
        return "udp"
    if ipaddress.ip_address(source).version == 6 and not config.ipv6:
        return "ipv6"
    node_by_address = {address: name for name, (_, addresses, _) in NODES.items() for address in addresses}
    if not config.meter_host_network and (source in node_by_address or destination in node_by_address):
        return "node"

    def describe(address: str, port: int) -> dict[str, str] | None:
        if address in node_by_address:
            name = node_by_address[address]
            alone = [
                {"Pod": pod, "Node": name, "AvailabilityZone": NODES[name][0], "App": app or "host"}
                for pod, (on, app, ports) in HOST_PODS.items()
                if on == name and (one.protocol, port) in ports
            ]
            if len(alone) == 1:
                return alone[0]
            return {"Pod": "", "Node": name, "AvailabilityZone": NODES[name][0], "App": "host"}
        if address in PODS:
            pod, on, app = PODS[address]
            return {"Pod": pod, "Node": on, "AvailabilityZone": NODES[on][0] if on else "", "App": app}
        if node in NODES and is_in(address, NODES[node][2]):
            return {"Pod": "", "Node": node, "AvailabilityZone": NODES[node][0], "App": "", "gone": "yes"}
        return None

    src, dst = describe(source, one.original.source_port), describe(destination, one.reply.source_port)

    def known(end: dict[str, str] | None) -> bool:
        return end is not None and "gone" not in end

    if src is not None and known(src) and src["Node"] == node:
        local = "source"
    elif dst is not None and known(dst) and dst["Node"] == node:
        local = "destination"
    elif src is not None and not known(src):
        local = "source"
    elif dst is not None and not known(dst):
        local = "destination"
    elif src is None and dst is not None and dst["Node"]:
        local = "source"
    elif dst is None and src is not None and src["Node"]:
        local = "destination"
    else:
        return "direction"

    ends = {"source": (src, one.original), "destination": (dst, one.reply)}
    here, sent = ends[local]
    there, received = ends["destination" if local == "source" else "source"]
    remote = received.source
    cloud, region, service = config.cloud, config.region, ""
    remote_cluster = "UNKNOWN"
    of_network = [
        (network.prefixlen, named)
        for named in config.networks
        for network in named.networks
        if is_in(remote, [str(network)])
    ]
    homes = [name for name, (_, _, networks) in NODES.items() if is_in(remote, networks)]
    if there is not None or homes:
        connection_class, remote_cluster = "INTRA_VPC", config.cluster
        if there is None:  # a pod that is gone, of another node
            there = {"Pod": "", "Node": homes[0], "AvailabilityZone": NODES[homes[0]][0], "App": ""}
    elif peers and of_peer(remote):
        there = of_peer(remote)
        cloud, region, connection_class, remote_cluster = PEER.cloud, PEER.region, "INTER_REGION", "green"
    elif of_network:
        named = max(of_network, key=lambda pair: pair[0])[1]
        cloud, region, service, connection_class = *named.label, named.connection_class
        remote_cluster = named.cluster or "UNKNOWN"
        there = {"Pod": "", "Node": "", "AvailabilityZone": named.zone, "App": ""}
    elif is_private(remote, config):
        connection_class = "INTRA_VPC"
    else:
        cloud, region, service = label_of(remote)
        if cloud != config.cloud:
            connection_class = "PUBLIC_INTERNET"
        elif not region:
            connection_class = "UNKNOWN"
        else:
            connection_class = "INTRA_REGION" if region in ("global", config.region) else "INTER_REGION"
    flags = {"LOCAL_INITIATED": True} if local == "source" else {}
    for name, cidrs in config.connection_flags.items():
        if is_in(remote, [str(cidr) for cidr in cidrs]):
            flags[name] = True
    nothing = {"Pod": "", "Node": "", "AvailabilityZone": "", "App": ""}

    def side(prefix: str, end: dict[str, str] | None) -> dict[str, str]:
        shown = {key: value for key, value in (end or nothing).items() if key != "gone"}
        shown["Namespace"] = "system" if shown["Pod"] in HOST_PODS else "default" if shown["Pod"] else ""
        return {prefix + key: value for key, value in shown.items()}

    return {
        **side("local", here),
        **side("remote", there),
        "local": (sent.source, sent.source_port),
        "remote": (remote, received.source_port),
        "out": (sent.bytes, sent.packets),
        "in": (received.bytes, received.packets),
        "proto": {6: "tcp", 17: "udp"}[one.protocol],
        "connectionClass": connection_class,
        "remoteCloud": cloud,
        "remoteRegion": region,
        "remoteCloudService": service,
        "remoteCluster": remote_cluster,
        "connectionFlags": flags,
    }


INTERESTING4 = [
    *[address for address in PODS if "." in address], *[address for address in GONE if "." in address],
    "172.20.0.10", "172.20.0.11", "198.51.100.5", "192.168.7.7", "100.64.0.9", "127.0.0.9", "224.0.0.251",
    "232.0.0.9", "232.0.1.9", "0.0.0.0", "198.51.100.1", "198.51.100.40", "198.51.100.100", "198.51.100.120",
    *[address for address in PEER_PODS if "." in address], "10.60.0.10", "10.61.1.77", "10.70.0.1",
    "10.70.3.9", "10.1.2.88",
    "198.51.100.200", "203.0.113.1", "203.0.113.70", "192.0.2.1", "203.0.113.250", "11.1.1.1",
]  # fmt: skip
INTERESTING6 = [
    *[address for address in PODS if ":" in address], *[address for address in GONE if ":" in address],
    "fd00:61::5", "2001:db8:70::1",
    "fd00:20::10", "fd00:9::1", "fe80::1", "ff02::1", "2001:db8:a::1", "2001:db8:a:1::1", "2001:db8:b::1",
    "2001:db8:c::1", "2001:db8:ffff::1", "::1",
]  # fmt: skip
COUNTER = st.sampled_from([0, 0, 1, 7, 1500, 2**40])


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    pool = st.sampled_from(INTERESTING4) if draw(st.integers(0, 3)) else st.sampled_from(INTERESTING6)
    source, destination, dialled, seen_from = (draw(pool) for _ in range(4))
    ports = draw(st.tuples(*[st.sampled_from([1, 80, 8080, 9100])] * 4))
    original = Tuple(source, ports[0], dialled, ports[1], draw(COUNTER), draw(COUNTER))
    reply = Tuple(destination, ports[2], seen_from, ports[3], draw(COUNTER), draw(COUNTER))
    return Flow(draw(st.sampled_from([6, 17])), original, reply)


CONFIGS = st.builds(
    AttributionConfig,
    cloud=st.sampled_from(["aws", "gcp"]),
    region=st.sampled_from(["us-west-2", "us-central1"]),
    cluster=st.just("blue"),
    ignore_udp=st.booleans(),
    meter_host_network=st.booleans(),
    private_cidrs=st.sampled_from([
        (), (ipaddress.ip_network("100.64.0.0/10"),), (ipaddress.ip_network("11.0.0.0/8"),)
    ]),
    networks=st.sampled_from([(), NETWORKS]),
    connection_flags=st.sampled_from([
        {},
        {"NAT": (ipaddress.ip_network("198.51.100.0/25"),)},
        {"NAT": (ipaddress.ip_network("198.51.100.0/25"),),
         "LB": (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("2001:db8:a::/48"))},
    ]),
    ipv6=st.booleans(),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(flows(), max_size=12), CONFIGS, st.sampled_from([*NODES, "node-x"]), st.booleans())
def test_arrays_say_what_the_rules_say(
    some: list[Flow], config: AttributionConfig, node: str, peers: bool
) -> None:
    some.sort(key=lambda one: one.family)  # the order of rows: IPv4 first
    expected = [by_the_rules(one, node, config, peers) for one in some]
    rows, ignored, empty_region = attribute(some, config, node, peers=[PEER] if peers else [])

    reasons = [reason for reason in expected if isinstance(reason, str)]
    assert {reason: one[0] for reason, one in ignored.items()} == Counter(reasons)
    for reason, (_, some_bytes, packets) in ignored.items():
        of_reason = [one for one, said in zip(some, expected, strict=True) if said == reason]
        assert some_bytes == sum(one.original.bytes + one.reply.bytes for one in of_reason)
        assert packets == sum(one.original.packets + one.reply.packets for one in of_reason)

    kept = [said for said in expected if not isinstance(said, str)]
    assert empty_region == sum(said["connectionClass"] == "UNKNOWN" for said in kept)
    for direction in ("out", "in"):
        of_direction = [row for row in rows if row["direction"] == direction]
        counted = [said for said in kept if said[direction] != (0, 0)]
        assert [_shown(row) for row in of_direction] == [
            {**{name: value for name, value in said.items() if name not in ("out", "in")},
             "counted": said[direction]}
            for said in counted
        ]  # fmt: skip


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the oracle writes it."""
    shown = {
        name: row[name]
        for side in ("local", "remote")
        for name in (f"{side}{part}" for part in ("Pod", "Node", "AvailabilityZone", "App", "Namespace"))
    }
    for side in ("local", "remote"):
        address = row[f"{side}IPv4"]
        if address == "0.0.0.0" and row.get(f"{side}IPv6", "::") != "::":
            address = row[f"{side}IPv6"]
        shown[side] = (address, row[f"{side}Port"])
    for name in ("proto", "connectionClass", "remoteCloud", "remoteRegion", "remoteCloudService",
                 "remoteCluster", "connectionFlags"):  # fmt: skip
        shown[name] = row[name]
    return {**shown, "counted": (row["bytes"], row["packets"])}
