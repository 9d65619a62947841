"""Releases as Helm makes and changes them on a real API server, with the values of the pages and of files."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from helm_python import Config, HelmError

from tests.beds.kubernetes import ApiRefusedError, Cluster, running_cluster
from tests.beds.manifests import Object, chart
from tests.unit.test_documented_commands import installs, merged

pytestmark = pytest.mark.apiserver

TOO_NEW: dict[str, Any] = {
    # Kinds that the API server of the tests does not know.
    "podDisruptionBudget": {"enabled": False},
    "tls": {"certManager": {"enabled": False}},
    "serviceMonitors": {"enabled": False},
    "alerts": {"enabled": False},
}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One of its own: Helm takes nothing that others have made, such as the session's roles."""
    with running_cluster() as cluster:
        yield cluster


@contextmanager
def helm(cluster: Cluster, release: str, namespace: str) -> Iterator[Config]:
    """Helm, in a namespace without that release, which is gone at the end."""
    cluster.create_namespace(namespace)
    with Config(kubeconfig_path=cluster.kubeconfig(), namespace=namespace) as config:
        config.uninstall(release, ignore_not_found=True)
        try:
            yield config
        finally:
            config.uninstall(release, ignore_not_found=True)


def documented(page: str, part: str) -> tuple[str, str, dict[str, Any]]:
    """Release, namespace and values of the page's first command that installs the part."""
    return next(one[1:4] for one in installs(page) if one[0] == part)


def production() -> dict[str, Any]:
    values = yaml.safe_load((chart("server") / "values-production.yaml").read_text())
    return merged(values, TOO_NEW)


def secret(cluster: Cluster, namespace: str, name: str) -> dict[str, str]:
    found = cluster.request("GET", f"/api/v1/namespaces/{namespace}/secrets/{name}")
    return {key: base64.b64decode(value).decode() for key, value in found["data"].items()}


def mounted(cluster: Cluster, namespace: str, deployment: str) -> set[str]:
    """The Secrets that the pods want, but for those of certificates."""
    found: Object = cluster.request("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments/{deployment}")
    volumes = found["spec"]["template"]["spec"]["volumes"]
    return {one["secret"]["secretName"] for one in volumes if "secret" in one and one["name"] != "tls"}


@pytest.mark.parametrize("again", [True, False])
def test_going_on_to_production_keeps_the_password(cluster: Cluster, again: bool) -> None:
    """With the values of the first time given again, and with --reuse-values."""
    release, namespace, values = documented("README.md", "server")
    with helm(cluster, release, namespace) as client:
        client.install(chart("server"), release, values)
        client.upgrade(
            chart("server"),
            release,
            merged(production(), values) if again else production(),
            reuse_values=not again,
        )
        (name,) = mounted(cluster, namespace, release)
        assert secret(cluster, namespace, name) == {"username": "default", "password": "secret"}


def test_a_secret_of_ones_own_takes_the_charts_place(cluster: Cluster) -> None:
    release, namespace, values = documented("README.md", "server")
    own = {"inserter": {"existingSecret": "mine"}}
    with helm(cluster, release, namespace) as client:
        client.install(chart("server"), release, values)
        with pytest.raises(HelmError, match=r"existingSecret \(mine\) holds username and password"):
            client.upgrade(chart("server"), release, own, reuse_values=True)
        assert mounted(cluster, namespace, release) == {"clickhouse-credentials"}
        inserter = {**values["inserter"]}
        del inserter["username"], inserter["password"]
        client.upgrade(chart("server"), release, merged({**values, "inserter": inserter}, own))
        assert mounted(cluster, namespace, release) == {"mine"}
        with pytest.raises(ApiRefusedError, match="not found"):
            secret(cluster, namespace, "clickhouse-credentials")


def test_the_migrations_last_command_takes_the_selector_away(cluster: Cluster) -> None:
    """New nodes would have no agent for ever. With --reuse-values the old values come back as defaults."""
    of_agents = [one for one in installs("docs/migration.md") if one[0] == "agent"]
    (_, release, namespace, first, _), *later = of_agents
    path = f"/apis/apps/v1/namespaces/{namespace}/daemonsets/{release}"

    def selector() -> dict[str, str]:
        return dict(cluster.request("GET", path)["spec"]["template"]["spec"].get("nodeSelector") or {})

    with helm(cluster, release, namespace) as client:
        client.install(chart("agent"), release, merged(first, {"nodeSelector": {"disk": "ssd"}}))
        assert selector() == {"kubenetmon-agent": "next", "disk": "ssd"}
        for _, _, _, values, complete in later:
            own = {"nodeSelector": {"disk": "ssd"}} if complete else {}  # of the values that they had before
            client.upgrade(chart("agent"), release, merged(values, own), reuse_values=not complete)
        assert selector() == {"disk": "ssd"}
