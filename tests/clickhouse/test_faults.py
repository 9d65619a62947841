"""ClickHouse and the network in between fail in every way; sums in table and view stay equal."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseUnreachableError
from kubenetmon.metrics import catalogue
from tests.clickhouse.conftest import make_block
from tests.clickhouse.faulty import DATABASE, ROWS, FaultySite, faulty_site

pytestmark = pytest.mark.chdb


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[FaultySite]:
    async with faulty_site(tmp_path) as site:
        yield site


def retries(site: FaultySite) -> float:
    return site.running.metrics.value(catalogue.INSERT_RETRIES)


async def until_stat(site: FaultySite, name: str, count: int) -> None:
    """Wait until the front has counted so many."""
    async with asyncio.timeout(20):
        while (await site.front.command())[name] < count:  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("at", ["data", "before_commit", "after_commit"])
async def test_clickhouse_killed_in_a_block(site: FaultySite, at: str) -> None:
    await site.commit()
    await site.front.fault(at, "stall", kind="insert", times=0, bytes=5_000)  # of some 10,000
    batches = [asyncio.create_task(site.commit(days=2)) for _ in range(3)]
    await until_stat(site, "faults", 1)
    await site.kill_clickhouse()
    await site.start_clickhouse()
    await asyncio.gather(*batches)
    assert retries(site) >= 3
    await site.each_batch_once()


async def test_killed_again_and_again(site: FaultySite) -> None:
    batches = [asyncio.create_task(site.commit(rows=1000)) for _ in range(12)]
    for pause in (0.01, 0.05, 0.1):
        await asyncio.sleep(pause)
        await site.kill_clickhouse()
        await site.start_clickhouse()
    await asyncio.gather(*batches)
    await site.each_batch_once(1000)


async def test_given_up_here_and_committed_there(site: FaultySite) -> None:
    """The request's deadline passes while the engine is at work; it commits after we have gone."""
    await site.front.fault("before_commit", "delay", kind="insert", seconds=2.5, times=2)
    await asyncio.gather(*(site.commit() for _ in range(3)))
    assert retries(site) >= 2
    await asyncio.sleep(0.5)
    await site.each_batch_once()


async def test_an_exception_behind_progress_is_no_success(site: FaultySite) -> None:
    for at in ("before_commit", "after_commit"):
        await site.front.fault(at, "exception", code=210, kind="insert", behind_packets=True, times=2)
    await asyncio.gather(*(site.commit() for _ in range(3)))
    assert site.running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="210") >= 1
    await site.each_batch_once()


@pytest.mark.parametrize(
    ("side", "after"),
    [
        ("to_upstream", 1),
        ("to_upstream", 2_000),
        ("to_upstream", 100_000),
        ("to_client", 1),
        ("to_client", 300),
    ],
)
async def test_connections_are_reset(site: FaultySite, side: str, after: int) -> None:
    await site.commit()
    getattr(site.proxy, side).cut_after_bytes(after)
    await asyncio.gather(*(site.commit() for _ in range(3)))
    for _ in range(3):
        batches = [asyncio.create_task(site.commit()) for _ in range(2)]
        await asyncio.sleep(0.03)
        await site.proxy.cut()
        await asyncio.gather(*batches)
    await site.each_batch_once()


@pytest.mark.parametrize("side", ["to_upstream", "to_client"])
async def test_a_half_open_connection_is_given_up(site: FaultySite, side: str) -> None:
    await site.commit()
    direction = getattr(site.proxy, side)
    direction.dropping = True
    batches = [asyncio.create_task(site.commit()) for _ in range(2)]
    await site.running.until("trying again")
    # On a connection in use, or at the next one's handshake.
    assert re.search("did not answer within 1s|no answer in time", site.running.detail())
    assert not any(batch.done() for batch in batches)
    direction.dropping = False
    await asyncio.gather(*batches)
    await site.each_batch_once()


@pytest.mark.parametrize("side", ["to_upstream", "to_client"])
async def test_a_byte_a_second_is_given_up_too(site: FaultySite, side: str) -> None:
    await site.commit()
    getattr(site.proxy, side).bytes_per_second = 1
    batches = [asyncio.create_task(site.commit()) for _ in range(2)]
    await site.running.until("trying again")
    assert not any(batch.done() for batch in batches)
    site.proxy.heal()
    await site.proxy.cut()
    await asyncio.gather(*batches)
    await site.each_batch_once()


