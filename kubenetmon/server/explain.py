"""What the server knows of one address, and what attribution would say of it as a remote.

Contract: read-only, on the event loop; class and rule come from the same code that attributes batches. `page`
answers `PATH?address=…[&port=…][&at=…][&check=1]` with JSON, 400 and one line for what cannot be asked. The
Kubernetes API is asked with `check=1` only, see `kubenetmon.server.checking`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from kubenetmon.clock import Clock
from kubenetmon.http import JSON, Response
from kubenetmon.model import TCP, UDP
from kubenetmon.server.attributed import (
    BY_NETWORK,
    BY_NOTHING,
    BY_OWN,
    BY_PEER,
    BY_POD_NETWORK,
    BY_PRIVATE,
    BY_RANGE,
    RULES,
    Peer,
)
from kubenetmon.server.attribution import Attributor
from kubenetmon.server.checking import Checker
from kubenetmon.server.inventory import ClusterSnapshot, Inventory, Tenure
from kubenetmon.server.kubernetes_objects import parse_address
from kubenetmon.server.ranges.table import RangeTable
from kubenetmon.server.snapshot import Family
from kubenetmon.server.working import one_address

PATH = "/debug/explain"
_MOST_SECONDS = 2**32 - 2

_BECAUSE = {
    BY_OWN: "a pod or node of this cluster has the address, whatever the address is",
    BY_POD_NETWORK: "no pod is known to have had it, but it lies in a pod network (spec.podCIDRs) of a node",
    BY_PEER: "a pod or node of a cluster in `peer_clusters` has the address",
    BY_NETWORK: "it lies in one of `networks`; the longest prefix counts",
    BY_PRIVATE: "it is private: RFC 1918, link-local, unique local and the like, or in `private_cidrs`",
    BY_RANGE: "the longest prefix that a provider publishes for it",
    BY_NOTHING: "it is in no provider's published ranges",
}


class KnownCluster(Protocol):
    """Whoever holds an inventory: the cluster's own, or a peer's."""

    @property
    def inventory(self) -> Inventory:
        """What is known of the cluster."""
        ...


class KnownPeer(KnownCluster, Protocol):
    """A cluster in `peer_clusters`."""

    def peer(self) -> Peer:
        """That cluster as known now."""
        ...


class RangesHolder(Protocol):
    """Whoever keeps the cloud ranges current."""

    @property
    def table(self) -> RangeTable:
        """The ranges in use now."""
        ...


class Explainer:
    """Answers questions about addresses."""

    def __init__(
        self,
        cluster_name: str,
        *,
        cluster: KnownCluster,
        peers: Sequence[KnownPeer],
        ranges: RangesHolder,
        attributor: Attributor,
        checker: Checker,
        clock: Clock,
    ) -> None:
        self._cluster_name = cluster_name
        self._cluster = cluster
        self._peers = peers
        self._ranges = ranges
        self._attributor = attributor
        self._checker = checker
        self._clock = clock

    async def page(self, query: Mapping[str, str]) -> Response:
        """The page at `PATH`."""
        try:
            family, address = parse_address(query.get("address", ""))
            port = _number(query, "port", 0, 0xFFFF)
            at = _number(query, "at", int(self._clock.time()), _MOST_SECONDS)
            check = _number(query, "check", 0, 1)
        except ValueError as error:
            return Response(
                f"{error}; ask ?address=IP&port=PORT&at=UNIX_SECONDS&check=1\n".encode(), status=400
            )
        found = self.explain(family, address, port, at)
        if check:
            found["check"] = await self._checker.check(family, address, port)
        return Response(json.dumps({"address": query["address"], **found}, indent=1).encode() + b"\n", JSON)

    def explain(self, family: Family, address: int, port: int, at: int) -> dict[str, Any]:
        """What is known of that address (a number) at Unix second `at`; port 0: of no port."""
        snapshot = self._cluster.inventory.snapshot()
        table = self._ranges.table
        holders = table.holders(family, address)
        return {
            "port": port or None,
            "at": _time(at),
            "cluster": self._cluster_name,
            "history": [_shown(one) for one in self._cluster.inventory.tenures(family, address)],
            "host_ports": self._host_ports(family, address, port),
            "pod_network_of": _pod_networks(snapshot, family, address),
            "peers": {
                peer.peer().name: [_shown(one) for one in tenures]
                for peer in self._peers
                if (tenures := peer.inventory.tenures(family, address))
            },
            "prefixes": [{"prefix": str(network), **label._asdict()} for network, label in holders],
            "as_remote": self._as_remote(family, address, port, at, snapshot, table),
        }

    def _host_ports(self, family: Family, address: int, port: int) -> dict[str, list[dict[str, Any]]]:
        if not port:
            return {}
        found = {}
        for name, protocol in (("tcp", TCP), ("udp", UDP)):
            tenures = self._cluster.inventory.host_tenures(family, address, protocol, port)
            if tenures:
                found[name] = [_shown(one) for one in tenures]
        return found

    def _as_remote(
        self, family: Family, address: int, port: int, at: int, snapshot: ClusterSnapshot, table: RangeTable
    ) -> dict[str, Any]:
        peers = [known.peer() for known in self._peers]
        answer = self._attributor.as_remote(family, address, port, at, snapshot, table, peers)
        if answer is None:
            node = snapshot.nodes(family, one_address(family, address))[0]
            return {
                "ignored": "node",
                "node": snapshot.table.describe(int(node)).node,
                "because": "it is a node's InternalIP and meter_host_network is off",
            }
        return {
            **dataclasses.asdict(answer),
            "rule": RULES[answer.rule],
            "because": _BECAUSE[answer.rule],
        }


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    text = query.get(name, "")
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= most):
        raise ValueError(f"{name} {text!r:.40} is no number from 0 to {most}")
    return int(text)


def _pod_networks(snapshot: ClusterSnapshot, family: Family, address: int) -> list[str]:
    return [
        name
        for name, node in snapshot.node_lookup.nodes.items()
        if any(network.holds(family, address) for network in node.pod_networks)
    ]


def _shown(tenure: Tenure) -> dict[str, Any]:
    return {
        "from": _time(tenure.start) if tenure.start else None,
        "until": None if tenure.end is None else _time(tenure.end),
        **{name: value for name, value in tenure.owner._asdict().items() if value},
    }


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
