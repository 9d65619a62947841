"""ClickHouse and the network in between fail in every way; sums in table and view stay equal."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kubenetmon.clickhouse.block import Coded, Constant, encode
from kubenetmon.clickhouse.inserter import CommitOutcome
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import ClickHouseUnreachableError
from kubenetmon.metrics import catalogue
from tests.beds.clickhouse_server import User
from tests.clickhouse.conftest import DAY, make_block
from tests.clickhouse.faulty import DATABASE, METERING, ROWS, FaultySite, FrontedSite, at_work

pytestmark = pytest.mark.chdb


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[FaultySite]:
    async with at_work(FaultySite(tmp_path)) as site:
        yield site


@pytest.fixture
async def fronted(tmp_path: Path) -> AsyncIterator[FrontedSite]:
    async with at_work(FrontedSite(tmp_path)) as site:
        yield site


def retries(site: FaultySite) -> float:
    return site.running.metrics.value(catalogue.INSERT_RETRIES)


async def until_stat(site: FrontedSite, name: str, count: int) -> None:
    """Wait until the front has counted so many."""
    async with asyncio.timeout(20):
        while (await site.front.command())[name] < count:  # noqa: ASYNC110 - it has to be asked
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("at", ["data", "before_commit", "after_commit"])
async def test_clickhouse_killed_in_a_block(fronted: FrontedSite, at: str) -> None:
    await fronted.commit()
    await fronted.front.fault(at, "stall", kind="insert", times=0, bytes=5_000)  # of some 10,000
    batches = [asyncio.create_task(fronted.commit(days=2)) for _ in range(3)]
    await until_stat(fronted, "faults", 1)
    await fronted.kill_clickhouse()
    await fronted.start_clickhouse()
    await asyncio.gather(*batches)
    assert retries(fronted) >= 3
    await fronted.each_batch_once()


async def test_killed_again_and_again(site: FaultySite) -> None:
    batches = [asyncio.create_task(site.commit(rows=1000)) for _ in range(12)]
    for pause in (0.01, 0.05, 0.1):
        await asyncio.sleep(pause)
        await site.kill_clickhouse()
        await site.start_clickhouse()
    await asyncio.gather(*batches)
    await site.each_batch_once(1000)


async def test_given_up_here_and_committed_there(fronted: FrontedSite) -> None:
    """The request's deadline passes while the engine is at work; it commits after we have gone."""
    await fronted.front.fault("before_commit", "delay", kind="insert", seconds=2.5, times=2)
    await asyncio.gather(*(fronted.commit() for _ in range(3)))
    assert retries(fronted) >= 2
    await asyncio.sleep(0.5)
    await fronted.each_batch_once()


async def test_an_exception_behind_progress_is_no_success(fronted: FrontedSite) -> None:
    for at in ("before_commit", "after_commit"):
        await fronted.front.fault(at, "exception", code=210, kind="insert", behind_packets=True, times=2)
    await asyncio.gather(*(fronted.commit() for _ in range(3)))
    assert fronted.running.metrics.value(catalogue.CLICKHOUSE_ERRORS, code="210") >= 1
    await fronted.each_batch_once()


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


WRITTEN_BYTES = "<interval><duration>3600</duration><written_bytes>1</written_bytes></interval>"


@pytest.mark.parametrize(
    ("code", "refused", "remedy"),
    [
        (497, replace(METERING, grants=["SELECT ON *.*"]), "grant this user INSERT"),
        (201, replace(METERING, quota=WRITTEN_BYTES), "quota"),
        (164, replace(METERING, profile={"readonly": 1}), "profile"),
    ],
)
async def test_a_revoked_grant_a_quota_and_a_read_only_profile_are_the_operators(
    site: FaultySite, code: int, refused: User, remedy: str
) -> None:
    """ClickHouse restarts with other users, we do not."""
    await site.commit(rows=1000)
    await site.kill_clickhouse()
    site.server.users = [refused]
    await site.start_clickhouse()
    batches = [asyncio.create_task(site.commit(rows=1000)) for _ in range(3)]
    await site.running.until(f"ClickHouse error {code}")
    assert remedy in site.running.detail()
    await site.running.eventually(lambda: site.running.metrics.value(catalogue.HELD_BATCHES) > 0)
    await site.kill_clickhouse()
    site.server.users = [METERING]
    await site.start_clickhouse()
    await asyncio.gather(*batches)
    await site.each_batch_once(1000)


