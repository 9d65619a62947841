"""The embedded engine killed in the middle of inserts neither loses nor doubles a row."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
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

    def __init__(self, path: Path, first: int, environment: Mapping[str, str] | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clickhouse.embedded_victim", str(path), str(first), str(ROWS)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def kill(self) -> list[int]:
        """SIGKILL; returns the numbers of the batches that it said were committed."""
        self._process.kill()
        return self.wait()

    def wait(self) -> list[int]:
        """Wait for its death; returns the numbers of the batches that it said were committed."""
        with self._process:  # not `communicate`, which would miss what came with the first line
            assert self._process.stdout is not None
            output = self._process.stdout.read()
            self._process.wait(timeout=30)
        assert self._process.returncode == -signal.SIGKILL
        return [int(line) for line in output.splitlines()]


def output_of(command: list[str]) -> str:
    """What the command prints; it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


async def each_batch_once(path: Path, next_batch: int) -> None:
    """Send the batch again whose outcome is unknown, and the next; every batch must be there once."""
    sink = EmbeddedSink(path)
    try:
        table = await read_table(sink, "default", "network_flows_0")
        for number in (next_batch, next_batch + 1):
            block = encode(rows_of(f"batch-{number}"), table, ROWS)
            await sink.insert("default", "network_flows_0", block, f"token-{number}", SETTINGS)
        rows = await sink.query("SELECT localNode, sum(bytes) FROM network_flows_0 GROUP BY localNode")
    finally:
        await sink.close()
    assert dict(rows) == {f"batch-{number}": ROWS for number in range(next_batch + 2)}


async def test_random_kills(tmp_path: Path) -> None:
    randomness = random.Random(7)
    path = tmp_path / "engine"
    next_batch = kills = 0
    while kills < 8 or next_batch <= 5:  # some commits between the kills, however slow the machine
        assert kills < 80, "batches are committed"
        victim = Victim(path, next_batch)
        await asyncio.sleep(randomness.uniform(0.0, 0.1))
        # The last one acknowledged is sent again too: it must not double.
        next_batch = max([*victim.kill(), next_batch])
        kills += 1
    await each_batch_once(path, next_batch)


@pytest.fixture(scope="module")
def kill_at_rename(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("preload") / "kill_at_rename.so"
    source = Path(__file__).with_name("kill_at_rename.c")
    output_of(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"])
    return library


@pytest.mark.parametrize(("when", "tokens_taken_back"), [("before", 1), ("after", 0)])
async def test_killed_at_the_renaming(
    tmp_path: Path, kill_at_rename: Path, when: str, tokens_taken_back: int
) -> None:
    """Between the token's line in the log and the part: the one instant at which the engine is wrong."""
    path = tmp_path / "engine"
    environment = {"LD_PRELOAD": str(kill_at_rename), "KILL_AT": "3", "KILL_WHEN": when}
    next_batch = 0
    for _ in range(2):
        committed = Victim(path, next_batch, environment).wait()
        assert len(committed) == 2
        next_batch = max(committed) + 1
        assert forget_tokens_without_part(path) == tokens_taken_back
    await each_batch_once(path, next_batch)


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
