"""Kubernetes JSON of every kind: what is kept of it, and what odd objects cost."""

from __future__ import annotations

import contextlib
import ipaddress
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.server.inventory import KINDS, Inventory, InventoryConfig, Kind
from kubenetmon.server.kubernetes_objects import ObjectDecoder, UnreadableError, parse_address, parse_network
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod

DECODER = ObjectDecoder(InventoryConfig(cell_label="cell"))

POD: dict[str, Any] = {
    "kind": "Pod",
    "metadata": {
        "name": "shop-1",
        "namespace": "store",
        "uid": "u-1",
        "resourceVersion": "17",
        "creationTimestamp": "1970-01-01T00:01:40Z",
        "labels": {
            "k8s-app": "second",
            "app.kubernetes.io/name": "shop",
            "control-plane-id": "i-1",
            "cell": "c-1",
            "other": "x",
        },
        "annotations": {"anything": "at all"},
    },
    "spec": {"nodeName": "node-a", "containers": [{"name": "main"}]},
    "status": {
        "phase": "Running",
        "startTime": "1970-01-01T00:01:41.5+00:00",
        "podIP": "10.1.0.5",
        "podIPs": [{"ip": "10.1.0.5"}, {"ip": "fd00::5"}],
    },
}
NODE: dict[str, Any] = {
    "kind": "Node",
    "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "zone-a", "cell": "c-2"}},
    "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd00:1::/64"]},
    "status": {
        "addresses": [
            {"type": "InternalIP", "address": "192.0.2.10"},
            {"type": "InternalIP", "address": "2001:db8::10"},
            {"type": "ExternalIP", "address": "198.51.100.1"},
            {"type": "Hostname", "address": "node-a"},
        ]
    },
}


def listed(*items: object, **metadata: object) -> bytes:
    return json.dumps({"kind": "PodList", "metadata": metadata, "items": items}).encode()


