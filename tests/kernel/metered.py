"""What the tests of metering share: a `Conntrack` in a namespace, and the sums of what it sealed."""

from __future__ import annotations

import contextlib
import ipaddress
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from kubenetmon.agent.metered import SealedRecords, Totals
from kubenetmon.agent.state import StateDirectory
from kubenetmon.demo.network import Count, Namespace
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_METRICS, AGENT_STATE_SET_ASIDE
from kubenetmon.proto import FlowArrays

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Record:
    """One record as its batch carries it."""

    protocol: int
    original_source: tuple[Address, int]
    original_destination: tuple[Address, int]
    reply_source: tuple[Address, int]
    reply_destination: tuple[Address, int]
    original: Count
    reply: Count


@contextlib.contextmanager
def metering(namespace: Namespace, config: ConntrackConfig | None = None) -> Iterator[Conntrack]:
    """An open `Conntrack` of that namespace."""
    conntrack = Conntrack(config or ConntrackConfig())
    namespace.call(conntrack.open)
    try:
        yield conntrack
        check_identity(conntrack.totals())
    finally:
        conntrack.close()


class Life:
    """One agent's ledger in the directory, from lock to unlock."""

    def __init__(self, node: Namespace, path: Path, node_name: str = "node-a") -> None:
        self.metrics = Metrics(AGENT_METRICS)
        self.state = StateDirectory(path, metrics=self.metrics)
        assert self.state.lock()
        self.conntrack = Conntrack(ConntrackConfig(), state=self.state, node_name=node_name)
        node.call(self.conntrack.open)

    def end(self) -> None:
        check_identity(self.conntrack.totals())
        self.conntrack.close()
        self.state.close()

    def aside(self, reason: str) -> float:
        return self.metrics.value(AGENT_STATE_SET_ASIDE, reason=reason)


def check_identity(totals: Totals) -> None:
    """Nothing leaks: the conservation identity, in bytes and in packets."""
    assert totals.observed_bytes == (
        totals.reported_bytes
        + totals.ignored_protocol_bytes
        + totals.ignored_loopback_bytes
        + totals.ignored_baseline_bytes
        + totals.pending_bytes
    )
    assert totals.observed_packets == (
        totals.reported_packets
        + totals.ignored_protocol_packets
        + totals.ignored_loopback_packets
        + totals.ignored_baseline_packets
        + totals.pending_packets
    )


def records_of(batches: list[SealedRecords]) -> list[Record]:
    """The records of sealed batches, decoded; their totals are checked on the way."""
    records: list[Record] = []
    for batch in batches:
        decoded = [*decode(batch.ipv4, 4), *decode(batch.ipv6, 16)]
        assert len(decoded) == batch.records
        assert sum(record.original.bytes + record.reply.bytes for record in decoded) == batch.bytes
        assert sum(record.original.packets + record.reply.packets for record in decoded) == batch.packets
        records += decoded
    return records


def sums_of(records: list[Record]) -> dict[str, Count]:
    """By protocol and direction, as the router's counters are named."""
    sums = {
        f"{protocol}_{side}": Count(0, 0) for protocol in ("tcp", "udp") for side in ("original", "reply")
    }
    for record in records:
        protocol = {6: "tcp", 17: "udp"}[record.protocol]
        sums[f"{protocol}_original"] += record.original
        sums[f"{protocol}_reply"] += record.reply
    return sums


def decode(arrays: FlowArrays, width: int) -> Iterator[Record]:
    """The records of one family's columns; `width`: bytes of an address."""

    def addresses(column: bytes) -> list[Address]:
        cut = [column[at : at + width] for at in range(0, len(column), width)]
        if width == 16:
            return [ipaddress.IPv6Address(item) for item in cut]
        return [ipaddress.IPv4Address(int.from_bytes(item, "little")) for item in cut]

    def numbers(column: bytes, code: str) -> tuple[int, ...]:
        return struct.unpack(f"<{arrays.count}{code}", column)

    def endpoints(name: str) -> list[tuple[Address, int]]:
        ports = numbers(getattr(arrays, f"{name}_port"), "H")
        return list(zip(addresses(getattr(arrays, f"{name}_address")), ports, strict=True))

    def counts(name: str) -> list[Count]:
        packets = numbers(getattr(arrays, f"{name}_packets"), "Q")
        return [
            Count(*pair) for pair in zip(packets, numbers(getattr(arrays, f"{name}_bytes"), "Q"), strict=True)
        ]

    columns = (
        numbers(arrays.protocol, "B"),
        endpoints("original_source"),
        endpoints("original_destination"),
        endpoints("reply_source"),
        endpoints("reply_destination"),
        counts("original"),
        counts("reply"),
    )
    for protocol, source, destination, reply_source, reply_destination, original, reply in zip(
        *columns, strict=True
    ):
        yield Record(protocol, source, destination, reply_source, reply_destination, original, reply)
