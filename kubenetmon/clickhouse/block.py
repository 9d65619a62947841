"""Columns as arrays, and the Native block made of them.

Contract: `encode` is pure and does no per-row Python; its result is the whole column part of one Native
block, the same bytes for the TCP sink and the embedded one. Attempts to insert a batch repeat one `Block`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.clickhouse.native import (
    LOW_CARDINALITY_VERSION,
    ColumnType,
    Piece,
    UnsupportedTypeError,
    UsedEntries,
    flag_maps,
    integers,
    low_cardinality,
    parse_type,
    strings,
    text,
    used_entries,
)
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import SchemaError


@dataclass(frozen=True, slots=True)
class Values:
    """One number a row: any integer dtype of shape (n,) that holds the column's values without loss.

    Date: days since 1970-01-01. DateTime: Unix seconds. IPv4: uint32, the number `ipaddress.IPv4Address`
    takes. IPv6: uint8 of shape (n, 16) in network order. Enum: the numbers of the enumeration.
    """

    array: NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value in every row; encoding it costs next to nothing.

    A string for string and Enum columns (Enum: the name), a number as in `Values` for the others.
    """

    value: str | int


@dataclass(frozen=True, slots=True)
class Words:
    """A dictionary in which many entries share a string: entry i is `strings[codes[i]]`; shape (entries,).

    There may be strings that no entry has, and a string twice.
    """

    codes: NDArray[np.integer[Any]]
    strings: Sequence[str]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, entry: int) -> str:
        return self.strings[int(self.codes[entry])]

    def each(self) -> list[str]:
        """Entry by entry."""
        return [self.strings[code] for code in self.codes.tolist()]


@dataclass(frozen=True, slots=True)
class Coded:
    """A string (or the name of an Enum's value) a row, by its index in `dictionary`; shape (n,).

    The dictionary may hold strings that no row uses, and a string twice.
    """

    codes: NDArray[np.integer[Any]]
    dictionary: Sequence[str] | Words


@dataclass(frozen=True, slots=True)
class FlagMaps:
    """A map of flags a row, by its index in `dictionary`; shape (n,)."""

    codes: NDArray[np.integer[Any]]
    dictionary: Sequence[Mapping[str, bool]]


Column = Values | Constant | Coded | FlagMaps


@dataclass(frozen=True, slots=True)
class Block:
    """One INSERT's rows: `body` holds `columns` in order, each as name, type and data in Native format."""

    rows: int
    columns: tuple[str, ...]
    body: bytes


def encode(columns: Mapping[str, Column], schema: TableSchema, rows: int) -> Block:
    """The block of `rows` rows; columns that the table lacks are left out.

    Raises `SchemaError` naming column and type where the table's type cannot take the column, `ValueError`
    where a column is not `rows` long.
    """
    encoder = _Encoder(rows)
    names: list[str] = []
    parts: list[Piece] = []
    for name, column in columns.items():
        type_name = schema.columns.get(name)
        if type_name is None:
            continue
        names.append(name)
        parts.append(text(name) + text(type_name))
        try:
            column_type = parse_type(type_name)
            if rows:
                parts.append(encoder.data(column, column_type))
        except UnsupportedTypeError as error:
            raise SchemaError(
                f"column {name} ({type_name}) of {schema} {error}; see `kubenetmon schema print`"
            ) from None
        except ValueError as error:
            raise ValueError(f"column {name}: {error}") from None
    return Block(rows, tuple(names), b"".join(parts))


class _Encoder:
    """Encodes the columns of one block; knows which columns share an array of codes."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._used: dict[tuple[int, int], UsedEntries] = {}
        self._nothing_coded = np.zeros(rows, np.uint8)

    def data(self, column: Column, column_type: ColumnType) -> Piece:
        """The column's data; raises `UnsupportedTypeError` where the type cannot take it."""
        if isinstance(column, Values):
            return self._values(column.array, column_type)
        if isinstance(column, Constant):
            return self._constant(column.value, column_type)
        if isinstance(column, Coded):
            return self._coded(column, column_type)
        if column_type.kind != "map":
            raise UnsupportedTypeError("cannot hold a map of flags")
        used = self._entries(column.codes, len(column.dictionary))
        maps = [column.dictionary[i] for i in used.ids.tolist()]
        return flag_maps(maps, used.inverse, column_type.low_cardinality_keys)

    def _values(self, array: NDArray[np.integer[Any]], column_type: ColumnType) -> bytes:
        if len(array) != self._rows:
            raise ValueError(f"{len(array)} values for {self._rows} rows")
        if column_type.kind == "ipv6":
            if array.ndim != 2 or array.shape[1] != 16 or array.dtype != np.uint8:
                raise UnsupportedTypeError("takes addresses of 16 bytes")
            return array.tobytes()
        if column_type.kind not in ("number", "enum") or array.ndim != 1:
            raise UnsupportedTypeError("cannot hold a number")
        return integers(array, column_type.dtype)

    def _constant(self, value: str | int, column_type: ColumnType) -> bytes:
        if isinstance(value, str):
            if column_type.kind == "string":
                return text(value) * self._rows
            if column_type.kind == "low_cardinality":
                return LOW_CARDINALITY_VERSION + low_cardinality([value], self._nothing_coded)
            value = _member(value, column_type)
        elif column_type.kind == "ipv6" and 0 <= value < 1 << 128:
            return value.to_bytes(16, "big") * self._rows
        elif column_type.kind not in ("number", "enum"):
            raise UnsupportedTypeError("cannot hold a number")
        limits = np.iinfo(column_type.dtype)
        if not limits.min <= value <= limits.max:
            raise UnsupportedTypeError(f"is too narrow for {value}")
        return np.array([value], column_type.dtype).tobytes() * self._rows

    def _coded(self, column: Coded, column_type: ColumnType) -> Piece:
        used = self._entries(column.codes, len(column.dictionary))
        strings_of, ids, inverse = column.dictionary, used.ids, used.inverse
        if isinstance(strings_of, Words):
            words = used_entries(strings_of.codes.take(ids), len(strings_of.strings))
            strings_of, ids, inverse = strings_of.strings, words.ids, words.inverse.take(inverse)
        values = [strings_of[i] for i in ids.tolist()]
        if column_type.kind == "low_cardinality":
            return LOW_CARDINALITY_VERSION + low_cardinality(values, inverse)
        if column_type.kind == "string":
            return strings(values, inverse)
        numbers = np.array([_member(value, column_type) for value in values], column_type.dtype)
        return bytes(numbers.take(inverse).tobytes())

    def _entries(self, codes: NDArray[np.integer[Any]], entries: int) -> UsedEntries:
        if len(codes) != self._rows:
            raise ValueError(f"{len(codes)} codes for {self._rows} rows")
        key = (id(codes), entries)
        if key not in self._used:
            self._used[key] = used_entries(codes, entries)
        return self._used[key]


def _member(name: str, column_type: ColumnType) -> int:
    if column_type.kind != "enum":
        raise UnsupportedTypeError("cannot hold a string")
    if name not in column_type.members:
        raise UnsupportedTypeError(f"has no member {name!r}")
    return column_type.members[name]
