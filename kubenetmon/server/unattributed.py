"""What found no side: counted by cause, with samples to look at.

Contract: bounded. For each cause the totals since the start and the last `KEPT` samples are kept, of a batch
at most the few largest records. Used on the event loop only; nothing to shut down.
"""

from __future__ import annotations

import dataclasses
import json
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime

from kubenetmon.http import JSON, Response
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.server.attributed import NO_SIDE_CAUSES, NOTHING_IGNORED, Ignored, NoSide, Sample

PATH = "/debug/unattributed"
KEPT = 50

_MEANINGS = {
    "unknown_node": "the cluster does not know the node that reported: look at its NODE_NAME, and at /ready",
    "both_unknown": "neither end is a pod or in a pod network of the reporting node",
    "both_elsewhere": "both ends are pods (or nodes) elsewhere: traffic that the node only forwards",
    "no_node": "an end is a pod that is on no node yet, and the other end decides nothing",
}


class Unattributed:
    """Keeps the samples and serves them."""

    def __init__(self, *, metrics: Metrics) -> None:
        self._metrics = metrics
        self._totals: dict[str, Ignored] = dict.fromkeys(NO_SIDE_CAUSES, NOTHING_IGNORED)
        self._samples: dict[str, deque[tuple[int, str, Sample]]] = {
            cause: deque(maxlen=KEPT) for cause in NO_SIDE_CAUSES
        }

    def record(self, node_name: str, interval_end: int, no_side: Mapping[str, NoSide]) -> None:
        """What a settled batch of that node had; `interval_end` in Unix seconds."""
        for cause, found in no_side.items():
            self._totals[cause] += found.total
            self._metrics.add(catalogue.NO_SIDE, found.total.bytes, cause=cause, unit="bytes")
            self._metrics.add(catalogue.NO_SIDE, found.total.packets, cause=cause, unit="packets")
            self._samples[cause].extend((interval_end, node_name, sample) for sample in found.samples)

    def page(self, _: Mapping[str, str]) -> Response:
        """The page at `PATH`."""
        body = {
            cause: {
                "meaning": _MEANINGS[cause],
                **dataclasses.asdict(total),
                "samples": [
                    {"time": _time(at), "node": node, **dataclasses.asdict(sample)}
                    for at, node, sample in reversed(self._samples[cause])
                ],
            }
            for cause, total in self._totals.items()
        }
        return Response(json.dumps(body, indent=1).encode() + b"\n", JSON)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
