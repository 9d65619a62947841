"""Which node holds an address or a pod network: random lives of nodes against a brute force."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kubenetmon.server.inventory import ClusterSnapshot, Inventory, InventoryConfig
from kubenetmon.server.node_prefixes import BITS, Network, as_addresses
from kubenetmon.server.nodes import Node
from kubenetmon.server.snapshot import Family

FAMILIES: tuple[Family, ...] = (4, 6)
GRACE = 30
TOP = {4: 0x0A000000, 6: 0xFD00 << 112}
NETWORKS = [
    Network(family, TOP[family] + (number << free), BITS[family] - free)
    for family in FAMILIES
    for free, number in ((8, 0), (8, 1), (8, 2), (10, 0), (4, 0), (0, 3), (BITS[family], 0))
    if free < BITS[family] or TOP[family] == 0
] + [
    Network(4, 0, 0),
    Network(6, 0, 0),
    Network(6, TOP[6] + (1 << 64), 64),
    Network(6, TOP[6] + (1 << 70), 60),
]
PROBES: dict[Family, list[int]] = {
    family: [TOP[family] + low for low in (0, 3, 15, 16, 255, 256, 511, 512, 1023, 1024)]
    + [0, (1 << BITS[family]) - 1]
    + ([TOP[6] + (1 << 64) + 5, TOP[6] + (1 << 70)] if family == 6 else [])
    for family in FAMILIES
}


@st.composite
def nodes(draw: st.DrawFn) -> Node:
    """With addresses and networks that others have as well, and some twice."""
    return Node(
        draw(st.sampled_from("abcd")),
        draw(st.sampled_from(["zone-1", "zone-2"])),
        draw(st.integers(0, 2)),
        tuple(draw(st.lists(st.sampled_from(PROBES[4]), max_size=3))),
        tuple(draw(st.lists(st.sampled_from(PROBES[6]), max_size=3))),
        tuple(draw(st.lists(st.sampled_from(NETWORKS), max_size=4))),
    )


class NodeLives(RuleBasedStateMachine):
    """`known` is node, second of its deletion if any, number of its last change; by name."""

    def __init__(self) -> None:
        super().__init__()
        self.inventory = Inventory(InventoryConfig(pod_grace=GRACE))
        self.known: dict[str, tuple[Node, int | None, int]] = {}
        self.now = 1000
        self.changes = 0
        self.earlier: tuple[ClusterSnapshot, Any] | None = None

    @rule(node=nodes())
    def put(self, node: Node) -> None:
        self.inventory.put_node(node)
        before = self.known.get(node.name)
        if before is None or before[:2] != (node, None):
            self.changes += 1
            self.known[node.name] = (node, None, self.changes)

    @rule(name=st.sampled_from("abcd"))
    def remove(self, name: str) -> None:
        self.inventory.remove_node(name, self.now)
        if name in self.known and self.known[name][1] is None:
            self.known[name] = (self.known[name][0], self.now, self.known[name][2])

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.inventory.expire(self.now)
        self.known = {
            name: one for name, one in self.known.items() if one[1] is None or one[1] >= self.now - GRACE
        }

    @invariant()
    def answers_are_those_of_the_brute_force(self) -> None:
        snapshot = self.inventory.snapshot()
        found = _answers(snapshot)
        assert found == [
            [
                (self._best(lambda node, at=at, family=family: [  # type: ignore[misc]
                    BITS[family] for one in (node.ipv4 if family == 4 else node.ipv6) if one == at
                ]), self._best(lambda node, at=at, family=family: [  # type: ignore[misc]
                    network.prefix_length for network in node.pod_networks if network.holds(family, at)
                ]))
                for at in PROBES[family]
            ]
            for family in FAMILIES
        ]  # fmt: skip
        if self.earlier is not None:
            assert _answers(self.earlier[0]) == self.earlier[1], "a snapshot changed"
        self.earlier = (snapshot, found)

    def _best(self, lengths: Any) -> tuple[str, str]:
        """Name and zone of whom the longest prefix belongs to: the living's, then the newest's."""
        ranked = [
            (length, gone is None, node.created, change, node.name, node.zone)
            for node, gone, change in self.known.values()
            for length in lengths(node)
        ]
        return max(ranked)[-2:] if ranked else ("", "")


def _answers(snapshot: ClusterSnapshot) -> list[list[tuple[tuple[str, str], tuple[str, str]]]]:
    def named(ids: Any) -> list[tuple[str, str]]:
        return [(snapshot.table.describe(id).node, snapshot.table.describe(id).zone) for id in ids.tolist()]

    found = []
    for family in FAMILIES:
        probes = as_addresses(family, PROBES[family])
        found.append(
            list(
                zip(
                    named(snapshot.nodes(family, probes)),
                    named(snapshot.of_pod_cidrs(family, probes)),
                    strict=True,
                )
            )
        )
    return found


TestNodeLives = NodeLives.TestCase


def test_a_change_of_one_node_costs_little_beside_the_first_reading_of_all() -> None:
    inventory = Inventory(InventoryConfig())

    def node(number: int, zone: str) -> Node:
        networks = (Network(4, TOP[4] + (number << 8), 24), Network(6, TOP[6] + (number << 64), 64))
        return Node(f"node-{number}", zone, number, (number + 1,), (number + 1,), networks)

    def seconds(numbers: range, zone: str) -> float:
        began = time.process_time()
        for number in numbers:
            inventory.put_node(node(number, zone))
        probe = as_addresses(4, [TOP[4]])
        assert inventory.snapshot().of_pod_cidrs(4, probe)[0]
        return time.process_time() - began

    whole = seconds(range(5000), "a")
    one = min(seconds(range(number, number + 1), "b") for number in range(20))
    assert one < whole / 50, "27 ms in 100 where all is made anew"