async def test_a_server_killed_within_a_block(site: FaultySite) -> None:
    await site.commit()
    sent = site.proxy.to_upstream.forwarded
    site.proxy.to_upstream.bytes_per_second = 10_000
    batches = [asyncio.create_task(site.commit(days=2)) for _ in range(3)]
    await site.running.eventually(lambda: site.proxy.to_upstream.forwarded > sent + 6_000)
    await site.kill_clickhouse()
    assert not any(batch.done() for batch in batches)
    site.proxy.heal()
    await site.start_clickhouse()
    await asyncio.gather(*batches)
    assert retries(site) >= 3
    await site.each_batch_once()


async def test_a_server_killed_when_it_has_committed_and_not_yet_answered(tmp_path: Path) -> None:
    async with at_work(FaultySite(tmp_path), silence=5.0, request_timeout=20.0) as site:
        await site.commit()
        site.proxy.to_client.delay = 1.0  # the answer of each of these lies in the proxy for so long
        batches = [asyncio.create_task(site.commit()) for _ in range(3)]
        async with asyncio.timeout(20):
            while len(await site.sums()) < 2:  # noqa: ASYNC110 - it has to be asked
                await asyncio.sleep(0.01)
        await site.kill_clickhouse()
        await site.proxy.cut()
        assert not any(batch.done() for batch in batches)
        site.proxy.heal()
        await site.start_clickhouse()
        assert len(await site.sums()) >= 2, "what was committed is there after SIGKILL"
        await asyncio.gather(*batches)
        assert retries(site) >= 3
        await site.each_batch_once()


async def test_a_server_that_stands_still_is_given_up_and_goes_on(site: FaultySite) -> None:
    await site.commit()
    batches = [asyncio.create_task(site.commit()) for _ in range(3)]
    await asyncio.sleep(0.02)
    site.server.stand_still(True)
    waiting = asyncio.create_task(site.commit())
    await site.running.until("trying again")
    assert not waiting.done()
    site.server.stand_still(False)
    await asyncio.gather(waiting, *batches)
    await site.each_batch_once()


async def test_a_large_block_that_nobody_takes_is_given_up_while_it_is_written(tmp_path: Path) -> None:
    """More than the buffers of both kernels take: it is the write that waits."""
    rows = 60_000  # long ones, since ClickHouse has to sort and sum them within the silence allowed
    patient = {"schema_interval": 60.0, "silence": 4.0, "request_timeout": 30.0}
    async with at_work(FaultySite(tmp_path), compression="none", **patient) as site:
        table = await site.running.inserter.wait_schema()
        pods = [f"{number:06}-{'a-pod-of-a-long-name-' * 11}" for number in range(rows)]
        columns = {
            "date": Constant(DAY),
            "intervalStartTime": Constant(DAY * 86_400),
            "localPod": Coded(np.arange(rows), pods),
            "localNode": Constant("node-0"),
            "bytes": Constant(1),
        }
        block = encode(columns, table, rows)
        assert len(block.body) > 10 << 20
        await site.commit(rows=10)
        site.batches = 1
        sent = site.proxy.to_upstream.forwarded
        batch = asyncio.create_task(site.running.inserter.commit(block, "large"))
        await site.running.eventually(lambda: site.proxy.to_upstream.forwarded > sent + (1 << 20))
        site.proxy.to_upstream.stall()
        await site.running.until("did not answer within 4s")
        assert not batch.done()
        assert site.proxy.to_upstream.forwarded < sent + len(block.body)
        site.proxy.to_upstream.resume()
        assert await batch is CommitOutcome.COMMITTED
        assert retries(site) >= 1
        await site.each_batch_once(rows + 10)


async def test_a_batch_over_midnight_whose_answer_is_lost(fronted: FrontedSite) -> None:
    await fronted.front.fault("after_commit", "drop", kind="insert", times=3)
    await asyncio.gather(*(fronted.commit(days=2) for _ in range(3)))
    assert retries(fronted) >= 3
    await fronted.each_batch_once()


async def test_a_token_of_its_own_for_each_attempt_would_double(fronted: FrontedSite) -> None:
    """The control: with one token for two attempts, none of the above could have come out even."""
    table = await fronted.running.inserter.wait_schema()
    await fronted.front.fault("after_commit", "drop", kind="insert")
    with contextlib.suppress(ClickHouseUnreachableError):
        await fronted.direct.insert(DATABASE, table.table, make_block(table, ROWS), "one", {})
    await fronted.direct.insert(DATABASE, table.table, make_block(table, ROWS), "another", {})
    assert await fronted.sums() == {"node": (2 * ROWS, 2 * ROWS)}
