"""What deploy/ describes: charts and overlays are the same objects, valid for current Kubernetes."""

from __future__ import annotations

import kubernetes_validate
import pytest
import yaml
from helm_python import lint

import kubenetmon
from kubenetmon.config import server as server_config
from tests.beds import manifests, resource_models
from tests.beds.charts import comparable, everything, overlay, release
from tests.beds.manifests import BASE_VALUES, pick, render_chart

NEWEST = kubernetes_validate.latest_version()


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
