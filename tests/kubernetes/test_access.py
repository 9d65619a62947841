"""Who may read the cluster: all of our ClusterRole is needed and it is enough, less is said, credentials are
renewed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
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
from tests.beds.server_process import Server
from tests.kubernetes.conftest import IMPATIENT, eventually, following

pytestmark = pytest.mark.apiserver

ENOUGH = {
    "environment": "development", "cloud": "aws", "region": "r", "cluster": "c", "clickhouse_endpoint": "x:1"
}  # fmt: skip
ADDRESSES = {"pods": "10.1.0.1", "nodes": "192.0.2.10", "services": "198.18.0.77"}
"""Of one object of each kind."""

FOLLOWING, ASKING = ("list", "watch"), "get"
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


@pytest.fixture
def peopled(bound: Cluster) -> Cluster:
    """The same with a pod, a node and a Service."""
    bound.create_node("node-a", address=ADDRESSES["nodes"])
    bound.create_pod("pod", node="node-a", address=ADDRESSES["pods"])
    bound.create_service("shop", address=ADDRESSES["services"])
    return bound


def without(verb: str, kind: str) -> dict[str, Any]:
    """Our role but for that permission."""
    role = manifest("clusterrole.yaml")
    [rule] = role["rules"]
    others = [resource for resource in rule["resources"] if resource != kind]
    verbs = [allowed for allowed in rule["verbs"] if allowed != verb]
    role["rules"] = [{**rule, "resources": others}, {**rule, "resources": [kind], "verbs": verbs}]
    return role


def checked_server(cluster: Cluster, directory: Path) -> Server:
    return Server(
        directory,
        clickhouse_enabled=False,
        kubernetes_source=f"kubeconfig:{cluster.kubeconfig(SERVER_ACCOUNT)}",
    )


def checks(server: Server) -> dict[str, str]:
    """The verdict on the object of each kind."""
    found = {}
    for kind, address in ADDRESSES.items():
        [one] = server.explained("--check", address)["check"]["objects"]
        assert one["kind"] == kind.removesuffix("s")
        found[kind] = one["verdict"]
    return found


def test_each_permission_of_our_role_is_one_that_is_taken_away_here() -> None:
    rules = manifest("clusterrole.yaml")["rules"]
    granted = [
        (group, kind, verb)
        for rule in rules
        for group, kind, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"])
    ]
    assert sorted(granted) == sorted(("", kind, verb) for kind in ADDRESSES for verb in (ASKING, *FOLLOWING))
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)


def test_with_our_role_each_kind_is_compared_with_the_api(peopled: Cluster, tmp_path: Path) -> None:
    server = checked_server(peopled, tmp_path)
    with server.running():
        server.wait_ready()
        assert checks(server) == dict.fromkeys(ADDRESSES, "same")
        said = server.explain("--check", ADDRESSES["pods"])
        assert (
            "check        pod default/pod of test: the API says the same: 10.1.0.1, Running on node-a" in said
        )
        assert "check" not in server.explained(ADDRESSES["pods"])


@pytest.mark.parametrize("kind", ADDRESSES)
def test_missing_get_is_named_where_it_is_needed(peopled: Cluster, tmp_path: Path, kind: str) -> None:
    peopled.apply(without(ASKING, kind))
    while peopled.allows(SERVER_ACCOUNT, ASKING, kind):
        time.sleep(0.02)
    server = checked_server(peopled, tmp_path)
    with server.running():
        server.wait_ready()
        assert checks(server) == {**dict.fromkeys(ADDRESSES, "same"), kind: "not permitted"}
        said = server.explain("--check", ADDRESSES[kind])
        assert f"not allowed to get {kind}: `get` on {kind} is missing in the ClusterRole" in said
        peopled.apply(manifest("clusterrole.yaml"))
        while not peopled.allows(SERVER_ACCOUNT, ASKING, kind):
            time.sleep(0.02)
        assert checks(server)[kind] == "same"


@pytest.mark.parametrize("verb", FOLLOWING)
@pytest.mark.parametrize("kind", ADDRESSES)
async def test_missing_permission_is_named_and_its_return_noticed(
    bound: Cluster, verb: str, kind: str
) -> None:
    bound.apply(without(verb, kind))
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
        bound.apply(manifest("clusterrole.yaml"))
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
