"""Each rule of attribution by example; where ours deviates from the original, its answer too."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import pytest

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.ranges.parse import parse
from tests.beds.attribution import Flow
from tests.beds.small_cluster import CONFIG, FILES, NETWORKS, PEER, attribute, flow


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


def test_node_traffic_is_a_host_network_pods_where_it_alone_has_the_port() -> None:
    # The original ignores all of it.
    host = replace(CONFIG, meter_host_network=True)

    def seen(side: str, *flows_of: Any, **more: Any) -> tuple[str, ...]:
        row = one_row(flow(*flows_of, **more), host)
        return tuple(row[f"{side}{name}"] for name in ("Pod", "Namespace", "Node", "App"))

    assert seen("local", "198.51.100.1", "172.20.0.10", port=9100) == (
        "exporter", "system", "node-a", "exporter"
    )  # fmt: skip
    assert seen("remote", "10.1.1.5", "172.20.0.10", port=8080) == ("proxy", "system", "node-a", "host")
    assert seen("local", "fd00:9::1", "fd00:20::10", port=9100)[0] == "exporter"
    node = ("", "", "node-a", "host")
    assert seen("local", "198.51.100.1", "172.20.0.10", port=80) == node, "two have it"
    assert seen("local", "198.51.100.1", "172.20.0.10", port=22) == node
    assert seen("local", "172.20.0.10", "198.51.100.1", port=9100) == node, "the port of the other end"
    assert seen("remote", "10.1.1.5", "172.20.0.11", port=9100)[:3] == ("", "", "node-b"), "another node's"
    tcp_only = replace(host, ignore_udp=False)
    rows, _, _ = attribute([flow("10.1.1.5", "172.20.0.10", protocol=17, port=8080)], tcp_only)
    assert rows[0]["remotePod"] == ""


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


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    names = ("connectionClass", "remoteCloud", "remoteRegion", "remoteAvailabilityZone", "remoteCloudService")
    return tuple(row[name] for name in (*names, "remoteCluster"))


def test_a_named_network_says_where_its_remotes_are_before_private_and_provider_ranges() -> None:
    # The original: INTRA_VPC in our own region for 10.70/16, the provider's answer for 198.51.100.100.
    config = replace(CONFIG, networks=NETWORKS)
    peering = ("INTER_REGION", "aws", "us-east-1", "use1-az1", "peering", "UNKNOWN")
    partner = ("DEDICATED_LINE", "onprem", "berlin", "", "", "partner-cluster")
    assert place(one_row(flow("10.1.1.5", "10.70.0.1"), config)) == peering
    assert place(one_row(flow("fd00:1:1::5", "2001:db8:70::9"), config)) == peering
    assert place(one_row(flow("10.1.1.5", "10.70.3.1"), config)) == partner  # the longer prefix
    assert place(one_row(flow("10.1.1.5", "198.51.100.100"), config)) == partner
    # What is known of the cluster comes before what the configuration says of an address.
    own = replace(config, networks=(replace(NETWORKS[0], networks=(ipaddress.ip_network("10.1.0.0/16"),)),))
    assert place(one_row(flow("10.1.1.5", "10.1.2.5"), own)) == (
        "INTRA_VPC", "aws", "us-west-2", "zone-2", "", "blue"
    )  # fmt: skip


def test_a_pod_already_gone_elsewhere_is_in_the_cluster_whatever_its_address() -> None:
    # The original looks the address up in the ranges: 203.0.113.17 would be the internet.
    row = one_row(flow("10.1.1.5", "203.0.113.17"))
    assert place(row) == ("INTRA_VPC", "aws", "us-west-2", "zone-1", "", "blue")
    assert (row["remotePod"], row["remoteNode"], row["remoteApp"]) == ("", "node-c", "")


def test_pods_and_nodes_of_a_peer_cluster_have_their_names_and_place() -> None:
    def seen(address: str) -> dict[str, Any]:
        rows, _, _ = attribute([flow("10.1.1.5", address)], CONFIG, peers=[PEER])
        return rows[0]

    green = ("INTER_REGION", "aws", "us-east-1", "zone-9", "", "green")
    for address, pod, app in (
        ("10.61.1.5", "payments", "payments"), ("198.51.100.41", "edge", "edge"), ("10.60.0.10", "", "host")
    ):  # fmt: skip
        row = seen(address)
        assert place(row) == green
        assert (row["remotePod"], row["remoteApp"], row["remoteNode"]) == (pod, app, "peer-1")
    # The original, and we without peers: a private address like any other.
    row = one_row(flow("10.1.1.5", "10.61.1.5"))
    assert (row["connectionClass"], row["remotePod"], row["remoteCluster"]) == ("INTRA_VPC", "", "UNKNOWN")


def test_an_address_of_ours_is_never_a_peers() -> None:
    for address in ("10.1.2.5", "10.1.2.9"):  # a pod of ours; inside a pod network of ours
        rows, _, _ = attribute([flow("10.1.1.5", address)], CONFIG, peers=[PEER])
        assert rows[0]["remoteCluster"] == "blue"
        assert "impostor" not in rows[0]["remotePod"]


def test_a_peers_pod_is_never_local() -> None:
    _, ignored, _ = attribute([flow("10.61.1.5", "198.51.100.1")], CONFIG, node="peer-1", peers=[PEER])
    assert ignored == {"direction": (1, 5300, 8)}
