"""Pods and nodes for an inventory, and what it says of an address."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.inventory import ClusterSnapshot, InventoryConfig
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod

GRACE = 30
HISTORY = 100
CONFIG = InventoryConfig(pod_grace=GRACE, history=HISTORY)


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
    return known.table.describe(endpoint(known, address, at, family)).pod


def node_at(known: ClusterSnapshot, address: int) -> str:
    return str(known.table.describe(known.nodes(4, np.array([address], np.uint32))[0]).node)
