"""How full the kernel's table is, as /metrics shows it."""

from __future__ import annotations

from pathlib import Path

from kubenetmon.agent.table_limit import TableLimit
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_METRICS


def _lines(metrics: Metrics) -> list[str]:
    return metrics.render().decode().splitlines()


def test_entries_and_limit_are_read_at_each_scrape(tmp_path: Path) -> None:
    metrics = Metrics(AGENT_METRICS)
    TableLimit(metrics=metrics, directory=tmp_path)
    assert "kubenetmon_agent_conntrack_limit 0" in _lines(metrics)
    (tmp_path / "nf_conntrack_max").write_text("262144\n")
    for count in ("17\n", "262143\n"):
        (tmp_path / "nf_conntrack_count").write_text(count)
        shown = _lines(metrics)
        assert f"kubenetmon_agent_conntrack_entries {count.strip()}" in shown
        assert "kubenetmon_agent_conntrack_limit 262144" in shown


def test_what_the_kernel_says_is_what_is_shown() -> None:
    kernel = Path("/proc/sys/net/netfilter/nf_conntrack_max")
    limit = kernel.read_text().strip() if kernel.exists() else "0"
    metrics = Metrics(AGENT_METRICS)
    TableLimit(metrics=metrics)
    assert f"kubenetmon_agent_conntrack_limit {limit}" in _lines(metrics)
