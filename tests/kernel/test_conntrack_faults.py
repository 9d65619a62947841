"""Metering when things go against it: full queues, stalled neighbours, lost events, cancelled reads."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest

from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig, ConntrackError
from kubenetmon.agent.metered import SealedRecords
from kubenetmon.proto import MAX_BATCH_BYTES, FlowBatch
from tests.beds import ctnetlink
from tests.beds.injector import TCP, UDP, InjectionBed
from tests.beds.router import RouterBed
from tests.kernel.metered import check_identity, metering

pytestmark = pytest.mark.root

FLOWS = 10_000
SIZES = np.arange(FLOWS) * 7919 % 1200
"""Payloads of mixed sizes: counters of different width, TCP and UDP, are what zeroing reads lose bytes on."""


@pytest.fixture
def injection() -> Iterator[InjectionBed]:
    with InjectionBed("conntrack") as made:
        yield made


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("faults") as made:
        yield made


def burst(injection: InjectionBed, direction: Literal["original", "reply"] = "original") -> None:
    for protocol in (TCP, UDP):
        injection.send(protocol, 0, FLOWS, payload=SIZES, direction=direction)


def total_bytes(batches: list[SealedRecords]) -> int:
    return sum(batch.bytes for batch in batches)


async def test_bursts_over_many_flows_are_metered_to_the_byte(injection: InjectionBed) -> None:
    with metering(injection.node) as conntrack:
        await conntrack.read()
        batches = []
        for number in range(4):
            await asyncio.to_thread(burst, injection, "reply" if number % 2 else "original")
            await conntrack.read()
            sealed = conntrack.seal()
            assert len(sealed) == 2, "20,000 records are more than one message takes"
            batches += sealed
        assert total_bytes(batches) == injection.tracked_bytes()
        for batch in batches:
            size = len(bytes(FlowBatch(ipv4=batch.ipv4, ipv6=batch.ipv6)))
            assert size <= MAX_BATCH_BYTES + 1000


async def test_reading_by_zeroing_loses_bytes_so_the_comparison_can_fail(injection: InjectionBed) -> None:
    zeroed = 0
    for number in range(6):
        await asyncio.to_thread(burst, injection, "reply" if number % 2 else "original")
        zeroed += sum(
            flow.total_bytes for flow in await asyncio.to_thread(ctnetlink.zeroing_dump, injection.node)
        )
    left = sum(flow.total_bytes for flow in ctnetlink.dump(injection.node))
    assert zeroed + left < injection.tracked_bytes()


async def test_a_small_event_queue_loses_no_end_of_a_flow(injection: InjectionBed) -> None:
    flows = 1500
    # The queue takes some thirty events; the kernel tries again for the rest ten times a second.
    with metering(injection.node, ConntrackConfig(event_buffer_bytes=16_384)) as conntrack:
        await conntrack.read()
        for direction in ("original", "reply"):
            for protocol in (TCP, UDP):
                injection.send(protocol, 0, flows, payload=SIZES[:flows], direction=direction)
            await conntrack.read()
        injection.node.run(["conntrack", "-F"])
        batches = conntrack.seal()
        deadline = asyncio.get_running_loop().time() + 60
        while conntrack.totals().destroy_events < 2 * flows:
            assert asyncio.get_running_loop().time() < deadline
            await conntrack.read()
            batches += conntrack.seal()
            await asyncio.sleep(0.1)
        totals = conntrack.totals()
        assert totals.destroy_events == 2 * flows
        assert total_bytes(batches) == injection.tracked_bytes()
        assert (totals.flows, totals.vanished) == (0, 0)


async def test_events_that_come_again_because_a_neighbour_stalls_count_once(bed: RouterBed) -> None:
    with ctnetlink.stalled_listener(bed.node), metering(bed.node) as conntrack:
        await conntrack.read()
        for payload in range(100, 140):
            await asyncio.to_thread(bed.udp, [payload])
        bed.node.run(["conntrack", "-F"], check=False)
        for _ in range(6):  # longer than a tombstone would stay by itself
            await asyncio.sleep(0.3)
            await conntrack.read()
            conntrack.seal()
        stalled = conntrack.totals()
        assert stalled.destroy_events > 40, "no event came twice: the neighbour does not stall"
        assert stalled.entries > 0
        assert stalled.reported_bytes == bed.true_bytes()


async def test_events_that_come_again_after_the_neighbour_is_gone_count_once(bed: RouterBed) -> None:
    neighbour = ctnetlink.stalled_listener(bed.node)
    with metering(bed.node) as conntrack:
        await conntrack.read()
        for payload in range(100, 140):
            await asyncio.to_thread(bed.udp, [payload])
        bed.node.run(["conntrack", "-F"], check=False)
        for _ in range(6):
            await asyncio.sleep(0.1)
            await conntrack.read()
        before = conntrack.totals().destroy_events
        neighbour.close()
        for _ in range(6):
            await asyncio.sleep(0.3)
            await conntrack.read()
            conntrack.seal()
        totals = conntrack.totals()
        assert totals.destroy_events > before, "no event came again"
        assert totals.reported_bytes == bed.true_bytes()
        assert totals.entries == 0


async def test_many_ends_that_a_stalled_neighbour_holds_back_cost_little_and_count_once(
    injection: InjectionBed,
) -> None:
    flows = 40_000  # the kernel lists held back flows in a time that grows with the square of their number
    with ctnetlink.stalled_listener(injection.node) as neighbour, metering(injection.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(injection.send, UDP, 0, flows, payload=100)
        alive = await conntrack.read()
        injection.node.run(["conntrack", "-F"])
        sealed, costs = [], []
        for _ in range(6):
            await asyncio.sleep(0.1)
            result = await conntrack.read()
            sealed += conntrack.seal()
            costs.append(result.cpu)
        totals = conntrack.totals()
        assert alive.flows > flows * 0.9
        assert result.flows == 0
        assert totals.entries > alive.flows - 10, "tombstones were given up while events can come again"
        assert min(costs) < 3 * alive.cpu
        neighbour.close()
        while conntrack.totals().entries > 0:
            await asyncio.sleep(0.3)
            await conntrack.read()
            sealed += conntrack.seal()
        assert total_bytes(sealed) == injection.tracked_bytes()
        assert conntrack.totals().vanished == 0


async def test_flows_that_end_unheard_are_asked_for_and_counted(bed: RouterBed) -> None:
    bed.node.sysctl("net.netfilter.nf_conntrack_events", 0)
    with metering(bed.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(bed.udp, [100, 200])
        await conntrack.read()
        bed.node.run(["conntrack", "-F"])
        for _ in range(6):
            await conntrack.read()
            conntrack.seal()
        totals = conntrack.totals()
        assert (totals.vanished, totals.flows, totals.entries) == (1, 0, 0)
        assert totals.reported_bytes == bed.true_bytes()


async def test_flows_ending_while_dumps_run_are_metered_once(injection: InjectionBed) -> None:
    with metering(injection.node) as conntrack:
        await conntrack.read()
        going = True

        def churn() -> None:
            while going:
                injection.send(UDP, 0, 2000, payload=SIZES[:2000])
                injection.send(TCP, 0, 2000, payload=SIZES[:2000])
                injection.node.run(["conntrack", "-F"])

        worker = asyncio.create_task(asyncio.to_thread(churn))
        batches: list[SealedRecords] = []
        loop = asyncio.get_running_loop()
        end = loop.time() + 4
        while loop.time() < end:
            await conntrack.read()
            batches += conntrack.seal()
        going = False
        await worker
        await conntrack.read()
        batches += conntrack.seal()
        totals = conntrack.totals()
        assert total_bytes(batches) == injection.tracked_bytes()
        assert totals.destroy_events >= 4000
        assert (totals.vanished, totals.ambiguous_identity, totals.foreign_resets) == (0, 0, 0)
        for _ in range(3):
            await conntrack.read()
        assert conntrack.totals().entries == 0, "memory is bounded by the flows that live"


async def test_flows_without_counters_are_counted_as_such(bed: RouterBed) -> None:
    bed.node.sysctl("net.netfilter.nf_conntrack_acct", 0)
    with metering(bed.node) as conntrack:
        await conntrack.read()
        state = bed.node.call(conntrack.accounting_state)
        assert (state.accounting, state.events, state.timestamps, state.with_counters) == (0, 1, 1, 0)
        await asyncio.to_thread(bed.udp, [100])
        assert (await conntrack.read()).flows == 1
        state = bed.node.call(conntrack.accounting_state)
        assert (state.tracked, state.with_counters, state.without_counters) == (1, 0, 1)
        bed.node.sysctl("net.netfilter.nf_conntrack_acct", 1)
        await asyncio.to_thread(bed.udp, [100])
        await conntrack.read()
        assert bed.node.call(conntrack.accounting_state).with_counters == 1


async def test_a_cancelled_read_neither_loses_nor_doubles(injection: InjectionBed) -> None:
    with metering(injection.node) as conntrack:
        await conntrack.read()
        for _ in range(5):
            await asyncio.to_thread(burst, injection)
            reading = asyncio.create_task(conntrack.read())
            await asyncio.sleep(0.005)
            reading.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reading
        await conntrack.read()
        assert total_bytes(conntrack.seal()) == injection.tracked_bytes()


async def test_closing_while_a_read_runs_breaks_it_off(injection: InjectionBed) -> None:
    await asyncio.to_thread(burst, injection)
    conntrack = Conntrack(ConntrackConfig())
    injection.node.call(conntrack.open)
    readings = [asyncio.create_task(conntrack.read()) for _ in range(3)]
    await asyncio.sleep(0.003)
    conntrack.close()
    outcomes = await asyncio.gather(*readings, return_exceptions=True)
    assert isinstance(outcomes[-1], ConntrackError)
    conntrack.close()


async def test_a_read_that_its_owner_left_is_broken_off_without_a_word(injection: InjectionBed) -> None:
    await asyncio.to_thread(burst, injection)
    conntrack = Conntrack(ConntrackConfig())
    injection.node.call(conntrack.open)
    said: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: said.append(context))
    readings = [asyncio.create_task(conntrack.read()) for _ in range(3)]
    await asyncio.sleep(0.003)
    while readings:
        readings.pop().cancel()
        await asyncio.sleep(0)
    conntrack.close()
    await asyncio.sleep(0.01)  # the thread hands over how its reads ended
    gc.collect()
    assert said == []


async def test_reading_leaves_the_event_loop_free(injection: InjectionBed) -> None:
    with metering(injection.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(burst, injection)
        loop = asyncio.get_running_loop()
        ticks = []

        async def tick() -> None:
            while True:
                ticks.append(loop.time())
                await asyncio.sleep(0.001)

        ticking = asyncio.create_task(tick())
        results = [await conntrack.read() for _ in range(5)]
        ticking.cancel()
        busy = sum(result.duration for result in results)
        assert len(ticks) > busy / 0.02, "the loop came to run while reads did"
        check_identity(conntrack.totals())


def test_without_the_privilege_one_line_says_so() -> None:
    script = (
        "from kubenetmon.agent.conntrack import *\n"
        "from kubenetmon.errors import MachineError\n"
        "try: Conntrack(ConntrackConfig()).open()\n"
        "except MachineError as error: print(error)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert "CAP_NET_ADMIN" in done.stdout, done.stderr
    assert len(done.stdout.splitlines()) == 1
