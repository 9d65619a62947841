"""Agents that only send: `python -m tests.bench.pusher HOST PORT NODES RECORDS INTERVALS FIRST`.

Each node pushes one batch an interval and waits for its commit before the next; all nodes at once. The last
line is JSON: the records and bytes that were committed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import numpy as np
from grpclib.client import Channel

from kubenetmon.proto import FlowBatch, FlowCollectorStub, Outcome
from tests.bench.cluster import batch


async def push(host: str, port: int, batches: list[FlowBatch]) -> None:
    """One node: send a batch, wait for its acknowledgement, send the next."""
    channel = Channel(host, port)
    committed = asyncio.Event()
    committed.set()

    async def one_by_one() -> AsyncIterator[FlowBatch]:
        for message in batches:
            await committed.wait()
            committed.clear()
            yield message

    try:
        answered = 0
        async for ack in FlowCollectorStub(channel).push(one_by_one()):
            if ack.outcome != Outcome.COMMITTED:
                raise RuntimeError(f"the server answered {ack.outcome.name}: {ack.reason}")
            committed.set()
            answered += 1
        if answered != len(batches):
            raise RuntimeError(f"{answered} of {len(batches)} batches were answered")
    finally:
        channel.close()


async def main(host: str, port: int, nodes: int, records: int, intervals: int, first: int) -> None:
    """Make everything, then send it."""
    generator = np.random.default_rng(first)
    now = int(time.time())
    work = [
        [batch(node, first + each, now, records, generator) for each in range(intervals)]
        for node in range(nodes)
    ]
    await asyncio.gather(*(push(host, port, batches) for batches in work))
    arrays = [message.ipv4 for batches in work for message in batches if message.ipv4 is not None]
    moved = sum(
        int(np.frombuffer(part, "<u8").sum())
        for each in arrays
        for part in (each.original_bytes, each.reply_bytes)
    )
    print(json.dumps({"records": sum(each.count for each in arrays), "bytes": moved}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], *map(int, sys.argv[2:])))
