"""The TCP sink and a server, or the front where a fault or TLS is wanted."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
import trustme
from asynch.proto.connection import Connection

from kubenetmon.clickhouse.block import Constant, Values, encode
from kubenetmon.clickhouse.frames import Compression
from kubenetmon.clickhouse.sinks import ClickHouseError, ClickHouseUnreachableError
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink, TlsConfig
from kubenetmon.clickhouse.table import TableSchema
from kubenetmon.errors import ConfigurationError
from tests.beds.clickhouse_front import RunningFront, clickhouse_front
from tests.beds.clickhouse_server import ClickHouseServer
from tests.clickhouse.conftest import DAY, INSERT_SETTINGS, make_block

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(loop_scope="module")
async def sink(config: TcpConfig) -> AsyncIterator[TcpSink]:
    sink = TcpSink(config)
    yield sink
    await sink.close()


async def insert(sink: TcpSink, table: TableSchema, token: str, *, rows: int = 10, each: int = 1) -> None:
    block = make_block(table, rows, bytes_each=each)
    await sink.insert(table.database, table.table, block, token, INSERT_SETTINGS)


async def total(sink: TcpSink, table: TableSchema) -> int:
    return int((await sink.query(f"SELECT sum(bytes) FROM {table}"))[0][0])


@pytest.mark.parametrize("compression", ["none", "lz4", "zstd"])
async def test_blocks_arrive_compressed_or_not(
    config: TcpConfig, remote_table: TableSchema, compression: Compression
) -> None:
    sink = TcpSink(replace(config, compression=compression))
    for rows in (1, 3, 65_536):  # the last is several frames
        await insert(sink, remote_table, f"{rows}", rows=rows)
    await insert(sink, remote_table, "none", rows=0)
    assert await total(sink, remote_table) == 65_540
    await sink.close()


async def test_the_token_alone_decides(sink: TcpSink, remote_table: TableSchema) -> None:
    await insert(sink, remote_table, "a", each=1)
    await insert(sink, remote_table, "a", each=1)
    await insert(sink, remote_table, "a", each=5)  # another replica attributed the same batch anew
    assert await total(sink, remote_table) == 10
    await insert(sink, remote_table, "b", each=1)
    assert await total(sink, remote_table) == 20


async def test_a_block_over_midnight_repeats_into_both_days(sink: TcpSink, remote_table: TableSchema) -> None:
    days = np.array([DAY, DAY + 1])
    columns = {"date": Values(days), "intervalStartTime": Values(days * 86400), "bytes": Constant(1)}
    for _ in range(2):
        block = encode(columns, remote_table, 2)
        await sink.insert(remote_table.database, remote_table.table, block, "midnight", INSERT_SETTINGS)
    assert await total(sink, remote_table) == 2


async def test_values_of_queries(sink: TcpSink) -> None:
    rows = await sink.query(
        "SELECT 1, 'é', toUInt64(18446744073709551615), toLowCardinality('a'), toDate(0), toNullable(7), "
        "0.5, CAST(NULL, 'Nullable(String)'), CAST(NULL, 'LowCardinality(Nullable(String))'), "
        "toDateTime(0, 'UTC')"
    )
    assert rows == [(1, "é", 2**64 - 1, "a", "1970-01-01", 7, 0.5, None, None, "1970-01-01 00:00:00")]


@pytest.mark.parametrize("value", ["[1, 2]", "map('a', true)", "tuple(1, 'a')", "NULL"])
async def test_values_within_values_are_not_asked_for_and_refused(sink: TcpSink, value: str) -> None:
    with pytest.raises(ClickHouseUnreachableError, match="which nothing asks for"):
        await sink.query(f"SELECT {value}")


async def test_errors_carry_code_and_name(sink: TcpSink, remote_table: TableSchema) -> None:
    with pytest.raises(ClickHouseError) as error:
        await sink.query("SELECT nothing_of_that_name")
    assert (error.value.code, error.value.name) == (47, "UNKNOWN_IDENTIFIER")
    with pytest.raises(ClickHouseError) as error:
        await insert(sink, replace(remote_table, table="gone"), "x")
    assert (error.value.code, error.value.name) == (60, "UNKNOWN_TABLE")
    assert "\n" not in str(error.value)


async def test_asynch_itself_can_use_the_front(front: RunningFront, remote_table: TableSchema) -> None:
    for number, compression in enumerate((False, "lz4")):
        connection = Connection(host="127.0.0.1", port=front.port, compression=compression)
        await connection.connect()
        statement = (
            f"INSERT INTO {remote_table} (date, intervalStartTime, connectionFlags, localPod, bytes) VALUES"
        )
        moment = datetime.datetime(2038, 1, 1)
        await connection.execute(statement, [(moment.date(), moment, {"X": True}, "pod", number)])
        await connection.disconnect()
    sink = TcpSink(TcpConfig((front.endpoint,), tls=None))
    assert await sink.query(
        f"SELECT sum(bytes), any(connectionFlags['X']), any(localPod) FROM {remote_table}"
    ) == [(1, True, "pod")]
    await sink.close()


async def test_an_exception_behind_other_packets_is_seen(
    front: RunningFront, sink: TcpSink, remote_table: TableSchema
) -> None:
    await front.fault("before_commit", "exception", code=252, message="Too many parts", behind_packets=True)
    with pytest.raises(ClickHouseError, match="252"):
        await insert(sink, remote_table, "hidden")
    assert await total(sink, remote_table) == 0
    await insert(sink, remote_table, "hidden")
    assert await total(sink, remote_table) == 10


async def test_packets_before_the_sample_block_do_no_harm(
    front: RunningFront, sink: TcpSink, remote_table: TableSchema
) -> None:
    await front.fault("sample", "exception", code=241, behind_packets=True)
    with pytest.raises(ClickHouseError, match="241"):
        await insert(sink, remote_table, "early")


@pytest.mark.parametrize("at", ["query", "sample", "data", "before_commit", "after_commit"])
async def test_a_dropped_connection_is_an_unknown_outcome(
    front: RunningFront, sink: TcpSink, remote_table: TableSchema, at: str
) -> None:
    await front.fault(at, "drop", kind="insert")
    with pytest.raises(ClickHouseUnreachableError):
        await insert(sink, remote_table, "dropped", rows=50_000)
    assert await total(sink, remote_table) == (50_000 if at == "after_commit" else 0)
    await insert(sink, remote_table, "dropped", rows=50_000)
    assert await total(sink, remote_table) == 50_000


async def test_an_exception_in_the_middle_of_the_data_is_seen(
    front: RunningFront, sink: TcpSink, remote_table: TableSchema
) -> None:
    await front.fault("data", "exception", code=201, message="Quota exceeded", kind="insert")
    with pytest.raises(ClickHouseError, match="201"):
        await insert(sink, remote_table, "quota", rows=60_000)


async def test_a_server_that_falls_silent_is_given_up(
    front: RunningFront, config: TcpConfig, remote_table: TableSchema
) -> None:
    sink = TcpSink(replace(config, request_timeout=0.5))
    await front.fault("after_commit", "stall", kind="insert")
    with pytest.raises(ClickHouseUnreachableError, match=r"within 0\.5s"):
        await insert(sink, remote_table, "silent")
    await front.fault("hello", "stall")
    with pytest.raises(ClickHouseUnreachableError):
        await sink.ping()
    await front.command(heal=True)
    await insert(sink, remote_table, "silent")
    assert await total(sink, remote_table) == 10
    await sink.close()


async def test_a_cancelled_request_closes_its_connection(
    front: RunningFront, sink: TcpSink, remote_table: TableSchema
) -> None:
    await sink.ping()
    before = (await front.command())["connections"]
    await front.fault("after_commit", "delay", seconds=0.5, kind="insert")
    task = asyncio.create_task(insert(sink, remote_table, "cancelled"))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await insert(sink, remote_table, "cancelled")
    assert (await front.command())["connections"] == before + 1
    assert await total(sink, remote_table) == 10


async def test_idle_connections_are_used_again_and_found_dead(front: RunningFront, sink: TcpSink) -> None:
    await sink.ping()
    before = (await front.command())["connections"]
    await sink.query("SELECT 1")
    assert (await front.command())["connections"] == before
    await front.command(drop=True)
    await asyncio.sleep(1.1)  # long enough idle to be asked for a pong
    await sink.query("SELECT 1")
    assert (await front.command())["connections"] == before + 1


async def test_requests_run_side_by_side(front: RunningFront, config: TcpConfig) -> None:
    sink = TcpSink(replace(config, max_idle_connections=1))
    await asyncio.gather(*(sink.query("SELECT 1") for _ in range(5)))
    before = (await front.command())["connections"]
    await asyncio.gather(*(sink.query("SELECT 1") for _ in range(2)))
    assert (await front.command())["connections"] == before + 1
    await sink.close()
    with pytest.raises(ClickHouseUnreachableError, match="closed"):
        await sink.ping()


async def test_the_next_host_is_tried(config: TcpConfig) -> None:
    sink = TcpSink(replace(config, endpoints=("127.0.0.1:1", *config.endpoints)))
    await sink.ping()
    await sink.close()
    alone = TcpSink(replace(config, endpoints=("127.0.0.1:1", "nowhere.invalid:9000")))
    with pytest.raises(ClickHouseUnreachableError, match=r"127\.0\.0\.1:1: .*; nowhere\.invalid:9000: "):
        await alone.ping()


@pytest.mark.parametrize("together", [1, 2, 3, 20])
async def test_requests_that_fail_together_leave_the_host_that_failed_them(
    config: TcpConfig, tmp_path: Path, together: int
) -> None:
    async with clickhouse_front(tmp_path / "silent") as silent:
        await silent.fault("query", "stall", times=0)
        sink = TcpSink(replace(config, endpoints=(silent.endpoint, *config.endpoints), silence=0.5))
        failed = await asyncio.gather(
            *(sink.query("SELECT 1") for _ in range(together)), return_exceptions=True
        )
        assert all(isinstance(one, ClickHouseUnreachableError) for one in failed)
        for _ in range(2):
            assert (
                await asyncio.gather(*(sink.query("SELECT 1") for _ in range(together)))
                == [[(1,)]] * together
            )
        await sink.close()


async def test_tls_with_an_own_ca_and_client_certificates(tmp_path: Path) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    server, client = authority.issue_cert("127.0.0.1"), authority.issue_cert("client@example.test")
    server.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "server.pem"))
    client.private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "client.pem"))
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    stranger.cert_pem.write_to_path(str(tmp_path / "stranger.pem"))
    options = ("--certificate", str(tmp_path / "server.pem"), "--client-ca", str(tmp_path / "ca.pem"))
    async with clickhouse_front(tmp_path / "engine", *options) as front:

        async def answer(**tls: str | bool) -> list[tuple[int]]:
            paths = {
                key: str(tmp_path / value) if isinstance(value, str) else value for key, value in tls.items()
            }
            sink = TcpSink(
                TcpConfig((front.endpoint,), tls=TlsConfig(**paths), dial_timeout=3, request_timeout=5)
            )  # type: ignore[arg-type]
            try:
                return await sink.query("SELECT 1")
            finally:
                await sink.close()

        assert await answer(ca="ca.pem", certificate="client.pem") == [(1,)]
        assert await answer(certificate="client.pem", insecure_skip_verify=True) == [(1,)]
        with pytest.raises(ClickHouseUnreachableError, match="certificate verify failed"):
            await answer(ca="stranger.pem", certificate="client.pem")
        with pytest.raises(ClickHouseUnreachableError):
            await answer(ca="ca.pem")
        with pytest.raises(ConfigurationError, match=r"clickhouse_ca .*none\.pem"):
            await answer(ca="none.pem")
        plain = TcpSink(TcpConfig((front.endpoint,), tls=None, dial_timeout=1, request_timeout=2))
        with pytest.raises(ClickHouseUnreachableError):
            await plain.ping()


async def test_credentials_are_read_again_when_they_change(server: ClickHouseServer, tmp_path: Path) -> None:
    sink = TcpSink(TcpConfig((server.endpoint,), tls=None, credentials_dir=str(tmp_path)))
    for user, password in (("ann", "first"), ("bob", "second")):
        (tmp_path / "username").write_text(f"{user}\n")
        with pytest.raises(ClickHouseError, match="516"):
            await sink.ping()
        (tmp_path / "password").write_text(password)
        assert await sink.query("SELECT currentUser()") == [(user,)]
    await sink.close()


async def test_garbage_from_the_server_is_an_error_of_ours() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n" + b"\xff" * 100)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sink = TcpSink(TcpConfig((f"127.0.0.1:{port}",), tls=None, dial_timeout=2))
    with pytest.raises(ClickHouseUnreachableError):
        await sink.ping()
    server.close()
    await server.wait_closed()


@pytest.mark.parametrize("endpoint", ["", "host:0", "host:99999", ":9000", "host:port"])
async def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigurationError, match="clickhouse_endpoint"):
        TcpSink(TcpConfig((endpoint,)))


async def test_endpoints_without_a_port_and_of_ipv6() -> None:
    hosts = TcpSink(TcpConfig(("clickhouse", "[::1]:9001", "[::1]")))._hosts
    assert hosts == [("clickhouse", 9440), ("::1", 9001), ("::1", 9440)]
    assert TcpSink(TcpConfig(("clickhouse",), tls=None))._hosts == [("clickhouse", 9000)]
