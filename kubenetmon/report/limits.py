"""What a node's instance type can move, and how near to it the node came.

Contract: `Limits` maps nodes to instance types and those to bandwidth. What is not known is left open, never
guessed. The built-in list is `limits_data/instance_types.json`, with its source and date; a file of one's own
in the same form adds to it and overrides it. Files are read by `read_limits` only.

AWS limits each way on its own; GCP and Azure limit what is sent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kubenetmon.errors import ConfigurationError
from kubenetmon.report.answers import Column
from kubenetmon.report.files import number, read_document, text_of

NEAR = 0.8
"""The part of a limit from which on a peak minute is warned of."""
BUILT_IN = Path(__file__).parent / "limits_data" / "instance_types.json"
_INSTANCE_TYPE_LABELS = ("node.kubernetes.io/instance-type", "beta.kubernetes.io/instance-type")


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """What an instance type can move, in bit/s: for ever (`baseline`), and for a while (`burst`).
    `each_way`: received bytes are limited as well as sent ones."""

    baseline: float
    burst: float
    each_way: bool = True


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
            name, bandwidth = self.of_node(str(row[0]).rpartition("/")[2])
            if bandwidth is None:
                unknown += 1
                judged.append((*row, name, None, None, ""))
                continue
            peak, high = row[2], row[4]
            if bandwidth.each_way:
                peak, high = max(peak, row[3]), max(high, row[5])
            use = peak / bandwidth.burst
            warning = "near the limit" if use >= NEAR else ""
            if not warning and high >= NEAR * bandwidth.baseline:
                warning = "near the baseline"
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
                "(kubectl get nodes -o json), --nodes kubernetes or --instance-type TYPE, and new types with "
                "--limits FILE."
            )
        if unknown < len(rows):
            notes.append(
                f"A warning means a peak minute at {NEAR:.0%} of the limit or more, or a 95th percentile at "
                f"{NEAR:.0%} or more of what the type can keep up (its baseline)."
            )
        return (*columns, *more), judged, notes


NO_LIMITS = Limits()


def read_limits(nodes: Mapping[str, str], instance_type: str, own: Path | None) -> Limits:
    """The built-in list and `own`; the types of the nodes by name, `instance_type` for those not in it.
    Raises `ConfigurationError`."""
    bandwidths = dict(_read_bandwidths(BUILT_IN))
    if own is not None:
        bandwidths.update(_read_bandwidths(own))
    instance_types = {"": instance_type} if instance_type else {}
    if instance_type and instance_type not in bandwidths:
        raise ConfigurationError(
            f"--instance-type {instance_type!r} is not in the list of limits: add it with --limits FILE"
        )
    return Limits({**instance_types, **nodes}, bandwidths)


def _read_bandwidths(path: Path) -> Mapping[str, Bandwidth]:
    document = read_document(path, "limits")
    found = {}
    try:
        for cloud in document["clouds"]:
            each_way = text_of(cloud, "limits", path) != "sent"
            for name, entry in cloud["types"].items():
                baseline, burst = (number(entry[key], key, path) for key in ("baseline_gbps", "burst_gbps"))
                if not 0 < baseline <= burst:
                    raise ConfigurationError(f"{path}: {name}: 0 < baseline_gbps <= burst_gbps must hold")
                found[str(name)] = Bandwidth(float(baseline) * 1e9, float(burst) * 1e9, each_way)
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"{path} is no file of limits: {error!r}; see {BUILT_IN}") from None
    return found


def read_nodes(path: Path) -> Mapping[str, str]:
    """Instance types by node from `kubectl get nodes -o json`. Raises `ConfigurationError`."""
    try:
        return instance_types_of(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(f"--nodes {path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigurationError(f"--nodes {path} is not what `kubectl get nodes -o json` prints") from None


def instance_types_of(listed: bytes | bytearray) -> dict[str, str]:
    """Instance types by node from the JSON of a list of nodes. Raises `ValueError` for anything else."""
    found = {}
    try:
        for node in json.loads(listed).get("items", ()):
            if node.get("kind", "Node") != "Node":
                continue
            labels = node["metadata"].get("labels", {})
            kind = next((labels[label] for label in _INSTANCE_TYPE_LABELS if label in labels), "")
            if kind:
                found[str(node["metadata"]["name"])] = str(kind)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(repr(error)) from None
    return found
