"""A whole cluster for this directory's tests: the nodes of deploy/kind/cluster.yaml, with the images."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.beds.control_plane import ControlPlane
from tests.beds.image_archives import Image, load, stand_ins
from tests.beds.manifests import DEPLOY, kubectl
from tests.beds.node import Node

# What kind gives its nodes; version 1.20 calls a control plane a master.
_NAMES = ("kubenetmon-control-plane", "kubenetmon-worker", "kubenetmon-worker2")
_TAINTS = {"control-plane": "node-role.kubernetes.io/master:NoSchedule"}


class Kind:
    """A control plane, its nodes by name, and kubectl."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.nodes: dict[str, Node] = {}
        self.kubeconfig = plane.kubeconfig()

    def kubectl(self, *arguments: str) -> str:
        """What the real kubectl says; raises `CalledProcessError`."""
        command = [str(kubectl()), "--kubeconfig", str(self.kubeconfig), *arguments]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        """kubectl at work."""
        return subprocess.Popen(
            [kubectl(), "--kubeconfig", self.kubeconfig, *arguments],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def pods(self, app: str, namespace: str = "default") -> dict[str, str]:
        """The names of an application's pods, by their nodes'."""
        selector = f"labelSelector=app.kubernetes.io/name%3D{app}"
        found = self.plane.request("GET", f"/api/v1/namespaces/{namespace}/pods?{selector}")["items"]
        return {
            one["spec"]["nodeName"]: one["metadata"]["name"]
            for one in found
            if "deletionTimestamp" not in one["metadata"]
        }


@contextlib.contextmanager
def memory() -> Iterator[Path]:
    """A directory in memory: two gigabytes that are thrown away need not reach the disk."""
    place = Path(tempfile.mkdtemp(prefix="kubenetmon-nodes-"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6g", "tmpfs", str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)
        place.rmdir()


@pytest.fixture(scope="module")
def kind(image: Path) -> Iterator[Kind]:
    """What `kind create cluster` and `kind load` leave; gone before other tests measure anything."""
    config = json.loads((image / "config.json").read_text())["OCIv1"]["config"]
    ours = Image("docker.io/library/kubenetmon:kind", [image / "root"], config)
    wanted = yaml.safe_load((DEPLOY / "kind" / "cluster.yaml").read_text())["nodes"]
    with contextlib.ExitStack() as ends:
        place = ends.enter_context(memory())
        images = place / "images"
        load([ours, *stand_ins(image / "root", place)], images)
        plane = ControlPlane(place)
        ends.callback(plane.stop)
        plane.start()
        whole = Kind(plane)
        for number, (name, one) in enumerate(zip(_NAMES, wanted, strict=True), start=1):
            labels, taints = one.get("labels", {}), _TAINTS.get(one["role"], "")
            node = Node(plane, name, number, place, images=images, labels=labels, taints=taints)
            ends.callback(node.stop)
            node.start()
            whole.nodes[name] = node
        for node in whole.nodes.values():
            node.join()
        yield whole
