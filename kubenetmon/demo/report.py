"""What the demo asks the table, and how it prints the answers.

The questions go to a process of their own (`python -m kubenetmon.demo.report DIRECTORY`): the embedded engine
writes to standard error what only its developers want to read.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.demo.actors import python_environment
from kubenetmon.errors import MachineError

_PATIENCE = 120.0

TOTAL = "SELECT sum(bytes) FROM default.network_flows_0"
BY_POD = """
SELECT localPod, remotePod, connectionClass, formatReadableSize(sum(bytes))
FROM default.network_flows_0
WHERE direction = 'out'
GROUP BY localPod, remotePod, connectionClass ORDER BY sum(bytes) DESC
"""
CROSS_ZONE = """
SELECT localApp, localAvailabilityZone, remoteApp, remoteAvailabilityZone, formatReadableSize(sum(bytes))
FROM default.network_flows_0
WHERE direction = 'out' AND localAvailabilityZone != '' AND remoteAvailabilityZone != ''
  AND localAvailabilityZone != remoteAvailabilityZone
GROUP BY ALL ORDER BY sum(bytes) DESC
"""
TO_S3 = """
SELECT localPod, remoteRegion, connectionClass, formatReadableSize(sum(bytes))
FROM default.network_flows_0
WHERE direction = 'out' AND remoteCloudService = 's3'
GROUP BY ALL ORDER BY sum(bytes) DESC
"""


@dataclass(frozen=True, slots=True)
class Answers:
    """The rows of each question, and the sum over the whole table."""

    by_pod: Sequence[tuple[str, ...]]
    cross_zone: Sequence[tuple[str, ...]]
    to_s3: Sequence[tuple[str, ...]]
    total_bytes: int


def ask(path: Path) -> Answers:
    """Open the embedded ClickHouse that the server has let go of, and ask. Raises `MachineError`."""
    result = subprocess.run(  # noqa: S603 - this module
        [sys.executable, "-m", "kubenetmon.demo.report", str(path)],
        env=python_environment(),
        capture_output=True,
        text=True,
        timeout=_PATIENCE,
        check=False,
    )
    if result.returncode != 0:
        lines = result.stderr.splitlines() or [f"exit code {result.returncode}"]
        raise MachineError(f"the embedded ClickHouse at {path} does not answer: {lines[-1]}")
    return Answers(**json.loads(result.stdout))


async def _answers(path: Path) -> Answers:
    sink = EmbeddedSink(path)
    try:
        total = (await sink.query(TOTAL))[0][0]
        return Answers(
            by_pod=await sink.query(BY_POD),
            cross_zone=await sink.query(CROSS_ZONE),
            to_s3=await sink.query(TO_S3),
            total_bytes=int(total),
        )
    finally:
        await sink.close()


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, the last one (a size) to the right; an empty cell is a dash."""
    cells = [tuple(heads), *[tuple(value or "-" for value in row) for row in rows]]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    lines = [
        "  ".join(
            [value.ljust(width) for value, width in zip(row[:-1], widths, strict=False)]
            + [row[-1].rjust(widths[-1])]
        )
        for row in cells
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def print_answers(answers: Answers) -> None:
    """All tables, each under its question."""
    print("\nWhat went out, by pod (a dash is someone outside of the cluster):\n")
    print(table(("localPod", "remotePod", "connectionClass", "bytes"), answers.by_pod))
    print(
        "\nA connection within one node is stored once, under the pod that opened it:"
        " what came back is in rows of direction 'in'."
    )
    print("\nHow much crossed zones, and from whom?\n")
    print(table(("from", "zone", "to", "zone", "bytes"), answers.cross_zone))
    print("\nHow much went to S3?\n")
    print(table(("localPod", "region", "connectionClass", "bytes"), answers.to_s3))
    print()


if __name__ == "__main__":
    print(json.dumps(asdict(asyncio.run(_answers(Path(sys.argv[1]))))))
