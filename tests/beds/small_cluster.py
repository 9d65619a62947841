"""Three nodes, six pods, ranges in documentation addresses; and what attribution says there."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kubenetmon.server.attributed import NOTHING_IGNORED, NamedNetwork, Peer
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.rows import RowsConfig, columns
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

PEER_NODES = {"peer-1": ("zone-9", ["10.60.0.10"], ["10.61.1.0/24"])}
PEER_PODS = {
    "10.61.1.5": ("payments", "peer-1", "payments"),
    "198.51.100.41": ("edge", "peer-1", "edge"),
    "fd00:61::5": ("payments", "peer-1", "payments"),
    "10.1.2.9": ("impostor", "peer-1", "impostor"),  # inside a pod network of our own
    "10.1.2.5": ("impostor-2", "peer-1", "impostor-2"),  # the address of a pod of our own
}

NETWORKS = (
    NamedNetwork(
        "peering",
        (ipaddress.ip_network("10.70.0.0/16"), ipaddress.ip_network("2001:db8:70::/48")),
        "aws",
        "us-east-1",
        "INTER_REGION",
        zone="use1-az1",
        service="peering",
    ),
    NamedNetwork(
        "partner",
        (ipaddress.ip_network("10.70.3.0/24"), ipaddress.ip_network("198.51.100.96/27")),
        "onprem",
        "berlin",
        "DEDICATED_LINE",
        cluster="partner-cluster",
    ),
)

CONFIG = AttributionConfig("aws", "us-west-2", "blue", ipv6=True)


HOST_PODS = {
    # name: node, app, ports
    "exporter": ("node-a", "exporter", ((6, 9100), (17, 9100))),
    "proxy": ("node-a", "", ((6, 80), (6, 8080))),
    "rival": ("node-a", "rival", ((6, 80),)),
}
"""Pods on the host's network; proxy and rival both declare TCP port 80."""


def _cluster(
    nodes: Mapping[str, tuple[str, list[str], list[str]]], pods: Mapping[str, tuple[str, str, str]]
) -> Inventory:
    def numbers(texts: Sequence[str], version: int) -> tuple[int, ...]:
        return tuple(int(one) for one in map(ipaddress.ip_address, texts) if one.version == version)

    inventory = Inventory(InventoryConfig())
    for name, (zone, addresses, networks) in nodes.items():
        parsed = [ipaddress.ip_network(text) for text in networks]
        pod_networks = tuple(
            Network(4 if one.version == 4 else 6, int(one.network_address), one.prefixlen) for one in parsed
        )
        inventory.put_node(Node(name, zone, 1, numbers(addresses, 4), numbers(addresses, 6), pod_networks))
    for index, (address, (name, node, app)) in enumerate(pods.items()):
        of_pod = [numbers([address], version) for version in (4, 6)]
        pod = Pod(str(index), "default", name, node, app, "", "", 1, 1, True, of_pod[0], of_pod[1])
        inventory.put_pod(pod, CASE_TIME - 600)
    for name, (node, app, ports) in HOST_PODS.items() if nodes is NODES else ():
        of_node = [numbers(nodes[node][1], version) for version in (4, 6)]
        declared = tuple(protocol << 16 | port for protocol, port in ports)
        pod = Pod(name, "system", name, node, app, "", "", 1, 1, False, of_node[0], of_node[1], declared)
        inventory.put_pod(pod, CASE_TIME - 600)
    return inventory


INVENTORY = _cluster(NODES, PODS)
SNAPSHOT = INVENTORY.snapshot()
PEER_INVENTORY = _cluster(PEER_NODES, PEER_PODS)
PEER = Peer("green", "aws", "us-east-1", "INTER_REGION", PEER_INVENTORY.snapshot())


def attribute(
    flows: Sequence[Flow],
    config: AttributionConfig = CONFIG,
    node: str = "node-a",
    ranges: RangeTable = RANGES,
    seconds: int = 60,
    peers: Sequence[Peer] = (),
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int, int]], int]:
    """Rows as dictionaries, (records, bytes, packets) ignored by reason, and how many lacked a region.

    Checks on the way that nothing gets lost or doubled.
    """
    batch = batch_of(flows, node, seconds=seconds)
    attributed = Attributor(config).attribute(batch, SNAPSHOT, ranges, peers)
    ignored = {reason: (one.records, one.bytes, one.packets) for reason, one in attributed.ignored.items()}
    assert batch.total_bytes() == attributed.total_bytes() + sum(one[1] for one in ignored.values())
    assert batch.total_packets() == attributed.total_packets() + sum(one[2] for one in ignored.values())
    no_side = sum((one.total for one in attributed.no_side.values()), NOTHING_IGNORED)
    assert no_side == attributed.ignored.get("direction", NOTHING_IGNORED)
    assert len(batch) == len(attributed) + sum(one[0] for one in ignored.values())
    rows_config = RowsConfig("test", config.cloud, config.region, config.cluster)
    rows = list(plain_rows(*columns(attributed, batch, rows_config)))
    assert sum(row["bytes"] for row in rows) == attributed.total_bytes()
    assert sum(row["packets"] for row in rows) == attributed.total_packets()
    return rows, ignored, attributed.empty_region


def flow(source: str, destination: str, protocol: int = 6, dialled: str = "", port: int = 8080) -> Flow:
    """A flow of 300 bytes there (3 packets) and 5000 back (5) from port 40000 to `port`.

    `dialled`: the address before DNAT.
    """
    original = Tuple(source, 40000, dialled or destination, 80, 3, 300)
    return Flow(protocol, original, Tuple(destination, port, source, 40000, 5, 5000))
