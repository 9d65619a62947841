"""A large cluster and its traffic, made up but shaped like real ones: what the server is measured with.

A hundred nodes in three zones, fifty pods on each; every node's flows go for the larger part to other pods,
else to addresses all over the internet, and half of them were opened by the other side.
"""

from __future__ import annotations

import ipaddress

import numpy as np

from kubenetmon.proto import FlowArrays, FlowBatch

NODES = 100
PODS_PER_NODE = 50
_PODS = int(ipaddress.IPv4Address("10.64.0.0"))
_HOSTS = int(ipaddress.IPv4Address("10.0.0.10"))
_APPS = 40
_SHARE_INSIDE = 0.6


def node_name(node: int) -> str:
    """Of node number `node`."""
    return f"ip-10-0-0-{node}.us-west-2.compute.internal"


def pod_address(node: int, pod: int) -> int:
    """Of a node's pod."""
    return _PODS + node * 256 + 10 + pod


def document(nodes: int = NODES, pods_per_node: int = PODS_PER_NODE) -> dict[str, object]:
    """The cluster in the form of `kubectl get pods,nodes,services -A -o json`."""
    items: list[dict[str, object]] = []
    for node in range(nodes):
        cidr = f"{ipaddress.IPv4Address(_PODS + node * 256)}/24"
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": node_name(node),
                    "uid": f"node-{node}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {"topology.kubernetes.io/zone": f"us-west-2{'abc'[node % 3]}"},
                },
                "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
                "status": {
                    "addresses": [
                        {"type": "InternalIP", "address": str(ipaddress.IPv4Address(_HOSTS + node))}
                    ]
                },
            }
        )
        for pod in range(pods_per_node):
            address = str(ipaddress.IPv4Address(pod_address(node, pod)))
            number = node * pods_per_node + pod
            items.append(
                {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "metadata": {
                        "name": f"app-{number % _APPS}-{number:05d}",
                        "namespace": f"team-{number % 7}",
                        "uid": f"pod-{number}",
                        "creationTimestamp": "2026-01-01T00:00:00Z",
                        "labels": {"app.kubernetes.io/name": f"app-{number % _APPS}"},
                    },
                    "spec": {"nodeName": node_name(node)},
                    "status": {
                        "phase": "Running",
                        "startTime": "2026-01-01T00:00:00Z",
                        "podIP": address,
                        "podIPs": [{"ip": address}],
                    },
                }
            )
    return {"apiVersion": "v1", "kind": "List", "items": items}


def batch(node: int, sequence: int, start: int, records: int, generator: np.random.Generator) -> FlowBatch:
    """One batch of a node for the five seconds from `start`, of so many records."""
    local = (pod_address(node, 0) + generator.integers(0, PODS_PER_NODE, records)).astype("<u4")
    inside = generator.random(records) < _SHARE_INSIDE
    other_pod = pod_address(0, 0) + (
        generator.integers(0, NODES, records) * 256 + generator.integers(0, PODS_PER_NODE, records)
    )
    outside = generator.integers(0x0B000000, 0xDF000000, records)
    remote = np.where(inside, other_pod, outside).astype("<u4")
    opened = generator.random(records) < 0.5
    client = np.where(opened, local, remote).astype("<u4").tobytes()
    server = np.where(opened, remote, local).astype("<u4").tobytes()
    client_port = generator.integers(1024, 65536, records).astype("<u2").tobytes()
    server_port = generator.choice(np.array([80, 443, 5432, 8080], "<u2"), records).tobytes()

    def counter(most: int) -> bytes:
        return generator.integers(1, most, records).astype("<u8").tobytes()

    arrays = FlowArrays(
        count=records,
        protocol=np.full(records, 6, np.uint8).tobytes(),
        original_source_address=client,
        original_destination_address=server,
        reply_source_address=server,
        reply_destination_address=client,
        original_source_port=client_port,
        original_destination_port=server_port,
        reply_source_port=server_port,
        reply_destination_port=client_port,
        original_packets=counter(100),
        original_bytes=counter(100_000),
        reply_packets=counter(100),
        reply_bytes=counter(100_000),
        start_time=(start - generator.integers(0, 600, records)).astype("<u4").tobytes(),
    )
    return FlowBatch(
        node_name=node_name(node),
        epoch=node.to_bytes(16, "big"),
        sequence=sequence,
        interval_start=start,
        interval_end=start + 5,
        ipv4=arrays,
    )
