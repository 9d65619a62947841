"""ClickHouse's Native format: how the values of one column type lie in a block.

Contract: pure functions over arrays; work in Python is per dictionary entry, never per row. Layouts are
those of protocol revisions below 54454 (no custom serialization byte), which asynch's connection announces
and which `FORMAT Native` uses, so that one encoding serves both sinks.

Source for the layouts: ClickHouse's SerializationLowCardinality, SerializationMap, SerializationArray and
SerializationString; every one is checked against the engine in tests/clickhouse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon._gather import ffi, lib
from kubenetmon.varint import varint

Piece = bytes | memoryview
"""A part of what is sent, copied as seldom as can be."""

LOW_CARDINALITY_VERSION = (1).to_bytes(8, "little")  # SharedDictionariesWithAdditionalKeys
_HAS_ADDITIONAL_KEYS = 1 << 9
_NEED_UPDATE_DICTIONARY = 1 << 10
_INDEX_DTYPES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<u4"))

_INTEGERS: Mapping[str, np.dtype[Any]] = {
    "UInt8": np.dtype("<u1"),
    "UInt16": np.dtype("<u2"),
    "UInt32": np.dtype("<u4"),
    "UInt64": np.dtype("<u8"),
    "Int8": np.dtype("<i1"),
    "Int16": np.dtype("<i2"),
    "Int32": np.dtype("<i4"),
    "Int64": np.dtype("<i8"),
    "Date": np.dtype("<u2"),
    "Date32": np.dtype("<i4"),
    "DateTime": np.dtype("<u4"),
    "IPv4": np.dtype("<u4"),
}
_ENUM = re.compile(r"Enum(8|16)\((.*)\)", re.DOTALL)
_ENUM_MEMBER = re.compile(r"'((?:[^'\\]|\\.)*)' = (-?\d+)")
_MAP = re.compile(r"Map\((LowCardinality\(String\)|String), (Bool|UInt8)\)")
_DATE_TIME = re.compile(r"DateTime\('[^']*'\)")


class UnsupportedTypeError(Exception):
    """The column's type cannot take what the column holds; the caller knows the names."""


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column type, taken apart.

    `kind` is number, ipv6, enum, string, low_cardinality or map; `dtype` is set for numbers and enums.
    """

    kind: str
    dtype: np.dtype[Any] = _INTEGERS["UInt8"]
    members: Mapping[str, int] = field(default_factory=dict)
    low_cardinality_keys: bool = False


@lru_cache(maxsize=256)
def parse_type(text: str) -> ColumnType:
    """The type that `system.columns` spells `text`; raises `UnsupportedTypeError` for others than ours."""
    if text == "String":
        return ColumnType("string")
    if text == "LowCardinality(String)":
        return ColumnType("low_cardinality")
    if text == "IPv6":
        return ColumnType("ipv6")
    if text in _INTEGERS:
        return ColumnType("number", _INTEGERS[text])
    if _DATE_TIME.fullmatch(text):
        return ColumnType("number", _INTEGERS["DateTime"])
    if enum := _ENUM.fullmatch(text):
        members = {
            re.sub(r"\\(.)", r"\1", name): int(number) for name, number in _ENUM_MEMBER.findall(enum[2])
        }
        return ColumnType("enum", np.dtype("<i1" if enum[1] == "8" else "<i2"), members)
    if found := _MAP.fullmatch(text):
        return ColumnType("map", low_cardinality_keys=found[1] != "String")
    raise UnsupportedTypeError("is of a type that kubenetmon cannot write")


@lru_cache(maxsize=1 << 15)  # the same names come in every batch; some 5 MB at most
def text(value: str) -> bytes:
    """One String value: its length in bytes as varint, then the bytes; lone surrogates become `?`."""
    encoded = value.encode("utf-8", "replace")
    length = len(encoded)
    return (bytes((length,)) if length < 0x80 else varint(length)) + encoded


@dataclass(frozen=True, slots=True)
class UsedEntries:
    """The entries of a dictionary that rows use: `dictionary[ids[inverse]]` equals `dictionary[codes]`."""

    ids: NDArray[np.intp]
    inverse: NDArray[np.unsignedinteger[Any]]


def used_entries(codes: NDArray[np.integer[Any]], entries: int) -> UsedEntries:
    """Which of a dictionary's `entries` entries `codes` of shape (n,) name.

    Raises `ValueError` for a code outside the dictionary.
    """
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= entries):
        raise ValueError(f"a code lies outside its dictionary of {entries} entries")
    if entries > 16 * len(codes):  # a large dictionary and few rows: do not touch all of it
        ids, inverse = np.unique(codes, return_inverse=True)
        return UsedEntries(ids.astype(np.intp), inverse.astype(index_dtype(len(ids))))
    used = np.zeros(entries, np.bool_)
    used[codes] = True
    ids = np.flatnonzero(used)
    position = np.empty(entries, index_dtype(len(ids)))
    position[ids] = np.arange(len(ids))
    return UsedEntries(ids, position.take(codes))


def index_dtype(entries: int) -> np.dtype[Any]:
    """The narrowest unsigned type that numbers so many entries."""
    return _INDEX_DTYPES[0 if entries <= 1 << 8 else 1 if entries <= 1 << 16 else 2]


def integers(array: NDArray[np.integer[Any]], dtype: np.dtype[Any]) -> bytes:
    """Numbers in the column's width; raises `UnsupportedTypeError` where one does not fit."""
    if array.dtype != dtype:
        narrowing = array.dtype.kind == "i" or dtype.kind == "i" or array.dtype.itemsize > dtype.itemsize
        if narrowing and len(array):
            limits = np.iinfo(dtype)
            if int(array.min()) < limits.min or int(array.max()) > limits.max:
                raise UnsupportedTypeError("is too narrow for a value that it should take")
        array = array.astype(dtype)
    return array.tobytes()