def changed(original: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    copy: dict[str, Any] = json.loads(json.dumps(original))
    place = copy
    *parents, last = path.split(".")
    for key in parents:
        place = place[key]
    place[last] = value
    return copy


def one_pod(item: object) -> Pod:
    page = DECODER.page("pods", listed(item))
    assert page.skipped == 0
    assert isinstance(page.objects[0], Pod)
    return page.objects[0]


def test_pod_is_decoded() -> None:
    assert one_pod(POD) == Pod(
        "u-1",
        "store",
        "shop-1",
        "node-a",
        "shop",
        "i-1",
        "c-1",
        100,
        101,
        True,
        (int(ipaddress.ip_address("10.1.0.5")),),
        (int(ipaddress.ip_address("fd00::5")),),
    )


def test_node_is_decoded() -> None:
    page = DECODER.page("nodes", listed(NODE))
    assert page.objects == [
        Node(
            "node-a",
            "zone-a",
            0,
            (int(ipaddress.ip_address("192.0.2.10")),),
            (int(ipaddress.ip_address("2001:db8::10")),),
            (Network(4, 10 << 24 | 1 << 16, 24), Network(6, 0xFD00_0001 << 96, 64)),
            "c-2",
            "/node-a",
        )
    ]


def test_page_carries_its_version_and_what_follows() -> None:
    page = DECODER.page("pods", listed(POD, resourceVersion="12", **{"continue": "next"}))
    assert (page.resource_version, page.continue_token, page.skipped) == ("12", "next", 0)


def test_second_app_label_counts_where_the_first_is_missing() -> None:
    assert one_pod(changed(POD, "metadata.labels", {"k8s-app": "second"})).app == "second"
    assert one_pod(changed(POD, "metadata.labels", {})).app == ""
    assert one_pod(changed(POD, "metadata.labels", None)).app == ""


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_pod_that_is_over_owns_nothing(phase: str) -> None:
    assert not one_pod(changed(POD, "status.phase", phase)).owns_addresses


def test_pod_on_the_host_network_owns_nothing() -> None:
    assert not one_pod(changed(POD, "spec.hostNetwork", True)).owns_addresses


def test_pod_with_little_is_a_pod() -> None:
    bare = one_pod({"metadata": {"name": "bare", "creationTimestamp": None}, "spec": None, "status": None})
    assert (bare.uid, bare.created, bare.ipv4, bare.node) == ("/bare", 0, (), "")


def test_single_address_is_taken_where_there_is_no_list() -> None:
    status = {"phase": "Running", "podIP": "10.1.0.6"}
    assert one_pod(changed(POD, "status", status)).ipv4 == (int(ipaddress.ip_address("10.1.0.6")),)


ODD_PODS: list[object] = [
    None,
    7,
    "pod",
    [],
    {},
    {"metadata": None},
    {"metadata": {"name": ""}},
    changed(POD, "metadata.name", 7),
    changed(POD, "metadata.labels", ["x"]),
    changed(POD, "metadata.labels", {"k8s-app": 7}),
    changed(POD, "metadata.creationTimestamp", "yesterday"),
    changed(POD, "spec", "x"),
    changed(POD, "spec.hostNetwork", "yes"),
    changed(POD, "status.podIP", "10.1.0"),
    changed(POD, "status.podIP", "10.1.0.1/24"),
    changed(POD, "status.podIP", "0.0.0.0"),
    changed(POD, "status.podIPs", [{"ip": "fe80::1%eth0"}]),
    changed(POD, "status.podIPs", {"ip": "10.1.0.1"}),
]


@pytest.mark.parametrize("odd", ODD_PODS, ids=range(len(ODD_PODS)))
def test_odd_pod_costs_only_itself(odd: object) -> None:
    page = DECODER.page("pods", listed(odd, POD, resourceVersion="3"))
    assert [known.uid for known in page.objects if isinstance(known, Pod)] == ["u-1"]
    assert (page.skipped, page.resource_version) == (1, "3")
    event = DECODER.event("pods", json.dumps({"type": "MODIFIED", "object": odd}).encode())
    assert event.object is None


@pytest.mark.parametrize("networks", [["10.0.0.0"], ["10.0.0.0/33"], ["x/8"], ["10.0.0.0/-1"], [7], "x"])
def test_odd_node_costs_only_itself(networks: object) -> None:
    page = DECODER.page("nodes", listed(changed(NODE, "spec.podCIDRs", networks), NODE))
    assert (len(page.objects), page.skipped) == (1, 1)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'{"items": 7}', b'{"items": [', b"\xff\xfe", b"[" * 100_000]
)
def test_what_is_no_list_is_refused(body: bytes) -> None:
    with pytest.raises(UnreadableError, match="list of pods"):
        DECODER.page("pods", body)
    with pytest.raises(UnreadableError):
        DECODER.dump(body)
    with pytest.raises(UnreadableError):
        DECODER.event("pods", body)


def test_events_are_decoded() -> None:
    added = DECODER.event("pods", json.dumps({"type": "ADDED", "object": POD}).encode())
    assert (added.type, added.object, added.resource_version) == ("ADDED", one_pod(POD), "17")
    bookmark = DECODER.event(
        "pods", b'{"type":"BOOKMARK","object":{"kind":"Pod","metadata":{"resourceVersion":"18"}}}'
    )
    assert (bookmark.type, bookmark.object, bookmark.resource_version) == ("BOOKMARK", None, "18")
    error = DECODER.event(
        "pods",
        b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"too old","code":410}}',
    )
    assert (error.type, error.error_code, error.error_message) == ("ERROR", 410, "too old")


def test_dump_holds_all_kinds_and_passes_over_others() -> None:
    service = {"kind": "Service", "metadata": {"name": "s", "uid": "s-1"}}
    secret = {"kind": "Secret", "metadata": {"name": "x"}}
    body = {"kind": "List", "items": [NODE, POD, service, secret, changed(POD, "spec", 7), 7]}
    pages = DECODER.dump(json.dumps(body).encode())
    assert [(len(pages[kind].objects), pages[kind].skipped) for kind in KINDS] == [(1, 0), (1, 2), (1, 0)]


def test_dump_of_one_kind_is_a_list_of_that_kind() -> None:
    pages = DECODER.dump(listed({key: value for key, value in POD.items() if key != "kind"}))
    assert len(pages["pods"].objects) == 1


def test_ipv4_mapped_address_is_the_ipv4_address() -> None:
    assert parse_address("::ffff:10.1.0.5") == parse_address("10.1.0.5")


