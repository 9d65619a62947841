"""The records of one family while attribution sorts them out. Pure, on arrays."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.model import TCP, FlowRecords
from kubenetmon.server.attributed import NOTHING_IGNORED, Ignored, Sample, Side
from kubenetmon.server.snapshot import Addresses, Family, Moment


class Working:
    """Columns that attribution adds to and takes records from.

    `source` is the original tuple's source, `destination` the reply tuple's: after DNAT, so that a Service's
    address is the pod behind it.
    """

    def __init__(self, records: FlowRecords, ignored: dict[str, Ignored], interval: tuple[int, int]) -> None:
        """`interval`: the report's, start and end in Unix seconds, end excluded."""
        self.family = records.family
        self._first, self._last = interval[0], max(interval[1] - 1, interval[0])
        self._ignored = ignored
        self.columns: dict[str, NDArray[Any]] = {
            "protocol": records.protocol,
            "source": records.original_source_address,
            "source_port": records.original_source_port,
            "source_bytes": records.original_bytes,
            "source_packets": records.original_packets,
            "destination": records.reply_source_address,
            "destination_port": records.reply_source_port,
            "destination_bytes": records.reply_bytes,
            "destination_packets": records.reply_packets,
        }
        if records.start_time is not None:
            self.columns["start"] = records.start_time

    def __len__(self) -> int:
        return len(self.columns["protocol"])

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]

    def moments(self) -> Moment:
        """When each record's addresses belonged to whom it speaks of: as its flow began, but within the
        interval; at the interval's end where that is not known."""
        start = self.columns.get("start")
        if start is None:
            return self._last
        moments: NDArray[np.int64] = np.clip(start, self._first, self._last).astype(np.int64)
        unknown = start == 0
        if unknown.any():
            moments[unknown] = self._last
        return moments

    def untimed(self) -> NDArray[np.intp]:
        """The records of flows of which no one knows when they began."""
        start = self.columns.get("start")
        return np.arange(len(self)) if start is None else np.flatnonzero(start == 0)

    def total(self, which: NDArray[np.bool_]) -> Ignored:
        """How many records those are and what they counted."""
        sums = [
            int(self.columns[f"source_{unit}"][which].sum())
            + int(self.columns[f"destination_{unit}"][which].sum())
            for unit in ("bytes", "packets")
        ]
        return Ignored(int(np.count_nonzero(which)), sums[0], sums[1])

    def ignore(self, reason: str, which: NDArray[np.bool_]) -> None:
        """Take records out, and count them."""
        if not which.any():
            return
        self._ignored[reason] = self._ignored.get(reason, NOTHING_IGNORED) + self.total(which)
        rest = np.flatnonzero(~which)
        self.columns = {name: column[rest] for name, column in self.columns.items()}

    def largest(self, which: NDArray[np.bool_], most: int) -> tuple[Sample, ...]:
        """Of those records the few that counted most bytes, the largest first."""
        numbers = np.flatnonzero(which)
        sizes = self["source_bytes"][numbers] + self["destination_bytes"][numbers]
        if len(numbers) > most:
            numbers = numbers[np.argpartition(sizes, len(sizes) - most)[-most:]]
        samples = [self._sample(int(number)) for number in numbers]
        return tuple(sorted(samples, key=lambda sample: sample.bytes, reverse=True))

    def _sample(self, number: int) -> Sample:
        return Sample(
            int(self["protocol"][number]),
            address_text(self.family, self["source"][number]),
            int(self["source_port"][number]),
            address_text(self.family, self["destination"][number]),
            int(self["destination_port"][number]),
            int(self["source_bytes"][number]) + int(self["destination_bytes"][number]),
            int(self["source_packets"][number]) + int(self["destination_packets"][number]),
        )

    def of_local(self, quantity: str) -> NDArray[Any]:
        """What the local side's column of this name holds."""
        return self._choose(f"source{quantity}", f"destination{quantity}")

    def of_remote(self, quantity: str) -> NDArray[Any]:
        """What the remote side's column of this name holds."""
        return self._choose(f"destination{quantity}", f"source{quantity}")

    def _choose(self, if_source: str, otherwise: str) -> NDArray[Any]:
        first = self.columns[if_source]
        choice = self.columns["local_is_source"]
        return np.where(choice if first.ndim == 1 else choice[:, None], first, self.columns[otherwise])


def one_address(family: Family, address: int) -> Addresses:
    """An address, a number, as a column of one."""
    if family == 4:
        return np.array([address], np.uint32)
    return np.array([[address >> 64, address & (1 << 64) - 1]], np.uint64)


def at(moments: Moment, which: NDArray[Any]) -> Moment:
    """The moments of some of the records."""
    return moments if isinstance(moments, int) else moments[which]


def one_record(family: Family, address: int, port: int) -> FlowRecords:
    """A TCP flow of nothing, opened by that endpoint and answered by it."""
    addresses: Any = one_address(family, address)
    ports, counter = np.array([port], np.uint16), np.zeros(1, np.uint64)
    columns = [*[addresses] * 4, *[ports] * 4, *[counter] * 4]
    return FlowRecords(family, np.array([TCP], np.uint8), *columns)


def side(parts: Sequence[Working], of: Callable[[Working, str], NDArray[Any]], endpoint: str) -> Side:
    """One end of all records; `endpoint` names the column that holds its ids."""
    addresses = [of(part, "") for part in parts]
    ipv6 = None
    if len(parts) == 2:
        ipv6 = np.concatenate([np.zeros((len(addresses[0]), 2), np.uint64), addresses[1]])
        addresses[1] = np.zeros(len(addresses[1]), np.uint32)
    return Side(
        endpoint=joined([part[endpoint] for part in parts]),
        ipv4=joined(addresses),
        ipv6=ipv6,
        port=joined([of(part, "_port") for part in parts]),
    )


def joined(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """The arrays end to end; without a copy where there is one."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def address_text(family: int, address: Any) -> str:
    """An element of an address column as text."""
    if family == 4:
        return str(ipaddress.IPv4Address(int(address)))
    return str(ipaddress.IPv6Address(int(address[0]) << 64 | int(address[1])))
