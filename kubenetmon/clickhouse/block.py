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

from kubenetmon.clickhouse.table import TableSchema


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
class Coded:
    """A string (or the name of an Enum's value) a row, by its index in `dictionary`; shape (n,).

    The dictionary may hold strings that no row uses, and a string twice.
    """

    codes: NDArray[np.integer[Any]]
    dictionary: Sequence[str]


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
    raise NotImplementedError
