"""An address that goes from pod to pod within one interval: whose bytes are whose."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from kubenetmon.server.attributed import NOTHING_IGNORED, Attributed
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.rows import RowsConfig, columns
from tests.beds.attribution import CASE_TIME, batch_of, plain_rows
from tests.beds.small_cluster import flow

CONFIG = AttributionConfig("aws", "us-west-2", "blue", ipv6=True)
HANDED_OVER = {4: "10.1.1.5", 6: "fd00:1:1::5"}
ELSEWHERE = {4: "10.1.2.5", 6: "fd00:1:2::5"}
GONE_AT, TAKEN_AT = 20, 23
"""Seconds into the interval: when the old pod was deleted, and when the address was seen on the new one."""


def pod(name: str, node: str, created: int, family: int, address: str | None) -> Pod:
    number = (int(ipaddress.ip_address(address)),) if address else ()
    found = Pod(name, "default", name, node, name, "", "", created, created, True, (), ())
    return structs.replace(found, **{f"ipv{family}": number})


def cluster(family: int) -> Inventory:
    inventory = Inventory(InventoryConfig())
    for node in ("node-a", "node-b"):
        inventory.put_node(Node(node, "zone", 1, (), (), ()))
    shared, other = HANDED_OVER[family], ELSEWHERE[family]
    inventory.put_pod(pod("old", "node-a", CASE_TIME - 600, family, shared), CASE_TIME - 600)
    inventory.put_pod(pod("server", "node-b", CASE_TIME - 600, family, other), CASE_TIME - 600)
    inventory.put_pod(pod("new", "node-a", CASE_TIME + 10, family, None), CASE_TIME + 10)
    inventory.remove_pod("old", CASE_TIME + GONE_AT)
    inventory.put_pod(pod("new", "node-a", CASE_TIME + 10, family, shared), CASE_TIME + TAKEN_AT)
    return inventory


def attributed(family: int, node: str, started: list[int | None]) -> tuple[Attributed, list[dict[str, Any]]]:
    """A flow from the address that was handed over to the server for each start, in seconds from the
    interval's; None: unknown."""
    flows = [flow(HANDED_OVER[family], ELSEWHERE[family]) for _ in started]
    batch = batch_of(flows, node)
    start = np.array([0 if one is None else CASE_TIME + one for one in started], np.uint32)
    records = replace(batch.ipv4 if family == 4 else batch.ipv6, start_time=start)
    batch = replace(batch, ipv4=records) if family == 4 else replace(batch, ipv6=records)
    found = Attributor(CONFIG).attribute(batch, cluster(family).snapshot(), RangeTable())
    count, made = columns(found, batch, RowsConfig("test", "aws", "us-west-2", "blue"))
    rows = list(plain_rows(count, made))
    return found, rows[: len(started)]


@pytest.mark.parametrize("family", [4, 6])
def test_each_flow_is_whose_address_it_was_when_it_began(family: int) -> None:
    started = [-500, -1, 0, GONE_AT - 1, GONE_AT, TAKEN_AT - 1, TAKEN_AT, 59]
    owners = ["old"] * 4 + ["new"] * 4
    for node, column in (("node-a", "localPod"), ("node-b", "remotePod")):
        found, rows = attributed(family, node, list(started))
        assert [row[column] for row in rows] == owners
        assert found.ambiguous == NOTHING_IGNORED


@pytest.mark.parametrize("family", [4, 6])
def test_where_no_one_knows_when_it_began_it_is_the_last_owners_and_counted(family: int) -> None:
    found, rows = attributed(family, "node-a", [None, 5, None])
    assert [row["localPod"] for row in rows] == ["new", "old", "new"]
    assert (found.ambiguous.records, found.ambiguous.bytes) == (2, 10600)


def test_a_clock_that_is_wrong_moves_no_flow_out_of_its_interval() -> None:
    _, rows = attributed(4, "node-a", [-CASE_TIME + 1, 10**8])
    assert [row["localPod"] for row in rows] == ["old", "new"]


def test_without_any_start_times_all_is_as_at_the_end_and_counted() -> None:
    batch = batch_of([flow(HANDED_OVER[4], ELSEWHERE[4]), flow(ELSEWHERE[4], "192.0.2.1")], "node-a")
    found = Attributor(CONFIG).attribute(batch, cluster(4).snapshot(), RangeTable())
    assert batch.ipv4.start_time is None
    assert found.ambiguous.records == 1
