"""What `encode` makes, the engine reads back unchanged: all types, any string, large dictionaries, none."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubenetmon.clickhouse.block import Coded, Column, Constant, FlagMaps, Values, Words, encode
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import SchemaError
from tests.beds.native_blocks import scan_block
from tests.clickhouse.conftest import INSERT_SETTINGS

pytestmark = pytest.mark.chdb

ENUM = "Enum8('out' = 1, 'in' = 2, 'it\\'s' = -3)"
TYPES = {
    "n": "UInt32",
    "low": "LowCardinality(String)",
    "plain": "String",
    "shared_low": "LowCardinality(String)",
    "shared_plain": "String",
    "shared_enum": ENUM,
    "enum": ENUM,
    "flags": "Map(LowCardinality(String), Bool)",
    "plain_flags": "Map(String, UInt8)",
    "u16": "UInt16",
    "u64": "UInt64",
    "day": "Date",
    "time": "DateTime('UTC')",
    "ip4": "IPv4",
    "ip6": "IPv6",
    "i32": "Int32",
    "constant_low": "LowCardinality(String)",
    "constant_plain": "String",
    "constant_enum": ENUM,
    "constant_number": "UInt64",
}
STRINGS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
FLAGS = st.dictionaries(st.text("ABC_é", max_size=5), st.booleans(), max_size=4)


@st.composite
def rows_and_columns(draw: st.DrawFn) -> tuple[int, dict[str, Column]]:
    rows = draw(st.integers(0, 40))

    def numbers(low: int, high: int, dtype: Any) -> Values:
        return Values(np.array(draw(st.lists(st.integers(low, high), min_size=rows, max_size=rows)), dtype))

    def codes(entries: int) -> Any:
        drawn = draw(st.lists(st.integers(0, entries - 1), min_size=rows, max_size=rows))
        return np.array(drawn, draw(st.sampled_from([np.uint16, np.int32, np.int64])))

    strings = draw(st.lists(STRINGS, min_size=1, max_size=12))
    maps = draw(st.lists(FLAGS, min_size=1, max_size=5))
    shared = codes(len(strings))
    entries = draw(st.lists(st.integers(0, len(strings) - 1), min_size=1, max_size=20))
    words = Words(np.array(entries), strings)
    by_entry = codes(len(entries))
    addresses = draw(st.binary(min_size=16 * rows, max_size=16 * rows))
    return rows, {
        "n": Values(np.arange(rows)),
        "low": Coded(shared, strings),
        "plain": Coded(shared, list(reversed(strings))),
        "shared_low": Coded(by_entry, words),
        "shared_plain": Coded(by_entry, words),
        "shared_enum": Coded(codes(4), Words(np.array([2, 0, 2, 1]), ["in", "it's", "out"])),
        "enum": Coded(codes(3), ["in", "it's", "out"]),
        "flags": FlagMaps(codes(len(maps)), maps),
        "plain_flags": FlagMaps(codes(len(maps)), maps),
        "u16": numbers(0, 2**16 - 1, np.uint16),
        "u64": numbers(0, 2**64 - 1, np.uint64),
        "day": numbers(0, 2**16 - 1, np.int64),
        "time": numbers(0, 2**32 - 1, np.int64),
        "ip4": numbers(0, 2**32 - 1, np.uint32),
        "ip6": Values(np.frombuffer(addresses, np.uint8).reshape(-1, 16)),
        "i32": numbers(-(2**31), 2**31 - 1, np.int64),
        "constant_low": Constant(draw(STRINGS)),
        "constant_plain": Constant(draw(STRINGS)),
        "constant_enum": Constant("it's"),
        "constant_number": Constant(draw(st.integers(0, 2**64 - 1))),
    }  # fmt: skip


def expected(column: Column, name: str, row: int) -> Any:
    """What the engine should say, in the form in which the query below asks."""
    if isinstance(column, Constant):
        return column.value
    if isinstance(column, Coded):
        return column.dictionary[int(column.codes[row])]
    if isinstance(column, FlagMaps):
        flags = column.dictionary[int(column.codes[row])]
        return dict(flags) if name == "flags" else {key: int(value) for key, value in flags.items()}
    value = column.array[row]
    if name == "ip4":
        return str(ipaddress.IPv4Address(int(value)))
    return value.tobytes().hex().upper() if name == "ip6" else int(value)


@pytest.fixture
async def table(engine: EmbeddedSink, database: str) -> TableSchema:
    columns = ", ".join(f"{name} {type_name}" for name, type_name in TYPES.items())
    await engine.query(f"CREATE TABLE {database}.t ({columns}) ENGINE = MergeTree ORDER BY n")
    rows = await engine.query(f"SELECT name, type FROM system.columns WHERE database = '{database}'")
    return TableSchema(database, "t", dict(rows))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=rows_and_columns())
async def test_any_block_is_read_back_as_written(
    engine: EmbeddedSink, table: TableSchema, drawn: tuple[int, dict[str, Column]]
) -> None:
    rows, columns = drawn
    await engine.query(f"TRUNCATE TABLE {table}")
    await engine.insert(
        table.database,
        table.table,
        encode(columns, table, rows),
        "",
        {**INSERT_SETTINGS, "insert_deduplicate": 0},
    )
    asked = [
        {"day": "toUInt32(day)", "time": "toUInt32(time)", "ip6": "hex(ip6)"}.get(name, name)
        for name in columns
    ]
    found = await engine.query(f"SELECT {', '.join(asked)} FROM {table} ORDER BY n")
    wanted = [tuple(expected(column, name, row) for name, column in columns.items()) for row in range(rows)]
    assert found == wanted


@pytest.mark.parametrize("entries", [1, 2, 255, 256, 257, 65_535, 65_536, 65_537, 70_000])
async def test_dictionaries_of_any_size(engine: EmbeddedSink, table: TableSchema, entries: int) -> None:
    names = [f"pod-{number}" for number in range(entries)]
    codes = np.random.default_rng(entries).permutation(entries)
    await engine.query(f"TRUNCATE TABLE {table}")
    block = encode({"n": Values(np.arange(entries)), "low": Coded(codes, names)}, table, entries)
    await engine.insert(table.database, table.table, block, f"{entries}", INSERT_SETTINGS)
    found = await engine.query(f"SELECT low FROM {table} ORDER BY n")
    assert [row[0] for row in found] == [names[code] for code in codes]


async def test_few_rows_of_a_large_dictionary(engine: EmbeddedSink, table: TableSchema) -> None:
    names = [f"pod-{number}" for number in range(100_000)]
    codes = np.array([99_999, 7, 7], np.int32)
    block = encode(
        {"n": Values(np.arange(3)), "plain": Coded(codes, names), "low": Coded(codes, names)}, table, 3
    )
    assert len(block.body) < 500
    await engine.insert(table.database, table.table, block, "few", INSERT_SETTINGS)
    found = await engine.query(f"SELECT plain, low FROM {table} ORDER BY n")
    assert found == [("pod-99999",) * 2, ("pod-7",) * 2, ("pod-7",) * 2]


async def test_one_insert_is_one_part_whatever_its_size(engine: EmbeddedSink, table: TableSchema) -> None:
    rows = 1_300_000  # above the default limits of a block of an INSERT
    block = encode({"n": Values(np.arange(rows))}, table, rows)
    await engine.insert(table.database, table.table, block, "one", INSERT_SETTINGS)
    parts = await engine.query(
        "SELECT count(), sum(rows) FROM system.parts "
        f"WHERE database = '{table.database}' AND table = 't' AND active"
    )
    assert parts == [(1, rows)]


def schema_of(**columns: str) -> TableSchema:
    return TableSchema("db", "t", columns)


def test_columns_that_the_table_lacks_are_left_out() -> None:
    block = encode({"a": Constant(1), "b": Constant(2)}, schema_of(b="UInt8", c="String"), 3)
    assert block.columns == ("b",)


def test_no_rows_is_names_and_types_only() -> None:
    columns: dict[str, Column] = {
        "low": Coded(np.empty(0, np.uint8), []),
        "flags": FlagMaps(np.empty(0, np.uint8), []),
        "bytes": Values(np.empty(0, np.uint64)),
    }
    schema = schema_of(
        low="LowCardinality(String)", flags="Map(LowCardinality(String), Bool)", bytes="UInt64"
    )
    block = encode(columns, schema, 0)
    scan = scan_block(bytearray(b"\x03\x00" + block.body), 0, info=False)
    with pytest.raises(StopIteration) as done:
        next(scan)
    assert done.value.value.columns == list(schema.columns.items())
    assert done.value.value.end == len(block.body) + 2


@pytest.mark.parametrize(
    ("column", "type_name", "complaint"),
    [
        (Constant("x"), "Array(String)", "cannot write"),
        (Constant("x"), "Nullable(String)", "cannot write"),
        (Constant("x"), "UInt8", "cannot hold a string"),
        (Constant(1), "String", "cannot hold a number"),
        (Constant(256), "UInt8", "too narrow for 256"),
        (Values(np.array([-1])), "UInt8", "too narrow"),
        (Values(np.array([70_000])), "UInt16", "too narrow"),
        (Constant("sideways"), "Enum8('out' = 1)", "no member 'sideways'"),
        (FlagMaps(np.zeros(1, int), [{}]), "String", "cannot hold a map"),
        (Values(np.array([1])), "IPv6", "16 bytes"),
    ],
)
def test_a_type_that_cannot_take_the_column_is_named(column: Column, type_name: str, complaint: str) -> None:
    with pytest.raises(SchemaError, match=re.escape(complaint)) as error:
        encode({"x": column}, schema_of(x=type_name), 1)
    assert "column x" in str(error.value)
    assert type_name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "column",
    [
        Values(np.zeros(2, int)),
        Coded(np.zeros(2, int), ["a"]),
        Coded(np.array([1]), ["a"]),
        Coded(np.array([-1]), ["a"]),
    ],
)
def test_columns_of_the_wrong_length_or_code_are_refused(column: Column) -> None:
    with pytest.raises(ValueError, match="column x"):
        encode({"x": column}, schema_of(x="String" if isinstance(column, Coded) else "UInt8"), 1)