def strings(values: Sequence[str], inverse: NDArray[np.unsignedinteger[Any]]) -> Piece:
    """A String column: the row i holds `values[inverse[i]]`. Raises `ValueError` where there is none such."""
    if len(values) == 1:
        return text(values[0]) * len(inverse)
    entries, sizes = _end_to_end(values)
    numbers = inverse.astype(np.uint32)
    column = np.empty(int((sizes + _length_bytes(sizes)).take(numbers).sum()), np.uint8)
    written = lib.gather_strings(
        ffi.from_buffer(entries),
        ffi.from_buffer("uint64_t[]", np.cumsum(sizes)),
        len(values),
        ffi.from_buffer("uint32_t[]", numbers),
        len(numbers),
        ffi.from_buffer(column),
        len(column),
    )
    if written != len(column):
        raise ValueError("a code lies outside its dictionary")
    return column.data


def _length_bytes(sizes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """How many bytes each of those numbers takes as a varint."""
    count = np.ones(len(sizes), np.uint64)
    rest = sizes >> np.uint64(7)
    while rest.any():
        count += rest != 0
        rest >>= np.uint64(7)
    return count


def _end_to_end(values: Sequence[str]) -> tuple[bytes, NDArray[np.uint64]]:
    """All strings one behind the other, encoded as `text` does, and the bytes of each."""
    encoded = "".join(values).encode("utf-8", "replace")
    sizes = np.fromiter(map(len, values), np.uint64, len(values))
    if int(sizes.sum()) != len(encoded):  # some character takes more than a byte
        each = [value.encode("utf-8", "replace") for value in values]
        encoded, sizes = b"".join(each), np.fromiter(map(len, each), np.uint64, len(each))
    return encoded, sizes


def low_cardinality(values: Sequence[str], inverse: NDArray[np.unsignedinteger[Any]]) -> bytes:
    """A LowCardinality(String) column without its version, one dictionary of its own; nothing for no rows."""
    if not len(inverse):
        return b""
    number: dict[str, int] = {}
    renumbered = [number.setdefault(value, len(number)) for value in values]
    dtype = index_dtype(len(number))
    several = len(number) < len(values)
    indexes = np.array(renumbered, dtype).take(inverse) if several else inverse.astype(dtype)
    flags = _HAS_ADDITIONAL_KEYS | _NEED_UPDATE_DICTIONARY | _INDEX_DTYPES.index(dtype)
    return b"".join(
        (
            flags.to_bytes(8, "little"),
            len(number).to_bytes(8, "little"),
            *map(text, number),
            len(inverse).to_bytes(8, "little"),
            indexes.tobytes(),
        )
    )


def flag_maps(
    maps: Sequence[Mapping[str, bool]], inverse: NDArray[np.unsignedinteger[Any]], low_cardinality_keys: bool
) -> bytes:
    """A Map column with its prefix: end offsets, then all keys, then all values."""
    sizes = np.array([len(flags) for flags in maps], np.uint64)
    names = [name for flags in maps for name in flags]
    values = np.array([value for flags in maps for value in flags.values()], np.uint8)
    ends = np.cumsum(sizes[inverse], dtype=np.uint64)
    total = int(ends[-1])
    # Entry j of row i is entry start[map of i] + j of all maps' entries laid end to end.
    starts = np.cumsum(sizes, dtype=np.int64) - sizes.astype(np.int64)
    row_sizes = sizes[inverse].astype(np.int64)
    first_of_row = np.repeat(ends.astype(np.int64) - row_sizes, row_sizes)
    entries = np.repeat(starts[inverse], row_sizes) + (np.arange(total) - first_of_row)
    used = used_entries(entries, len(names))
    key_values = [names[i] for i in used.ids.tolist()]
    return b"".join(
        (
            LOW_CARDINALITY_VERSION if low_cardinality_keys else b"",
            ends.astype("<u8").tobytes(),
            low_cardinality(key_values, used.inverse)
            if low_cardinality_keys
            else strings(key_values, used.inverse),
            values[entries].tobytes(),
        )
    )
