"""A whole cluster for this directory's tests: the nodes of deploy/kind/cluster.yaml, with the images."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from tests.beds.control_plane import ControlPlane
from tests.beds.image_archives import Image, stand_ins, write
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

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What the real kubectl says; raises with what it complains of."""
        done = self.started(*arguments).communicate(given)
        return done[0]

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


@pytest.fixture(scope="session")
def kind(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kind]:
    """What `kind create cluster` and `kind load` leave."""
    directory = tmp_path_factory.mktemp("images")
    root, archive = image / "root", directory / "images.tar"
    config = json.loads((image / "config.json").read_text())["OCIv1"]["config"]
    images = [Image("docker.io/library/kubenetmon:kind", [root], config), *stand_ins(root, directory)]
    write(archive, images, directory / "scratch")
    wanted = yaml.safe_load((DEPLOY / "kind" / "cluster.yaml").read_text())["nodes"]
    plane = ControlPlane()
    made: list[Node] = []
    try:
        plane.start()
        whole = Kind(plane)
        for number, (name, one) in enumerate(zip(_NAMES, wanted, strict=True), start=1):
            taints = _TAINTS.get(one["role"], "")
            node = Node(plane, name, number, labels=one.get("labels", {}), taints=taints)
            made.append(node)
            node.start()
            whole.nodes[name] = node
        with ThreadPoolExecutor() as threads:
            loads = [threads.submit(node.load, archive) for node in made]
            for node in made:
                node.join()
            for load in loads:
                load.result()
        archive.unlink()
        yield whole
    finally:
        for node in made:
            node.stop()
        plane.stop()
