"""The embedded engine killed in the middle of inserts neither loses nor doubles a row."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.clickhouse.block import Column, Constant, Values, encode
from kubenetmon.clickhouse.deduplication_log import forget_tokens_without_part
from kubenetmon.clickhouse.insert_settings import insert_settings
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from tests.clickhouse.embedded_victim import SETTINGS

pytestmark = pytest.mark.chdb

ROWS = 50
ROOT = Path(__file__).resolve().parents[2]


def rows_of(node: str, days: int = 0) -> dict[str, Column]:
    """Rows of one byte each, far from the table's TTL; `days` 0: any number of equal ones on one day."""
    dates = 25_000 + np.arange(ROWS) % days if days else None
    return {
        "date": Constant(25_000) if dates is None else Values(dates),
        "intervalStartTime": Constant(25_000 * 86400) if dates is None else Values(dates * 86400),
        "localNode": Constant(node),
        "bytes": Constant(1),
    }


class Victim:
    """A process that inserts until killed."""

    def __init__(
        self,
        path: Path,
        first: int,
        environment: Mapping[str, str] | None = None,
        *,
        days: int = 1,
        view: bool = False,
    ) -> None:
        arguments = [str(path), *map(str, (first, ROWS, days, int(view)))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.clickhouse.embedded_victim", *arguments],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"
        self._said: list[str] = []

    def wait_for_commits(self, count: int) -> float:
        """Wait until it has said so of so many batches; returns about how long one took, in seconds."""
        assert self._process.stdout is not None
        begun = time.monotonic()
        self._said += [self._process.stdout.readline() for _ in range(count)]
        return (time.monotonic() - begun) / count

    def kill(self) -> list[int]:
        """SIGKILL; returns the numbers of the batches that it said were committed."""
        self._process.kill()
        return self.wait()

    def wait(self) -> list[int]:
        """Wait for its death; returns the numbers of the batches that it said were committed."""
        with self._process:  # not `communicate`, which would miss what came with the first line
            assert self._process.stdout is not None
            self._said += self._process.stdout.readlines()
            self._process.wait(timeout=30)
        assert self._process.returncode == -signal.SIGKILL
        return [int(line) for line in self._said]


def output_of(command: list[str]) -> str:
    """What the command prints; it must succeed."""
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


async def each_batch_once(path: Path, next_batch: int, *, days: int = 1, view: bool = False) -> None:
    """Send the batch again whose outcome is unknown, and the next; every batch must be there once, and in
    the view."""
    sink = EmbeddedSink(path)
    try:
        table = await read_table(sink, "default", "network_flows_0")
        for number in (next_batch, next_batch + 1):
            block = encode(rows_of(f"batch-{number}", days), table, ROWS)
            token = f"token-{number}"
            settings = insert_settings(table, token, {}) if view else SETTINGS
            await sink.insert("default", "network_flows_0", block, token, settings)
        rows = await sink.query("SELECT localNode, sum(bytes) FROM network_flows_0 GROUP BY localNode")
        viewed = await sink.query("SELECT node, sum(total) FROM by_node GROUP BY node") if view else rows
    finally:
        await sink.close()
    assert dict(rows) == {f"batch-{number}": ROWS for number in range(next_batch + 2)}
    assert dict(viewed) == dict(rows)


async def test_random_kills(tmp_path: Path) -> None:
    randomness = random.Random(7)
    path = tmp_path / "engine"
    next_batch = 0
    for _ in range(6):
        victim = Victim(path, next_batch)
        took = victim.wait_for_commits(randomness.randint(1, 3))
        await asyncio.sleep(randomness.uniform(0.0, min(took, 1.0)))
        # The last one acknowledged is sent again too: it must not double.
        next_batch = max([*victim.kill(), next_batch])
    assert next_batch >= 3, "batches are committed"
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


@pytest.mark.parametrize(("days", "view"), [(2, False), (1, True)], ids=["over midnight", "table and view"])
@pytest.mark.parametrize("part", [3, 4])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_killed_within_a_batch_of_two_parts(
    tmp_path: Path, kill_at_rename: Path, when: str, part: int, days: int, view: bool
) -> None:
    """Of the second batch's parts none, one or both are in place."""
    path = tmp_path / "engine"
    environment = {"LD_PRELOAD": str(kill_at_rename), "KILL_AT": str(part), "KILL_WHEN": when}
    assert Victim(path, 0, environment, days=days, view=view).wait() == [0]
    await each_batch_once(path, 1, days=days, view=view)


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
