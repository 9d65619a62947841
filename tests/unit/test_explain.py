"""What is explained of an address is what attribution says of it."""

from __future__ import annotations

import asyncio
import ipaddress
import json
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.report.explain import explain, parse_endpoint, parse_moment, render
from kubenetmon.server.attributed import RULES, Peer
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.checking import CheckedCluster, Checker, CheckerConfig
from kubenetmon.server.explain import Explainer
from kubenetmon.server.inventory import Inventory
from kubenetmon.server.ranges import RangeTable
from tests.beds.attribution import CASE_TIME
from tests.beds.small_cluster import (
    CONFIG,
    INVENTORY,
    NETWORKS,
    PEER,
    PEER_INVENTORY,
    RANGES,
    SNAPSHOT,
    attribute,
    flow,
)
from tests.beds.virtual_clock import VirtualClock
from tests.unit.test_attribution_oracle import CONFIGS, INTERESTING4, INTERESTING6

HOST = "fd00:1:1::5", "10.1.1.5"
"""The local end, by family: a pod of node-a."""


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([*INTERESTING4, *INTERESTING6]), CONFIGS, st.booleans(), st.sampled_from([80, 9100]))
def test_a_remote_is_explained_as_its_rows_are_written(
    address: str, config: AttributionConfig, peers: bool, port: int
) -> None:
    parsed = ipaddress.ip_address(address)
    config, some = replace(config, ipv6=True), [PEER] if peers else []
    answer = Attributor(config).as_remote(
        4 if parsed.version == 4 else 6, int(parsed), port, CASE_TIME, SNAPSHOT, RANGES, some
    )
    rows, ignored, _ = attribute([flow(HOST[parsed.version == 4], address, port=port)], config, peers=some)
    if answer is None:
        assert list(ignored) == ["node"]
        return
    assert ignored == {}
    # The local pod's own address, or one on the same node, is local from the other side as well.
    (row, *_) = [row for row in rows if row["remoteIPv4"] == address or row.get("remoteIPv6") == address]
    pod_here = {"Pod": answer.pod, "Node": answer.node, "Namespace": answer.namespace, "App": answer.app}
    expected = {
        **pod_here, "Cloud": answer.cloud, "Region": answer.region, "CloudService": answer.service,
        "AvailabilityZone": answer.zone, "Cluster": answer.cluster,
    }  # fmt: skip
    assert {name: row[f"remote{name}"] for name in expected} == expected
    assert row["connectionClass"] == answer.connection_class
    assert sorted(row["connectionFlags"].keys() - {"LOCAL_INITIATED"}) == sorted(answer.flags)


@dataclass
class Ranges:
    table: RangeTable = RANGES


@dataclass
class KnownPeer:
    inventory: Inventory = PEER_INVENTORY

    def peer(self) -> Peer:
        return PEER


def explainer(config: AttributionConfig = CONFIG) -> Explainer:
    return Explainer(
        "blue",
        cluster=INVENTORY,
        peers=[KnownPeer()],
        ranges=Ranges(),
        attributor=Attributor(config),
        checker=Checker(CheckerConfig(), [CheckedCluster("blue", INVENTORY, None, "file:cluster.json")]),
        clock=VirtualClock(CASE_TIME),
    )


def asked(config: AttributionConfig = CONFIG, **query: str) -> dict[str, Any]:
    answer = asyncio.run(explainer(config).page(query))
    assert answer.status == 200, answer.body
    found: dict[str, Any] = json.loads(answer.body)
    return found


def test_every_rule_is_told_with_what_it_knows() -> None:
    config = AttributionConfig("aws", "us-west-2", "blue", networks=NETWORKS, ipv6=True)
    rules = {
        address: asked(config, address=address)["as_remote"]["rule"]
        for address in (
            "10.1.2.5", "10.1.2.88", "10.61.1.5", "10.70.0.1", "192.168.7.7", "198.51.100.1", "11.1.1.1"
        )
    }  # fmt: skip
    assert list(rules.values()) == list(RULES)


