"""Where we answer better than the original: its answer and ours to a flow, and a line for who migrates."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.server.attributed import NamedNetwork
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.pods import Pod
from kubenetmon.server.rows import RowsConfig, columns
from tests.beds.attribution import CASE_TIME, Flow, batch_of, inventory_of, plain_rows
from tests.beds.original_rules import Original
from tests.beds.small_cluster import RANGES, flow

PAGE = (Path(__file__).parents[2] / "docs" / "differences.md").read_text()
CONFIG = AttributionConfig("aws", "us-west-2", "blue", ipv6=True)


def node(name: str, address: str, zone: str, *pod_cidrs: str) -> dict[str, Any]:
    return {
        "kind": "Node",
        "metadata": {"name": name, "uid": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "spec": {"podCIDRs": list(pod_cidrs)},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def pod(
    name: str, on: str, *addresses: str, phase: str = "Running", created: int = 10, **spec: Any
) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": name,
            "creationTimestamp": f"2025-01-01T00:00:{created}Z",
            "labels": {"app.kubernetes.io/name": name},
        },
        "spec": {"nodeName": on, **spec},
        "status": {"phase": phase, "podIPs": [{"ip": address} for address in addresses]},
    }


OBJECTS = [
    node("node-a", "172.20.0.10", "zone-1", "10.1.1.0/24", "fd00:1:1::/64"),
    node("node-b", "172.20.0.11", "zone-2", "10.1.2.0/24"),
    pod("client", "node-a", "10.1.1.5", "fd00:1:1::5"),
    pod("server", "node-b", "10.1.2.5"),
    pod("public", "node-b", "198.51.100.7"),
    pod("job", "node-a", "10.1.1.6", phase="Succeeded"),
    pod("after-the-job", "node-a", "10.1.1.6", created=20),
    pod("finished", "node-a", "10.1.1.7", phase="Failed"),
    pod("older", "node-a", "10.1.1.8", created=11),
    pod("newer", "node-a", "10.1.1.8", created=12),
    pod(
        "exporter", "node-a", "172.20.0.10", hostNetwork=True,
        containers=[{"ports": [{"containerPort": 8080}]}],
    ),
    pod("away", "node-c", "172.20.0.99", hostNetwork=True),
    pod("guest", "node-b", "172.20.0.99"),
]  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """`name` is the first column of docs/differences.md. `original` and `ours` are why there is no row, or
    what of the row differs."""

    name: str
    flow: Flow
    original: str | dict[str, Any]
    ours: str | dict[str, Any]
    config: AttributionConfig = CONFIG
    node: str = "node-a"


HOST = replace(CONFIG, meter_host_network=True)
PEERING = NamedNetwork(
    "peering",
    (ipaddress.ip_network("10.70.0.0/16"),),
    "aws",
    "us-east-1",
    "INTER_REGION",
    "use1-az1",
    "peering",
)
DIFFERENCES = [
    Difference(
        "IPv6 flows", flow("fd00:1:1::5", "2001:db8:a:1::1"),
        "ipv6", {"localPod": "client", "localIPv6": "fd00:1:1::5", "remoteCloudService": "s3"},
    ),
    Difference(
        "Node traffic, with `meter_host_network`", flow("172.20.0.10", "198.51.100.1"),
        "node", {"localPod": "", "localNode": "node-a", "localApp": "host"}, HOST,
    ),
    Difference(
        "A port of one hostNetwork pod, with `meter_host_network`", flow("10.1.2.5", "172.20.0.10"),
        "node", {"localPod": "exporter", "localApp": "exporter", "remotePod": "server"}, HOST,
    ),
    Difference(
        "An address of a finished pod that a living one has now", flow("10.1.1.6", "198.51.100.1"),
        "error", {"localPod": "after-the-job"},
    ),
    Difference(
        "An address of a finished pod", flow("10.1.1.7", "198.51.100.1"),
        {"localPod": "finished"}, {"localPod": "", "localNode": "node-a"},
    ),
    Difference(
        "An address of several living pods", flow("10.1.1.8", "198.51.100.1"),
        "error", {"localPod": "newer"},
    ),
    Difference(
        "An address of a hostNetwork pod whose node is gone", flow("10.1.2.5", "172.20.0.99"),
        "error", {"localPod": "server", "remotePod": "guest"}, node="node-b",
    ),
    Difference(
        "A pod that is gone, within the reporting node's podCIDRs", flow("10.1.1.77", "198.51.100.1"),
        "direction", {"localPod": "", "localNode": "node-a", "localAvailabilityZone": "zone-1"},
    ),
    Difference(
        "A remote pod that is gone, within another node's podCIDRs", flow("10.1.1.5", "10.1.2.77"),
        {"remoteNode": "", "remoteAvailabilityZone": ""},
        {"remoteNode": "node-b", "remoteAvailabilityZone": "zone-2", "remoteCluster": "blue"},
    ),
    Difference(
        "A pod or node of the cluster with a public address", flow("10.1.1.5", "198.51.100.7"),
        {"connectionClass": "INTRA_REGION"}, {"connectionClass": "INTRA_VPC", "remoteCluster": "blue"},
    ),
    Difference(
        "Carrier-grade NAT (100.64.0.0/10)", flow("10.1.1.5", "100.64.0.9"),
        {"connectionClass": "PUBLIC_INTERNET", "remoteCloud": ""},
        {"connectionClass": "INTRA_VPC", "remoteCloud": "aws"},
    ),
    Difference(
        "Networks of others, with `networks`", flow("10.1.1.5", "10.70.0.1"),
        {"connectionClass": "INTRA_VPC", "remoteRegion": "us-west-2"},
        {"connectionClass": "INTER_REGION", "remoteRegion": "us-east-1"},
        replace(CONFIG, networks=(PEERING,)),
    ),
    Difference(
        "A range of our own cloud without a region", flow("10.1.1.5", "198.51.100.120"),
        "error", {"connectionClass": "UNKNOWN", "remoteCloud": "aws", "remoteRegion": ""},
    ),
]  # fmt: skip


LABELLED = [
    node("node-a", "172.20.0.10", "zone-1", "10.1.1.0/24"),
    pod("client", "node-a", "10.1.1.5"),
]
LABELLED[0]["metadata"]["labels"]["rack"] = "rack-7"
LABELLED[1]["metadata"]["labels"] |= {"team": "search", "shard": "shard-3", "cell": "cell-2"}
LABELS = InventoryConfig(
    app_labels=("owner", "team"), instance_id_label="shard", zone_label="rack", cell_label="cell"
)


@pytest.mark.parametrize("one", DIFFERENCES, ids=lambda one: one.name)
def test_the_originals_answer_and_ours(one: Difference) -> None:
    original = _original(one, OBJECTS)
    assert _part(original, one.original) == one.original
    assert _part(_ours(one), one.ours) == one.ours
    assert f"| {one.name} |" in PAGE, "docs/differences.md has no line for it"


def test_what_the_original_leaves_empty_is_filled() -> None:
    """remoteCluster, cells and flags: the original knows none of them."""
    nat = (ipaddress.ip_network("198.51.100.1/32"),)
    config = replace(CONFIG, connection_flags={"NAT_GATEWAY": nat})
    ours = _ours(Difference("", flow("10.1.1.5", "198.51.100.1"), "", "", config))
    assert isinstance(ours, dict)
    assert ours["connectionFlags"] == {"NAT_GATEWAY": True, "LOCAL_INITIATED": True}
    assert ours["remoteCluster"] == "UNKNOWN"
    ours = _ours(Difference("", flow("10.1.1.5", "10.1.2.5"), "", ""))
    assert isinstance(ours, dict)
    assert ours["remoteCluster"] == "blue"
    for name in ("`remoteCluster`", "`connectionFlags`", "`remoteCell`"):
        assert f"| {name}" in PAGE


def test_labels_are_settings() -> None:
    one = Difference("", flow("10.1.1.5", "198.51.100.1"), "", "")
    original = _original(one, LABELLED)
    assert isinstance(original, dict)
    names = ("localApp", "localInstanceID", "localAvailabilityZone")
    assert [original[name] for name in names] == ["client", "", "zone-1"]
    by_default = _ours(one, inventory(LABELLED))
    assert isinstance(by_default, dict)
    assert [by_default[name] for name in (*names, "localCell")] == ["client", "", "zone-1", ""]
    ours = _ours(one, inventory(LABELLED, LABELS))
    assert isinstance(ours, dict)
    assert [ours[name] for name in (*names, "localCell")] == ["search", "shard-3", "rack-7", "cell-2"]
    assert "localCell" not in original, "never a value"
    assert "| app, instance id and zone |" in PAGE


def test_a_deleted_pod_keeps_its_address_for_the_grace_time() -> None:
    """Outside all podCIDRs, where nothing else tells whose it was."""
    gone = pod("gone", "node-a", "10.2.0.5")
    one = Difference("", flow("10.2.0.5", "198.51.100.1"), "", "")
    assert _original(one, OBJECTS) == "direction", "what the API no longer shows is no one's"
    known = inventory([*OBJECTS, gone])
    last = CASE_TIME + 59  # the interval's last second: nothing says when the flow began
    known.remove_pod("gone", last - 299)
    assert _part(_ours(one, known), {"localPod": ""}) == {"localPod": "gone"}
    known = inventory([*OBJECTS, gone])
    known.remove_pod("gone", last - 300)
    assert _ours(one, known) == "direction"
    assert "| A deleted pod | forgotten at once | keeps its address for `pod_grace` (300 s)" in PAGE


def test_an_address_that_goes_from_pod_to_pod_is_right_on_both_sides() -> None:
    """The reports of the minutes before and after are attributed when the new pod is known already."""
    one = Difference("", flow("10.1.1.5", "10.1.2.9"), "", "")
    shown = [*OBJECTS, pod("after", "node-b", "10.1.2.9")]
    known = inventory([*OBJECTS, pod("before", "node-b", "10.1.2.9")])
    known.remove_pod("before", CASE_TIME + 90)
    address = int(ipaddress.IPv4Address("10.1.2.9"))
    after = Pod("after", "default", "after", "node-b", "", "", "", CASE_TIME + 92, 0, True, (address,), ())
    known.put_pod(after, CASE_TIME + 95)
    for start, owner in ((CASE_TIME, "before"), (CASE_TIME + 120, "after")):
        assert _part(_original(one, shown), {"remotePod": ""}) == {"remotePod": "after"}
        assert _part(_ours(one, known, start), {"remotePod": ""}) == {"remotePod": owner}
    assert "| An address that goes from pod to pod |" in PAGE


def test_where_nothing_differs_both_say_the_same() -> None:
    for one in (
        flow("10.1.1.5", "10.1.2.5"),
        flow("198.51.100.40", "10.1.1.5"),
        flow("10.1.1.5", "10.9.9.9"),
    ):
        original = _original(Difference("", one, "", ""), OBJECTS)
        assert isinstance(original, dict)
        ours = _ours(Difference("", one, "", ""))
        counted = {"bytesOut", "bytesIn", "packetsOut", "packetsIn"}
        assert _part(ours, dict.fromkeys(original.keys() - counted, "")) == {
            name: value for name, value in original.items() if name not in counted
        }


def inventory(objects: list[dict[str, Any]], config: InventoryConfig | None = None) -> Inventory:
    return inventory_of(json.dumps({"kind": "List", "items": objects}).encode(), config)


def _original(one: Difference, objects: list[dict[str, Any]]) -> str | dict[str, Any]:
    return Original(objects, "aws", "us-west-2", RANGES, ignore_udp=True).answer(one.flow, one.node)


def _ours(one: Difference, known: Inventory | None = None, start: int = CASE_TIME) -> str | dict[str, Any]:
    batch = batch_of([one.flow], one.node, start)
    snapshot = (known or inventory(OBJECTS)).snapshot()
    attributed = Attributor(one.config).attribute(batch, snapshot, RANGES)
    if attributed.ignored:
        return next(iter(attributed.ignored))
    return next(plain_rows(*columns(attributed, batch, RowsConfig("test", "aws", "us-west-2", "blue"))))


def _part(answer: str | dict[str, Any], wanted: str | dict[str, Any]) -> str | dict[str, Any]:
    if isinstance(answer, str) or isinstance(wanted, str):
        return answer
    return {name: answer[name] for name in wanted}
