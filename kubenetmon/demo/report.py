"""What the demo asks the table, and how it prints the answers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report import text

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
    """Open the embedded ClickHouse that the server has let go of, and ask. Raises `KubenetmonError`."""
    return asyncio.run(_answers(path))


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


def print_answers(answers: Answers) -> None:
    """All tables, each under its question."""
    print("\nWhat went out, by pod (a dash is someone outside of the cluster):\n")
    print(text.table(("localPod", "remotePod", "connectionClass", "bytes"), answers.by_pod))
    print(
        "\nA connection within one node is stored once, under the pod that opened it:"
        " what came back is in rows of direction 'in'."
    )
    print("\nHow much crossed zones, and from whom?\n")
    print(text.table(("from", "zone", "to", "zone", "bytes"), answers.cross_zone))
    print("\nHow much went to S3?\n")
    print(text.table(("localPod", "region", "connectionClass", "bytes"), answers.to_s3))
    print()
