"""The pages made from code are as the code is, and metrics are declared once."""

from __future__ import annotations

from pathlib import Path

from kubenetmon.config import markdown as configuration
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.metrics import markdown as metrics

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_configuration_page_is_current() -> None:
    assert (DOCS / "configuration.md").read_text() == configuration.configuration() + "\n", "run nox -s docs"


def test_the_metrics_page_is_current() -> None:
    assert (DOCS / "metrics.md").read_text() == metrics.metrics() + "\n", "run nox -s docs"


def test_every_metric_is_served_from_the_start_and_has_one_name() -> None:
    specs = catalogue.AGENT_METRICS + catalogue.SERVER_METRICS + catalogue.COMMON_METRICS
    names = [spec.name for spec in specs]
    assert len(set(names)) == len(names)
    text = Metrics(specs).render().decode()
    for spec in specs:
        assert f"# TYPE {spec.name} {spec.kind.value}" in text
        if all(spec.labels.values()) and spec.kind.value != "histogram":
            assert f"\n{spec.name}" in text
