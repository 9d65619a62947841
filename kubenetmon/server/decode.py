"""`FlowBatch` messages of the Push stream into arrays.

Contract: pure functions over bytes from a peer that may be broken or hostile. What comes out is a consistent
`kubenetmon.model.FlowBatch`; what cannot be one raises `ProtocolError` naming the field, at a cost bounded by
the message's length. The message is read field by field here rather than by betterproto2, whose time grows
with the square of the number of unknown fields and which takes a truncated message for a whole one; what
betterproto2 encodes reads the same in both (tests/unit/test_decode.py).

Each column is copied once, out of the message into memory of its own, aligned and read-only: the message is
free as soon as the batch exists.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kubenetmon.errors import ProtocolError
from kubenetmon.model import ARRAY_NAMES, TCP, UDP, BatchIdentity, FlowBatch, FlowRecords, empty_records
from kubenetmon.proto import EPOCH_BYTES, IPV4_RECORD_BYTES, IPV6_RECORD_BYTES, MAX_BATCH_BYTES

MAX_NODE_NAME_BYTES = 253
"""A node's name is a DNS subdomain, at most 253 characters (Kubernetes, "Object Names and IDs")."""

MAX_INTERVAL_SECONDS = 30 * 86400
EARLIEST_START = 1577836800
"""2020-01-01: no interval is older."""

MAX_CLOCK_SKEW_SECONDS = 86400
"""How far a batch's end may lie in the future of the server's clock."""

MAX_COUNTER_SUM = 2.0**62
"""What the counters of one batch may add up to, so that sums of two directions fit 64 bits."""

_MAX_FIELDS = 256
"""Fields of one message, the known and the unknown: 15 are known."""

_START_TIME = 15
"""The number of the field that came last."""

_VARINT, _FIXED64, _DELIMITED, _FIXED32 = 0, 1, 2, 5

_WIDTHS: dict[int, tuple[int, ...]] = {
    4: (1, 4, 4, 4, 4, 2, 2, 2, 2, 8, 8, 8, 8),
    6: (1, 16, 16, 16, 16, 2, 2, 2, 2, 8, 8, 8, 8),
}
_DTYPES: dict[int, str] = {1: "u1", 2: "<u2", 4: "<u4", 8: "<u8", 16: ">u8"}


class InconsistentBatch(ProtocolError):
    """The batch can never be accepted, but it says which one it is, so that it can be rejected by name."""

    def __init__(self, identity: BatchIdentity, message: str) -> None:
        super().__init__(message)
        self.identity = identity


def decode_batch(message: bytes, now: float) -> FlowBatch:
    """The batch in a `kubenetmon.v1.FlowBatch` message; `now` is the server's clock in Unix seconds.

    Raises `InconsistentBatch` when the identity is readable and the rest is not as it must be,
    `ProtocolError` when not even that is so.
    """
    fields = _read_fields(message, 0, len(message), "message")
    name = _delimited(message, fields.get(1), "node_name")
    epoch = _delimited(message, fields.get(2), "epoch")
    sequence = _number(fields.get(3), "sequence")
    identity = BatchIdentity(check_node_name(name), epoch, sequence)
    if len(epoch) != EPOCH_BYTES:
        raise ProtocolError(f"epoch has {len(epoch)} bytes, not {EPOCH_BYTES}")
    if sequence < 1:
        raise ProtocolError("sequence is 0, it counts from 1")
    try:
        start = _number(fields.get(4), "interval_start")
        end = _number(fields.get(5), "interval_end")
        check_interval(start, end, now)
        ipv4 = _read_records(message, fields.get(6), 4)
        ipv6 = _read_records(message, fields.get(7), 6)
        size = len(ipv4) * IPV4_RECORD_BYTES + len(ipv6) * IPV6_RECORD_BYTES
        if size > MAX_BATCH_BYTES:
            raise ProtocolError(f"arrays take {size} bytes, more than {MAX_BATCH_BYTES}")
        check_counters(ipv4, ipv6)
    except ProtocolError as error:
        raise InconsistentBatch(identity, str(error)) from None
    return FlowBatch(identity, start, end, ipv4, ipv6)


def check_node_name(name: bytes) -> str:
    """The name as text; raises `ProtocolError` when no node can have it."""
    if not name:
        raise ProtocolError("node_name is empty")
    if len(name) > MAX_NODE_NAME_BYTES:
        raise ProtocolError(f"node_name has {len(name)} bytes, more than {MAX_NODE_NAME_BYTES}")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        raise ProtocolError("node_name is not UTF-8") from None
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in text):
        raise ProtocolError("node_name has control characters")
    return text


