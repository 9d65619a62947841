"""A running receiver with a pipeline that only remembers, and batches to send it."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace

import numpy as np

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import COMMON_METRICS, SERVER_METRICS
from kubenetmon.model import ARRAY_NAMES, BatchIdentity, FlowBatch, FlowRecords
from kubenetmon.proto import (
    SUBMIT_METHOD,
    FlowArrays,
    L4Endpoint,
    Observation,
    ObservedFlow,
    ObservedTuple,
    Outcome,
)
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.readiness import Readiness
from kubenetmon.server.doorway import Doorway
from kubenetmon.server.receiver import Access, Receiver, ReceiverConfig
from kubenetmon.server.refusals import Refusals
from kubenetmon.server.verdict import Verdict

NOW = 1_800_000_000
COMMITTED = Verdict(Outcome.COMMITTED)
SUBMIT_HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", SUBMIT_METHOD),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
]
"""Of a request, as HTTP/2 has them."""


@dataclass
class RememberingPipeline:
    """Settles every batch as `answer` says, and keeps it."""

    batches: list[FlowBatch] = field(default_factory=list)
    answer: Callable[[FlowBatch], Awaitable[Verdict]] | None = None
    earlier: Callable[[], Awaitable[Verdict]] | None = None
    """What copies of a batch wait for; None: there are none."""

    async def process(self, batch: FlowBatch, received_at: float, *, sender_keeps: bool = True) -> Verdict:
        self.batches.append(batch)
        return COMMITTED if self.answer is None else await self.answer(batch)

    def join(self, batch: FlowBatch) -> Callable[[], Awaitable[Verdict]] | None:
        return self.earlier

    def identities(self) -> list[BatchIdentity]:
        return [batch.identity for batch in self.batches]

    def records(self) -> int:
        return sum(len(batch) for batch in self.batches)


@dataclass
class Rig:
    """A receiver that listens, and what it is wired to."""

    receiver: Receiver
    pipeline: RememberingPipeline
    metrics: Metrics
    readiness: Readiness
    task: asyncio.Task[None]

    @property
    def port(self) -> int:
        return self.receiver.port


@contextlib.asynccontextmanager
async def running_receiver(
    config: ReceiverConfig | None = None,
    *,
    doorway: Callable[[Refusals], Doorway] | None = None,
    access: Callable[[Refusals], Access] | None = None,
    wish: int = 0,
    ready: bool = True,
) -> AsyncIterator[Rig]:
    """A receiver on a free port of the loopback interface."""
    pipeline, readiness = RememberingPipeline(), Readiness()
    metrics = Metrics((*SERVER_METRICS, *COMMON_METRICS))
    if not ready:
        readiness.expect("inventory", "not synced")
    refusals = Refusals(metrics)
    receiver = Receiver(
        replace(config or ReceiverConfig(), host="127.0.0.1", port=0),
        pipeline=pipeline,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
        wished_report_interval=lambda: wish,
        refusals=refusals,
        access=access(refusals) if access else None,
        doorway=doorway(refusals) if doorway else None,
    )
    task = asyncio.create_task(receiver.run())
    try:
        await asyncio.wait_for(receiver.listening.wait(), 5)
        yield Rig(receiver, pipeline, metrics, readiness, task)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait_for(task, 10)
        for _ in range(100):  # who was cut off goes when the loop comes to it
            if not receiver.connections:
                break
            await asyncio.sleep(0.01)


def random_arrays(count: int, family: int, seed: int = 0) -> FlowArrays:
    """`count` valid records with random contents, as the wire carries them."""
    generator = np.random.default_rng(seed)
    address = 4 if family == 4 else 16
    widths = dict(zip(ARRAY_NAMES, (1, *[address] * 4, *[2] * 4, *[8] * 4), strict=True))
    columns = {name: generator.bytes(width * count) for name, width in widths.items()}
    columns["protocol"] = generator.choice(np.array([6, 17], np.uint8), count).tobytes()
    for name in ARRAY_NAMES[-4:]:
        columns[name] = generator.integers(0, 1 << 40, count).astype("<u8").tobytes()
    columns["start_time"] = generator.bytes(4 * count)
    return FlowArrays(count=count, **columns)


def batch_message(
    count: int = 10,
    *,
    ipv6: int = 0,
    node: str = "node-1",
    epoch: bytes | None = None,
    sequence: int = 1,
    start: int = NOW,
    end: int = NOW + 60,
) -> FlowBatchMessage:
    """A valid batch as the wire carries it; both families only where they have records."""
    return FlowBatchMessage(
        node_name=node,
        epoch=os.urandom(16) if epoch is None else epoch,
        sequence=sequence,
        interval_start=start,
        interval_end=end,
        ipv4=random_arrays(count, 4, seed=sequence) if count else None,
        ipv6=random_arrays(ipv6, 6, seed=sequence) if ipv6 else None,
    )


def observation(index: int = 0, *, node: str = "node-1", timestamp: int = NOW, proto: int = 6) -> Observation:
    """A valid IPv4 observation; `index` makes it differ."""

    def endpoint(address: int, port: int) -> L4Endpoint:
        return L4Endpoint(v4=address & 0xFFFF_FFFF, port=port & 0xFFFF)

    client, server = endpoint(0x0A000000 + index, 1024 + index), endpoint(0x0A800001, 443)
    return Observation(
        flow=ObservedFlow(
            proto=proto,
            original=ObservedTuple(source=client, destination=server, packets=1 + index, bytes=100 + index),
            reply=ObservedTuple(source=server, destination=client, packets=2 + index, bytes=200 + index),
        ),
        node_name=node,
        timestamp=timestamp,
    )


def framed(*messages: bytes) -> bytes:
    """gRPC's length-prefixed messages, uncompressed."""
    return b"".join(b"\0" + len(message).to_bytes(4, "big") + message for message in messages)


def total(records: FlowRecords) -> int:
    """Bytes of both directions."""
    return records.total_bytes()
