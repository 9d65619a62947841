"""What the demo's world consists of: names, addresses, labels. Plain data, no machine is touched.

Two nodes in two zones of us-west-2, six pods, two Services, and an internet whose addresses come from the
documentation ranges (RFC 5737). The same facts make the namespaces (`kubenetmon.demo.world`) and the
cluster's JSON that the server reads, in the form of `kubectl get pods,nodes,services -A -o json`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

REGION = "us-west-2"
CLUSTER = "demo"
RANGES_DIRECTORY = Path(__file__).parent / "ranges"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A node: its zone, its address in the zone's subnet, and the pods' subnet."""

    name: str
    zone: str
    address: str
    gateway: str
    pod_cidr: str
    management: str
    server: str


@dataclass(frozen=True, slots=True)
class PodPlan:
    """A pod on a node."""

    name: str
    namespace: str
    app: str
    node: str
    address: str


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """A Service: an address that every node translates to one of the pods of an app, in turn."""

    name: str
    namespace: str
    app: str
    address: str
    protocol: Literal["tcp", "udp"]
    port: int
    target_port: int


@dataclass(frozen=True, slots=True)
class NodePortPlan:
    """A port of a node's own address that leads to a pod on that node, the client's address kept."""

    node: str
    port: int
    pod: str
    target_port: int


NODES = (
    NodePlan("node-a", "us-west-2a", "10.0.1.10", "10.0.1.1", "10.244.1.0/24", "172.31.1.2", "172.31.1.1"),
    NodePlan("node-b", "us-west-2b", "10.0.2.10", "10.0.2.1", "10.244.2.0/24", "172.31.2.2", "172.31.2.1"),
)
PODS = (
    PodPlan("frontend-7c9d-x2x4k", "shop", "frontend", "node-a", "10.244.1.11"),
    PodPlan("catalog-5f6b-8qv2m", "shop", "catalog", "node-a", "10.244.1.12"),
    PodPlan("coredns-6d4b-tz7wn", "kube-system", "coredns", "node-a", "10.244.1.13"),
    PodPlan("checkout-66d8-hj5rp", "shop", "checkout", "node-b", "10.244.2.11"),
    PodPlan("catalog-5f6b-zl9cd", "shop", "catalog", "node-b", "10.244.2.12"),
    PodPlan("backup-0", "shop", "backup", "node-b", "10.244.2.13"),
)
SERVICES = (
    ServicePlan("catalog", "shop", "catalog", "10.96.0.20", "tcp", 80, 8080),
    ServicePlan("kube-dns", "kube-system", "coredns", "10.96.0.10", "udp", 53, 5353),
)
NODE_PORTS = (NodePortPlan("node-a", 30080, "frontend-7c9d-x2x4k", 8080),)

S3_ADDRESS = "198.51.100.10"
"""Object storage in the own region."""
OTHER_REGION_ADDRESS = "203.0.113.10"
"""A machine in another region of the same cloud."""
PUBLIC_ADDRESS = "192.0.2.10"
"""A machine that no provider claims."""
VISITOR_ADDRESS = "192.0.2.77"
"""Someone on the internet who opens connections to the shop."""
INTERNET_ADDRESSES = (S3_ADDRESS, OTHER_REGION_ADDRESS, PUBLIC_ADDRESS, VISITOR_ADDRESS)


def pod(name: str) -> PodPlan:
    """The pod of that name."""
    return next(plan for plan in PODS if plan.name == name)


def pod_of_app(app: str, node: str | None = None) -> PodPlan:
    """The first pod of an app, on a node or on any."""
    return next(plan for plan in PODS if plan.app == app and node in (None, plan.node))


def cluster_document() -> dict[str, object]:
    """The cluster as `kubectl get pods,nodes,services -A -o json` prints it, less what nobody reads."""
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 3600))
    items: list[dict[str, object]] = []
    for number, node in enumerate(NODES, 1):
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Node",
                "metadata": {
                    "name": node.name,
                    "uid": f"00000000-0000-4000-8000-0000000001{number:02d}",
                    "creationTimestamp": created,
                    "labels": {
                        "kubernetes.io/hostname": node.name,
                        "topology.kubernetes.io/region": REGION,
                        "topology.kubernetes.io/zone": node.zone,
                    },
                },
                "spec": {"podCIDR": node.pod_cidr, "podCIDRs": [node.pod_cidr]},
                "status": {"addresses": [{"type": "InternalIP", "address": node.address}]},
            }
        )
    for number, plan in enumerate(PODS, 1):
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {
                    "name": plan.name,
                    "namespace": plan.namespace,
                    "uid": f"00000000-0000-4000-8000-0000000002{number:02d}",
                    "creationTimestamp": created,
                    "labels": {"app.kubernetes.io/name": plan.app},
                },
                "spec": {"nodeName": plan.node, "hostNetwork": False},
                "status": {
                    "phase": "Running",
                    "startTime": created,
                    "podIP": plan.address,
                    "podIPs": [{"ip": plan.address}],
                },
            }
        )
    for number, service in enumerate(SERVICES, 1):
        items.append(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {
                    "name": service.name,
                    "namespace": service.namespace,
                    "uid": f"00000000-0000-4000-8000-0000000003{number:02d}",
                    "creationTimestamp": created,
                },
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": service.address,
                    "clusterIPs": [service.address],
                    "selector": {"app.kubernetes.io/name": service.app},
                    "ports": [
                        {
                            "protocol": service.protocol.upper(),
                            "port": service.port,
                            "targetPort": service.target_port,
                        }
                    ],
                },
            }
        )
    return {"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": items}
