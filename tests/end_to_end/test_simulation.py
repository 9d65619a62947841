"""Fifty agents before one server: through an outage of ClickHouse, and asked to slow down.

The simulation is the one of `nox -s simulate`; `nox -s outage` runs the half hour in full.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from kubenetmon.agent.collector import CollectorConfig
from tests.beds.fleet import Fleet
from tests.beds.site import site
from tests.bench import cluster
from tests.simulate.run import Plan, render, simulate
from tests.unit.sending import FAST

pytestmark = [pytest.mark.chdb, pytest.mark.slow, pytest.mark.timeout(180)]

SERVER_MEMORY = 250_000_000


async def test_an_outage_in_a_smaller_time(tmp_path: Path) -> None:
    """Half a minute for half an hour: reports come each 3 s, and agents give an answer up after 12 s."""
    plan = Plan(agents=50, flows=300, interval=3, seconds=6, outage=30, time_scale=10)
    figures = await simulate(plan, tmp_path, say=False)
    print(render(plan, figures))
    assert figures.exact
    assert figures.server_memory < SERVER_MEMORY
    assert figures.drained_in < 100
    assert figures.wait(1.0) >= 25, "nothing waited through the outage"
    # Sealing stopped: a few reports an agent, where twelve intervals passed.
    assert len(figures.waits) <= 50 * 8


async def test_an_outage_that_fills_all_that_the_server_may_hold(tmp_path: Path) -> None:
    """Agents keep more than 32 MiB of messages and 32 MiB of blocks: it takes that and no more."""
    plan = Plan(agents=25, flows=10_000, interval=3, seconds=4, outage=15, time_scale=10)
    figures = await simulate(plan, tmp_path, say=False)
    print(render(plan, figures))
    assert figures.exact
    assert figures.held_memory > 25_000_000, "the bound was not reached"
    assert figures.server_memory < SERVER_MEMORY
    assert figures.wait(1.0) >= 12, "nothing waited through the outage"


async def test_agents_report_less_often_when_the_table_bears_no_more(tmp_path: Path) -> None:
    async with site(tmp_path) as running:
        server = running.replica(
            document=cluster.document(nodes=20, pods_per_node=2), clickhouse_inserts_per_second=2
        )
        server.start()
        await server.wait_ready()
        fleet = Fleet(
            20,
            flows=50,
            port=running.port,
            addresses=running.addresses,
            sender=FAST,
            collector=CollectorConfig(collection_interval=1, report_interval=1),
        )
        async with fleet.running():
            # 20 batches an interval and 2 x 0.8 inserts a second make 12.5 s; on the way there, reports by
            # the old and the new interval count both, and the wish is longer for a while.
            async with asyncio.timeout(60):
                while not all(  # noqa: ASYNC110 - agents have no event for it
                    agent.wishes[-1:] in ([15], [20], [30]) for agent in fleet.agents
                ):
                    await asyncio.sleep(0.1)
            before = len(fleet.settled)
            await asyncio.sleep(15)
            assert len(fleet.settled) - before <= 20 * 3, "a report or two each, in place of fifteen"
            await fleet.stop_collecting()
            await fleet.drained()
        await running.wait_stored(fleet.truth)
