"""One agent a node: who waits, who takes over, and what of the one before goes on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.agent.collector import Collector, CollectorConfig
from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from kubenetmon.agent.guard import CHECK, NodeGuard
from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.agent.state import StateDirectory
from kubenetmon.agent.takeover import Takeover
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.demo.network import Namespace, create_namespace
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_BATCHES, AGENT_METRICS
from kubenetmon.readiness import Readiness
from tests.beds.router import RouterBed

pytestmark = pytest.mark.root


@pytest.fixture
def nodes() -> Iterator[tuple[Namespace, Namespace]]:
    made = create_namespace("guard"), create_namespace("neighbour")
    yield made
    for namespace in made:
        namespace.delete()


def inside(namespace: Namespace, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    namespace.call(lambda: asyncio.run(work()))


class Candidate:
    """A guard that wants the node."""

    def __init__(self, state: Path | None) -> None:
        self.readiness = Readiness()
        self.looks = 0
        self.state = None if state is None else StateDirectory(state, metrics=Metrics(AGENT_METRICS))
        self.guard = NodeGuard(self.state, readiness=self.readiness, clock=SYSTEM_CLOCK)

    async def take(self) -> None:
        await asyncio.wait_for(self.guard.take(self._look), 10)

    def _look(self) -> None:
        self.looks += 1

    async def waits(self) -> asyncio.Task[None]:
        """Its attempt, once it has looked in vain a few times."""
        task = asyncio.create_task(self.take())
        async with asyncio.timeout(10):
            while self.looks < 3:  # noqa: ASYNC110 - the guard polls
                await asyncio.sleep(0.01)
        assert not task.done()
        assert not self.guard.held
        assert not self.readiness.report()["checks"][CHECK]["ok"]
        return task


@pytest.mark.parametrize("stateful", [True, False])
def test_one_agent_at_a_time_has_the_node(
    nodes: tuple[Namespace, Namespace], tmp_path: Path, stateful: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def work() -> None:
        first, second = (Candidate(tmp_path / name if stateful else None) for name in ("a", "b"))
        await first.take()
        assert first.guard.held
        assert first.looks == 0
        waiting = await second.waits()
        assert not (tmp_path / "b").exists(), "who may not meter touches no state"
        first.guard.release()
        first.guard.release()
        await waiting
        assert second.guard.held
        assert second.readiness.report()["checks"][CHECK]["ok"]
        second.guard.release()

    inside(nodes[0], work)
    assert sum("Another agent" in record.getMessage() for record in caplog.records) == 1


def test_a_state_directory_has_one_owner_over_all_namespaces(
    nodes: tuple[Namespace, Namespace], tmp_path: Path
) -> None:
    elsewhere = Candidate(tmp_path)
    inside(nodes[1], elsewhere.take)

    async def work() -> None:
        here = Candidate(tmp_path)
        waiting = await here.waits()
        elsewhere.guard.release()
        await waiting
        here.guard.release()

    inside(nodes[0], work)


def test_namespaces_are_nodes_of_their_own(nodes: tuple[Namespace, Namespace], tmp_path: Path) -> None:
    candidates = [Candidate(tmp_path / name) for name in ("a", "b")]
    for namespace, candidate in zip(nodes, candidates, strict=True):
        inside(namespace, candidate.take)
    for candidate in candidates:
        candidate.guard.release()


class Agent:
    """What takes a node over, with all that it is joined to."""

    def __init__(self, path: Path) -> None:
        self.metrics, readiness = Metrics(AGENT_METRICS), Readiness()
        self.state = StateDirectory(path, metrics=self.metrics)
        self.conntrack = Conntrack(ConntrackConfig(), state=self.state, node_name="node-a")
        self.outbox = Outbox("node-a", metrics=self.metrics, clock=SYSTEM_CLOCK, store=self.state)
        self.takeover = Takeover(
            conntrack=self.conntrack,
            guard=NodeGuard(self.state, readiness=readiness, clock=SYSTEM_CLOCK),
            outbox=self.outbox,
            collector=Collector(
                CollectorConfig(),
                conntrack=self.conntrack,
                outbox=self.outbox,
                metrics=self.metrics,
                readiness=readiness,
                clock=SYSTEM_CLOCK,
            ),
        )

    async def report(self, begin: int) -> None:
        await self.conntrack.read()
        self.outbox.put(self.conntrack.seal(begin, begin + 60, float(begin)), begin, begin + 60)


def as_sent(batch: SealedBatch) -> tuple[bytes, int, bytes, int, int]:
    return batch.epoch, batch.sequence, batch.message, batch.records, batch.metered_bytes


def test_what_was_left_unanswered_goes_on_as_it_was_unless_its_outcome_is_unknown(tmp_path: Path) -> None:
    with RouterBed("takeover") as bed:

        async def work() -> None:
            old, new = Agent(tmp_path), Agent(tmp_path)
            await old.takeover.run()
            assert not old.takeover.waiting
            assert old.conntrack.totals().gap_nanoseconds == 0
            await old.conntrack.read()
            for begin in (60, 120, 180):
                await asyncio.to_thread(bed.udp, [100], 1, source_port=5555)
                await old.report(begin)
            untouched, pushed, submitted = old.outbox.waiting()
            old.outbox.leaves_by_push(pushed)
            old.outbox.leaves_by_submit(submitted)

            taking = asyncio.create_task(new.takeover.run())
            await asyncio.sleep(0.3)
            assert new.takeover.waiting
            assert not taking.done()
            old.takeover.close()
            old.takeover.close()
            await asyncio.wait_for(taking, 10)
            assert not new.takeover.waiting
            assert new.conntrack.totals().gap_nanoseconds == 0

            assert [as_sent(batch) for batch in new.outbox.waiting()] == [
                as_sent(batch) for batch in (untouched, pushed)
            ]
            assert [batch.went_by_push for batch in new.outbox.waiting()] == [False, True]
            assert len({batch.report for batch in new.outbox.waiting()}) == 2
            assert new.metrics.value(AGENT_BATCHES, outcome="submit_unknown") == 1
            assert new.state.sequences() == [1, 2]

            await asyncio.to_thread(bed.udp, [700], 1, source_port=5555)
            await new.report(240)
            last = new.outbox.waiting()[-1]
            assert (last.epoch, last.sequence) == (submitted.epoch, 4)
            metered = sum(batch.metered_bytes for batch in (untouched, pushed, submitted, last))
            assert metered == bed.true_bytes()
            new.takeover.close()

        inside(bed.node, work)
