"""The batch as the server works on it: arrays, one row a record.

Contract: a `FlowBatch` is immutable and consistent (all arrays of one length) from the moment it exists; who
makes one from the wire checks it (`kubenetmon.server.decode`). Only the server imports this module: the
agent hands byte columns through and does without numpy.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

TCP = 6
UDP = 17


@dataclass(frozen=True, slots=True)
class FlowRecords:
    """The records of one address family, n of them.

    Addresses are uint32 of shape (n,) for IPv4 (the number `ipaddress.IPv4Address` takes) and uint64 of
    shape (n, 2) for IPv6 (high and low half of the number `ipaddress.IPv6Address` takes). `start_time`: when
    the flow began, Unix seconds, 0 where that is not known; None: of none.
    """

    family: Literal[4, 6]
    protocol: NDArray[np.uint8]
    original_source_address: NDArray[np.uint32] | NDArray[np.uint64]
    original_destination_address: NDArray[np.uint32] | NDArray[np.uint64]
    reply_source_address: NDArray[np.uint32] | NDArray[np.uint64]
    reply_destination_address: NDArray[np.uint32] | NDArray[np.uint64]
    original_source_port: NDArray[np.uint16]
    original_destination_port: NDArray[np.uint16]
    reply_source_port: NDArray[np.uint16]
    reply_destination_port: NDArray[np.uint16]
    original_packets: NDArray[np.uint64]
    original_bytes: NDArray[np.uint64]
    reply_packets: NDArray[np.uint64]
    reply_bytes: NDArray[np.uint64]
    start_time: NDArray[np.uint32] | None = None

    def __len__(self) -> int:
        return len(self.protocol)

    def total_bytes(self) -> int:
        """Bytes of both directions over all records."""
        return int(self.original_bytes.sum()) + int(self.reply_bytes.sum())

    def total_packets(self) -> int:
        """Packets of both directions over all records."""
        return int(self.original_packets.sum()) + int(self.reply_packets.sum())


ARRAY_NAMES: tuple[str, ...] = tuple(
    field.name for field in fields(FlowRecords) if field.name not in ("family", "start_time")
)
"""The arrays that every batch has, in the order of the wire; `FlowArrays` has fields of the same names."""


def empty_records(family: Literal[4, 6]) -> FlowRecords:
    """No records of that family."""
    address: Any = np.empty(0, np.uint32) if family == 4 else np.empty((0, 2), np.uint64)
    columns: list[Any] = [address] * 4 + [np.empty(0, np.uint16)] * 4 + [np.empty(0, np.uint64)] * 4
    return FlowRecords(family, np.empty(0, np.uint8), *columns)


@dataclass(frozen=True, slots=True)
class BatchIdentity:
    """What makes a batch itself: the same identity always carries the same records."""

    node_name: str
    epoch: bytes
    sequence: int

    @property
    def token(self) -> str:
        """The deduplication token of the batch's one INSERT."""
        return f"{self.node_name}/{self.epoch.hex()}/{self.sequence}"


@dataclass(frozen=True, slots=True)
class FlowBatch:
    """One agent's records of one interval [interval_start, interval_end), Unix seconds."""

    identity: BatchIdentity
    interval_start: int
    interval_end: int
    ipv4: FlowRecords
    ipv6: FlowRecords

    def __len__(self) -> int:
        return len(self.ipv4) + len(self.ipv6)

    def total_bytes(self) -> int:
        """Bytes of both directions over all records."""
        return self.ipv4.total_bytes() + self.ipv6.total_bytes()

    def total_packets(self) -> int:
        """Packets of both directions over all records."""
        return self.ipv4.total_packets() + self.ipv6.total_packets()
