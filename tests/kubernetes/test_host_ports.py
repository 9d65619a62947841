"""Pods on the host's network as a real API shows them: their ports, and who has one alone."""

from __future__ import annotations

import ipaddress
import time

import numpy as np
import pytest

from tests.beds.kubernetes import Cluster
from tests.kubernetes.conftest import Follower, eventually, following

pytestmark = pytest.mark.apiserver


def create(cluster: Cluster, name: str, address: str, *ports: tuple[str, int]) -> None:
    declared = [{"containerPort": port, "protocol": protocol} for protocol, port in ports]
    spec = {
        "nodeName": "node-a",
        "hostNetwork": True,
        "containers": [{"name": "main", "image": "none", "ports": declared}],
    }
    path = "/api/v1/namespaces/default/pods"
    cluster.request("POST", path, {"metadata": {"name": name}, "spec": spec})
    cluster.set_pod_status(name, address)


def owner(follower: Follower, address: str, protocol: int, port: int) -> str:
    known = follower.inventory.snapshot()
    number = known.host_pods(
        4,
        np.array([int(ipaddress.IPv4Address(address))], np.uint32),
        np.array([protocol], np.uint8),
        np.array([port], np.uint16),
        int(time.time()) + 1,
    )[0]
    return str(known.table.describe(number).pod)


async def test_a_port_is_the_pods_that_alone_declares_it(cluster: Cluster) -> None:
    cluster.create_node("node-a", address="192.0.2.10")
    create(cluster, "exporter", "192.0.2.10,2001:db8::10", ("TCP", 9100), ("UDP", 53))
    async with following(cluster.kubeconfig()) as follower:
        await eventually(lambda: owner(follower, "192.0.2.10", 6, 9100) == "exporter")
        assert owner(follower, "192.0.2.10", 17, 53) == "exporter"
        assert owner(follower, "192.0.2.10", 6, 53) == ""
        assert follower.owner("192.0.2.10") == "", "the address is the node's"

        create(cluster, "rival", "192.0.2.10", ("TCP", 9100))
        await eventually(lambda: owner(follower, "192.0.2.10", 6, 9100) == "")
        cluster.delete_pod("exporter")
        await eventually(lambda: owner(follower, "192.0.2.10", 6, 9100) == "rival")
