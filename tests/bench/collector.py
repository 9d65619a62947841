"""A server that commits everything and keeps only sums: what an agent reports to where the agent is measured.

`python -m tests.bench.collector HOST PORT` answers each line on its standard input with a line of JSON: the
batches, records and bytes that have arrived so far. It ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import asdict, dataclass

import grpclib.server
import numpy as np
from grpclib.const import Cardinality, Handler

from kubenetmon.proto import PUSH_METHOD, BatchAck, FlowArrays, FlowBatch, Outcome


@dataclass(slots=True)
class Sums:
    """What has arrived. `sent` are the bytes of the original direction, `received` those of the reply."""

    batches: int = 0
    records: int = 0
    sent: int = 0
    received: int = 0


class Collector:
    """Push, answered at once. A batch that comes again counts once."""

    def __init__(self) -> None:
        self.sums = Sums()
        self._seen: set[tuple[bytes, int]] = set()

    def __mapping__(self) -> dict[str, Handler]:
        return {PUSH_METHOD: Handler(self._push, Cardinality.STREAM_STREAM, FlowBatch, BatchAck)}

    async def _push(self, stream: grpclib.server.Stream[FlowBatch, BatchAck]) -> None:
        await stream.send_initial_metadata()
        async for batch in stream:
            if (batch.epoch, batch.sequence) not in self._seen:
                self._seen.add((batch.epoch, batch.sequence))
                self._add(batch)
            await stream.send_message(
                BatchAck(epoch=batch.epoch, sequence=batch.sequence, outcome=Outcome.COMMITTED)
            )

    def _add(self, batch: FlowBatch) -> None:
        self.sums.batches += 1
        for arrays in (batch.ipv4, batch.ipv6):
            if arrays is not None:
                self._add_arrays(arrays)

    def _add_arrays(self, arrays: FlowArrays) -> None:
        self.sums.records += arrays.count
        self.sums.sent += int(np.frombuffer(arrays.original_bytes, "<u8").sum())
        self.sums.received += int(np.frombuffer(arrays.reply_bytes, "<u8").sum())


async def main(host: str, port: int) -> None:
    """Serve until standard input ends."""
    collector = Collector()
    server = grpclib.server.Server([collector])
    await server.start(host, port)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while await lines.readline():
        print(json.dumps(asdict(collector.sums)), flush=True)
    server.close()
    await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
