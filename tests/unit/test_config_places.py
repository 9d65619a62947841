"""`networks` and `peer_clusters`: what they mean, and what is said of mistakes."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.config.places import NetworkSetting, PeerSetting, Place, networks, peer_clusters
from kubenetmon.errors import ConfigurationError


def test_a_network_has_what_it_says_and_sensible_defaults() -> None:
    given = {
        "peering": {"cidrs": ["10.70.0.0/16", "2001:db8:70::/48"], "region": "US-East-1", "zone": "use1-az1"},
        "Partner": {"cidrs": "10.71.0.0/16", "cloud": "onprem", "class": "DEDICATED_LINE", "service": None},
    }
    assert networks("networks", given) == (
        NetworkSetting(
            "peering",
            (ipaddress.ip_network("10.70.0.0/16"), ipaddress.ip_network("2001:db8:70::/48")),
            Place("", "us-east-1", ""),
            "use1-az1",
            "peering",
            "",
        ),
        NetworkSetting(
            "Partner",
            (ipaddress.ip_network("10.71.0.0/16"),),
            Place("onprem", "", "DEDICATED_LINE"),
            "",
            "partner",
            "",
        ),
    )


def test_the_class_follows_from_the_place_unless_it_is_given() -> None:
    seen = [
        Place(*place).resolved("aws", "us-west-2")
        for place in ((), ("", "us-east-1"), ("aws", "us-west-2"), ("gcp", "us-west-2"), ("gcp", "", "MINE"))
    ]
    assert [place.connection_class for place in seen] == [
        "INTRA_VPC", "INTER_REGION", "INTRA_VPC", "PUBLIC_INTERNET", "MINE"
    ]  # fmt: skip
    assert (seen[1].cloud, seen[1].region) == ("aws", "us-east-1")


def test_a_peer_is_a_kubeconfig_or_a_map() -> None:
    given = {"green": "/etc/green.yaml", "blue": {"kubeconfig": "/etc/blue.yaml", "region": "eu-west-1"}}
    assert peer_clusters("peer_clusters", given) == (
        PeerSetting("green", Path("/etc/green.yaml"), Place()),
        PeerSetting("blue", Path("/etc/blue.yaml"), Place("", "eu-west-1", "")),
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ([], "networks: give a map of names to networks, at most 1000"),
        ({"a": []}, "networks.a: give a map of settings"),
        ({"a": {}}, "networks.a.cidrs is missing"),
        ({"a": {"cidrs": ["10.0.0.1/8"]}}, r"networks.a.cidrs: '10.0.0.1/8' is not a network .*host bits"),
        ({"a": {"cidr": ["10.0.0.0/8"]}}, "networks.a: unknown key 'cidr'; did you mean cidrs"),
        ({"a": {"cidrs": [], "size": 3}}, "networks.a: unknown key 'size'; there are cidrs, cloud"),
        ({"a": {"cidrs": [], "class": "INTRA_VCP"}}, "networks.a.class: 'INTRA_VCP' .* mean INTRA_VPC"),
        ({"a": {"cidrs": [], "class": "intra_vpc"}}, "networks.a.class: 'intra_vpc' .* mean INTRA_VPC"),
        ({"a": {"cidrs": [], "class": "my own"}}, "networks.a.class: 'my own' is not one of"),
        ({"a": {"cidrs": [], "region": ["x"]}}, r"networks.a.region: \['x'\] is not text"),
        (
            {"a": {"cidrs": ["10.0.0.0/8"]}, "b": {"cidrs": ["10.0.0.0/8"]}},
            "networks.b.cidrs: 10.0.0.0/8 is in networks.a as well",
        ),
    ],
)
def test_a_mistake_in_networks_is_named(value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        networks("networks", value)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("green", "peer_clusters: give a map of names to clusters"),
        ({"green": {}}, "peer_clusters.green.kubeconfig is missing"),
        ({"green": {"kubeconfig": "x", "zone": "z"}}, "peer_clusters.green: unknown key 'zone'"),
        ({"": "x"}, "peer_clusters is empty"),
    ],
)
def test_a_mistake_in_peers_is_named(value: Any, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        peer_clusters("peer_clusters", value)
