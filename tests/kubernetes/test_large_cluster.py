"""A large cluster made up: known sooner than its JSON is read, and followed at little cost without a mistake.

A twentieth of what `python -m tests.bench --only watching` measures, with the same means.
"""

from __future__ import annotations

import pytest

from tests.bench.watching import RATE, follow, published

PODS, NODES = 5000, 250


@pytest.mark.slow
def test_large_cluster_is_known_soon_and_followed_at_little_cost_without_a_mistake() -> None:
    with published(PODS, NODES, RATE) as port:
        measured = follow(port, PODS, NODES, 12.0)
    assert measured.synced_cpu <= 3 * measured.floor_cpu, "0.4 measured"
    assert measured.changes >= 0.8 * RATE * measured.followed
    assert measured.followed_cpu <= 0.2 * measured.followed, "0.04 measured"
    assert measured.checked > 5000
    assert measured.wrong == 0
