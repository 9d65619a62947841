"""What only a server says and refuses: names of errors, users, methods of compression, zones of time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.failures import _MENDED_BY_AN_OPERATOR, advice
from kubenetmon.clickhouse.frames import Compression
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply, check, read_table
from kubenetmon.clickhouse.sinks import ClickHouseError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.metrics import catalogue
from kubenetmon.report.flows import read_source
from kubenetmon.report.questions import QUESTIONS, ask
from kubenetmon.report.scope import Scope
from tests.beds.clickhouse_server import ClickHouseServer, User, clickhouse_server
from tests.clickhouse.conftest import DAY, INSERT_SETTINGS, make_block
from tests.clickhouse.test_inserter import Running, quick

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

ONE_QUERY = "<interval><duration>3600</duration><queries>1</queries></interval>"
ONE_BYTE = "<interval><duration>3600</duration><written_bytes>1</written_bytes></interval>"
OF_OUR_TABLE = ("INSERT ON flows.network_flows_0", "SELECT ON flows.network_flows_0")
USERS = [
    User("writer", "of rows & more", grants=OF_OUR_TABLE),
    User("reader", "reads", grants=["SELECT ON flows.*"], profile={"readonly": 1}),
    User("reader2", "reads", grants=["SELECT ON flows.*"], profile={"readonly": 2}),
    User("zstd", "z", profile={"network_compression_method": "ZSTD", "readonly": 1}),
    User("plain", "p", profile={"network_compression_method": "NONE", "readonly": 1}),
    User("stranger", "s", grants=["SELECT ON other.*"]),
    User("full", "q", quota=ONE_BYTE),
    User("frozen", "f", profile={"readonly": 1}),
]
PROFILES: dict[str, dict[str, object]] = {
    "log lines with every answer": {"send_logs_level": "trace"},
    "progress without end": {"interactive_delay": 1, "max_block_size": 100},
    "another zone": {"session_timezone": "Asia/Tokyo"},
    "no dictionaries on the wire": {"low_cardinality_allow_in_native_format": 0},
    "inserts put together": {"async_insert": 1, "wait_for_async_insert": 0},
    "inserts in parts": {
        "max_insert_block_size": 3,
        "max_insert_threads": 8,
        "min_insert_block_size_rows": 1,
    },
    "nothing summed at once": {"optimize_on_insert": 0},
    "no token looked at": {"insert_deduplicate": 0, "deduplicate_insert": "disable"},
    "another compression": {"network_compression_method": "ZSTD"},
}
USERS += [User(f"profile{number}", "p", profile=profile) for number, profile in enumerate(PROFILES.values())]
Open = Callable[..., TcpSink]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClickHouseServer]:
    with clickhouse_server(tmp_path_factory.mktemp("clickhouse"), users=USERS) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def as_user(server: ClickHouseServer) -> AsyncIterator[Open]:
    """Opens a sink of that user's, closed at the end."""
    made: list[TcpSink] = []

    def open_sink(name: str, **changes: object) -> TcpSink:
        password = next((user.password for user in USERS if user.name == name), "")
        config = TcpConfig((server.endpoint,), tls=None, username=name, password=password)
        made.append(TcpSink(replace(config, **changes)))  # type: ignore[arg-type]
        return made[-1]

    yield open_sink
    for sink in made:
        await sink.close()


@pytest_asyncio.fixture(loop_scope="module")
async def table(as_user: Open) -> AsyncIterator[TableSchema]:
    boss = as_user("default")
    await apply(boss, SchemaOptions("flows"))
    yield await read_table(boss, "flows", "network_flows_0")
    await boss.query("DROP DATABASE flows SYNC")


async def insert(sink: TcpSink, table: TableSchema, token: str, rows: int = 10) -> None:
    await sink.insert(table.database, table.table, make_block(table, rows), token, INSERT_SETTINGS)


