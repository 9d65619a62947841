"""What deploy/ describes: charts and overlays are the same objects, valid for current Kubernetes, closed."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from helm_python import HelmRenderError, HelmValuesError, lint

import kubenetmon
from kubenetmon.config import agent as agent_config
from kubenetmon.config import server as server_config
from kubenetmon.demo.network import create_namespace
from tests.beds import manifests, resource_models
from tests.beds.manifests import BASE_VALUES, Object, identity, pick, render_chart

NEWEST = kubernetes_validate.latest_version()
ORIGINAL_SERVER: dict[str, Any] = {
    # The values of the original's chart, whole, as its users have them.
    "image": {"repository": "registry.example/kubenetmon", "pullPolicy": "IfNotPresent", "tag": "latest"},
    "automountServiceAccountToken": True,
    "imagePullSecrets": [],
    "nameOverride": "",
    "fullnameOverride": "",
    "serviceMonitors": {"enabled": False, "interval": "30s"},
    "metrics": {"enabled": True, "port": 8883, "primaryAlerter": False},
    "service": {"type": "ClusterIP", "port": 8884},
    "serviceAccount": {"create": True, "annotations": {}, "name": ""},
    "podAnnotations": {},
    "podSecurityContext": {},
    "resources": {
        "limits": {"cpu": "2000m", "memory": "2512Mi"},
        "requests": {"cpu": "500m", "memory": "1Gi"},
    },
    "nodeSelector": {},
    "tolerations": [],
    "configuration": {},
    "secrets": {},
    "environment": "development",
    "cloud": "aws",
    "region": "us-west-2",
    "cluster": "cluster",
    "maxGRPCConnectionAge": "300s",
    "inserter": {
        "enabled": True,
        "database": "default",
        "endpoint": "clickhouse.example.org:9440",
        "username": "default",
        "password": "secret word",
        "dialTimeout": "30s",
        "maxIdleConnections": 50,
        "batchSize": 15000,
        "batchSendTimeout": "30s",
        "waitForAsyncInsert": False,
        "numInserterWorkers": 20,
        "ignoreUDP": True,
        "skipPing": False,
        "disableTLS": False,
        "insecureSkipVerify": False,
    },
    "deployment": {
        "replicaCount": 3,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "affinity": {},
    },
}
ORIGINAL_AGENT: dict[str, Any] = {
    "image": {"repository": "registry.example/kubenetmon", "pullPolicy": "IfNotPresent", "tag": ""},
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}},
    "imagePullSecrets": [],
    "nameOverride": "",
    "fullnameOverride": "",
    "environment": "development",
    "serviceMonitors": {"enabled": False, "interval": "30s"},
    "serviceAccount": {"create": True, "annotations": {}, "name": ""},
    "podAnnotations": {},
    "podSecurityContext": {},
    "priorityClass": {
        "name": "kubenetmon",
        "enabled": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "value": 10001000,
    },
    "metrics": {"enabled": True, "port": 9883, "primaryAlerter": False},
    "securityContext": {
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
    },
    "resources": {
        "limits": {"cpu": "500m", "memory": "256Mi"},
        "requests": {"cpu": "0m", "memory": "0Mi"},
    },
    "nodeSelector": {},
    "tolerations": [],
    "configuration": {
        "collectionInterval": "5s",
        "skipConntrackSanityCheck": True,
        "kubenetmonServerServiceHost": "kubenetmon-server.kubenetmon-server.svc.cluster.local",
        "kubenetmonServerServicePort": 8884,
        "uptimeWaitDuration": "300s",
    },
    "secrets": {},
}
WATCHED = {
    "page": {"enabled": True},
    "alerts": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}},
    "dashboards": {"enabled": True},
}
WITH_FILES = {
    "files": {"ca.crt": "-----BEGIN CERTIFICATE-----\n", "prices.yaml": "version: 1\n"},
    "filesFrom": [{"secret": {"name": "clickhouse-client"}}, {"configMap": {"name": "limits"}}],
    "extraVolumes": [{"name": "ranges", "persistentVolumeClaim": {"claimName": "ranges"}}],
    "extraVolumeMounts": [{"name": "ranges", "mountPath": "/ranges", "readOnly": True}],
    "inserter": {"createTable": True},
}
SECURE_WITH_CERTIFICATES = {"secure": True, "tls": {"certManager": {"enabled": True}}}


@cache
def overlay(name: str) -> list[Object]:
    return manifests.kustomize(manifests.DEPLOY / "overlays" / name)


def release(part: str, values: dict[str, Any] | None = None) -> list[Object]:
    return render_chart(part, {**BASE_VALUES[part], **(values or {})})


def everything() -> dict[str, list[Object]]:
    """Every overlay and chart, each with what it can be told to."""
    found = {f"overlay {name}": overlay(name) for name in manifests.OVERLAYS}
    for part, original in (("agent", ORIGINAL_AGENT), ("server", ORIGINAL_SERVER)):
        found[f"chart {part}"] = release(part)
        found[f"chart {part}, original's values"] = render_chart(part, original)
        found[f"chart {part}, production"] = render_chart(part, manifests.production_values(part))
    found["chart server, table"] = release("server", {"inserter": {"createTable": True}})
    found["chart server, files"] = release("server", WITH_FILES)
    found["chart server, watched"] = release("server", WATCHED)
    return found


def comparable(objects: list[Object]) -> dict[tuple[str, str, str], Any]:
    """By identity, without what Helm and kustomize each add for themselves."""
    found = {}
    for one in manifests.without_hashes([manifests.without_helm(one) for one in objects]):
        if one["kind"] == "Namespace":
            continue
        if identity(one)[::2] == ("ConfigMap", "config"):
            config, overrides = manifests.server_settings(objects_of_server(objects))
            found[identity(one)] = effective(config, overrides)
            continue
        if one["kind"] == "Deployment":
            container = one["spec"]["template"]["spec"]["containers"][0]
            assert container["args"][:2] == ["--role", "server"]
            container["args"] = container["args"][:2]
        found[identity(one)] = _in_order(one)
    return found


def _in_order(value: Any) -> Any:
    """The same with its lists of named things sorted: kustomize puts what it merges in first."""
    if isinstance(value, dict):
        return {name: _in_order(inner) for name, inner in value.items()}
    if isinstance(value, list):
        items = [_in_order(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: (item["name"], str(item))) if named else items
    return value


def objects_of_server(objects: list[Object]) -> list[Object]:
    return [one for one in manifests.without_hashes(objects) if "agent" not in one["metadata"]["name"]]


def effective(config: str, overrides: list[str]) -> server_config.ServerConfig:
    """The configuration that a server reads from the file and its overrides."""
    path = Path("/dev/shm") / f"kubenetmon-effective-{id(config)}.yaml"
    path.write_text(config)
    try:
        return server_config.load(path, overrides)
    finally:
        path.unlink()


def test_the_base_is_what_the_charts_render() -> None:
    for path, text in manifests.generated_files():
        assert path.read_text() == text, f"{path}: run nox -s manifests"
    for part in manifests.PARTS:
        listed = yaml.safe_load((manifests.BASE / part / "kustomization.yaml").read_text())["resources"]
        made = {path.name for path in manifests.base_files() if path.parent.name == part} - {"config.yaml"}
        assert set(listed) == made | {"namespace.yaml"}


@pytest.mark.parametrize("part", manifests.PARTS)
def test_chart_and_kustomize_describe_the_same_objects(part: str) -> None:
    base = [one for one in manifests.kustomize(manifests.BASE / part) if one["kind"] != "Namespace"]
    assert comparable(base) == comparable(release(part))


def test_production_is_the_same_as_overlay_and_as_charts() -> None:
    charts = [*render_chart("agent", manifests.production_values("agent"))]
    values = {**manifests.production_values("server"), "environment": "production"}
    endpoints = [f"clickhouse.default.svc.cluster.local:{port}" for port in (9440, 9000)]
    charts += render_chart("server", {**values, "inserter": {"endpoint": endpoints[0]}})
    # An overlay cannot derive its policy from its configuration, so it opens both of ClickHouse's ports.
    charts.remove(pick(charts, "NetworkPolicy"))
    both = render_chart("server", {**values, "inserter": {"endpoint": ",".join(endpoints)}})
    charts.append(pick(both, "NetworkPolicy"))
    charts.remove(pick(charts, "Secret"))  # the overlay takes one of the operator's own
    production, from_charts = comparable(overlay("production")), comparable(charts)
    assert production.keys() == from_charts.keys()
    for key, one in production.items():
        if key[0] != "ConfigMap":
            assert one == from_charts[key], key
    config = production["ConfigMap", "kubenetmon-server", "config"]
    theirs = from_charts["ConfigMap", "kubenetmon-server", "config"]
    used = [name for name, key in server_config.KEYS.items() if not key.metadata["unused"]]
    assert {name: getattr(config, name) for name in used} == {name: getattr(theirs, name) for name in used}
    assert config.require_token
    assert config.tls_client_ca


@pytest.mark.parametrize("name", sorted(everything()))
def test_objects_are_valid_for_current_kubernetes(name: str) -> None:
    for one in everything()[name]:
        if resource_models.knows(one["apiVersion"]):
            assert resource_models.problems(one) == []
        else:
            kubernetes_validate.validate(one, NEWEST, strict=True)
        assert len(set(one["metadata"].get("labels", {}))) == len(one["metadata"].get("labels", {}))


def test_validation_can_fail() -> None:
    daemon_set = pick(release("agent"), "DaemonSet")
    daemon_set["spec"]["template"]["spec"]["hostNetwrok"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(daemon_set, NEWEST, strict=True)
    monitor = pick(render_chart("server", manifests.production_values("server")), "PodMonitor")
    monitor["spec"]["podMetricsEndpoints"][0]["prot"] = "metrics"
    assert resource_models.problems(monitor) == ["PodMonitor.spec.podMetricsEndpoints.prot is unknown"]


@pytest.mark.parametrize("part", manifests.PARTS)
def test_charts_are_clean_and_of_this_version(part: str) -> None:
    values = dict(BASE_VALUES[part])
    report = lint(str(manifests.chart(part)), values, strict=True)
    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]
    about = yaml.safe_load((manifests.chart(part) / "Chart.yaml").read_text())
    assert about["version"] == about["appVersion"] == kubenetmon.__version__


def test_the_originals_values_give_the_originals_objects() -> None:
    server = render_chart("server", ORIGINAL_SERVER)
    names = {identity(one) for one in server}
    assert names == {
        ("Deployment", "kubenetmon-server", "kubenetmon-server"),
        ("Service", "kubenetmon-server", "kubenetmon-server"),
        ("ConfigMap", "kubenetmon-server", "config"),
        ("Secret", "kubenetmon-server", "clickhouse-credentials"),
        ("ServiceAccount", "kubenetmon-server", "kubenetmon-server"),
        ("ClusterRole", "", "kubenetmon-server"),
        ("ClusterRoleBinding", "", "kubenetmon-server"),
    }
    assert manifests.credentials(server) == {"username": "default", "password": "secret word"}
    config = effective(*manifests.server_settings(server))
    assert config.clickhouse_endpoint == "clickhouse.example.org:9440"
    assert (config.grpc_port, config.metrics_port, config.num_inserter_workers) == (8884, 8883, 20)
    assert not config.require_token
    assert config.tls_cert is None
    deployment = pick(server, "Deployment")["spec"]
    assert deployment["selector"]["matchLabels"] == {
        "app.kubernetes.io/name": "kubenetmon-server",
        "app.kubernetes.io/instance": "kubenetmon-server",
    }
    assert [(port["name"], port["port"]) for port in pick(server, "Service")["spec"]["ports"]] == [
        ("grpc", 8884),
        ("metrics", 8883),
    ]
    agent = render_chart("agent", ORIGINAL_AGENT)
    assert {one[::2] for one in map(identity, agent)} == {
        ("DaemonSet", "kubenetmon-agent"),
        ("PriorityClass", "kubenetmon"),
        ("ServiceAccount", "kubenetmon-agent"),
    }
    daemon_set = pick(agent, "DaemonSet")["spec"]
    assert daemon_set["updateStrategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": "50%"},
    }


def environment(daemon_set: Object) -> dict[str, str]:
    entries = daemon_set["spec"]["template"]["spec"]["containers"][0]["env"]
    of_the_node = {"spec.nodeName": "node-a", "status.hostIP": "192.0.2.10"}
    return {
        entry["name"]: entry["value"]
        if "value" in entry
        else of_the_node[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in entries
    }


@pytest.mark.parametrize(
    "values", [{}, ORIGINAL_AGENT, SECURE_WITH_CERTIFICATES, manifests.production_values("agent")]
)
def test_the_agents_environment_is_one_that_it_takes(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    config = agent_config.from_environment(environment(pick(render_chart("agent", values), "DaemonSet")))
    assert config.server_host == "kubenetmon-server.kubenetmon-server.svc.cluster.local"
    assert config.node_name == "node-a"
    assert config.state_dir == Path("/run/kubenetmon")
    secure = values.get("secure", False)
    assert (config.tls_ca is not None, config.tls_cert is not None, config.token_file is not None) == (
        secure,
        secure,
        secure,
    )
    metrics = values.get("metrics", {})
    assert config.metrics_port == metrics.get("port", 8883)
    assert config.metrics_host == ("192.0.2.10" if metrics.get("nodeAddressOnly") else "")
    assert not caplog.records


def test_every_key_of_the_configuration_can_be_given_by_the_chart() -> None:
    schema = yaml.safe_load((manifests.chart("server") / "values.schema.json").read_text())
    further = schema["properties"]["configuration"]["properties"]
    rendered = yaml.safe_load(manifests.server_settings(release("server", {**manifests.WITH_ALL_KEYS}))[0])
    assert set(further) | set(rendered) == set(server_config.KEYS)
    assert not set(further) & set(rendered)


def test_further_configuration_reaches_the_file() -> None:
    objects = release(
        "server", {"configuration": {"meter_host_network": True, "private_cidrs": ["10.9.0.0/16"]}}
    )
    config = effective(*manifests.server_settings(objects))
    assert config.meter_host_network
    assert [str(network) for network in config.private_cidrs] == ["10.9.0.0/16"]


def test_the_page_is_off_until_it_is_switched_on_and_then_on_loopback() -> None:
    for objects in (release("server"), render_chart("server", manifests.production_values("server"))):
        assert effective(*manifests.server_settings(objects)).page_port == 0
    config = effective(*manifests.server_settings(release("server", WATCHED)))
    assert (config.page_port, config.page_host) == (8885, "127.0.0.1")


def test_alert_rules_are_those_of_the_file_in_chart_and_overlay() -> None:
    rules = yaml.safe_load((manifests.DEPLOY / "prometheus" / "alerts.yaml").read_text())
    assert pick(overlay("production"), "PrometheusRule")["spec"] == rules
    rule = pick(release("server", WATCHED), "PrometheusRule")
    assert rule["spec"] == rules
    assert rule["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert not [one for one in release("server") if one["kind"] == "PrometheusRule"]


def test_dashboards_are_those_of_the_directory_in_chart_and_kustomization() -> None:
    directory = manifests.DEPLOY / "grafana"
    models = {path.stem: json.loads(path.read_text()) for path in directory.glob("*.json")}
    assert len(models) == 3
    for objects in (release("server", WATCHED), manifests.kustomize(directory)):
        found = {
            one["metadata"]["name"]: one
            for one in objects
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] != "config"
        }
        assert set(found) == {f"kubenetmon-server-{name}" for name in models}
        for name, model in models.items():
            one = found[f"kubenetmon-server-{name}"]
            assert one["metadata"]["labels"]["grafana_dashboard"] == "1"
            assert {file: json.loads(text) for file, text in one["data"].items()} == {
                f"kubenetmon-{name}.json": model
            }
    assert len([one for one in release("server") if one["kind"] == "ConfigMap"]) == 1


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        ("server", {"regoin": "us-west-2"}, "additional properties 'regoin' not allowed"),
        ("server", {"region": ""}, "region is required, as the provider writes it"),
        ("server", {"cloud": "amazon"}, "/cloud"),
        ("server", {"inserter": {"endpoint": "clickhouse"}}, "/inserter/endpoint"),
        ("server", {"inserter": {"database": "a;DROP TABLE b"}}, "/inserter/database"),
        ("server", {"inserter": {"numInserterWorkers": 0}}, "/inserter/numInserterWorkers"),
        ("server", {"configuration": {"meter_host_netwrok": True}}, "'meter_host_netwrok' not allowed"),
        ("server", {"tokens": {"accounts": ["kubenetmon-agent"]}}, "/tokens/accounts/0"),
        ("server", {"page": {"port": 0}}, "/page/port"),
        ("server", {"image": {"tag": 1.10}}, "at '/image/tag': got number, want string"),
        ("agent", {"image": {"tag": 1.10}}, "at '/image/tag': got number, want string"),
        ("server", {"inserter": {"endpoint": "chdb:/data"}}, "the image has no embedded ClickHouse: name a"),
        ("server", {"files": {"../ca.crt": ""}}, "invalid propertyName '../ca.crt'"),
        ("server", {"filesFrom": [{"secert": {"name": "a"}}]}, "'secert' not allowed"),
        ("server", {"extraVolumeMounts": [{"name": "a"}]}, "missing property 'mountPath'"),
        ("server", {"inserter": {"existingSecret": "clickhouse-credentials"}}, "give yours another name"),
        ("server", {"inserter": {"existingSecret": "mine", "password": "a"}}, "leave one or the other out"),
        ("server", {"inserter": {"existingSecret": "mine", "username": "a"}}, "leave one or the other out"),
        ("server", {"alerts": {"labels": {"release": 1}}}, "/alerts/labels/release"),
        ("server", {"dashboards": {"enable": True}}, "'enable' not allowed"),
        ("agent", {"configuration": {"collectionInterval": "5"}}, "/configuration/collectionInterval"),
        ("agent", {"configuration": {"kubenetmonServerServicePort": "8884"}}, "ServicePort"),
        ("agent", {"tokens": {"expirationSeconds": 60}}, "/tokens/expirationSeconds"),
        ("agent", {"metrics": {"port": 88830}}, "/metrics/port"),
    ],
)
def test_a_wrong_value_fails_at_install_and_is_named(part: str, values: dict[str, Any], said: str) -> None:
    with pytest.raises((HelmValuesError, HelmRenderError), match=re.escape(said)):
        release(part, values)


def test_a_change_of_configuration_or_credentials_rolls_the_pods() -> None:
    def annotations(values: dict[str, Any]) -> dict[str, str]:
        template = pick(release("server", values), "Deployment")["spec"]["template"]
        return dict(template["metadata"]["annotations"])

    plain = annotations({})
    changed = annotations({"region": "eu-west-1"})
    other = annotations({"inserter": {"password": "other"}})
    assert plain["checksum/config"] != changed["checksum/config"] == changed["checksum/config"]
    assert plain["checksum/credentials"] == changed["checksum/credentials"]
    assert plain["checksum/credentials"] != other["checksum/credentials"]
    names = [one["metadata"]["name"] for one in overlay("server") if one["kind"] in ("ConfigMap", "Secret")]
    assert all(re.fullmatch(r"(config|clickhouse-credentials)-[0-9a-z]{10}", name) for name in names)


def containers(objects: list[Object]) -> list[tuple[str, Object, Object]]:
    """Name, container and pod of all of ours."""
    found = []
    for one in objects:
        if one["kind"] in ("DaemonSet", "Deployment") and one["metadata"]["name"].startswith("kubenetmon"):
            pod = one["spec"]["template"]["spec"]
            every = [*pod.get("initContainers", []), *pod["containers"]]
            found += [(container["name"], container, pod) for container in every]
    return found


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


def quantity(text: str) -> float:
    """Bytes or cores of a Kubernetes quantity."""
    units = {"Mi": 2**20, "Gi": 2**30, "m": 0.001, "": 1}
    number, unit = re.fullmatch(r"([0-9]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]


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
