"""Finds where a Native block ends, without making values of it: what a server in front of an engine needs.

Layouts of protocol revisions below 54454. Written apart from `kubenetmon.clickhouse.native`, so that each
checks the other.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from dataclasses import dataclass

FIXED_WIDTHS = {
    "UInt8": 1, "Int8": 1, "Bool": 1, "Nothing": 1, "Enum8": 1,
    "UInt16": 2, "Int16": 2, "Enum16": 2, "Date": 2,
    "UInt32": 4, "Int32": 4, "Float32": 4, "Date32": 4, "DateTime": 4, "IPv4": 4, "UInt64": 8, "Int64": 8,
    "Float64": 8, "DateTime64": 8, "UInt128": 16, "Int128": 16, "UUID": 16, "IPv6": 16, "UInt256": 32,
    "Int256": 32,
}  # fmt: skip

Scan = Generator[None, None, int]
"""Yields when it needs more bytes in the buffer; returns the position behind what it read."""


@dataclass(frozen=True, slots=True)
class ScannedBlock:
    """`body` is the block behind its numbers of columns and rows."""

    columns: list[tuple[str, str]]
    rows: int
    body: bytes
    end: int


def scan_block(buffer: bytearray, position: int, *, info: bool) -> Generator[None, None, ScannedBlock]:
    """Scan one block at `position`; `info` says whether a BlockInfo precedes it."""
    if info:
        position = yield from _block_info(buffer, position)
    n_columns, position = yield from varint(buffer, position)
    rows, position = yield from varint(buffer, position)
    body = position
    columns = []
    for _ in range(n_columns):
        name, position = yield from string(buffer, position)
        type_name, position = yield from string(buffer, position)
        columns.append((name, type_name))
        if rows:
            position = yield from _prefix(buffer, position, type_name)
            position = yield from _data(buffer, position, type_name, rows)
    return ScannedBlock(columns, rows, bytes(buffer[body:position]), position)


def need(buffer: bytearray, end: int) -> Generator[None, None, None]:
    """Return once the buffer reaches to `end`."""
    while len(buffer) < end:
        yield


def varint(buffer: bytearray, position: int) -> Generator[None, None, tuple[int, int]]:
    """One unsigned LEB128."""
    number = shift = 0
    while True:
        yield from need(buffer, position + 1)
        byte = buffer[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
        if shift > 63:
            raise ValueError("a varint of more than 64 bits")


def string(buffer: bytearray, position: int) -> Generator[None, None, tuple[str, int]]:
    """One string."""
    length, position = yield from varint(buffer, position)
    yield from need(buffer, position + length)
    return buffer[position : position + length].decode(), position + length


def _block_info(buffer: bytearray, position: int) -> Scan:
    while True:
        number, position = yield from varint(buffer, position)
        if number == 0:
            return position
        position += {1: 1, 2: 4}[number]


def _prefix(buffer: bytearray, position: int, type_name: str) -> Scan:
    outer, inner = _taken_apart(type_name)
    if outer == "LowCardinality":
        yield from need(buffer, position + 8)
        return position + 8
    if outer in ("Map", "Array", "Nullable", "Tuple"):
        for one in inner:
            position = yield from _prefix(buffer, position, one)
    return position


def _data(buffer: bytearray, position: int, type_name: str, rows: int) -> Scan:
    outer, inner = _taken_apart(type_name)
    if outer in FIXED_WIDTHS:
        position += FIXED_WIDTHS[outer] * rows
        yield from need(buffer, position)
        return position
    if outer == "FixedString":
        position += int(inner[0]) * rows
        yield from need(buffer, position)
        return position
    if outer == "String":
        return (yield from _strings(buffer, position, rows))
    if outer == "LowCardinality":
        return (yield from _low_cardinality(buffer, position, inner[0], rows))
    if outer == "Nullable":
        return (yield from _data(buffer, position + rows, inner[0], rows))
    if outer == "Tuple":
        for one in inner:
            position = yield from _data(buffer, position, one, rows)
        return position
    if outer in ("Array", "Map"):
        position += 8 * rows
        yield from need(buffer, position)
        total = int.from_bytes(buffer[position - 8 : position], "little")
        if total:
            for one in inner:
                position = yield from _data(buffer, position, one, total)
        return position
    raise ValueError(f"a column of type {type_name}, which this front does not know")


def _strings(buffer: bytearray, position: int, rows: int) -> Scan:
    done = 0
    while done < rows:
        end = len(buffer)
        while done < rows and position < end:
            length = buffer[position]
            if length >= 0x80:
                break
            position += 1 + length
            done += 1
        if done < rows:
            length, position = yield from varint(buffer, position)
            position += length
            done += 1
    yield from need(buffer, position)
    return position


def _low_cardinality(buffer: bytearray, position: int, key_type: str, rows: int) -> Scan:
    yield from need(buffer, position + 16)
    flags = int.from_bytes(buffer[position : position + 8], "little")
    keys = int.from_bytes(buffer[position + 8 : position + 16], "little")
    outer, inner = _taken_apart(key_type)
    position = yield from _data(buffer, position + 16, inner[0] if outer == "Nullable" else key_type, keys)
    position += 8 + rows * (1 << (flags & 0xFF))
    yield from need(buffer, position)
    return position


def _taken_apart(type_name: str) -> tuple[str, list[str]]:
    outer, parenthesis, rest = type_name.partition("(")
    if not parenthesis or outer.startswith(("Enum", "DateTime")):
        return outer, []
    inner, depth, start = [], 0, 0
    rest = rest[:-1]
    for index, character in enumerate(rest):
        if character == "," and depth == 0:
            inner.append(rest[start:index].strip())
            start = index + 1
        depth += (character == "(") - (character == ")")
    inner.append(rest[start:].strip())
    if outer == "Tuple":
        inner = [re.sub(r"^\w+ ", "", one) for one in inner]
    return outer, inner
