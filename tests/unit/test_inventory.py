"""Who owned an address when: random lives of pods against a brute force, and the rules one by one."""

from __future__ import annotations

import gc
import random
import tracemalloc
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import replace
from numpy.typing import NDArray

from kubenetmon.server import inventory as inventory_module
from kubenetmon.server.inventory import ClusterSnapshot, Inventory, InventoryConfig
from kubenetmon.server.kubernetes_objects import ObjectDecoder
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.ownership import FOREVER
from kubenetmon.server.pods import Pod, compact_uid
from kubenetmon.server.services import Service
from tests.beds.large_cluster import STEPS, LargeCluster

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


def halves(addresses: list[int]) -> NDArray[np.uint64]:
    return np.array([(address >> 64, address & (2**64 - 1)) for address in addresses], np.uint64)


def endpoint(known: ClusterSnapshot, address: int, at: int, family: Literal[4, 6] = 4) -> int:
    if family == 4:
        return int(known.pods(4, np.array([address], np.uint32), at)[0])
    return int(known.pods(6, halves([address]), at)[0])


def owner(known: ClusterSnapshot, address: int, at: int, family: Literal[4, 6] = 4) -> str:
    return known.table.pod[endpoint(known, address, at, family)]


def node_at(known: ClusterSnapshot, address: int) -> str:
    return str(known.table.node[known.nodes(4, np.array([address], np.uint32))[0]])


Key = tuple[int, ...]
"""(family, address), or (family, address, protocol, port)."""


def keys_of(known: Pod) -> set[Key]:
    """What a pod owns, by the contract of `Pod`."""
    found: set[Key] = set()
    for family, addresses in ((4, known.ipv4), (6, known.ipv6)):
        for address in addresses:
            if known.owns_addresses:
                found.add((family, address))
            found |= {(family, address, port >> 16, port & 0xFFFF) for port in known.host_ports}
    return found


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

    holds: dict[Key, list[Hold]] = field(default_factory=dict)
    made: int = 0

    def take(self, key: Key, known: Pod, now: int, *, seen_before: bool) -> None:
        self.made += 1
        start = known.started or known.created
        if seen_before:
            for hold in self.holds.get(key, []):
                start = max(start, hold.end)  # after everyone before, not before now where one is still there
            start = min(start, now)
        self.holds.setdefault(key, []).append(Hold(known.uid, start, known.created, self.made))

    def release(self, key: Key, name: str, at: int) -> None:
        for hold in self.holds[key]:
            if hold.pod == name and hold.end == FOREVER:
                hold.end = max(at, hold.start)

    def forget(self, before: int) -> None:
        for key, holds in self.holds.items():
            self.holds[key] = [hold for hold in holds if hold.end == FOREVER or hold.end >= before]

    def owner(self, key: Key, at: int) -> str:
        holds = self.holds.get(key, [])
        now = [hold for hold in holds if hold.start <= at < hold.end]
        if len(key) == 4 and len({hold.pod for hold in now}) > 1:
            return ""
        if now:
            return max(now, key=lambda hold: (hold.created, hold.number)).pod
        lately = [hold for hold in holds if hold.end <= at < hold.end + GRACE]
        if lately:
            return max(lately, key=lambda hold: (hold.end, hold.number)).pod
        later = [hold for hold in holds if hold.start > at]
        if later:
            return min(later, key=lambda hold: (hold.start, hold.number)).pod
        return ""


NODES = ["node-a", "node-b", ""]
PORTS = [6 << 16 | 80, 6 << 16 | 9100, 17 << 16 | 53]
IPV6 = [1, 0xFD00 << 112 | 7, 2**128 - 1]


KEYS: list[list[Key]] = [
    [(4, address) for address in [*ADDRESSES, 99]],
    [(6, address) for address in [*IPV6, 99]],
    [(4, address, port >> 16, port & 0xFFFF) for address in ADDRESSES for port in PORTS],
    [(6, address, port >> 16, port & 0xFFFF) for address in IPV6 for port in PORTS],
]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """What of a pod may change, and what another may have as well."""
    kind = draw(st.sampled_from(["pod", "pod", "pod", "host", "over"]))
    return {
        "node": draw(st.sampled_from(NODES)),
        "app": draw(st.sampled_from(["a", "b"])),
        "ipv4": tuple(draw(st.lists(st.sampled_from(ADDRESSES), unique=True, max_size=2))),
        "ipv6": tuple(draw(st.lists(st.sampled_from(IPV6), unique=True, max_size=1))),
        "owns_addresses": kind == "pod",
        "host_ports": tuple(draw(st.sets(st.sampled_from(PORTS)))) if kind == "host" else (),
    }