async def test_errors_have_the_names_that_the_server_gives_them(as_user: Open) -> None:
    found = await as_user("default").query(
        "SELECT number, errorCodeToName(number) FROM numbers(1100) WHERE errorCodeToName(number) != ''"
    )
    names = dict(found)
    for code in {*_MENDED_BY_AN_OPERATOR, 159, 209, 210, 241, 242, 252, 285, 286, 319, 745, 774, 999}:
        assert ClickHouseError(code, "without a name").name == names[code]
    assert str(ClickHouseError(31_999, "of tomorrow")) == "ClickHouse error 31999: of tomorrow"


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
@pytest.mark.parametrize("user", ["default", "zstd", "plain"])
async def test_answers_are_read_however_the_profile_compresses_them(
    as_user: Open, user: str, compression: Compression
) -> None:
    rows = await as_user(user, compression=compression).query(
        "SELECT number, toString(number) FROM numbers(100000)"
    )
    assert rows == [(number, str(number)) for number in range(100_000)]


@pytest.mark.parametrize("user", ["reader", "reader2"])
async def test_who_may_only_read_can_ask(as_user: Open, table: TableSchema, user: str) -> None:
    await insert(as_user("default"), table, "one")
    sink = as_user(user)
    source = await read_source(sink, table.database, table.table)
    scope = Scope(since=DAY * 86_400, until=(DAY + 1) * 86_400, limit=0)
    for question in ("top", "classes", "balance"):
        await ask(sink, QUESTIONS[question], scope, source)
    assert await check(sink, SchemaOptions("flows")) == []
    with pytest.raises(ClickHouseError) as refused:
        await insert(sink, table, "two")
    assert refused.value.code in {164, 497}


@pytest.mark.parametrize(
    ("user", "code", "remedy"),
    [
        ("frozen", 164, "user's profile"),
        ("stranger", 497, "grant this user INSERT"),
        ("full", 201, "quota"),
        ("nobody", 516, "clickhouse_credentials_dir"),
    ],
)
async def test_refusals_say_what_mends_them(
    as_user: Open, table: TableSchema, user: str, code: int, remedy: str
) -> None:
    with pytest.raises(ClickHouseError) as refused:
        await insert(as_user(user), table, "one")
    assert refused.value.code == code
    assert remedy in advice(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("profile", PROFILES)
async def test_a_profile_unlike_ours_changes_nothing(as_user: Open, table: TableSchema, profile: str) -> None:
    sink = as_user(f"profile{list(PROFILES).index(profile)}")
    running = Running(quick(table.database), sink)
    assert replace(await running.inserter.wait_schema(), partitions=()) == replace(table, partitions=())
    for token in ("one", "two", "one"):
        assert await running.commit(token, 1000) is CommitOutcome.COMMITTED
    assert await running.total() == 2000
    days = await sink.query(
        f"SELECT DISTINCT toUInt16(date), toUnixTimestamp(intervalStartTime) FROM {table}"
    )
    assert days == [(DAY, DAY * 86_400)]
    assert running.metrics.value(catalogue.INSERT_RETRIES) == 0
    await running.end()


async def test_a_table_of_which_the_user_may_see_nothing_is_as_none(
    as_user: Open, table: TableSchema
) -> None:
    findings = await check(as_user("stranger"), SchemaOptions("flows"))
    assert len(findings) == 1
    assert "may not be seen" in findings[0]
    assert "grant INSERT and SELECT" in findings[0]


async def test_times_are_as_clickhouse_writes_them(as_user: Open) -> None:
    asked = "toDateTime(0, 'UTC') AS a, toDateTime(0, 'Asia/Tokyo') AS b, toDateTime64(1.5, 3, 'UTC') AS c"
    found = await as_user("default").query(f"SELECT a, b, toString(a), toString(b) FROM (SELECT {asked})")
    assert found[0][:2] == found[0][2:] == ("1970-01-01 00:00:00", "1970-01-01 09:00:00")
