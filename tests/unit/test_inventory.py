"""Who owned an address when: the rules one by one."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from kubenetmon.server import inventory as inventory_module
from kubenetmon.server.inventory import ClusterSnapshot, Inventory, InventoryConfig
from kubenetmon.server.kubernetes_objects import ObjectDecoder
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod, compact_uid
from kubenetmon.server.services import Service
from tests.beds.large_cluster import STEPS, LargeCluster
from tests.unit.inventories import CONFIG, GRACE, HISTORY, endpoint, node, node_at, owner, pod


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
        return known.table.describe(known.host_pods(4, *wanted, at)[0]).pod

    assert owner(inventory.snapshot(), 50, 30) == "", "the address itself is the node's"
    assert [on(6, 9100, 30), on(6, 80, 30), on(17, 9100, 30), on(6, 9101, 30)] == ["one", "", "", ""]
    assert on(6, 80, 15) == "one", "alone until the other came"
    inventory.remove_pod("one", 40)
    assert [on(6, 80, 45), on(6, 9100, 45), on(6, 9100, 40 + GRACE)] == ["two", "one", ""]
    known = inventory.snapshot()
    number = known.ownership[7].endpoints[-1]
    assert known.table.describe(number).app == "host", "an app of its own it has not"


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
    assert (before.table.describe(number).app, before.table.describe(number).zone) == ("shop", "z1")
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
    host = table.describe(number)
    assert (host.pod, host.app, host.node, host.zone) == (
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
    assert first.table.describe(endpoint(first, 7, 10)).zone == first.node_zone("node-a") == ""
    for place in ("1", "2"):
        inventory.put_node(node("node-a", 50, zone=place)._replace(cell=f"cell-{place}"))
        known = inventory.snapshot()
        number = endpoint(known, 7, 10)
        assert known.table.describe(number).zone == known.node_zone("node-a") == place
        assert known.table.describe(number).cell == f"cell-{place}"
        assert known.table.describe(endpoint(known, 8, 10)).cell == "own"
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
    assert len(known.table.pods) < 1.5 * inventory_module.COMPACT_ABOVE
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
    owners = [known.table.describe(endpoint(known, 1 + number % 50, 1000)).pod for number in range(950, 1000)]
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
