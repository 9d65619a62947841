"""The embedded engine as a sink: who may open it, what it says, what it keeps from the event loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.errors import ConfigurationError, MachineError
from tests.clickhouse.conftest import INSERT_SETTINGS, make_block

pytestmark = pytest.mark.chdb

OPEN_AND_WAIT = (
    "import sys; from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink\n"
    "sink = EmbeddedSink(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
)


async def test_the_token_alone_decides(engine: EmbeddedSink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    table = await read_table(engine, database, "network_flows_0")
    for token, each in (("a", 1), ("a", 1), ("a", 5), ("b", 1)):
        block = make_block(table, 10, bytes_each=each)
        await engine.insert(database, table.table, block, token, INSERT_SETTINGS)
    await engine.insert(database, table.table, make_block(table, 0), "none", INSERT_SETTINGS)
    assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(20,)]


async def test_inserts_side_by_side_all_arrive(engine: EmbeddedSink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    table = await read_table(engine, database, "network_flows_0")
    block = make_block(table, 100)
    inserts = [engine.insert(database, table.table, block, str(i), INSERT_SETTINGS) for i in range(20)]
    counts = [engine.query(f"SELECT count() FROM {table}") for _ in range(5)]
    await asyncio.gather(*inserts, *counts)
    assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(2000,)]


async def test_a_query_that_fails_half_way_leaves_the_next_one_nothing(engine: EmbeddedSink) -> None:
    failing = "SELECT number, throwIf(number = 100000) FROM numbers(1000000)"
    for _ in range(3):
        for _ in range(2):
            with pytest.raises(ClickHouseError, match="395"):
                await engine.query(failing)
        assert await engine.query("SELECT 1, 2, 3") == [(1, 2, 3)]
        assert await engine.query("SELECT 4") == [(4,)]


async def test_a_view_repeats_no_block_either(engine: EmbeddedSink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    await engine.query(
        f"CREATE TABLE {database}.daily (day Date, b UInt64) ENGINE = SummingMergeTree ORDER BY day "
        "SETTINGS non_replicated_deduplication_window = 100"
    )
    await engine.query(
        f"CREATE MATERIALIZED VIEW {database}.to_daily TO {database}.daily AS "
        f"SELECT date AS day, sum(bytes) AS b FROM {database}.network_flows_0 GROUP BY day"
    )
    table = await read_table(engine, database, "network_flows_0")
    settings = {**INSERT_SETTINGS, "deduplicate_blocks_in_dependent_materialized_views": 1}
    for token in ("a", "a", "b"):  # the rows of a and b are the same
        await engine.insert(database, table.table, make_block(table, 10), token, settings)
    assert await engine.query(f"SELECT sum(b) FROM {database}.daily") == [(20,)]


@pytest.mark.alone
async def test_the_event_loop_goes_on(engine: EmbeddedSink) -> None:
    longest, last, stop = 0.0, time.monotonic(), False

    async def tick() -> None:
        nonlocal longest, last
        while not stop:
            await asyncio.sleep(0.002)
            longest, last = max(longest, time.monotonic() - last), time.monotonic()

    ticking = asyncio.create_task(tick())
    await engine.query("SELECT sum(sipHash64(number)) FROM numbers(30000000) SETTINGS max_threads = 1")
    stop = True
    await ticking
    assert longest < 0.2


async def test_errors_carry_code_and_name(engine: EmbeddedSink) -> None:
    with pytest.raises(ClickHouseError) as error:
        await engine.query("SELECT * FROM nowhere.nothing")
    assert (error.value.code, error.value.name) == (81, "UNKNOWN_DATABASE")
    assert "\n" not in str(error.value)


async def test_one_process_one_path(engine: EmbeddedSink, tmp_path: Path) -> None:
    same = EmbeddedSink(engine.address.removeprefix("chdb:"))
    await same.ping()
    await same.close()
    await engine.ping()
    with pytest.raises(ClickHouseUnreachableError, match="closed"):
        await same.ping()
    with pytest.raises(MachineError, match="already holds"):
        EmbeddedSink(tmp_path)


@pytest.mark.parametrize("path", ["", "what?is=this"])
async def test_paths_that_are_none(path: str) -> None:
    with pytest.raises(ConfigurationError, match="name a directory"):
        EmbeddedSink(path)


async def test_a_path_in_use_names_the_process(tmp_path: Path) -> None:
    def attempt() -> tuple[subprocess.Popen[str], subprocess.CompletedProcess[str]]:
        command = [sys.executable, "-c", OPEN_AND_WAIT, str(tmp_path)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        second = subprocess.run(command, capture_output=True, text=True, input="", timeout=60)
        holder.communicate("")
        return holder, second

    holder, second = await asyncio.to_thread(attempt)
    assert f"is in use by process {holder.pid}" in second.stderr.splitlines()[-1]


async def test_without_chdb_it_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['chdb.state.sqlitelike'] = None\n"
        "from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink; EmbeddedSink(sys.argv[1])"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = await asyncio.to_thread(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=60)
    )
    assert "pip install 'kubenetmon[embedded]'" in done.stderr.splitlines()[-1]


async def test_values_of_queries(engine: EmbeddedSink) -> None:
    rows = await engine.query(
        "SELECT 1, 'é\u2028\u0085', toUInt64(18446744073709551615), [1, 2], map('a', true), toDate(0), NULL",
        {"max_threads": 1, "log_comment": "it's"},
    )
    assert rows == [(1, "é\u2028\u0085", 2**64 - 1, [1, 2], {"a": True}, "1970-01-01", None)]


async def test_a_refused_block_leaves_the_next_alone(engine: EmbeddedSink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    table = await read_table(engine, database, "network_flows_0")
    good = make_block(table, 10)
    bad_blocks = (
        replace(good, body=good.body[:-5]),
        replace(good, columns=("nothing_of_that_name", *good.columns[1:])),
        replace(good, body=b"\xff" * 100),
    )
    for bad in bad_blocks:
        with pytest.raises(ClickHouseError):
            await engine.insert(database, table.table, bad, "token", INSERT_SETTINGS)
    await engine.insert(database, table.table, good, "token", INSERT_SETTINGS)
    assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(10,)]


@pytest.mark.parametrize(
    ("trouble", "code"),
    [
        ("MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1", 252),
        ("MODIFY SETTING table_readonly = 1", 774),
        ("ADD CONSTRAINT small CHECK bytes < 5", 469),
    ],
)
async def test_what_the_engine_refuses_is_never_a_success(
    engine: EmbeddedSink, database: str, trouble: str, code: int
) -> None:
    """chdb's own streaming insert reports none of these."""
    await apply(engine, SchemaOptions(database))
    table = await read_table(engine, database, "network_flows_0")
    await engine.insert(database, table.table, make_block(table, 10), "first", INSERT_SETTINGS)
    await engine.query(f"ALTER TABLE {table} {trouble}")
    with pytest.raises(ClickHouseError) as error:
        await engine.insert(database, table.table, make_block(table, 10, bytes_each=7), "x", INSERT_SETTINGS)
    assert error.value.code == code
    assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(10,)]


async def test_a_view_that_throws_is_seen_and_mended(engine: EmbeddedSink, database: str) -> None:
    await apply(engine, SchemaOptions(database))
    table = await read_table(engine, database, "network_flows_0")
    target = f"{database}.copy"
    await engine.query(
        f"CREATE TABLE {target} (b UInt64) ENGINE = MergeTree ORDER BY b "
        "SETTINGS non_replicated_deduplication_window = 10"
    )
    await engine.query(
        f"CREATE MATERIALIZED VIEW {database}.to_copy TO {target} AS "
        f"SELECT bytes + throwIf(bytes = 7) AS b FROM {table}"
    )
    with pytest.raises(ClickHouseError, match="395"):
        await engine.insert(database, table.table, make_block(table, 10, bytes_each=7), "x", INSERT_SETTINGS)
    await engine.query(f"ALTER TABLE {database}.to_copy MODIFY QUERY SELECT bytes AS b FROM {table}")
    await engine.insert(database, table.table, make_block(table, 10, bytes_each=7), "x", INSERT_SETTINGS)
    assert await engine.query(f"SELECT sum(bytes) FROM {table}") == [(70,)]
    assert await engine.query(f"SELECT sum(b) FROM {target}") == [(70,)]
