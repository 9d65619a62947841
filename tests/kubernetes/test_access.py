"""Who may read the cluster: our ClusterRole is enough, less is said, credentials are renewed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubenetmon.app.report import instance_types
from kubenetmon.config.server import load
from kubenetmon.server.kubernetes import KubernetesClient, UnauthorizedError
from kubenetmon.server.kubernetes_source import InCluster
from tests.beds.kubernetes import SERVER_ACCOUNT, Cluster
from tests.beds.ports import free_port
from tests.kubernetes.conftest import IMPATIENT, eventually, following

pytestmark = pytest.mark.apiserver

ENOUGH = {
    "environment": "development", "cloud": "aws", "region": "r", "cluster": "c", "clickhouse_endpoint": "x:1"
}  # fmt: skip
MANIFESTS = Path(__file__).parents[2] / "deploy" / "base" / "server"


def manifest(name: str) -> dict[str, Any]:
    return dict(yaml.safe_load((MANIFESTS / name).read_text()))


@pytest.fixture
def bound(cluster: Cluster) -> Iterator[Cluster]:
    """The cluster with our role bound to the server's account by our own manifests."""
    cluster.apply(manifest("clusterrole.yaml"), manifest("clusterrolebinding.yaml"))
    while not cluster.allows(SERVER_ACCOUNT, "watch", "services"):
        time.sleep(0.02)
    yield cluster
    cluster.apply(manifest("clusterrole.yaml"))


async def test_our_cluster_role_is_enough(bound: Cluster) -> None:
    bound.create_node("node-a", address="192.0.2.10")
    bound.create_pod("pod", node="node-a", address="10.1.0.1")
    async with following(bound.kubeconfig(SERVER_ACCOUNT), replace(IMPATIENT, watch_timeout=1.0)) as follower:
        await eventually(lambda: follower.readiness.ready)
        bound.create_pod("later", node="node-a", address="10.1.0.2")
        await eventually(lambda: follower.owner("10.1.0.2") == "later", within=1.0)
        assert follower.check() == {"ok": True, "detail": ""}


@pytest.mark.parametrize("verb", ["list", "watch"])
@pytest.mark.parametrize("kind", ["pods", "nodes", "services"])
async def test_missing_permission_is_named_and_its_return_noticed(
    bound: Cluster, verb: str, kind: str
) -> None:
    others = [resource for resource in ("pods", "nodes", "services") if resource != kind]
    verbs = [allowed for allowed in ("get", "list", "watch") if allowed != verb]
    role = manifest("clusterrole.yaml")
    full = list(role["rules"])
    role["rules"] = [{**full[0], "resources": others}, {**full[0], "resources": [kind], "verbs": verbs}]
    bound.apply(role)
    await eventually(lambda: not bound.allows(SERVER_ACCOUNT, verb, kind))
    async with following(bound.kubeconfig(SERVER_ACCOUNT)) as follower:
        expected = {
            "ok": False,
            "detail": f"not allowed to {verb} {kind}: bind the ClusterRole kubenetmon-server "
            "(get, list, watch on pods, nodes, services) to this account",
        }
        await eventually(lambda: follower.check() == expected)
        if verb == "watch":
            await eventually(lambda: follower.readiness.ready)
        else:
            assert not follower.readiness.ready
        bound.apply({**role, "rules": full})
        await eventually(lambda: bool(follower.check()["ok"]))


async def test_rejected_token_is_said_and_a_new_one_is_taken_up(cluster: Cluster) -> None:
    config = cluster.kubeconfig(token="outdated")
    async with following(config) as follower:
        await eventually(lambda: "does not accept our credentials" in follower.check()["detail"])
        assert not follower.readiness.ready
        config.write_text(cluster.kubeconfig().read_text())
        await eventually(lambda: follower.readiness.ready)


async def test_service_account_token_that_rotates_is_read_again(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(cluster.port))
    (tmp_path / "ca.crt").write_bytes(cluster.certificate_authority.read_bytes())
    (tmp_path / "token").write_text("expired")
    client = KubernetesClient(InCluster(tmp_path), connect_timeout=3, read_timeout=3)
    try:
        with pytest.raises(UnauthorizedError, match="renew the token"):
            await client.list_page("pods", 1, "")
        (tmp_path / "token").write_text(cluster.tokens["admin"] + "\n")
        assert await client.list_page("pods", 1, "")
    finally:
        await client.close()


async def test_credentials_of_a_plugin_are_asked_for_again(cluster: Cluster, tmp_path: Path) -> None:
    token = tmp_path / "token"
    plugin = tmp_path / "plugin"
    plugin.write_text(
        "#!/bin/sh\n"
        'printf \'{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential",\'\n'
        f'printf \'"status":{{"token":"%s"}}}}\' "$(cat {token})"\n'
    )
    plugin.chmod(0o755)
    config = cluster.kubeconfig()
    content = yaml.safe_load(config.read_text())
    arguments = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin)}
    content["users"][0]["user"] = {"exec": arguments}
    config.write_text(yaml.safe_dump(content))
    token.write_text("expired")
    async with following(config) as follower:
        await eventually(lambda: "does not accept our credentials" in follower.check()["detail"])
        token.write_text(cluster.tokens["admin"])
        await eventually(lambda: follower.readiness.ready)


async def test_unreachable_api_is_said_and_waited_for(cluster: Cluster) -> None:
    nowhere = free_port()
    async with following(cluster.kubeconfig(port=nowhere)) as follower:
        await eventually(lambda: not follower.check()["ok"] and "cannot reach" in follower.check()["detail"])
        assert f"https://127.0.0.1:{nowhere}" in follower.check()["detail"]
        assert not follower.readiness.ready


async def test_instance_types_are_read_from_the_api(cluster: Cluster) -> None:
    cluster.create_node("typed", address="192.0.2.11")
    cluster.label_node("typed", **{"node.kubernetes.io/instance-type": "m5.large"})
    cluster.create_node("untyped", address="192.0.2.12")
    config = load(None, [f"kubernetes_source=kubeconfig:{cluster.kubeconfig()}"], ENOUGH)
    assert await instance_types("kubernetes", config) == {"typed": "m5.large"}
