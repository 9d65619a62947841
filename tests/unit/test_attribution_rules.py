"""The rules of attribution: each by example, and all of them in plain Python, a record at a time."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError
from kubenetmon.model import UDP
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig, Pod
from kubenetmon.server.nodes import Network, Node
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.ranges.parse import parse
from kubenetmon.server.rows import RowsConfig, columns
from kubenetmon.server.snapshot import Snapshot
from tests.beds.attribution import CASE_TIME, Flow, Tuple, batch_of, load_ranges, plain_rows

FILES = Path(__file__).parents[1] / "data" / "ranges"
RANGES = load_ranges(FILES)
NODES = {
    # name: zone, InternalIPs, pod networks
    "node-a": ("zone-1", ["172.20.0.10", "fd00:20::10"], ["10.1.1.0/24", "fd00:1:1::/64"]),
    "node-b": ("zone-2", ["172.20.0.11"], ["10.1.2.0/24"]),
    "node-c": ("zone-1", ["198.51.100.5"], ["203.0.113.16/28"]),  # public addresses in the cluster
}
PODS = {
    # address: pod, node, app
    "10.1.1.5": ("client", "node-a", "client"),
    "10.1.1.6": ("sidecar", "node-a", ""),
    "fd00:1:1::5": ("client", "node-a", "client"),
    "10.1.2.5": ("server", "node-b", "server"),
    "198.51.100.7": ("public", "node-c", "public"),
    "10.9.9.9": ("pending", "", ""),
}
GONE = ["10.1.1.77", "fd00:1:1::77", "203.0.113.17"]
"""Inside pod networks of node-a and node-c, without a pod."""


def cluster() -> Snapshot:
    def numbers(texts: Sequence[str], version: int) -> tuple[int, ...]:
        return tuple(int(one) for one in map(ipaddress.ip_address, texts) if one.version == version)

    inventory = Inventory(InventoryConfig())
    for name, (zone, addresses, networks) in NODES.items():
        parsed = [ipaddress.ip_network(text) for text in networks]
        pod_networks = tuple(
            Network(4 if one.version == 4 else 6, int(one.network_address), one.prefixlen) for one in parsed
        )
        inventory.put_node(Node(name, zone, 1, numbers(addresses, 4), numbers(addresses, 6), pod_networks))
    for index, (address, (name, node, app)) in enumerate(PODS.items()):
        of_pod = [numbers([address], version) for version in (4, 6)]
        pod = Pod(str(index), "default", name, node, app, "", "", 1, 1, True, of_pod[0], of_pod[1])
        inventory.put_pod(pod, CASE_TIME - 600)
    return inventory.snapshot()


SNAPSHOT = cluster()


def attribute(
    flows: Sequence[Flow], config: AttributionConfig, node: str = "node-a", ranges: RangeTable = RANGES
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int, int]], int]:
    """Rows as dictionaries, what was ignored by reason, and how many lacked a region; sums are checked."""
    batch = batch_of(flows, node)
    attributed = Attributor(config).attribute(batch, SNAPSHOT, ranges)
    ignored = {reason: (one.records, one.bytes, one.packets) for reason, one in attributed.ignored.items()}
    assert batch.total_bytes() == attributed.total_bytes() + sum(one[1] for one in ignored.values())
    assert batch.total_packets() == attributed.total_packets() + sum(one[2] for one in ignored.values())
    assert len(batch) == len(attributed) + sum(one[0] for one in ignored.values())
    rows_config = RowsConfig("test", config.cloud, config.region, config.cluster)
    rows = list(plain_rows(*columns(attributed, batch, rows_config)))
    assert sum(row["bytes"] for row in rows) == attributed.total_bytes()
    assert sum(row["packets"] for row in rows) == attributed.total_packets()
    return rows, ignored, attributed.empty_region


CONFIG = AttributionConfig("aws", "us-west-2", "blue", ipv6=True)


def flow(source: str, destination: str, protocol: int = 6, dialled: str = "") -> Flow:
    original = Tuple(source, 40000, dialled or destination, 80, 3, 300)
    return Flow(protocol, original, Tuple(destination, 8080, source, 40000, 5, 5000))


def one_row(one: Flow, config: AttributionConfig = CONFIG, node: str = "node-a") -> dict[str, Any]:
    rows, ignored, _ = attribute([one], config, node)
    assert ignored == {}
    assert len(rows) == 2
    return rows[0]


def test_a_service_is_the_pod_behind_it() -> None:
    row = one_row(flow("10.1.1.5", "10.1.2.5", dialled="10.96.0.1"))
    assert (row["localPod"], row["remotePod"], row["remoteIPv4"], row["remotePort"]) == (
        "client", "server", "10.1.2.5", 8080
    )  # fmt: skip
    assert (row["localAvailabilityZone"], row["remoteAvailabilityZone"]) == ("zone-1", "zone-2")


def test_out_is_what_the_local_side_sent() -> None:
    opened, _, _ = attribute([flow("10.1.1.5", "198.51.100.40")], CONFIG)
    assert [(row["direction"], row["bytes"]) for row in opened] == [("out", 300), ("in", 5000)]
    accepted, _, _ = attribute([flow("198.51.100.40", "10.1.1.5")], CONFIG)
    assert [(row["direction"], row["bytes"]) for row in accepted] == [("out", 5000), ("in", 300)]


# Each deviation from the original: what it would have answered is in the test's name or comment.


def test_a_pod_already_gone_keeps_its_bytes_where_the_original_drops_them() -> None:
    row = one_row(flow("10.1.1.77", "198.51.100.1"))
    assert (row["localPod"], row["localNode"], row["localAvailabilityZone"]) == ("", "node-a", "zone-1")
    assert (row["localIPv4"], row["remoteCloudService"]) == ("10.1.1.77", "s3")
    # On a node whose pod networks do not hold the address the side stays unclear.
    _, ignored, _ = attribute([flow("10.1.1.77", "198.51.100.1")], CONFIG, "node-b")
    assert ignored == {"direction": (1, 5300, 8)}


def test_a_known_pod_is_local_before_an_address_that_only_looks_like_one() -> None:
    # The node's own address on the pod network probes a pod: as in the original the pod is local.
    row = one_row(flow("10.1.1.1", "10.1.1.5"))
    assert (row["localPod"], row["remotePod"], row["remoteNode"]) == ("client", "", "node-a")
    assert row["connectionFlags"] == {}


def test_a_pod_with_a_public_address_is_in_the_cluster_where_the_original_says_internet() -> None:
    row = one_row(flow("10.1.1.5", "198.51.100.7"))
    assert (row["connectionClass"], row["remoteCluster"], row["remoteRegion"]) == (
        "INTRA_VPC",
        "blue",
        "us-west-2",
    )
    assert row["remoteCloudService"] == ""


def test_carrier_grade_nat_is_private_where_the_original_says_internet() -> None:
    assert one_row(flow("10.1.1.5", "100.64.0.9"))["connectionClass"] == "INTRA_VPC"
    as_the_original = replace(CONFIG, private_cidrs=())
    assert one_row(flow("10.1.1.5", "100.64.0.9"), as_the_original)["connectionClass"] == "PUBLIC_INTERNET"


def test_a_range_without_region_gives_an_unknown_class_where_the_original_drops_the_bytes() -> None:
    rows, _, empty_region = attribute([flow("10.1.1.5", "198.51.100.120")], CONFIG)
    assert [(row["connectionClass"], row["remoteCloud"], row["remoteRegion"]) for row in rows] == [
        ("UNKNOWN", "aws", "")
    ] * 2  # fmt: skip
    assert empty_region == 1


def test_without_ranges_the_class_is_unknown_but_for_private_addresses() -> None:
    rows, _, _ = attribute([flow("10.1.1.5", "198.51.100.40")], CONFIG, ranges=RangeTable())
    assert {row["connectionClass"] for row in rows} == {"UNKNOWN"}
    rows, _, _ = attribute([flow("10.1.1.5", "10.7.7.7")], CONFIG, ranges=RangeTable())
    assert {row["connectionClass"] for row in rows} == {"INTRA_VPC"}


def test_a_miss_says_nothing_while_the_own_clouds_ranges_are_missing() -> None:
    azure = replace(CONFIG, cloud="azure", region="eastus")
    of_others = RangeTable([parse("aws", (FILES / "aws.json").read_bytes(), "aws.json")])
    found = [
        attribute([flow("10.1.1.5", address)], azure, ranges=of_others)[0][0]["connectionClass"]
        for address in ("192.0.2.1", "198.51.100.40")
    ]
    assert found == ["UNKNOWN", "PUBLIC_INTERNET"]


def test_node_traffic_is_metered_to_the_node_on_request() -> None:
    _, ignored, _ = attribute([flow("172.20.0.10", "198.51.100.1")], CONFIG)
    assert ignored == {"node": (1, 5300, 8)}
    host = replace(CONFIG, meter_host_network=True)
    row = one_row(flow("172.20.0.10", "198.51.100.1"), host)
    assert (row["localNode"], row["localApp"], row["localPod"]) == ("node-a", "host", "")
    row = one_row(flow("172.20.0.10", "198.51.100.5"), host)
    assert (row["remoteNode"], row["remoteApp"], row["connectionClass"]) == ("node-c", "host", "INTRA_VPC")
    row = one_row(flow("10.1.1.5", "172.20.0.11"), host)
    assert (row["localPod"], row["remoteNode"], row["remoteCluster"]) == ("client", "node-b", "blue")


def test_flags_name_who_opened_the_connection_and_the_networks_of_the_remote() -> None:
    nat = (ipaddress.ip_network("203.0.113.250/32"),)
    config = replace(CONFIG, connection_flags={"NAT_GATEWAY": nat, "NONE": ()})
    assert one_row(flow("10.1.1.5", "203.0.113.250"), config)["connectionFlags"] == {
        "LOCAL_INITIATED": True, "NAT_GATEWAY": True
    }  # fmt: skip
    assert one_row(flow("203.0.113.250", "10.1.1.5"), config)["connectionFlags"] == {"NAT_GATEWAY": True}
    assert one_row(flow("10.1.1.5", "203.0.113.249"), config)["connectionFlags"] == {"LOCAL_INITIATED": True}
    assert one_row(flow("203.0.113.249", "10.1.1.5"), config)["connectionFlags"] == {}


@pytest.mark.parametrize("names", [["LOCAL_INITIATED"], [f"FLAG_{index}" for index in range(16)]])
def test_flags_that_cannot_be_told_apart_are_refused(names: list[str]) -> None:
    with pytest.raises(ConfigurationError, match="connection_flags: "):
        Attributor(replace(CONFIG, connection_flags=dict.fromkeys(names, ())))


def test_ipv6_has_its_own_columns_and_is_ignored_where_the_table_has_none() -> None:
    rows, _, _ = attribute([flow("10.1.1.5", "198.51.100.1"), flow("fd00:1:1::5", "2001:db8:a:1::1")], CONFIG)
    addresses = ("localIPv4", "localIPv6", "remoteIPv4", "remoteIPv6")
    assert [tuple(row[name] for name in addresses) for row in rows[:2]] == [
        ("10.1.1.5", "::", "198.51.100.1", "::"),
        ("0.0.0.0", "fd00:1:1::5", "0.0.0.0", "2001:db8:a:1::1"),
    ]  # fmt: skip
    assert [(row["connectionClass"], row["remoteCloudService"]) for row in rows[:2]] == [
        ("INTRA_REGION", "s3")
    ] * 2
    rows, ignored, _ = attribute([flow("fd00:1:1::5", "2001:db8::1")], replace(CONFIG, ipv6=False))
    assert rows == []
    assert ignored == {"ipv6": (1, 5300, 8)}


def test_nothing_in_nothing_out() -> None:
    assert attribute([], CONFIG) == ([], {}, 0)


# The oracle: DESIGN section 7 for one record, as one would write it down.


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


def by_the_rules(one: Flow, node: str, config: AttributionConfig) -> str | dict[str, Any]:
    source, destination = one.original.source, one.reply.source
    if config.ignore_udp and one.protocol == UDP:
        return "udp"
    if ipaddress.ip_address(source).version == 6 and not config.ipv6:
        return "ipv6"
    node_by_address = {address: name for name, (_, addresses, _) in NODES.items() for address in addresses}
    if not config.meter_host_network and (source in node_by_address or destination in node_by_address):
        return "node"

    def describe(address: str) -> dict[str, str] | None:
        if address in node_by_address:
            name = node_by_address[address]
            return {"Pod": "", "Node": name, "AvailabilityZone": NODES[name][0], "App": "host"}
        if address in PODS:
            pod, on, app = PODS[address]
            return {"Pod": pod, "Node": on, "AvailabilityZone": NODES[on][0] if on else "", "App": app}
        if node in NODES and is_in(address, NODES[node][2]):
            return {"Pod": "", "Node": node, "AvailabilityZone": NODES[node][0], "App": "", "gone": "yes"}
        return None

    src, dst = describe(source), describe(destination)

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
    if there is not None or is_private(remote, config):
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
        shown["Namespace"] = "default" if shown["Pod"] else ""
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
        "remoteCluster": config.cluster if there is not None else "UNKNOWN",
        "connectionFlags": flags,
    }


INTERESTING4 = [
    *[address for address in PODS if "." in address], *[address for address in GONE if "." in address],
    "172.20.0.10", "172.20.0.11", "198.51.100.5", "192.168.7.7", "100.64.0.9", "127.0.0.9", "224.0.0.251",
    "232.0.0.9", "232.0.1.9", "0.0.0.0", "198.51.100.1", "198.51.100.40", "198.51.100.100", "198.51.100.120",
    "198.51.100.200", "203.0.113.1", "203.0.113.70", "192.0.2.1", "203.0.113.250", "11.1.1.1",
]  # fmt: skip
INTERESTING6 = [
    *[address for address in PODS if ":" in address], *[address for address in GONE if ":" in address],
    "fd00:20::10", "fd00:9::1", "fe80::1", "ff02::1", "2001:db8:a::1", "2001:db8:a:1::1", "2001:db8:b::1",
    "2001:db8:c::1", "2001:db8:ffff::1", "::1",
]  # fmt: skip
COUNTER = st.sampled_from([0, 0, 1, 7, 1500, 2**40])


@st.composite
def flows(draw: st.DrawFn) -> Flow:
    pool = st.sampled_from(INTERESTING4) if draw(st.integers(0, 3)) else st.sampled_from(INTERESTING6)
    source, destination, dialled, seen_from = (draw(pool) for _ in range(4))
    ports = draw(st.tuples(*[st.sampled_from([1, 80, 65535])] * 4))
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
    connection_flags=st.sampled_from([
        {},
        {"NAT": (ipaddress.ip_network("198.51.100.0/25"),)},
        {"NAT": (ipaddress.ip_network("198.51.100.0/25"),),
         "LB": (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("2001:db8:a::/48"))},
    ]),
    ipv6=st.booleans(),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(flows(), max_size=12), CONFIGS, st.sampled_from([*NODES, "node-x"]))
def test_arrays_say_what_the_rules_say(some: list[Flow], config: AttributionConfig, node: str) -> None:
    some.sort(key=lambda one: one.family)  # the order of rows: IPv4 first
    expected = [by_the_rules(one, node, config) for one in some]
    rows, ignored, empty_region = attribute(some, config, node)

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