def test_the_page_tells_history_pod_network_and_all_prefixes() -> None:
    found = asked(address="10.1.1.5")
    assert found["history"] == [
        {"from": "1970-01-01T00:00:01Z", "until": None, "pod": "client", "namespace": "default",
         "node": "node-a", "zone": "zone-1", "app": "client"}
    ]  # fmt: skip
    assert (found["pod_network_of"], found["prefixes"]) == (["node-a"], [])
    assert asked(address="10.61.1.5")["peers"]["green"][0]["pod"] == "payments"
    found = asked(address="198.51.100.1")
    networks = [ipaddress.ip_network(one["prefix"]) for one in found["prefixes"]]
    assert len(networks) > 1
    assert networks == sorted(networks, key=lambda network: -network.prefixlen)
    assert found["prefixes"][0]["service"] == found["as_remote"]["service"] == "s3"
    assert asked(address="2001:db8:a:1::1")["prefixes"][0]["service"] == "s3"


def test_the_port_of_a_host_network_pod_is_told() -> None:
    host = AttributionConfig("aws", "us-west-2", "blue", meter_host_network=True)
    found = asked(host, address="172.20.0.10", port="9100")
    assert found["host_ports"]["tcp"][0]["pod"] == found["as_remote"]["pod"] == "exporter"
    ignored = asked(address="172.20.0.10", port="9100")["as_remote"]
    assert (ignored["ignored"], ignored["node"]) == ("node", "node-a")


@pytest.mark.parametrize(
    "query",
    [{}, {"address": "x"}, {"address": "10.1.1.5", "port": "65536"}, {"address": "10.1.1.5", "at": "-1"},
     {"address": "10.1.1.5", "at": "99999999999"},
     {"address": "10.1.1.5", "check": "yes"}, {"address": "0.0.0.0"}],
)  # fmt: skip
def test_a_question_that_cannot_be_asked_is_refused_in_one_line(query: dict[str, str]) -> None:
    answer = asyncio.run(explainer().page(query))
    assert answer.status == 400
    assert answer.body.count(b"\n") == 1
    assert b"ask ?address=IP" in answer.body


def test_the_api_is_asked_only_where_a_check_is_wanted() -> None:
    assert "check" not in asked(address="10.1.1.5")
    [one] = asked(address="10.1.1.5", check="1")["check"]["objects"]
    assert (one["name"], one["because"]) == (
        "client", "kubernetes_source is file:cluster.json: there is no API to ask"
    )  # fmt: skip


def test_people_read_what_decided() -> None:
    shown = render(asked(address="10.61.1.5", port="443"))
    assert "10.61.1.5 port 443 at 2025-11-24T16:00:00Z, as cluster blue knows it" in shown
    assert "in green     1970-01-01T00:00:01Z to now  default/payments on peer-1 (zone-9)" in shown
    assert "as remote    INTER_REGION" in shown
    assert "decided by   peer cluster: " in shown
    assert "ignored      node node-a: " in render(asked(address="172.20.0.10"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("10.0.0.1", ("10.0.0.1", 0)), ("10.0.0.1:443", ("10.0.0.1", 443)), ("fd00::1", ("fd00::1", 0)),
     ("[fd00::1]:443", ("fd00::1", 443)), ("[fd00::1]", ("fd00::1", 0)), ("FD00::0001", ("fd00::1", 0))],
)  # fmt: skip
def test_an_endpoint_is_read(text: str, expected: tuple[str, int]) -> None:
    assert parse_endpoint(text) == expected


@pytest.mark.parametrize(
    "text", ["", "pod-1", "10.0.0.1:", "10.0.0.1:65536", "10.0.0", "[fd00::1", "10.0.0.1/8"]
)
def test_what_is_no_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"is not IP, IP:PORT or \[IPv6\]:PORT"):
        parse_endpoint(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1764000000", 1764000000), ("5m", 999_700), ("2025-11-24T16:00", 1764000000),
     ("2025-11-24T16:00:00Z", 1764000000), ("2025-11-24T17:00+01:00", 1764000000),
     ("2025-11-24", 1763942400)],
)  # fmt: skip
def test_a_moment_is_read(text: str, expected: int) -> None:
    assert parse_moment(text, 1_000_000.0) == expected


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="--at 'yesterday': give a time"):
        parse_moment("yesterday", 0.0)


def test_no_server_is_said_in_one_line() -> None:
    with pytest.raises(KubenetmonError, match=r"no answer from a server at 127.0.0.1:1 \(.*refused.*\): run"):
        explain("10.0.0.1", "", "127.0.0.1:1", as_json=False)
