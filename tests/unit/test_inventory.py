"""Who owned an address when: random lives of pods against a brute force, and the rules one by one."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from kubenetmon.server import inventory as inventory_module
from kubenetmon.server.inventory import ClusterSnapshot, Inventory, InventoryConfig, Pod, Service
from kubenetmon.server.nodes import Network, Node
from kubenetmon.server.ownership import FOREVER

GRACE = 30
HISTORY = 100
CONFIG = InventoryConfig(pod_grace=GRACE, history=HISTORY)
ADDRESSES = [1, 2, 3, 2**32 - 1]


def pod(
    name: str,
    *ipv4: int,
    ipv6: tuple[int, ...] = (),
    node: str = "node-a",
    created: int = 0,
    app: str = "",
    owns: bool = True,
) -> Pod:
    return Pod(name, "default", name, node, app, "", "", created, 0, owns, ipv4, ipv6)


def node(name: str, *ipv4: int, zone: str = "", created: int = 0, ipv6: tuple[int, ...] = ()) -> Node:
    return Node(name, zone, created, ipv4, ipv6, ())


def endpoint(known: ClusterSnapshot, address: int, at: int, family: Literal[4, 6] = 4) -> int:
    if family == 4:
        return int(known.pods(4, np.array([address], np.uint32), at)[0])
    return int(known.pods(6, np.array([[address >> 64, address & (2**64 - 1)]], np.uint64), at)[0])


def owner(known: ClusterSnapshot, address: int, at: int, family: Literal[4, 6] = 4) -> str:
    return known.table.pod[endpoint(known, address, at, family)]


def node_at(known: ClusterSnapshot, address: int) -> str:
    return str(known.table.node[known.nodes(4, np.array([address], np.uint32))[0]])


@dataclass
class Hold:
    """One claim of the brute force."""

    pod: str
    start: int
    created: int
    number: int
    end: int = FOREVER


@dataclass
class BruteForce:
    """The rules of `kubenetmon.server.ownership`, asked second by second."""

    holds: dict[int, list[Hold]] = field(default_factory=dict)
    made: int = 0

    def take(self, address: int, name: str, start: int, created: int) -> None:
        self.made += 1
        self.holds.setdefault(address, []).append(Hold(name, start, created, self.made))

    def release(self, address: int, name: str, at: int) -> None:
        for hold in self.holds[address]:
            if hold.pod == name and hold.end == FOREVER:
                hold.end = max(at, hold.start)

    def forget(self, before: int) -> None:
        for address, holds in self.holds.items():
            self.holds[address] = [hold for hold in holds if hold.end == FOREVER or hold.end >= before]

    def owner(self, address: int, at: int) -> str:
        holds = self.holds.get(address, [])
        now = [hold for hold in holds if hold.start <= at < hold.end]
        if now:
            return max(now, key=lambda hold: (hold.created, hold.number)).pod
        lately = [hold for hold in holds if hold.end <= at < hold.end + GRACE]
        if lately:
            return max(lately, key=lambda hold: (hold.end, hold.number)).pod
        later = [hold for hold in holds if hold.start > at]
        if later:
            return min(later, key=lambda hold: (hold.start, hold.number)).pod
        return ""


class PodLives(RuleBasedStateMachine):
    """Pods are created, take, change and lose addresses, complete and go; lists break off and end."""

    pods = Bundle("pods")

    @initialize()
    def begin(self) -> None:
        self.now = 1000
        self.inventory = Inventory(CONFIG)
        self.truth = BruteForce()
        self.alive: dict[str, Pod] = {}
        self.unseen: set[str] | None = None
        self.numbers = 0

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.inventory.expire(self.now)
        self.truth.forget(self.now - HISTORY)

    @rule(
        target=pods,
        addresses=st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2),
        age=st.integers(0, 50),
        owns=st.sampled_from([True, True, True, False]),
    )
    def create(self, addresses: list[int], age: int, owns: bool) -> str:
        self.numbers += 1
        name = f"pod-{self.numbers}"
        self._put(pod(name, *addresses, created=self.now - age, owns=owns))
        return name

    @rule(
        name=pods,
        addresses=st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2),
        owns=st.booleans(),
        app=st.sampled_from(["a", "b"]),
    )
    def change(self, name: str, addresses: list[int], owns: bool, app: str) -> None:
        if name in self.alive:
            old = self.alive[name]
            self._put(pod(name, *addresses, created=old.created, owns=owns, app=app))

    @rule(name=consumes(pods))
    def delete(self, name: str) -> None:
        self.inventory.remove_pod(name, self.now)
        self._gone(name)

    @rule(name=pods)
    def delete_without_being_told(self, name: str) -> None:
        """The watch was down; only the next list shows it."""
        if self.unseen is None:
            self.unseen = set()
        self.unseen.add(name)

    @rule(seed=st.integers(0, 99), breaks_off=st.booleans())
    def relist(self, seed: int, breaks_off: bool) -> None:
        gone = (self.unseen or set()) & self.alive.keys()
        listed = [known for name, known in self.alive.items() if name not in gone]
        random.Random(seed).shuffle(listed)
        self.inventory.begin_relist("pods")
        for known in listed[: len(listed) // 2] if breaks_off else listed:
            self.inventory.put_pod(known, self.now)
        if not breaks_off:
            assert self.inventory.end_relist("pods", self.now) == len(gone)
            for name in gone:
                self._gone(name)
            self.unseen = None

    @invariant()
    def answers_like_the_brute_force(self) -> None:
        if not hasattr(self, "inventory"):
            return
        known = self.inventory.snapshot()
        assert known is self.inventory.snapshot()
        addresses = np.array([*ADDRESSES, 99], np.uint32)
        for at in range(self.now - 70, self.now + GRACE + 2, 3):
            found = [known.table.pod[number] for number in known.pods(4, addresses, at)]
            assert found == [self.truth.owner(int(address), at) for address in addresses], at

    @invariant()
    def describes_the_living(self) -> None:
        if not hasattr(self, "inventory"):
            return
        known = self.inventory.snapshot()
        for address in ADDRESSES:
            number = endpoint(known, address, self.now)
            current = self.alive.get(known.table.pod[number])
            if current is not None and current.owns_addresses and address in current.ipv4:
                assert known.table.app[number] == current.app

    def _put(self, new: Pod) -> None:
        old = self.alive.get(new.name)
        held = set(old.ipv4) if old is not None and old.owns_addresses else set()
        wanted = set(new.ipv4) if new.owns_addresses else set()
        for address in held - wanted:
            self.truth.release(address, new.name, self.now)
        start = new.created if old is None else self.now
        for address in new.ipv4:
            if address in wanted - held:
                self.truth.take(address, new.name, start, new.created)
        self.alive[new.name] = new
        self.inventory.put_pod(new, self.now)

    def _gone(self, name: str) -> None:
        old = self.alive.pop(name, None)
        if old is not None and old.owns_addresses:
            for address in old.ipv4:
                self.truth.release(address, name, self.now)


PodLives.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestPodLives = PodLives.TestCase


def test_address_handed_over_within_seconds_is_right_on_both_sides() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_pod(pod("old", 7, created=100), 100)
    inventory.put_pod(pod("new", created=150), 150)
    inventory.remove_pod("old", 160)
    inventory.put_pod(pod("new", 7, created=150), 163)
    known = inventory.snapshot()
    assert [owner(known, 7, at) for at in (90, 159, 162, 163, 10_000)] == ["old", "old", "old", "new", "new"]


def test_grace_ends_and_is_cut_short_by_the_next_owner() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_pod(pod("old", 7, created=100), 100)
    inventory.remove_pod("old", 200)
    known = inventory.snapshot()
    assert [owner(known, 7, at) for at in (199, 229, 230)] == ["old", "old", ""]


def test_snapshot_stays_as_it_was() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_node(node("node-a", 50, zone="z1"))
    inventory.put_pod(pod("one", 7, app="shop", created=5), 10)
    before = inventory.snapshot()
    inventory.remove_pod("one", 20)
    inventory.put_node(node("node-a", 51, zone="z2"))
    inventory.put_pod(pod("two", 7, created=21), 21)
    after = inventory.snapshot()
    assert (owner(before, 7, 25), owner(after, 7, 25)) == ("one", "two")
    number = endpoint(before, 7, 25)
    assert (before.table.app[number], before.table.zone[number]) == ("shop", "z1")
    assert (node_at(before, 50), node_at(before, 51)) == ("node-a", "")
    assert (node_at(after, 50), node_at(after, 51)) == ("", "node-a")


def test_status_that_changes_nothing_costs_no_new_snapshot() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_node(node("node-a", 50))
    inventory.put_pod(pod("one", 7), 10)
    known = inventory.snapshot()
    inventory.put_node(node("node-a", 50))
    inventory.put_pod(pod("one", 7), 11)
    inventory.put_service(Service("shop"))
    inventory.expire(12)
    assert inventory.snapshot() is known


def test_pod_has_several_addresses_of_both_families() -> None:
    inventory = Inventory(CONFIG)
    wide = 0xFD00 << 112 | 5
    inventory.put_pod(pod("dual", 7, 8, ipv6=(wide, 5)), 10)
    inventory.put_pod(pod("other", 9, ipv6=(wide << 1 & (2**128 - 1),)), 10)
    known = inventory.snapshot()
    assert owner(known, 7, 10) == owner(known, 8, 10) == "dual"
    assert owner(known, wide, 10, 6) == owner(known, 5, 10, 6) == "dual"
    assert owner(known, wide << 1 & (2**128 - 1), 10, 6) == "other"
    assert owner(known, wide + 1, 10, 6) == ""


def test_empty_inventory_knows_nothing_and_no_one_owns_the_address_zero() -> None:
    known = Inventory(CONFIG).snapshot()
    assert owner(known, 0, 0) == owner(known, 0, 0, 6) == owner(known, 1, 5) == ""
    assert node_at(known, 1) == ""
    assert known.node_id("node-a") == 0
    assert not known.in_pod_cidrs(4, np.array([1], np.uint32), "node-a").any()
    assert len(known.pods(4, np.empty(0, np.uint32), 1)) == 0
    assert len(known.pods(6, np.empty((0, 2), np.uint64), 1)) == 0


def test_node_is_an_endpoint_of_its_own() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_node(node("node-a", 50, zone="z1", ipv6=(2**100,)))
    inventory.put_pod(pod("one", 7), 10)
    known = inventory.snapshot()
    number = int(known.nodes(4, np.array([50], np.uint32))[0])
    table = known.table
    assert (table.pod[number], table.app[number], table.node[number], table.zone[number]) == (
        "",
        "host",
        "node-a",
        "z1",
    )
    assert known.nodes(6, np.array([[2**36, 0]], np.uint64))[0] == number
    assert table.node_id[number] == known.node_id("node-a") == table.node_id[endpoint(known, 7, 10)] > 0


def test_deleted_node_stays_for_the_grace_time_and_yields_to_the_living() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_node(node("old", 50, created=100))
    inventory.remove_node("old", 200)
    assert node_at(inventory.snapshot(), 50) == "old"
    assert inventory.counts()["nodes"] == 0
    inventory.put_node(node("new", 50, created=50))
    assert node_at(inventory.snapshot(), 50) == "new"
    inventory.expire(200 + GRACE + 1)
    inventory.remove_node("new", 300)
    inventory.expire(300 + GRACE + 1)
    assert node_at(inventory.snapshot(), 50) == ""


def test_pods_take_zone_and_cell_of_a_node_that_comes_later_or_changes() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_pod(pod("one", 7), 10)
    inventory.put_pod(pod("celled", 8)._replace(cell="own"), 10)
    first = inventory.snapshot()
    assert first.table.zone[endpoint(first, 7, 10)] == first.node_zone("node-a") == ""
    for place in ("1", "2"):
        inventory.put_node(node("node-a", 50, zone=place)._replace(cell=f"cell-{place}"))
        known = inventory.snapshot()
        number = endpoint(known, 7, 10)
        assert known.table.zone[number] == known.node_zone("node-a") == place
        assert known.table.cell[number] == f"cell-{place}"
        assert known.table.cell[endpoint(known, 8, 10)] == "own"
    assert first.node_zone("node-a") == ""


def test_address_in_pod_cidrs() -> None:
    inventory = Inventory(CONFIG)
    ula = 0xFD00 << 112
    networks = (Network(4, 10 << 24, 24), Network(6, ula, 64), Network(4, 0, 0), Network(4, 1, 32))
    inventory.put_node(Node("all", "", 0, (), (), networks))
    inventory.put_node(Node("some", "", 0, (), (), networks[:2]))
    known = inventory.snapshot()
    addresses = np.array([10 << 24, (10 << 24) + 255, (10 << 24) + 256], np.uint32)
    assert known.in_pod_cidrs(4, addresses, "some").tolist() == [True, True, False]
    assert known.in_pod_cidrs(4, addresses, "all").all()
    assert not known.in_pod_cidrs(4, addresses, "none").any()
    wide = np.array([[ula >> 64, 2**64 - 1], [(ula >> 64) + 1, 0]], np.uint64)
    assert known.in_pod_cidrs(6, wide, "some").tolist() == [True, False]


def test_what_is_no_longer_used_is_let_go() -> None:
    inventory = Inventory(InventoryConfig(pod_grace=1, history=1))
    inventory.put_node(node("node-a", 50, zone="z"))
    inventory.put_pod(pod("stays", 7), 0)
    held: list[ClusterSnapshot] = []
    for number in range(3 * inventory_module.COMPACT_ABOVE):
        inventory.put_pod(pod(f"pod-{number}", 9, node=f"node-{number}", created=number), number)
        inventory.remove_pod(f"pod-{number}", number)
        inventory.expire(number)
        if number % 1000 == 0:
            held.append(inventory.snapshot())
    known = inventory.snapshot()
    assert len(known.table.pod) < 1.5 * inventory_module.COMPACT_ABOVE
    assert len(known.node_numbers) < 1.5 * inventory_module.COMPACT_ABOVE
    assert owner(known, 7, 5) == "stays"
    assert node_at(known, 50) == "node-a"
    assert known.table.node_id[endpoint(known, 7, 5)] == known.node_id("node-a")
    assert [owner(earlier, 7, 5) for earlier in held] == ["stays"] * len(held)
    assert owner(held[1], 9, 1000) == "pod-1000"


def test_address_that_changes_hands_without_end_keeps_a_bounded_history() -> None:
    inventory = Inventory(InventoryConfig(pod_grace=300, history=3600))
    for number in range(1000):
        inventory.put_pod(pod(f"pod-{number}", 9, created=number), number)
        inventory.remove_pod(f"pod-{number}", number + 1)
    inventory.put_pod(pod("last", 9, created=1000), 1000)
    known = inventory.snapshot()
    assert owner(known, 9, 990) == "pod-990"
    assert owner(known, 9, 1000) == "last"
    assert len(known.ownership[4].keys) < 100
