"""Servers that die, stop and lose answers at every step between an agent and ClickHouse: sums stay equal.

Agents are the real collector, outbox and sender; servers are real processes; ClickHouse is the real engine
behind the native front. Only the kernel's table is made up, so that what was sealed is known to the byte.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from kubenetmon.agent.connection import Timeouts
from kubenetmon.agent.push import PushConfig
from tests.beds.fleet import Fleet
from tests.beds.proxy import TcpProxy
from tests.beds.replica import (
    Replica,
    Serve,
    serve,
    serve_acking_before_commit,
    serve_with_random_tokens,
)
from tests.beds.site import Site, site
from tests.bench import cluster
from tests.unit.sending import FAST

pytestmark = [pytest.mark.chdb, pytest.mark.timeout(180)]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path) as running:
        yield running


async def started(replica: Replica) -> Replica:
    replica.start()
    await replica.wait_ready()
    return replica


def fleet(
    running: Site,
    agents: int = 1,
    *,
    flows: int = 500,
    addresses: list[str] | None = None,
    push: PushConfig = FAST.push,
    timeouts: Timeouts = FAST.timeouts,
) -> Fleet:
    sender = replace(FAST, push=push, timeouts=timeouts)
    addresses = addresses or running.addresses
    return Fleet(agents, flows=flows, port=running.port, addresses=addresses, sender=sender)


async def until_reached(running: Site, count: int = 1) -> None:
    """Until so many faults of the front have begun."""
    async with asyncio.timeout(20):
        while (await running.front.command())["faults"] < count:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.02)


async def until_answered(agents: Fleet, count: int) -> None:
    """Until so many batches have been answered."""
    async with asyncio.timeout(30):
        while len(agents.waits) < count:  # noqa: ASYNC110 - several agents' outboxes
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("step", "do"),
    [
        ("query", "stall"),  # before ClickHouse knows of the insert
        ("before_commit", "stall"),  # all sent, and ClickHouse forgets it with the connection
        ("before_commit", "delay"),  # all sent, and ClickHouse commits after the server's death
        ("after_commit", "stall"),  # committed, the server does not know
    ],
)
async def test_a_server_killed_around_an_insert(running: Site, step: str, do: str) -> None:
    server = await started(running.replica())
    agents = fleet(running)
    async with agents.running():
        await agents.report()
        await agents.drained()
        await running.front.fault(step, do, kind="insert", bytes=1000, seconds=1.0)
        await agents.report()
        await until_reached(running)
        server.kill()
        assert agents.unanswered == 1
        await started(server)
        await agents.drained()
    await running.wait_stored(agents.truth)


async def test_a_server_killed_in_the_middle_of_a_block(running: Site) -> None:
    """ClickHouse has its beginning, and never gets the rest: blocks fit into sockets' buffers, so that all
    would be on its way by then without the proxy."""
    host, port = running.front.endpoint.split(":")
    async with TcpProxy(host, int(port)) as proxy:
        server = await started(running.replica(clickhouse=f"127.0.0.1:{proxy.port}"))
        agents = fleet(running)
        async with agents.running():
            before = proxy.to_upstream.forwarded
            await agents.report()
            await agents.drained()
            whole = proxy.to_upstream.forwarded - before
            await running.front.fault("data", "delay", kind="insert", bytes=1000)
            proxy.to_upstream.bytes_per_second = 20_000
            before = proxy.to_upstream.forwarded
            await agents.report()
            await until_reached(running)
            proxy.to_upstream.stall()
            server.kill()
            await asyncio.sleep(0.2)
            assert proxy.to_upstream.forwarded - before < whole / 2
            seen = await running.front.command()
            assert seen["inserts"] == 2
            assert seen["commits"] == agents.unanswered == 1
            await proxy.cut()
            proxy.heal()
            await started(server)
            await agents.drained()
            assert (await running.front.command())["commits"] == 2
    await running.wait_stored(agents.truth)


async def test_an_acknowledgement_that_is_lost(running: Site) -> None:
    """The connection dies behind the commit, byte by byte of the answer; the batch comes again and again."""
    server = await started(running.replica())
    host = "127.0.0.50"
    async with TcpProxy(server.host, server.port, host=host, port=running.port) as proxy:
        agents = fleet(running, addresses=[host])
        async with agents.running():
            await agents.report()
            await agents.drained()
            for cut in range(0, 45, 3):
                await running.front.fault("after_commit", "delay", kind="insert", seconds=0.1)
                await agents.report()
                await until_reached(running, cut // 3 + 1)
                proxy.to_client.cut_after_bytes(cut + 1)
                await agents.drained()
            assert proxy.accepted > 10
    await running.wait_stored(agents.truth)
    assert server.metrics()['kubenetmon_server_ignored_total{reason="duplicate",unit="bytes"}'] > 0


@pytest.mark.parametrize("side", ["to_upstream", "to_client"])
@pytest.mark.parametrize("fault", ["reset", "half-open", "a byte a second"])
async def test_the_network_between_agent_and_server_fails(running: Site, fault: str, side: str) -> None:
    server = await started(running.replica())
    host = "127.0.0.50"
    async with TcpProxy(server.host, server.port, host=host, port=running.port) as proxy:
        push = replace(FAST.push, ping_after=0.3, ping_timeout=0.7)
        timeouts = replace(FAST.timeouts, connect=1.0, answer=1.0)
        agents = fleet(running, 3, addresses=[host], push=push, timeouts=timeouts)
        async with agents.running():
            await agents.report()
            await agents.drained()
            direction = getattr(proxy, side)
            if fault == "reset":
                direction.cut_after_bytes(20)
            elif fault == "half-open":
                direction.dropping = True
            else:
                direction.bytes_per_second = 1
            opened = proxy.accepted
            await agents.report()
            async with asyncio.timeout(20):
                while proxy.accepted == opened:  # noqa: ASYNC110 - another agent's task
                    await asyncio.sleep(0.02)
            proxy.heal()
            await proxy.cut()
            await agents.drained()
    await running.wait_stored(agents.truth)


@pytest.mark.parametrize("step", ["before_commit", "after_commit"])
async def test_the_same_batch_to_another_replica_while_the_first_still_inserts_it(
    running: Site, step: str
) -> None:
    first, second = await started(running.replica()), await started(running.replica())
    host = "127.0.0.50"
    async with TcpProxy(first.host, first.port, host=host, port=running.port) as proxy:
        agents = fleet(running, addresses=[host])
        async with agents.running():
            await running.front.fault(step, "delay", kind="insert", seconds=1.0)
            await agents.report()
            await until_reached(running)
            proxy.refusing = True
            agents.addresses[:] = [host, second.host]
            await proxy.cut()
            await agents.drained()
    assert (await running.front.command())["inserts"] == 2
    await running.wait_stored(agents.truth)


@pytest.mark.parametrize("step", ["before_commit", "after_commit"])
async def test_pods_that_are_deleted_before_the_batch_comes_again(running: Site, step: str) -> None:
    """Another replica attributes anew, and differently: the token alone decides, and no byte is lost."""
    with_pods = cluster.document(nodes=3, pods_per_node=50)
    without = cluster.document(nodes=3, pods_per_node=0)
    first = await started(running.replica(document=with_pods))
    second = await started(running.replica(document=without))
    agents = fleet(running, addresses=[first.host])
    async with agents.running():
        await running.front.fault(step, "stall", kind="insert")
        await agents.report()
        await until_reached(running)
        first.kill()
        agents.addresses[:] = [second.host]
        await agents.drained()
    await running.wait_stored(agents.truth)
    [(named,)] = await running.sink.query("SELECT countIf(localPod != '') FROM default.network_flows_0")
    assert (named > 0) == (step == "after_commit")


@pytest.mark.timeout(240)
async def test_servers_killed_at_random(running: Site) -> None:
    """A hundred times; agents report as fast as they are answered, so that a kill can hit any step."""
    chance = random.Random(7)
    server = await started(running.replica(pod_wait="1ms"))
    agents = fleet(running, 4, flows=2_000)
    ended = asyncio.Event()

    async def report_without_pause() -> None:
        while not ended.is_set():
            for agent in agents.agents:
                if not agent.outbox.full:
                    await agent.report()
            await asyncio.sleep(0.02)

    async with agents.running():
        reporting = asyncio.create_task(report_without_pause())
        interrupted = inserting = 0
        for number in range(100):
            answered = len(agents.waits)
            await asyncio.sleep(chance.uniform(0.0, 0.8))
            if number % 4 == 1:  # however slow the machine is, some come through
                await until_answered(agents, answered + 1)
            inserting += (await running.front.command())["under_way"] > 0
            server.kill()
            interrupted += agents.unanswered > 0
            if number % 2:
                server.start()  # the next kill finds it anywhere on its way up
            else:
                await started(server)
        ended.set()
        await reporting
        await agents.drained()
    assert interrupted > 50
    assert inserting >= 15, "hardly a kill hit an insert under way"
    assert len(agents.waits) >= 25, "hardly anything was committed between the kills"
    await running.wait_stored(agents.truth)


async def test_one_node_that_clickhouse_refuses_does_not_stop_the_others(running: Site) -> None:
    """With a single inserter; the refused wait, are shown, and are stored once the table is mended."""
    server = await started(running.replica(num_inserter_workers=1))
    agents = fleet(running, 4)
    refused, *others = agents.agents
    table = "ALTER TABLE default.network_flows_0"
    await running.sink.query(f"{table} ADD CONSTRAINT others CHECK localNode != '{refused.node_name}'")
    async with agents.running():
        for _ in range(3):
            await agents.report()
            async with asyncio.timeout(15):
                while any(agent.outbox.waiting() for agent in others):  # noqa: ASYNC110 - many events
                    await asyncio.sleep(0.05)
        assert len(refused.outbox.waiting()) == agents.unanswered == 3
        assert server.metrics()["kubenetmon_server_held_batches"] == 3
        assert "469" in server.ready()["clickhouse"]["detail"]
        await running.sink.query(f"{table} DROP CONSTRAINT others")
        await agents.drained()
    await running.wait_stored(agents.truth)


async def test_an_ack_before_the_commit_loses(running: Site) -> None:
    """The negative control: what the tests above look for is what they would find."""
    server = await started(running.replica(work=serve_acking_before_commit))
    agents = fleet(running)
    async with agents.running():
        await running.front.fault("before_commit", "stall", kind="insert")
        await agents.report()
        await agents.drained()
        await until_reached(running)
        server.kill()
        await started(server)
        await agents.report()
        await agents.drained()
        await asyncio.sleep(1)
    [stored], [sealed] = (await running.stored()).values(), agents.truth.values()
    assert stored[0] < sealed[0]


@pytest.mark.parametrize(("work", "times"), [(serve, 1), (serve_with_random_tokens, 2)])
async def test_only_a_batchs_own_token_keeps_it_from_doubling(running: Site, work: Serve, times: int) -> None:
    """The negative control of re-sent inserts, beside what it controls."""
    await started(running.replica(work=work))
    agents = fleet(running, 3)
    async with agents.running():
        for number, agent in enumerate(agents.agents):
            await running.front.fault("after_commit", "drop", kind="insert")
            await agent.report()
            await agents.drained()
            assert (await running.front.command())["commits"] == 2 * (number + 1)
    await running.wait_stored(
        {node: (times * moved, times * packets) for node, (moved, packets) in agents.truth.items()}
    )


@pytest.mark.parametrize("replicas", [2, 3])
async def test_agents_move_between_replicas_that_come_and_go(running: Site, replicas: int) -> None:
    servers = [await started(running.replica(max_grpc_connection_age="2s")) for _ in range(replicas)]
    agents = fleet(running, 12, flows=200)
    async with agents.running():
        for round_ in range(3 * replicas):
            leaving = servers[round_ % replicas]
            await agents.report()
            if round_ % 2:
                leaving.kill()
            else:
                await leaving.stop()
            await agents.report()
            await agents.drained(15)  # by those that are left
            await started(leaving)
    await running.wait_stored(agents.truth)


async def test_agents_draw_anew_when_their_connections_have_their_age(running: Site) -> None:
    """A replica that is new gets its share of agents that have no reason to leave the old one."""
    old = await started(running.replica(max_grpc_connection_age="2s"))
    new = running.replica(max_grpc_connection_age="2s")
    agents = fleet(running, 12, flows=50, addresses=[old.host])
    async with agents.running():
        await agents.report()
        await agents.drained()
        await started(new)
        agents.addresses.append(new.host)
        committed = 'kubenetmon_server_batches_total{outcome="committed",wire="push"}'
        async with asyncio.timeout(30):
            while new.metrics()[committed] < 6:
                await agents.report()
                await agents.drained()
                await asyncio.sleep(0.3)
        before = old.metrics()[committed]
        async with asyncio.timeout(30):
            while old.metrics()[committed] < before + 3:  # and not all of them
                await agents.report()
                await agents.drained()
                await asyncio.sleep(0.3)
    await running.wait_stored(agents.truth)


async def test_agents_leave_a_server_that_stands_still(
    running: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """Stopped in its tracks with batches in hand, it wakes to what others have stored meanwhile."""
    servers = [await started(running.replica()) for _ in range(2)]
    agents = fleet(running, 8, flows=200, push=replace(FAST.push, ping_after=0.5, ping_timeout=1.5))
    async with agents.running():
        await agents.report()
        await agents.drained()
        await running.front.fault("before_commit", "delay", kind="insert", seconds=0.5, times=4)
        await agents.report()
        await until_reached(running)
        os.kill(servers[0].process_id, signal.SIGSTOP)
        await agents.report()
        await agents.drained(15)
        assert "no sign of life" in caplog.text
        os.kill(servers[0].process_id, signal.SIGCONT)
        await asyncio.sleep(1)
    await running.wait_stored(agents.truth)


async def test_a_stopping_server_answers_or_hands_back_within_its_grace_period(running: Site) -> None:
    """ClickHouse is slow for one batch and silent for another: the first is acked, the second handed back,
    and both are stored once by whoever comes after."""
    leaving, staying = await started(running.replica()), running.replica()
    agents = fleet(running, 2, addresses=[leaving.host])
    async with agents.running():
        await running.front.fault("before_commit", "delay", kind="insert", seconds=1.0)
        await running.front.fault("before_commit", "stall", kind="insert")
        await agents.report()
        await until_reached(running, 2)
        took = await leaving.stop()
        assert took < 25, "Kubernetes would have killed it"
        assert len(agents.waits) == 1, "the slow one is acknowledged"
        assert agents.handed_back == ["the server is stopping"]
        assert agents.unanswered == 1
        await started(staying)
        agents.addresses[:] = [staying.host]
        await agents.drained()
    await running.wait_stored(agents.truth)