@settings(deadline=None)
@given(st.ip_addresses())
def test_addresses_are_read_as_the_library_reads_them(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    expected = mapped or address
    if int(expected):
        assert parse_address(str(address)) == (expected.version, int(expected))


@settings(deadline=None)
@given(st.ip_addresses(), st.data())
def test_networks_are_read_as_the_library_reads_them(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address, data: st.DataObject
) -> None:
    text = f"{address}/{data.draw(st.integers(0, address.max_prefixlen))}"
    expected = ipaddress.ip_network(text, strict=False)
    assert parse_network(text) == (
        expected.version,
        int(expected.network_address),
        expected.prefixlen,
    )


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda children: (
        st.lists(children, max_size=4)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "name", "labels", "spec", "status", "podIP", "podIPs", "ip", "items"]
            )
            | st.text(max_size=5),
            children,
            max_size=6,
        )
    ),
    max_leaves=20,
)


@settings(deadline=None)
@given(st.sampled_from(KINDS), st.lists(JSON, max_size=5))
def test_no_json_breaks_the_decoder_or_the_inventory(kind: Kind, items: list[object]) -> None:
    page = DECODER.page(kind, listed(*items))
    assert len(page.objects) + page.skipped == len(items)
    DECODER.dump(json.dumps({"kind": "List", "items": items}).encode())
    for item in items:
        DECODER.event(kind, json.dumps({"type": "ADDED", "object": item}).encode())
    inventory = Inventory(InventoryConfig())
    for known in page.objects:
        if isinstance(known, Pod):
            inventory.put_pod(known, 5)
    inventory.snapshot()


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_break_the_decoder(body: bytes) -> None:
    decoders: list[Callable[[], object]] = [
        lambda: DECODER.page("pods", body),
        lambda: DECODER.dump(body),
        lambda: DECODER.event("pods", body),
    ]
    for decode in decoders:
        with contextlib.suppress(UnreadableError):
            decode()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"containers": [{"ports": [{"containerPort": 80}]}]}, {(6, 80)}),
        (
            {
                "containers": [
                    {
                        "ports": [
                            {"containerPort": 53, "protocol": "UDP"},
                            {"hostPort": 53, "protocol": "TCP"},
                        ]
                    },
                    {"name": "no ports"},
                    {"ports": [{"containerPort": 9100, "hostPort": 9100}, {"containerPort": 9100}]},
                ]
            },
            {(17, 53), (6, 53), (6, 9100)},
        ),
        (
            {
                "initContainers": [
                    {"restartPolicy": "Always", "ports": [{"containerPort": 15021}]},
                    {"ports": [{"containerPort": 1}]},
                ]
            },
            {(6, 15021)},
        ),
        (
            {"containers": [{"ports": [{"containerPort": n} for n in (0, -1, 65536, 65535)]}]},
            {(6, 65535)},
        ),
        ({"containers": [{"ports": [{"containerPort": 132, "protocol": "SCTP"}]}]}, set()),
        ({"containers": "odd", "initContainers": None}, set()),
        ({}, set()),
    ],
)
def test_the_ports_of_a_pod_on_the_hosts_network(
    spec: dict[str, Any], expected: set[tuple[int, int]]
) -> None:
    def ports(phase: str = "Running", host_network: bool = True) -> set[tuple[int, int]]:
        found = {**POD, "spec": {"nodeName": "node-a", "hostNetwork": host_network, **spec}}
        found["status"] = {**POD["status"], "phase": phase}
        page = DECODER.page("pods", json.dumps({"items": [found]}).encode())
        (pod,) = page.objects
        assert isinstance(pod, Pod)
        assert pod.owns_addresses is not host_network
        return {(port >> 16, port & 0xFFFF) for port in pod.host_ports}

    assert ports() == expected
    assert ports(host_network=False) == set()


def test_a_host_network_pod_that_is_over_has_no_ports() -> None:
    spec = {"hostNetwork": True, "containers": [{"ports": [{"containerPort": 80}]}]}
    over = {**POD, "spec": spec, "status": {**POD["status"], "phase": "Succeeded"}}
    (pod,) = DECODER.page("pods", json.dumps({"items": [over]}).encode()).objects
    assert isinstance(pod, Pod)
    assert (pod.host_ports, pod.owns_addresses) == ((), False)
