"""`kubenetmon ask` and `cost` as a user types them, also while another process holds the directory, and over
the native protocol."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.local_queries import SOCKET_NAME, LocalQueries, LocalQuerySink, answers
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.errors import MachineError
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import read_source
from kubenetmon.report.prices import read_prices
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from kubenetmon.report.views import apply_views
from tests.beds.clickhouse_server import clickhouse_server
from tests.beds.known_traffic import World, make_world

pytestmark = [pytest.mark.chdb, pytest.mark.timeout(240)]

DAY = 86_400
BEGIN = int(time.time()) // DAY * DAY - 2 * DAY


async def run(*arguments: str) -> tuple[int, str, str]:
    """Exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "kubenetmon", *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


@pytest.fixture
async def held(tmp_path: Path) -> AsyncIterator[tuple[Path, EmbeddedSink, World]]:
    """A directory that this process holds and answers for, with a world in it."""
    # Deeper than an address of a Unix socket can say.
    directory = tmp_path / ("deep" * 30)
    sink = EmbeddedSink(directory)
    await apply(sink, SchemaOptions(ipv6=True))
    world = make_world(ours=True, begin=BEGIN, minutes=1440, count=100)
    await sink.query(world.insert("default.network_flows_0"))
    task = asyncio.create_task(LocalQueries(directory, sink=sink).run())
    while not await answers(directory):
        assert not task.done()
        await asyncio.sleep(0.02)
    yield directory, sink, world
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    await sink.close()
    assert not (directory / SOCKET_NAME).exists()


async def test_a_directory_that_a_process_holds_is_asked_through_it(
    held: tuple[Path, EmbeddedSink, World],
) -> None:
    directory, _, world = held
    where = ("--set", f"clickhouse_endpoint=chdb:{directory}", "--since", f"@{BEGIN}")
    code, output, errors = await run("ask", "classes", *where, "--format", "json")
    assert (code, errors) == (0, "")
    found = {(row["class"],): row["bytes"] for row in json.loads(output)["rows"]}
    assert found == world.summed(lambda one: (one.klass,))
    code, output, _ = await run("cost", *where, "--by", "path", "--format", "csv", "--limit", "0")
    assert code == 0
    assert {row["entry"] for row in csv.DictReader(io.StringIO(output))} >= {"aws/cross-zone-out", ""}
    code, output, _ = await run("ask", "top", *where, "--app", 'it\'s \\ "odd" `名`', "--by", "pod")
    assert code == 0
    assert "from pod" in output
    assert oct((directory / SOCKET_NAME).stat().st_mode)[-3:] == "600"


async def test_only_what_reads_is_answered(held: tuple[Path, EmbeddedSink, World]) -> None:
    directory, sink, _ = held
    local = LocalQuerySink(directory)
    table = "default.network_flows_0"
    for statement in (f"DROP TABLE {table}", f"TRUNCATE TABLE {table}", "SET max_threads = 1", ""):
        with pytest.raises(ClickHouseUnreachableError, match="only statements that read"):
            await local.query(statement)
    with pytest.raises(ClickHouseError) as caught:
        await local.query("SELECT * FROM default.nothing")
    assert caught.value.name == "UNKNOWN_TABLE"
    values = "SELECT 18446744073709551615, 'ä\"\\'', [1, 2], 0.5"
    assert await local.query(values) == await sink.query(values)
    with pytest.raises(ClickHouseUnreachableError):
        await local.query("SELECT " + "1" * (2 << 20))
    with pytest.raises(MachineError, match="not written to"):
        await local.insert("default", "network_flows_0", None, "", {})  # type: ignore[arg-type]


async def test_a_socket_that_a_killed_process_left_is_no_answer(tmp_path: Path) -> None:
    import socket

    left = socket.socket(socket.AF_UNIX)
    left.bind(str(tmp_path / SOCKET_NAME))
    left.close()
    assert not await answers(tmp_path)
    assert not await answers(tmp_path / "none")


