"""The made-up cluster is what it says of itself, so that others may be checked against it."""

from __future__ import annotations

import json
from typing import Any

from tests.beds.large_cluster import STEPS, LargeCluster


def test_arithmetic_and_lines_tell_the_same_story() -> None:
    cluster = LargeCluster(pods=5, nodes=2)
    owners = {number: cluster.pod_name(number, 0) for number in range(5)}
    states = dict.fromkeys(range(5), (0, "running"))
    for changes in range(5 * len(STEPS) * 3):
        for number in range(5):
            assert cluster.life(number, changes) == states[number]
            assert cluster.owner(number, changes) == owners[number]
        event: dict[str, Any] = json.loads(cluster.change(changes))
        metadata, status = event["object"]["metadata"], event["object"]["status"]
        number, generation = (int(part) for part in metadata["name"].split("-")[-2:])
        states[number] = (generation, "gone" if event["type"] == "DELETED" else status["phase"].lower())
        if "podIP" in status:
            owners[number] = metadata["name"]


def test_lists_hold_what_is_there() -> None:
    cluster = LargeCluster(pods=5, nodes=2)
    assert len(cluster.items("nodes", 0, 10, 0)) == 2
    assert [len(cluster.items("pods", 0, 10, changes)) for changes in (0, 2, 3)] == [5, 4, 5]
    names = [json.loads(item)["metadata"]["name"] for item in cluster.items("pods", 1, 3, 0)]
    assert names == [cluster.pod_name(number, 0) for number in (1, 2)]
