"""What a node's instance type can move, and how near to it the node came. Pure.

Contract: `Limits` maps nodes to instance types and those to bandwidth. What is not known is left open, never
guessed. The built-in list is `limits/instance_types.json`, each entry with its source and date.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kubenetmon.report.answers import Column

NEAR = 0.8
"""The part of a limit from which on a peak minute is warned of."""


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What an instance type can move, in bit/s each way: for ever (`baseline`), and for a while (`burst`)."""

    baseline: float
    burst: float
    source: str = ""
    date: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """`instance_types` maps a node's name to its instance type, "" the type of all others."""

    instance_types: Mapping[str, str] = field(default_factory=dict)
    bandwidths: Mapping[str, Bandwidth] = field(default_factory=dict)

    def of_node(self, node: str) -> tuple[str, Bandwidth | None]:
        """The node's instance type, and its bandwidth where it is known."""
        name = self.instance_types.get(node, self.instance_types.get("", ""))
        return name, self.bandwidths.get(name)

    def judge(
        self, columns: tuple[Column, ...], rows: Sequence[tuple[Any, ...]], by: str
    ) -> tuple[tuple[Column, ...], list[tuple[Any, ...]], list[str]]:
        """Rows of the question `throughput` with instance type, limit, use and warning; and notes."""
        if by != "node":
            return columns, list(rows), []
        judged, unknown = [], 0
        for row in rows:
            name, bandwidth = self.of_node(str(row[0]))
            if bandwidth is None:
                unknown += 1
                judged.append((*row, name, None, None, ""))
                continue
            peak, high = max(row[2], row[3]), max(row[4], row[5])
            use = peak / bandwidth.burst
            warning = "near the limit" if use >= NEAR else ""
            if not warning and high > bandwidth.baseline:
                warning = "above the baseline for long"
            judged.append((*row, name, bandwidth.burst, use, warning))
        more = (
            Column("instance_type"),
            Column("limit", "rate"),
            Column("use", "share"),
            Column("warning"),
        )
        notes = []
        if unknown:
            notes.append(
                f"For {unknown} of {len(rows)} nodes no limit is known: name their types with --nodes FILE "
                "(kubectl get nodes -o json) or --instance-type TYPE."
            )
        return (*columns, *more), judged, notes


NO_LIMITS = Limits()
