"""Metrics: one catalogue of what exists, one registry a process.

Contract: every metric is declared once in `catalogue`, with its labels' values where they are a closed set,
so that each time series exists with 0 from the first scrape and `docs/metrics.md` can be made from the
code. Parts increment through `Metrics`; numbers that live elsewhere (the C ledger) are read at scrape time
by collectors that the owner registers.
"""

from kubenetmon.metrics.registry import Kind, Metrics, MetricSpec

__all__ = ["Kind", "MetricSpec", "Metrics"]
