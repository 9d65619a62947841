"""The catalogue as a page: what `kubenetmon metrics` prints and `docs/metrics.md` holds."""

from __future__ import annotations

from collections.abc import Sequence

from kubenetmon.metrics import MetricSpec, catalogue


def metrics() -> str:
    """All metrics as Markdown tables."""
    parts = [
        "# Metrics",
        "Printed by `kubenetmon metrics`. All are served on `metrics_port`, path `/metrics`.",
        "Bytes and packets make up an identity that a dashboard can check. At the agent: observed = reported "
        "+ ignored + pending. At the server: received = committed + ignored + handed back + pending.",
    ]
    for title, specs in (
        ("Agent", catalogue.AGENT_METRICS),
        ("Server", catalogue.SERVER_METRICS),
        ("Both", catalogue.COMMON_METRICS),
    ):
        parts.append(f"## {title}\n\n{_table(specs)}")
    return "\n\n".join(parts)


def _table(specs: Sequence[MetricSpec]) -> str:
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for spec in specs:
        labels = "; ".join(f"{name}: {', '.join(values) or 'any'}" for name, values in spec.labels.items())
        rows.append(f"| `{spec.name}` | {spec.kind.value} | {labels} | {spec.help} |")
    return "\n".join(rows)
