"""The original's rules in plain Python, for tests that show its answer beside ours.

Facts of behaviour (Go, commit cd63e1c), in our words: every pod of a list owns its addresses, whatever its
phase and network; an address of several pods is an error that drops the flow; IPv6 flows and those of a
node's InternalIP are ignored; a private remote is in our own region; its agent leaves out one loopback
address; its cloud ranges come from all providers or from none. `tests/unit/test_attribution_cases.py`
holds this against the original's own answers to 12,000 flows.
"""

from __future__ import annotations

import ipaddress
import json
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from kubenetmon.server.ranges import PROVIDERS, RangeTable
from kubenetmon.server.ranges.parse import parse
from tests.beds.attribution import Flow

_PRIVATE = [
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/32", "10.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "224.0.0.0/24", "232.0.0.0/8", "239.0.0.0/8",
    )
]  # fmt: skip
_NOT_PRIVATE = ipaddress.ip_network("232.0.0.0/24")


def metered_by_agent(protocol: int, addresses: Iterable[str]) -> bool:
    """Whether the agent reports a flow that moved: `addresses` are all four."""
    return protocol in (6, 17) and "127.0.0.1" not in addresses


class OriginalRanges:
    """The cloud ranges: read from all providers at start and then daily."""

    def __init__(self, urls: Mapping[str, str]) -> None:
        self._urls = urls
        self.table = RangeTable()

    def refresh(self) -> None:
        """All new, or all as before. Raises `OSError` or `ValueError`, which ends the start."""
        found = []
        for provider in PROVIDERS:
            body = _body(self._urls[provider])
            document = json.loads(body)
            if document.get("prefixes" if provider != "azure" else "values"):
                found.append(parse(provider, body, provider))
        self.table = RangeTable(found)


def _body(url: str) -> bytes:
    """Whatever is answered: nobody looks at the status."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        return error.read()


class Original:
    """Answers for one cluster: the objects of `kubectl get -o json`."""

    def __init__(
        self, objects: list[dict[str, Any]], cloud: str, region: str, ranges: RangeTable, *, ignore_udp: bool
    ) -> None:
        self._cloud, self._region, self._ranges, self._ignore_udp = cloud, region, ranges, ignore_udp
        self._pods: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._zones: dict[str, str] = {}
        self._node_addresses: set[str] = set()
        for item in objects:
            if item["kind"] == "Pod":
                for address in item["status"].get("podIPs", []):
                    self._pods[address["ip"]].append(item)
            elif item["kind"] == "Node":
                labels = item["metadata"].get("labels", {})
                self._zones[item["metadata"]["name"]] = labels.get("topology.kubernetes.io/zone", "")
                self._node_addresses |= {
                    one["address"] for one in item["status"]["addresses"] if one["type"] == "InternalIP"
                }

    def answer(self, flow: Flow, node: str) -> str | dict[str, Any]:
        """Why there is no row, or what is in it, as the cases write it."""
        source, destination = flow.original.source, flow.reply.source
        if self._ignore_udp and flow.protocol == 17:
            return "udp"
        if any(":" in address for tuple_ in (flow.original, flow.reply) for address in (tuple_.source,)):
            return "ipv6"
        if source in self._node_addresses or destination in self._node_addresses:
            return "node"
        if len(self._pods[source]) > 1 or len(self._pods[destination]) > 1:
            return "error"
        source_pod, destination_pod = self._pod(source), self._pod(destination)
        local_is_source = _local_is_source(source_pod, destination_pod, node)
        if local_is_source is None:
            return "direction"
        ends = [(source_pod, flow.original), (destination_pod, flow.reply)]
        (local, sent), (remote, received) = ends if local_is_source else reversed(ends)
        placed = self._place(received.source)
        if placed is None:
            return "error"
        connection_class, cloud, region, service = placed
        return {
            "bytesOut": sent.bytes, "packetsOut": sent.packets,
            "bytesIn": received.bytes, "packetsIn": received.packets,
            "proto": {6: "tcp", 17: "udp"}[flow.protocol],
            "localIPv4": sent.source, "localPort": sent.source_port,
            "remoteIPv4": received.source, "remotePort": received.source_port,
            **self._side("local", local), **self._side("remote", remote),
            "connectionClass": connection_class,
            "remoteCloud": cloud, "remoteRegion": region, "remoteCloudService": service,
        }  # fmt: skip

    def _pod(self, address: str) -> dict[str, Any] | None:
        pods = self._pods[address]
        return pods[0] if pods else None

    def _side(self, prefix: str, pod: dict[str, Any] | None) -> dict[str, str]:
        metadata = pod["metadata"] if pod else {}
        labels = metadata.get("labels", {})
        node = pod["spec"].get("nodeName", "") if pod else ""
        return {
            f"{prefix}Pod": metadata.get("name", ""),
            f"{prefix}Namespace": metadata.get("namespace", ""),
            f"{prefix}Node": node,
            f"{prefix}AvailabilityZone": self._zones.get(node, ""),
            f"{prefix}InstanceID": labels.get("control-plane-id", ""),
            f"{prefix}App": labels.get("app.kubernetes.io/name", "") or labels.get("k8s-app", ""),
        }

    def _place(self, remote: str) -> tuple[str, str, str, str] | None:
        """Class, cloud, region and service; None: an error, since our cloud's range names no region."""
        address = ipaddress.IPv4Address(remote)
        if any(address in network for network in _PRIVATE) and address not in _NOT_PRIVATE:
            return "INTRA_VPC", self._cloud, self._region, ""
        label = self._ranges.labels[int(self._ranges.lookup(4, np.array([int(address)], np.uint32))[0])]
        if label.cloud != self._cloud:
            return "PUBLIC_INTERNET", *label
        if not label.region:
            return None
        near = label.region in ("global", self._region)
        return "INTRA_REGION" if near else "INTER_REGION", *label


def _local_is_source(
    source: dict[str, Any] | None, destination: dict[str, Any] | None, node: str
) -> bool | None:
    """None: the direction cannot be told."""

    def on(pod: dict[str, Any] | None) -> str:
        return str(pod["spec"].get("nodeName", "")) if pod else ""

    if on(source) == node:
        return True
    if on(destination) == node:
        return False
    if source is None and on(destination):
        return True
    if destination is None and on(source):
        return False
    return None
