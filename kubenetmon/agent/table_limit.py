"""How full the kernel's table is: when it is full the kernel drops the packets of new connections.

Contract: inert; the two numbers are read at every scrape, in the network namespace that is metered. `count`
is the namespace's own, `max` the machine's (kernel, Documentation/networking/nf_conntrack-sysctl.rst); 0 in
`max` means no limit, and both stay 0 where the files are missing.
"""

from __future__ import annotations

from pathlib import Path

from kubenetmon.metrics import Metrics, MetricSpec
from kubenetmon.metrics.catalogue import AGENT_TABLE_ENTRIES, AGENT_TABLE_LIMIT

_DIRECTORY = Path("/proc/sys/net/netfilter")


class TableLimit:
    """Exports the table's entries and the most that it takes."""

    def __init__(self, *, metrics: Metrics, directory: Path = _DIRECTORY) -> None:
        self._metrics, self._directory = metrics, directory
        metrics.before_render(self._publish)

    def _publish(self) -> None:
        self._read("nf_conntrack_count", AGENT_TABLE_ENTRIES)
        self._read("nf_conntrack_max", AGENT_TABLE_LIMIT)

    def _read(self, name: str, spec: MetricSpec) -> None:
        try:
            self._metrics.set(spec, int((self._directory / name).read_text()))
        except (OSError, ValueError):
            self._metrics.set(spec, 0)