class PodLives(RuleBasedStateMachine):
    """Pods are created, take over and lose addresses and ports, move, complete and go; nodes come, change and
    go; what happens is told late, in any order, or only by a list, and lists break off."""

    pods = Bundle("pods")

    @initialize()
    def begin(self) -> None:
        self.now = 1000
        self.inventory = Inventory(CONFIG)
        self.truth = BruteForce()
        self.alive: dict[str, Pod] = {}
        self.zones: dict[str, str] = {}
        self.untold: dict[str, Pod | None] = {}
        self.numbers = 0

    @rule(seconds=st.integers(1, 40))
    def wait(self, seconds: int) -> None:
        self.now += seconds
        self.inventory.expire(self.now)
        self.truth.forget(self.now - HISTORY)

    @rule(target=pods, shape=shapes(), age=st.integers(0, 50), started=st.integers(0, 20))
    def create(self, shape: dict[str, Any], age: int, started: int) -> str:
        self.numbers += 1
        name = f"pod-{self.numbers}"
        created = self.now - age
        start = min(self.now, created + started) if started else 0
        self._put(replace(pod(name, created=created), started=start, **shape))
        return name

    @rule(name=pods, shape=shapes())
    def change(self, name: str, shape: dict[str, Any]) -> None:
        if name in self.alive and name not in self.untold:
            self._put(replace(self.alive[name], **shape))

    @rule(name=consumes(pods), successor=shapes())
    def hand_over(self, name: str, successor: dict[str, Any]) -> None:
        """What it had goes to another, which is told of first."""
        old = self.alive.get(name)
        if old is None or name in self.untold:
            return
        self.numbers += 1
        given = {"ipv4": old.ipv4, "ipv6": old.ipv6, "owns_addresses": old.owns_addresses}
        given["host_ports"] = old.host_ports
        self._put(replace(pod(f"pod-{self.numbers}", created=self.now), **{**successor, **given}))
        self._remove(name)

    @rule(name=consumes(pods))
    def delete(self, name: str) -> None:
        if name not in self.untold:
            self._remove(name)

    @rule(name=pods, shape=shapes(), gone=st.booleans())
    def happen_untold(self, name: str, shape: dict[str, Any], gone: bool) -> None:
        """The watch was down; only the next list shows it."""
        if name in self.alive:
            self.untold[name] = None if gone else replace(self.alive[name], **shape)

    @rule(order=st.randoms(use_true_random=False), breaks_off=st.booleans())
    def relist(self, order: random.Random, breaks_off: bool) -> None:
        listed = {**self.alive, **self.untold}
        shown = [known for known in listed.values() if known is not None]
        order.shuffle(shown)
        self.inventory.begin_relist("pods")
        for known in shown[: len(shown) // 2] if breaks_off else shown:
            self.untold.pop(known.uid, None)
            self._put(known)
        if not breaks_off:
            gone = [name for name, known in listed.items() if known is None]
            assert self.inventory.end_relist("pods", self.now) == len(gone)
            for name in gone:
                self._gone(name)
            self.untold.clear()

    @rule(name=st.sampled_from(NODES[:2]), zone=st.sampled_from(["z1", "z2"]))
    def put_node(self, name: str, zone: str) -> None:
        self.zones[name] = zone
        self.inventory.put_node(node(name, zone=zone))

    @invariant()
    def answers_like_the_brute_force(self) -> None:
        if not hasattr(self, "inventory"):
            return
        known = self.inventory.snapshot()
        assert known is self.inventory.snapshot()
        for keys in KEYS:
            moments = self._edges(keys)
            asked = [(key, at) for key in keys for at in moments]
            for (key, at), number in zip(asked, self._ask(known, asked), strict=True):
                assert known.table.pod[number] == self.truth.owner(key, at), (key, at)

    def _edges(self, keys: list[Key]) -> list[int]:
        """Around every moment at which the owner of one of these may change, and now."""
        holds = [hold for key in keys for hold in self.truth.holds.get(key, [])]
        edges = {hold.start for hold in holds} | {hold.end for hold in holds if hold.end != FOREVER}
        edges |= {edge + GRACE for edge in edges} | {self.now}
        return sorted({moment for edge in edges for moment in (edge - 1, edge)})

    def _ask(self, known: ClusterSnapshot, asked: list[tuple[Key, int]]) -> list[int]:
        """The endpoint of each key at its moment, all in one call, and the first one by one."""
        family: Literal[4, 6] = 4 if asked[0][0][0] == 4 else 6
        plain = [key[1] for key, _ in asked]
        addresses = np.array(plain, np.uint32) if family == 4 else halves(plain)
        moments = np.array([at for _, at in asked], np.int64)
        if len(asked[0][0]) == 2:
            found = known.pods(family, addresses, moments)
            assert known.pods(family, addresses[:1], asked[0][1]) == found[:1]
        else:
            protocols = np.array([key[2] for key, _ in asked], np.uint8)
            ports = np.array([key[3] for key, _ in asked], np.uint16)
            found = known.host_pods(family, addresses, protocols, ports, moments)
            first = known.host_pods(family, addresses[:1], protocols[:1], ports[:1], asked[0][1])
            assert first == found[:1]
        return [int(number) for number in found]

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
                assert known.table.node[number] == current.node
                assert known.table.zone[number] == self.zones.get(current.node, "")
                assert known.table.node_id[number] == known.node_id(current.node)

    @invariant()
    def tells_the_same_history(self) -> None:
        if not hasattr(self, "inventory"):
            return
        for address in ADDRESSES:
            told = [(one.owner.pod, one.start, one.end) for one in self.inventory.tenures(4, address)]
            holds = self.truth.holds.get((4, address), [])
            assert told == [
                (hold.pod, hold.start, None if hold.end == FOREVER else hold.end) for hold in holds
            ]

    def _put(self, new: Pod) -> None:
        old = self.alive.get(new.uid)
        held = keys_of(old) if old is not None else set()
        for key in held - keys_of(new):
            self.truth.release(key, new.uid, self.now)
        for key in keys_of(new) - held:
            self.truth.take(key, new, self.now, seen_before=old is not None)
        self.alive[new.uid] = new
        self.inventory.put_pod(new, self.now)

    def _remove(self, name: str) -> None:
        self.inventory.remove_pod(name, self.now)
        self._gone(name)

    def _gone(self, name: str) -> None:
        old = self.alive.pop(name, None)
        for key in keys_of(old) if old is not None else ():
            self.truth.release(key, name, self.now)


PodLives.TestCase.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
TestPodLives = PodLives.TestCase


def test_address_handed_over_within_seconds_is_right_on_both_sides() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_pod(pod("old", 7, created=100), 100)
    inventory.put_pod(pod("new", created=150), 150)
    inventory.remove_pod("old", 160)
    inventory.put_pod(pod("new", 7, created=150), 163)
    known = inventory.snapshot()
    # What came after the old one's end was the new one's, though its address was heard of late.
    assert [owner(known, 7, at) for at in (90, 159, 160, 163, 10_000)] == ["old", "old", "new", "new", "new"]


def test_address_taken_before_the_end_of_the_one_before_is_heard_of_is_right_on_both_sides() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_pod(pod("old", 7, created=100), 100)
    inventory.put_pod(pod("new", created=150), 150)
    inventory.put_pod(pod("new", 7, created=150), 163)
    inventory.remove_pod("old", 165)
    known = inventory.snapshot()
    assert [owner(known, 7, at) for at in (159, 162, 163, 10_000)] == ["old", "old", "new", "new"]


def test_port_of_the_host_is_a_pods_where_one_alone_has_it() -> None:
    inventory = Inventory(CONFIG)
    inventory.put_node(node("node-a", 50))
    one = replace(pod("one", 50, owns=False), host_ports=(6 << 16 | 9100, 6 << 16 | 80))
    inventory.put_pod(one, 10)
    inventory.put_pod(replace(pod("two", 50, owns=False, created=20), host_ports=(6 << 16 | 80,)), 20)

    def on(protocol: int, port: int, at: int) -> str:
        known = inventory.snapshot()
        wanted = (np.array([50], np.uint32), np.array([protocol], np.uint8), np.array([port], np.uint16))
        return known.table.pod[known.host_pods(4, *wanted, at)[0]]

    assert owner(inventory.snapshot(), 50, 30) == "", "the address itself is the node's"
    assert [on(6, 9100, 30), on(6, 80, 30), on(17, 9100, 30), on(6, 9101, 30)] == ["one", "", "", ""]
    assert on(6, 80, 15) == "one", "alone until the other came"
    inventory.remove_pod("one", 40)
    assert [on(6, 80, 45), on(6, 9100, 45), on(6, 9100, 40 + GRACE)] == ["two", "one", ""]
    known = inventory.snapshot()
    number = known.ownership[7].endpoints[-1]
    assert known.table.app[number] == "host", "an app of its own it has not"


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
    inventory.put_pod(replace(pod("celled", 8), cell="own"), 10)
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


UID = "0f2c1e0b-7a5d-4c3b-8a19-08f7e6d5c4b3"


def test_only_uuids_as_kubernetes_writes_them_become_numbers() -> None:
    assert compact_uid(UID) == int(UID.replace("-", ""), 16)
    odd = (
        "",
        "u-1",
        UID.upper(),
        UID.replace("-", ""),
        UID.replace("0f2c", "0f 2"),
        UID.replace("0f2c", "0_2c"),
        UID.replace("-", ":"),
        UID.replace("c", "g"),
        f"{UID}0",
        UID.replace("0", "\u0660"),
    )
    assert [compact_uid(text) for text in odd] == list(odd)


@given(
    st.lists(st.one_of(st.uuids().map(str), st.text("0123456789abcdefABCDEF- _g", max_size=36)), max_size=9)
)
def test_different_uids_stay_different(texts: list[str]) -> None:
    assert len({compact_uid(text) for text in texts}) == len(set(texts))


def test_a_pod_is_found_by_its_uid_as_text() -> None:
    inventory = Inventory(CONFIG)
    for uid in (UID, "odd"):
        inventory.put_pod(replace(pod("shop", 7), uid=compact_uid(uid)), 0)
    assert [inventory.node_of_pod(uid) for uid in (UID, "odd", "none")] == ["node-a", "node-a", None]


def test_what_a_pod_takes_while_it_lives_and_once_it_has_ended() -> None:
    made, decoder = LargeCluster(1500, 75), ObjectDecoder(InventoryConfig())
    pages = [
        b'{"items":[%s]}' % b",".join(made.items("pods", first, first + 500, 0))
        for first in range(0, 1500, 500)
    ]
    sizes, ended = [], []
    for _ in range(3):  # what others allocate meanwhile, tables of interned strings among it, only adds
        inventory = Inventory(InventoryConfig())
        gc.collect()
        tracemalloc.start()
        try:
            for page in pages:
                for one in decoder.page("pods", page).objects:
                    assert isinstance(one, Pod)
                    inventory.put_pod(one, 10)
            inventory.snapshot()
            sizes.append(tracemalloc.get_traced_memory()[0] / 1500)
            for change in range(1500 * len(STEPS)):
                event = decoder.event("pods", made.change(change))
                assert isinstance(event.object, Pod)
                if event.type == "DELETED":
                    inventory.remove_pod(event.object.uid, 20 + change // 1000)
                else:
                    inventory.put_pod(event.object, 20 + change // 1000)
            inventory.snapshot()
            ended.append(tracemalloc.get_traced_memory()[0] / 1500 - sizes[-1])
        finally:
            tracemalloc.stop()
        assert inventory.counts()["pods"] == 1500
    assert min(sizes) < 700, "610 measured"
    assert min(ended) < 410, "360 measured"


def test_what_ended_is_kept_within_bounds_whatever_the_churn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "_MOST_ENDED_CLAIMS", 100)
    inventory = Inventory(CONFIG)
    for number in range(1000):
        inventory.put_pod(pod(f"pod-{number}", 1 + number % 50, created=number), number)
        if number >= 50:
            inventory.remove_pod(f"pod-{number - 50}", number)
        inventory.expire(number)
    known = inventory.snapshot()
    owners = [known.table.pod[endpoint(known, 1 + number % 50, 1000)] for number in range(950, 1000)]
    assert owners == [f"pod-{number}" for number in range(950, 1000)]
    assert sum(len(inventory.tenures(4, 1 + address)) for address in range(50)) <= 150


def test_how_far_back_history_reaches_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inventory_module, "_MOST_ENDED_CLAIMS", 40)
    inventory = Inventory(CONFIG)
    assert inventory.history_reach(1000) == 0, "nothing is known yet"
    inventory.begin_relist("pods")
    inventory.end_relist("pods", 1000)
    inventory.begin_relist("pods")
    inventory.end_relist("pods", 1050)
    assert [inventory.history_reach(now) for now in (1000, 1060, 2000)] == [0, 60, HISTORY]
    for now in range(2000, 2200):
        inventory.put_pod(pod(f"pod-{now}", 7, created=now), now)
        inventory.remove_pod(f"pod-{now}", now + 1)
        inventory.expire(now + 1)
    assert inventory.history_reach(2200) == 40, "one a second, and forty are kept"
    known = inventory.snapshot()
    assert [owner(known, 7, at) for at in (2199, 2161)] == ["pod-2199", "pod-2161"]
    assert 2150 not in {tenure.start for tenure in inventory.tenures(4, 7)}
    assert inventory.history_reach(2250) == 90, "it grows back once there is quiet"
