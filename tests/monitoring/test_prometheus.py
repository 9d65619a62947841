"""Alert rules and the dashboard over /metrics, judged by Prometheus' own promtool."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubenetmon.metrics import Kind, catalogue
from tests.beds import grafana

RULES = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
SPECS = {
    spec.name: spec for spec in catalogue.AGENT_METRICS + catalogue.SERVER_METRICS + catalogue.COMMON_METRICS
}


def _expressions() -> list[tuple[str, str]]:
    rules = yaml.safe_load((RULES / "alerts.yaml").read_text())
    found = [(rule["alert"], rule["expr"]) for group in rules["groups"] for rule in group["rules"]]
    model = json.loads((grafana.DIRECTORY / "metering.json").read_text())
    return found + [(title, grafana.promql(target["expr"])) for title, target in grafana.targets(model)]


def _promtool(*arguments: str | Path) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


def _selectors(expression: str) -> list[tuple[str, str]]:
    return re.findall(r"(kubenetmon_\w+)(?:\{([^}]*)\})?", expression)


@pytest.mark.promtool
def test_the_alert_rules_are_valid() -> None:
    _promtool("check", "rules", RULES / "alerts.yaml")


@pytest.mark.promtool
def test_each_alert_fires_when_it_should_and_only_then() -> None:
    _promtool("test", "rules", RULES / "alerts.test.yaml")


def test_no_alert_is_without_a_test_and_without_advice() -> None:
    tested = (RULES / "alerts.test.yaml").read_text()
    for group in yaml.safe_load((RULES / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            named = rule["alert"] in tested or rule["alert"] in (
                # Spelled as one pattern there.
                "KubenetmonNodeSilent",
                "KubenetmonNodeNotRead",
            )
            assert named, rule["alert"]
            assert rule["labels"]["severity"] in ("warning", "critical")
            assert rule["annotations"]["summary"]
            assert rule["annotations"]["action"]


@pytest.mark.parametrize(("where", "expression"), _expressions())
def test_queries_name_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    selectors = _selectors(expression)
    assert selectors, where
    for name, matchers in selectors:
        spec = SPECS.get(name) or SPECS.get(name.removesuffix("_bucket"))
        assert spec is not None, f"{where}: {name} is no metric of ours"
        assert name.endswith("_bucket") == (spec.kind is Kind.HISTOGRAM), name
        for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', matchers):
            if label in ("instance", "job"):
                continue
            assert label in spec.labels, f"{where}: {name} has no label {label}"
            known = spec.labels[label]
            wanted = value.split("|") if operator == "=~" else [value]
            assert not known or set(wanted) <= set(known), f"{where}: {name} has no {label}={value}"


@pytest.mark.promtool
def test_every_query_of_the_dashboard_parses(tmp_path: Path) -> None:
    model = json.loads((grafana.DIRECTORY / "metering.json").read_text())
    rules: list[dict[str, Any]] = [
        {"record": f"panel:{number}", "expr": grafana.promql(target["expr"])}
        for number, (_, target) in enumerate(grafana.targets(model))
    ]
    assert len(rules) > 20
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    _promtool("check", "rules", file)
    rules[0]["expr"] += " +"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    with pytest.raises(AssertionError):  # the check can fail
        _promtool("check", "rules", file)
