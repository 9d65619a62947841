"""The pods that deploy/ describes: closed, sized by measurement, spread, allowed what they need."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from kubenetmon.demo.network import create_namespace
from tests.beds import manifests
from tests.beds.charts import (
    comparable,
    containers,
    effective,
    environment,
    everything,
    objects_of_server,
    overlay,
    quantity,
    release,
)
from tests.beds.manifests import Object, identity, pick, render_chart


@pytest.mark.parametrize("name", sorted(everything()))
def test_containers_may_do_nothing_that_they_need_not(name: str) -> None:
    found = containers(everything()[name])
    assert found
    for container, spec, pod in found:
        context = spec["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        if container == "sysctls":
            assert context["privileged"] is True  # it writes the node's settings, and ends
            continue
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"]["drop"] == ["ALL"]
        assert "privileged" not in context
        if container == "kubenetmon-agent":
            assert context["capabilities"]["add"] == ["NET_ADMIN"]
            assert pod["hostNetwork"] is True
            assert pod["automountServiceAccountToken"] is False
            assert "ports" not in spec  # on the host's network a port is a host port and blocks an overlap
        else:
            assert "add" not in context["capabilities"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert not pod.get("hostNetwork", False)


def test_resources_of_production_are_from_what_was_measured() -> None:
    text = (manifests.ROOT / "docs" / "capacity.md").read_text()
    rows = re.findall(
        r"^\| (agent|server), (memory|cores).*? \| (.*) \| (\w+) \| (\w+) \|$", text, re.MULTILINE
    )
    assert len(rows) == 4
    for part, what, measured, request, limit in rows:
        resources = manifests.production_values(part)["resources"]
        name = "cpu" if what == "cores" else what
        assert (resources["requests"][name], resources["limits"][name]) == (request, limit)
        if what == "memory":
            figures = [float(figure) * 1e6 for figure in re.findall(r"([0-9]+) MB", measured)]
        else:
            figures = [float(figure) for figure in re.findall(r"0\.[0-9]+", measured)]
        assert len(figures) >= 2
        assert quantity(limit) >= 1.5 * max(figures)
        assert quantity(request) >= (1.5 * min(figures) if what == "memory" else 0.5 * min(figures))


def test_agents_go_to_every_node_and_overlap() -> None:
    spec = pick(overlay("agent"), "DaemonSet")["spec"]
    assert spec["template"]["spec"]["tolerations"] == [{"operator": "Exists"}]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxUnavailable": 0, "maxSurge": "50%"}
    volume = next(one for one in spec["template"]["spec"]["volumes"] if one["name"] == "state")
    assert volume["hostPath"] == {"path": "/run/kubenetmon", "type": "DirectoryOrCreate"}


NAMED = {"nameOverride": "metering", "fullnameOverride": "kubenetmon-server"}


@pytest.mark.parametrize(
    "objects",
    [overlay("server"), overlay("production"), release("server"), release("server", NAMED)],
    ids=["overlay server", "overlay production", "chart server", "chart server, another name"],
)
def test_no_two_servers_share_a_node(objects: list[Object]) -> None:
    deployment = pick(objects, "Deployment", "kubenetmon-server")["spec"]
    assert deployment["replicas"] == 3
    (required,) = deployment["template"]["spec"]["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert required["topologyKey"] == "kubernetes.io/hostname"
    (expression,) = required["labelSelector"]["matchExpressions"]
    label = deployment["template"]["metadata"]["labels"][expression["key"]]
    assert (expression["operator"], expression["values"]) == ("In", [label])


def test_the_server_may_read_what_it_needs_and_no_more() -> None:
    for objects in (overlay("production"), render_chart("server", manifests.production_values("server"))):
        roles = {one["metadata"]["name"]: one["rules"] for one in objects if one["kind"] == "ClusterRole"}
        assert roles == {
            "kubenetmon-server": [
                {
                    "apiGroups": [""],
                    "resources": ["pods", "nodes", "services"],
                    "verbs": ["get", "list", "watch"],
                }
            ],
            "kubenetmon-server-token-review": [
                {
                    "apiGroups": ["authentication.k8s.io"],
                    "resources": ["tokenreviews"],
                    "verbs": ["create"],
                }
            ],
        }
    plain = [one for one in release("server") if one["kind"] == "ClusterRole"]
    assert [one["metadata"]["name"] for one in plain] == ["kubenetmon-server"]


def test_one_line_switches_certificates_and_tokens_on(tmp_path: Path) -> None:
    """In the charts `secure: true`, in an overlay the commented line."""
    for part in manifests.PARTS:
        copy = tmp_path / "overlays" / part
        copy.mkdir(parents=True)
        for path in (manifests.DEPLOY / "overlays" / part).iterdir():
            text = path.read_text().replace("\n# components: ", "\ncomponents: ")
            (copy / path.name).write_text(text.replace("../../", "deploy/"))
    subprocess.run(["cp", "-r", manifests.DEPLOY, tmp_path / "overlays/agent/deploy"], check=True)
    subprocess.run(["cp", "-r", manifests.DEPLOY, tmp_path / "overlays/server/deploy"], check=True)
    agent = manifests.kustomize(tmp_path / "overlays" / "agent")
    chart = render_chart("agent", {"secure": True})
    assert environment(pick(agent, "DaemonSet")) == environment(pick(chart, "DaemonSet"))
    server = manifests.kustomize(tmp_path / "overlays" / "server")
    assert comparable(server).keys() == comparable(release("server", {"secure": True})).keys()
    config = effective(*manifests.server_settings(objects_of_server(server)))
    assert config.require_token
    assert config.tls_client_ca == Path("/etc/kubenetmon-server/tls/ca.crt")


@pytest.mark.root
def test_the_init_container_switches_counting_on() -> None:
    spec = pick(release("agent"), "DaemonSet")["spec"]["template"]["spec"]
    command = spec["initContainers"][0]["command"]
    names = [f"net.netfilter.nf_conntrack_{name}" for name in ("acct", "events", "timestamp")]
    namespace = create_namespace("init")
    try:
        for name in names:
            namespace.sysctl(name, 0)
        said = namespace.run(command)
        values = [namespace.run(["cat", "/proc/sys/" + name.replace(".", "/")]) for name in names]
    finally:
        namespace.delete()
    assert [value.stdout.strip() for value in values] == ["1", "1", "1"]
    assert "nf_conntrack_acct=1" in said.stdout


def test_the_kind_overlay_stands_alone() -> None:
    objects = overlay("kind")
    kinds = {identity(one)[::2] for one in objects}
    assert {("Deployment", "clickhouse"), ("Service", "clickhouse"), ("Deployment", "visitor")} <= kinds
    config = effective(*manifests.server_settings(objects_of_server(objects)))
    assert config.clickhouse_endpoint.startswith("clickhouse.default.svc")
    assert config.clickhouse_disable_tls
    deployment = pick(objects, "Deployment", "kubenetmon-server")["spec"]
    assert deployment["replicas"] == 1
    assert deployment["template"]["spec"]["initContainers"][0]["args"] == ["schema", "apply"]
    chart = release("server", {"inserter": {"createTable": True}})
    theirs = pick(chart, "Deployment")["spec"]["template"]["spec"]["initContainers"][0]
    ours = deployment["template"]["spec"]["initContainers"][0]
    assert ours["args"] == theirs["args"]
    assert ours["securityContext"] == theirs["securityContext"]