async def test_the_engines_own_refusals_are_waited_out_and_mended_without_a_restart(site: FaultySite) -> None:
    await site.commit(rows=1000)
    table = f"{DATABASE}.network_flows_0"
    for code, trouble, mended in (
        (252, "MODIFY SETTING parts_to_throw_insert = 1, parts_to_delay_insert = 1",
         "RESET SETTING parts_to_throw_insert, parts_to_delay_insert"),
        (774, "MODIFY SETTING table_readonly = 1", "RESET SETTING table_readonly"),
    ):  # fmt: skip
        await site.direct.query(f"ALTER TABLE {table} {trouble}")
        batches = [asyncio.create_task(site.commit(rows=1000)) for _ in range(2)]
        await site.running.until(str(code))
        assert site.running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code=str(code)) > 0
        assert site.running.readiness.ready
        await site.direct.query(f"ALTER TABLE {table} {mended}")
        await asyncio.gather(*batches)
        await site.running.until("network_flows_0 on")
    await site.each_batch_once(1000)


async def test_a_dropped_table_is_made_anew(site: FaultySite) -> None:
    await site.direct.query(f"DROP TABLE {DATABASE}.network_flows_0 SYNC")
    batches = [asyncio.create_task(site.commit()) for _ in range(2)]
    await site.running.until("ClickHouse error 60")
    await apply(site.direct, SchemaOptions(DATABASE))
    await asyncio.gather(*batches)
    await site.each_batch_once()


def users(path: Path, grants: str, quota: str = "") -> None:
    path.write_text(
        f"<clickhouse><profiles><default/></profiles><quotas><default>{quota}</default></quotas><users><default>"
        "<password/><profile>default</profile><quota>default</quota><networks><ip>::/0</ip></networks>"
        f"<grants><query>GRANT {grants} ON *.*</query></grants></default></users></clickhouse>"
    )


WRITTEN_BYTES = "<interval><duration>3600</duration><written_bytes>1</written_bytes></interval>"


@pytest.mark.parametrize(
    ("code", "grants", "quota", "remedy"),
    [(497, "SELECT, SHOW", "", "grant this user INSERT"), (201, "ALL", WRITTEN_BYTES, "quota")],
)
async def test_a_revoked_grant_and_a_quota_are_the_operators(
    tmp_path: Path, code: int, grants: str, quota: str, remedy: str
) -> None:
    """The engine's own answers; ClickHouse restarts with other users, we do not."""
    config, users_file = tmp_path / "config.xml", tmp_path / "users.xml"
    config.write_text(f"<clickhouse><users_config>{users_file}</users_config></clickhouse>")
    users(users_file, "ALL")
    options = ("--engine-config", str(config))
    async with faulty_site(tmp_path, *options) as site:
        await site.commit(rows=1000)
        await site.kill_clickhouse()
        users(users_file, grants, quota)
        await site.start_clickhouse(*options)
        batches = [asyncio.create_task(site.commit(rows=1000)) for _ in range(3)]
        await site.running.until(f"ClickHouse error {code}")
        assert remedy in site.running.detail()
        await site.running.eventually(lambda: site.running.metrics.value(catalogue.HELD_BATCHES) > 0)
        await site.kill_clickhouse()
        users(users_file, "ALL")
        await site.start_clickhouse(*options)
        await asyncio.gather(*batches)
        await site.each_batch_once(1000)


async def test_a_batch_over_midnight_whose_answer_is_lost(site: FaultySite) -> None:
    await site.front.fault("after_commit", "drop", kind="insert", times=3)
    await asyncio.gather(*(site.commit(days=2) for _ in range(3)))
    assert retries(site) >= 3
    await site.each_batch_once()


async def test_a_token_of_its_own_for_each_attempt_would_double(site: FaultySite) -> None:
    """The control: with one token for two attempts, none of the above could have come out even."""
    table = await site.running.inserter.wait_schema()
    await site.front.fault("after_commit", "drop", kind="insert")
    with contextlib.suppress(ClickHouseUnreachableError):
        await site.direct.insert(DATABASE, table.table, make_block(table, ROWS), "one", {})
    await site.direct.insert(DATABASE, table.table, make_block(table, ROWS), "another", {})
    assert await site.sums() == {"node": (2 * ROWS, 2 * ROWS)}
