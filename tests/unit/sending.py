"""What the sender's tests share: a sender with its outbox, against whatever listens on a port."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from kubenetmon.agent.connection import Timeouts
from kubenetmon.agent.metered import SealedRecords
from kubenetmon.agent.outbox import BatchStore, Outbox
from kubenetmon.agent.push import PushConfig
from kubenetmon.agent.schedule import Backoff
from kubenetmon.agent.sender import Sender, SenderConfig
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_BATCHES, AGENT_METRICS
from kubenetmon.proto import FlowArrays
from kubenetmon.readiness import Readiness

FAST = SenderConfig(
    host="127.0.0.1",
    port=0,
    jitter=0.0,
    submit_timeout=5.0,
    push=PushConfig(ack_timeout=30.0, longest_session=300.0, close_timeout=5.0),
    backoff=Backoff(0.02, 0.2),
    timeouts=Timeouts(connect=5.0, answer=5.0, send=30.0, close=5.0),
)
"""Quick to try again, and patient enough for a busy machine."""

IMPATIENT = replace(
    FAST,
    push=replace(FAST.push, ack_timeout=0.5, close_timeout=1.0),
    timeouts=Timeouts(connect=1.0, answer=1.0, send=1.0, close=1.0),
)
"""For faults that show only in time."""

BEGIN = int(time.time()) // 60 * 60 - 60
END = BEGIN + 60


class Bed:
    def __init__(self, config: SenderConfig, chance: random.Random, store: BatchStore | None = None) -> None:
        self.metrics = Metrics(AGENT_METRICS)
        self.readiness = Readiness()
        self.outbox = Outbox("node-a", metrics=self.metrics, clock=SYSTEM_CLOCK, store=store)
        self.wishes: list[int] = []
        self.sender = Sender(
            config,
            outbox=self.outbox,
            metrics=self.metrics,
            readiness=self.readiness,
            clock=SYSTEM_CLOCK,
            wished_report_interval=self.wishes.append,
            chance=chance,
        )
        self.task = asyncio.create_task(self.sender.run())

    def seal(self, batches: int = 1, *, filler: int = 10) -> None:
        """One report of so many batches, each of 1,000 metered bytes and some `filler` on the wire."""
        part = SealedRecords(FlowArrays(count=1, protocol=b"\x06" * filler), FlowArrays(), 1, 1000, 10)
        self.put(*[part] * batches)

    def put(self, *parts: SealedRecords) -> None:
        """One report of these batches."""
        self.outbox.put(list(parts), BEGIN, END)

    async def until_empty(self, seconds: float = 10.0) -> None:
        async with asyncio.timeout(seconds):
            while not self.outbox.empty:  # noqa: ASYNC110 - the outbox's event is the sender's to wait on
                await asyncio.sleep(0.01)

    def count(self, outcome: str) -> float:
        return self.metrics.value(AGENT_BATCHES, outcome=outcome)


@asynccontextmanager
async def sending(
    port: int,
    config: SenderConfig = FAST,
    *,
    chance: random.Random | None = None,
    store: BatchStore | None = None,
) -> AsyncIterator[Bed]:
    bed = Bed(replace(config, port=port), chance or random.Random(1), store)
    try:
        yield bed
    finally:
        bed.task.cancel()
        await asyncio.gather(bed.task, return_exceptions=True)