async def test_a_directory_that_nobody_holds_is_opened(tmp_path: Path) -> None:
    where = ("--set", f"clickhouse_endpoint=chdb:{tmp_path / 'engine'}")
    code, _, errors = await run("ask", "top", *where)
    assert code == 2
    assert "there is no such directory" in errors
    assert not (tmp_path / "engine").exists()
    assert (await run("schema", "apply", "--views", *where))[0] == 0
    code, output, errors = await run("ask", "top", *where)
    assert (code, errors) == (0, "")
    assert "Nothing was found." in output
    for asked, rollup, used in (
        (("top", "--since", "45m"), "hourly", False),
        (("top", "--since", "2h"), "hourly", True),
        (("throughput", "--since", "45m"), "minutes", True),
        (("throughput", "--since", "45m", "--raw"), "minutes", False),
    ):
        code, output, _ = await run("ask", *asked, *where, "--sql")
        assert code == 0
        assert (f"network_flows_0_{rollup}" in output) == used, asked
    assert (await run("schema", "check", "--views", *where))[0] == 0


async def test_every_answer_is_the_same_over_the_native_protocol(tmp_path: Path) -> None:
    with clickhouse_server(tmp_path) as server:
        sink = TcpSink(TcpConfig((server.endpoint,), tls=None))
        try:
            options = SchemaOptions(ipv6=True)
            await apply(sink, options)
            await apply_views(sink, options, time.time())
            world = make_world(ours=True, begin=BEGIN, minutes=1440, count=100)
            await sink.query(world.insert_select("default.network_flows_0"))
            source = await read_source(sink, "default", "network_flows_0")
            scope = Scope(since=BEGIN, until=BEGIN + DAY, limit=0)
            for question in QUESTIONS.values():
                answer = await ask(sink, question, scope, source)
                assert answer.rows
                json.dumps(answer.document())
            top = await ask(sink, QUESTIONS["classes"], scope, source)
            found = {(row["class"],): row["bytes"] for row in top.records()}
            assert found == world.summed(lambda one: (one.klass,))
            assert (await cost(sink, source, scope, "workload", read_prices())).rows
        finally:
            await sink.close()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("ask", "top", "--service", "s3", "--set", "clickhouse_endpoint=x:1"),
            "--service is for s3, not for top",
        ),
        (
            ("ask", "s3", "--client", "web", "--set", "clickhouse_endpoint=x:1"),
            "--client is for balance, not for s3",
        ),
        (
            ("ask", "classes", "--instance-type", "m5.large", "--set", "clickhouse_endpoint=x:1"),
            "--instance-type is for throughput, not for classes",
        ),
        (
            ("ask", "openers", "--nodes", "/none", "--set", "clickhouse_endpoint=x:1"),
            "--nodes is for throughput, not for openers",
        ),
        (
            ("ask", "balance", "--limits", "/none", "--set", "clickhouse_endpoint=x:1"),
            "--limits is for throughput, not for balance",
        ),
        (
            (
                *("ask", "throughput", "--by", "pod", "--instance-type", "m5.large"),
                *("--set", "clickhouse_endpoint=x:1"),
            ),
            "--instance-type is for --by node, not for --by pod",
        ),
        (("ask",), "QUESTION"),
        (("ask", "why"), "invalid choice: 'why'"),
        (("ask", "top"), "clickhouse_endpoint is missing"),
        (("ask", "top", "--since", "soon"), "clickhouse_endpoint is missing"),
        (("ask", "balance", "--by", "pod", "--set", "clickhouse_endpoint=x:1"), "cannot be grouped by pod"),
        (
            ("ask", "top", "--since", "soon", "--set", "clickhouse_endpoint=x:1"),
            "--since 'soon' is not a time",
        ),
        (("cost", "--prices", "/none.json", "--set", "clickhouse_endpoint=x:1"), "/none.json cannot be read"),
        (("cost", "--mtu", "3", "--set", "clickhouse_endpoint=x:1"), "--mtu 3 is not"),
        (("cost", "--mtu", "1500", "--set", "clickhouse_endpoint=x:1"), "--mtu is for --reconcile"),
        *(
            (
                ("cost", "--reconcile", "/none", *more, "--set", "clickhouse_endpoint=x:1"),
                f"{more[0]} does not go with --reconcile",
            )
            for more in (("--app", "web"), ("--zone", "a"), ("--by", "path"), ("--sql",))
        ),
        (
            ("ask", "throughput", "--nodes", "/none", "--set", "clickhouse_endpoint=x:1"),
            "--nodes /none cannot be read",
        ),
        (
            ("ask", "throughput", "--instance-type", "big", "--set", "clickhouse_endpoint=x:1"),
            "--instance-type 'big' is not in the list",
        ),
    ],
)
async def test_mistakes_are_one_line_and_exit_2(arguments: tuple[str, ...], says: str) -> None:
    code, output, errors = await run(*arguments)
    assert (code, output) == (2, "")
    assert says in errors
    assert "Traceback" not in errors
