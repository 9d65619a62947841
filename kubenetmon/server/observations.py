"""The original's Observation stream into batches, by the C decoder.

Contract: one `ObservationDecoder` a stream. `feed` takes bytes of the stream as they come, in pieces of any
size, and keeps what is not a whole message yet; `take` gives what has been decoded as batches, one a node and
minute. When `feed` answers that the slice is full, `take` must be called before it goes on. Everything here
is synchronous and owned by the caller.

What makes no row is counted, never silently dropped: an observation that is neither TCP nor UDP, and one
whose addresses are missing, of a wrong length, or of two families. An observation whose timestamp cannot be
right is booked in the minute of its receipt: the bytes were moved, only the node's clock is wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kubenetmon._observations import ffi, lib
from kubenetmon.errors import ProtocolError
from kubenetmon.model import BatchIdentity, FlowBatch, FlowRecords, empty_records
from kubenetmon.server.decode import EARLIEST_START, MAX_CLOCK_SKEW_SECONDS, check_counters

MINUTE = 60


class CompressedMessage(ProtocolError):
    """A message's compressed flag is set; nothing here can read it."""


class OversizeMessage(ProtocolError):
    """A message is longer than the limit."""


@dataclass(frozen=True, slots=True)
class Losses:
    """Observations that make no row, with both directions' sums."""

    observations: int
    packets: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Slice:
    """What `take` gives: the batches, and what could not become part of one."""

    observations: int
    batches: tuple[FlowBatch, ...]
    bad_address: Losses
    bad_protocol: Losses


class ObservationDecoder:
    """Decodes one stream of length-prefixed Observations; at most `capacity` of them a slice.

    Memory: the columns of one slice (69 bytes a row, 117 for IPv6, touched as they fill), 45 kB of names, and
    an unfinished message of at most `max_message` bytes.
    """

    def __init__(self, capacity: int, max_message: int) -> None:
        self._capacity = capacity
        self._decoder = ffi.new("struct observation_decoder *")
        self._decoder.capacity = capacity
        self._decoder.max_message = max_message
        self._rest = b""
        self._columns: dict[int, _Columns] = {}
        self._begin_slice()

    @property
    def observations(self) -> int:
        """How many the slice holds so far."""
        return int(self._decoder.observations)

    @property
    def has_rest(self) -> bool:
        """Whether the bytes so far end within a message."""
        return bool(self._rest)

    def feed(self, data: bytes) -> bool:
        """Decode what is whole of `data`; True when the slice is full: take it, then call `feed(b"")`.

        Raises `ProtocolError` for a message that cannot be read; what came before it can still be taken.
        """
        data = self._rest + data if self._rest else data
        consumed = ffi.new("size_t *")
        status = lib.observation_decode(self._decoder, ffi.from_buffer(data), len(data), consumed)
        self._rest = data[consumed[0] :]
        if status == lib.OBSERVATION_COMPRESSED:
            raise CompressedMessage("a message is compressed, which this server does not support")
        if status == lib.OBSERVATION_TOO_LARGE:
            raise OversizeMessage(f"a message is longer than {self._decoder.max_message} bytes")
        if status == lib.OBSERVATION_MALFORMED:
            raise ProtocolError("a message is not an Observation in protobuf")
        if status == lib.OBSERVATION_NODE_NAME:
            raise ProtocolError("node_name is not UTF-8, too long, or has control characters")
        return bool(status == lib.OBSERVATION_FULL)

    def take(self, identities: IdentitySource, now: float) -> Slice:
        """What has been decoded since the last call, as batches of one node and minute each.

        `now`, in Unix seconds, stands in for timestamps that cannot be right. Raises `ProtocolError` when
        counters add up to what no node can move.
        """
        decoder, columns = self._decoder, self._columns
        names = [
            bytes(ffi.buffer(decoder.arena + decoder.name_offset[i], decoder.name_length[i])).decode()
            for i in range(decoder.nodes)
        ]
        counts = {4: int(decoder.rows4.count), 6: int(decoder.rows6.count)}
        taken = Slice(
            self.observations,
            tuple(_batches(columns, counts, names, identities, now)),
            _losses(decoder.bad_address),
            _losses(decoder.bad_protocol),
        )
        self._begin_slice()
        return taken

    def _begin_slice(self) -> None:
        lib.observation_reset(self._decoder)
        # Batches keep views of the arrays they were made from: a family that had rows gets new ones.
        for family, rows in ((4, self._decoder.rows4), (6, self._decoder.rows6)):
            columns = self._columns.get(family)
            if columns is None or columns.used:
                self._columns[family] = _Columns(family, self._capacity, rows)  # type: ignore[arg-type]