def check_interval(start: int, end: int, now: float) -> None:
    """Raises `ProtocolError` unless [start, end), in Unix seconds, can be the interval of a batch."""
    if end <= start:
        raise ProtocolError(f"interval_end {end} is not later than interval_start {start}")
    if start < EARLIEST_START:
        raise ProtocolError(f"interval_start {start} is before 2020: the node's clock is wrong")
    if end > now + MAX_CLOCK_SKEW_SECONDS:
        raise ProtocolError(
            f"interval_end {end} is more than a day ahead of this server's clock ({int(now)}): "
            "one of the clocks is wrong"
        )
    if end - start > MAX_INTERVAL_SECONDS:
        raise ProtocolError(f"interval of {end - start} seconds is longer than {MAX_INTERVAL_SECONDS}")


def check_counters(*records: FlowRecords) -> None:
    """Raises `ProtocolError` when bytes or packets of these records add up beyond what 64 bits can sum."""
    for unit in ("bytes", "packets"):
        total = 0.0
        for part in records:
            for direction in ("original", "reply"):
                total += float(getattr(part, f"{direction}_{unit}").sum(dtype=np.float64))
        if total > MAX_COUNTER_SUM:
            raise ProtocolError(f"{unit} add up to {total:.3g}, which no node can move")


def _read_records(message: bytes, field: tuple[int, int, int] | None, family: Literal[4, 6]) -> FlowRecords:
    """The `FlowArrays` at that place of the message."""
    name = f"ipv{family}"
    if field is None:
        return empty_records(family)
    _, start, end = _expect(field, _DELIMITED, name)
    fields = _read_fields(message, start, end, name)
    count = _number(fields.get(1), f"{name}.count")
    arrays: list[NDArray[Any]] = []
    for number, (array_name, width) in enumerate(zip(ARRAY_NAMES, _WIDTHS[family], strict=True), 2):
        column = _delimited(message, fields.get(number), f"{name}.{array_name}")
        if len(column) != count * width:
            raise ProtocolError(f"{name}.{array_name} has {len(column)} bytes, not {count} x {width}")
        array: NDArray[Any] = np.frombuffer(column, _DTYPES[width])
        if width == 16:
            array = array.astype("<u8").reshape(count, 2)
        arrays.append(array)
    protocol = arrays[0]
    if not bool(((protocol == TCP) | (protocol == UDP)).all()):
        raise ProtocolError(f"{name}.protocol has numbers other than {TCP} and {UDP}")
    columns: list[Any] = [*arrays, _read_start_time(message, fields, count, name)]
    return FlowRecords(family, *columns)


def _read_start_time(
    message: bytes, fields: dict[int, tuple[int, int, int]], count: int, name: str
) -> NDArray[np.uint32] | None:
    """The one column that may be missing."""
    column = _delimited(message, fields.get(_START_TIME), f"{name}.start_time")
    if not column:
        return None
    if len(column) != 4 * count:
        raise ProtocolError(f"{name}.start_time has {len(column)} bytes, not {count} x 4")
    return np.frombuffer(column, "<u4")


def _read_fields(message: bytes, start: int, end: int, name: str) -> dict[int, tuple[int, int, int]]:
    """Field number to (wire type, first, second): a number's value and 0, or where its bytes begin and end.

    The last of several wins, as proto3 says of scalars; our sender never splits a submessage in two, and one
    that is split fails the checks of its lengths.
    """
    fields: dict[int, tuple[int, int, int]] = {}
    at = start
    for _ in range(_MAX_FIELDS):
        if at == end:
            return fields
        tag, at = _read_varint(message, at, end, name)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, at = _read_varint(message, at, end, name)
            fields[number] = (wire_type, value, 0)
            continue
        if wire_type == _DELIMITED:
            length, at = _read_varint(message, at, end, name)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ProtocolError(f"{name} is not protobuf: wire type {wire_type}")
        if number == 0 or length > end - at:
            raise ProtocolError(f"{name} is not protobuf, or is cut short")
        fields[number] = (wire_type, at, at + length)
        at += length
    if at == end:
        return fields
    raise ProtocolError(f"{name} has more than {_MAX_FIELDS} fields")


def _read_varint(message: bytes, at: int, end: int, name: str) -> tuple[int, int]:
    """A varint of at most ten bytes and where the next thing begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at == end:
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, at
    raise ProtocolError(f"{name} is not protobuf, or is cut short")


def _expect(field: tuple[int, int, int], wire_type: int, name: str) -> tuple[int, int, int]:
    if field[0] != wire_type:
        raise ProtocolError(f"{name} has wire type {field[0]}, not {wire_type}")
    return field


def _number(field: tuple[int, int, int] | None, name: str) -> int:
    return 0 if field is None else _expect(field, _VARINT, name)[1]


def _delimited(message: bytes, field: tuple[int, int, int] | None, name: str) -> bytes:
    if field is None:
        return b""
    _, start, end = _expect(field, _DELIMITED, name)
    return message[start:end]
