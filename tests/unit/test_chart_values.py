"""Values of the charts: the original's and ours do what they say, and wrong ones are named."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helm_python import HelmRenderError, HelmValuesError

from kubenetmon.config import agent as agent_config
from kubenetmon.config import server as server_config
from tests.beds import manifests
from tests.beds.charts import (
    ORIGINAL_AGENT,
    ORIGINAL_SERVER,
    SECURE_WITH_CERTIFICATES,
    WATCHED,
    effective,
    environment,
    overlay,
    release,
)
from tests.beds.manifests import identity, pick, render_chart


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