class IdentitySource:
    """Identities for batches that came without one: a random epoch, counted from 1."""

    def __init__(self, epoch: bytes) -> None:
        self._epoch = epoch
        self._sequence = 0

    def next(self, node_name: str) -> BatchIdentity:
        """An identity never given before."""
        self._sequence += 1
        return BatchIdentity(node_name, self._epoch, self._sequence)


class _Columns:
    """The arrays of one family that the C decoder fills."""

    def __init__(self, family: Literal[4, 6], capacity: int, rows: Any) -> None:
        self.family: Literal[4, 6] = family
        self.used = False
        self.protocol: NDArray[np.uint8] = np.empty(capacity, np.uint8)
        self.node: NDArray[np.uint32] = np.empty(capacity, np.uint32)
        self.timestamp: NDArray[np.uint64] = np.empty(capacity, np.uint64)
        self.addresses: list[NDArray[Any]] = [
            np.empty(capacity, np.uint32) if family == 4 else np.empty((capacity, 2), np.uint64)
            for _ in range(4)
        ]
        self.ports = [np.empty(capacity, np.uint16) for _ in range(4)]
        self.counters = [np.empty(capacity, np.uint64) for _ in range(4)]
        rows.protocol = ffi.from_buffer("uint8_t *", self.protocol)
        rows.node = ffi.from_buffer("uint32_t *", self.node)
        rows.timestamp = ffi.from_buffer("uint64_t *", self.timestamp)
        for i in range(4):
            if family == 4:
                rows.address4[i] = ffi.from_buffer("uint32_t *", self.addresses[i])
            else:
                rows.address6[i] = ffi.from_buffer("uint64_t *", self.addresses[i])
            rows.port[i] = ffi.from_buffer("uint16_t *", self.ports[i])
            rows.counter[i] = ffi.from_buffer("uint64_t *", self.counters[i])

    def records(self, rows: slice | NDArray[np.intp]) -> FlowRecords:
        """Those rows: views for a slice, copies for row numbers."""
        columns = [self.protocol, *self.addresses, *self.ports, *self.counters]
        return FlowRecords(self.family, *(column[rows] for column in columns))


def _batches(
    columns: dict[int, _Columns],
    counts: dict[int, int],
    names: list[str],
    identities: IdentitySource,
    now: float,
) -> list[FlowBatch]:
    """One batch for each (node, minute) among the rows, in the order of names and minutes."""
    parts: dict[tuple[int, int], dict[int, FlowRecords]] = {}
    for family, count in counts.items():
        if not count:
            continue
        family_columns = columns[family]
        family_columns.used = True
        minutes = _minutes(family_columns.timestamp[:count], now)
        nodes = family_columns.node[:count]
        if (minutes == minutes[0]).all() and (nodes == nodes[0]).all():
            key = (int(nodes[0]), int(minutes[0]))
            parts.setdefault(key, {})[family] = family_columns.records(slice(0, count))
            continue
        order = np.lexsort((minutes, nodes))
        ordered_nodes, ordered_minutes = nodes[order], minutes[order]
        changes = (np.diff(ordered_nodes) != 0) | (np.diff(ordered_minutes) != 0)
        starts = [0, *(np.flatnonzero(changes) + 1).tolist()]
        for start, end in zip(starts, [*starts[1:], count], strict=True):
            key = (int(ordered_nodes[start]), int(ordered_minutes[start]))
            parts.setdefault(key, {})[family] = family_columns.records(order[start:end])
    batches = []
    for (node, minute), families in sorted(parts.items()):
        ipv4, ipv6 = families.get(4) or empty_records(4), families.get(6) or empty_records(6)
        check_counters(ipv4, ipv6)
        batches.append(FlowBatch(identities.next(names[node]), minute, minute + MINUTE, ipv4, ipv6))
    return batches


def _minutes(timestamps: NDArray[np.uint64], now: float) -> NDArray[np.int64]:
    """The minute each observation belongs to, in Unix seconds."""
    possible = (timestamps >= EARLIEST_START) & (timestamps < int(now) + MAX_CLOCK_SKEW_SECONDS)
    seconds = np.where(possible, timestamps, np.uint64(int(now))).astype(np.int64)
    return seconds - seconds % MINUTE


def _losses(losses: Any) -> Losses:
    return Losses(int(losses.observations), int(losses.packets), int(losses.bytes))
