"""Who owned an address when: random lives of pods against a brute force."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from msgspec.structs import replace

from kubenetmon.server.inventory import ClusterSnapshot, Inventory
from kubenetmon.server.ownership import FOREVER
from kubenetmon.server.pods import Pod
from tests.unit.inventories import CONFIG, GRACE, HISTORY, endpoint, halves, node, pod

ADDRESSES = [1, 2, 3, 2**32 - 1]
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
                assert known.table.describe(number).pod == self.truth.owner(key, at), (key, at)

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
            current = self.alive.get(known.table.describe(number).pod)
            if current is not None and current.owns_addresses and address in current.ipv4:
                assert known.table.describe(number).app == current.app
                assert known.table.describe(number).node == current.node
                assert known.table.describe(number).zone == self.zones.get(current.node, "")
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
