"""The embedded engine killed in the middle of inserts neither loses nor doubles a row."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubenetmon.clickhouse.block import Column, Constant, encode
from kubenetmon.clickhouse.deduplication_log import forget_tokens_without_part
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from tests.clickhouse.embedded_victim import SETTINGS

pytestmark = pytest.mark.chdb

ROWS = 50
ROOT = Path(__file__).resolve().parents[2]


def rows_of(node: str) -> dict[str, Column]:
    """Equal rows of one byte each, far from the table's TTL."""
    return {
        "date": Constant(25_000),
        "intervalStartTime": Constant(25_000 * 86400),
        "localNode": Constant(node),
        "bytes": Constant(1),
    }


class Victim:
    """A process that inserts until killed."""

    def __init__(self, path: Path, first: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clickhouse.embedded_victim", str(path), str(first), str(ROWS)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> list[int]:
        """SIGKILL; returns the numbers of the batches that it said were committed."""
        self._process.kill()
        output, _ = self._process.communicate()
        return [int(line) for line in output.splitlines()]


def output_of(command: list[str]) -> str:
    """What the command prints; it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def log_size(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("store/*/*/deduplication_logs/*.txt"))


def wait_for_a_token(path: Path) -> None:
    """Return at the instant a token is written to the log: its part is about to be put in place."""
    size, deadline = log_size(path), time.monotonic() + 10
    logs = [str(file) for file in path.glob("store/*/*/deduplication_logs/*.txt")]
    while time.monotonic() < deadline:
        if sum(os.stat(log).st_size for log in logs) > size:
            return


async def test_random_kills(tmp_path: Path) -> None:
    randomness = random.Random(7)
    path = tmp_path / "engine"
    next_batch = 0
    for life in range(12):
        victim = Victim(path, next_batch)
        if life % 2:
            for _ in range(randomness.randrange(1, 4)):
                wait_for_a_token(path)
        else:
            await asyncio.sleep(randomness.uniform(0.0, 0.1))
        committed = victim.kill()
        # The last one acknowledged is sent again too: it must not double.
        next_batch = max([*committed, next_batch])
    sink = EmbeddedSink(path)
    try:
        table = await read_table(sink, "default", "network_flows_0")
        for number in (next_batch, next_batch + 1):
            block = encode(rows_of(f"batch-{number}"), table, ROWS)
            await sink.insert("default", "network_flows_0", block, f"token-{number}", SETTINGS)
        rows = await sink.query(
            "SELECT localNode, sum(bytes) FROM network_flows_0 GROUP BY localNode ORDER BY localNode"
        )
    finally:
        await sink.close()
    assert dict(rows) == {f"batch-{number}": ROWS for number in range(next_batch + 2)}
    assert next_batch > 5


@pytest.mark.parametrize("repair", [True, False])
async def test_a_token_without_its_part(tmp_path: Path, repair: bool) -> None:
    """Takes the state between log and part by hand; without the repair (the control) the batch is lost."""
    path = tmp_path / "engine"
    sink = EmbeddedSink(path)
    await apply(sink, SchemaOptions())
    table = await read_table(sink, "default", "network_flows_0")
    block = encode(rows_of("x"), table, 3)
    for token in ("kept", "lost"):
        await sink.insert("default", "network_flows_0", block, token, SETTINGS)
    await sink.close()
    (last_part,) = path.glob("store/*/*/*_2_2_*")
    shutil.rmtree(last_part)
    if not repair:
        for log in path.glob("store/*/*/deduplication_logs"):
            kept = log.with_name("kept_logs")
            shutil.copytree(log, kept)
    assert forget_tokens_without_part(path) == 1
    assert forget_tokens_without_part(path) == 0
    if not repair:
        for kept in path.glob("store/*/*/kept_logs"):
            shutil.rmtree(kept.with_name("deduplication_logs"))
            kept.rename(kept.with_name("deduplication_logs"))

    code = (
        "import sys; from chdb.state.sqlitelike import Connection; c = Connection(sys.argv[1])\n"
        "columns = 'date, intervalStartTime, localNode, bytes'\n"
        "values = \"(toDate(25000), toDate(25000), 'x', 3)\"\n"
        "for token in ('kept', 'lost'):\n"
        "    settings = f\"async_insert = 0, insert_deduplication_token = '{token}'\"\n"
        "    c.query(f'INSERT INTO network_flows_0 ({columns}) SETTINGS {settings} VALUES {values}')\n"
        "print(c.query('SELECT sum(bytes) FROM network_flows_0', 'TSV').data())"
    )
    assert int(await asyncio.to_thread(output_of, [sys.executable, "-c", code, str(path)])) == (
        6 if repair else 3
    )
