"""A real grpclib server for Push that answers as its script says.

Contract: `async with CollectorServer() as server` serves on `server.host:server.port`. Every batch that
arrives is kept, parsed, in `server.batches`, in order of arrival. `server.script` holds one step a batch,
taken in order; when it is empty, batches are answered COMMITTED. Leaving the context closes everything.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import grpclib
import grpclib.server
from grpclib.const import Cardinality, Handler, Status

from kubenetmon.proto import PUSH_METHOD, BatchAck, FlowBatch, Outcome

Step = Callable[["CollectorServer", "grpclib.server.Stream[FlowBatch, BatchAck]", FlowBatch], Awaitable[None]]
"""What to do about one batch; raising ends the stream."""


def answer(outcome: Outcome, reason: str = "", *, wish: int = 0, delay: float = 0.0) -> Step:
    """Acknowledge so."""

    async def step(
        server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
    ) -> None:
        await asyncio.sleep(delay)
        ack = BatchAck(
            epoch=batch.epoch,
            sequence=batch.sequence,
            outcome=outcome,
            reason=reason,
            wished_report_interval=wish,
        )
        await stream.send_message(ack)

    return step


async def ignore(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """Never answer this one."""


async def end_with_error(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """End the stream with a gRPC status."""
    raise grpclib.GRPCError(Status.RESOURCE_EXHAUSTED, "scripted")


async def end_quietly(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """End the stream with OK and this batch unanswered."""
    raise StopAsyncIteration


async def go_away(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """Send GOAWAY on the connection and nothing else."""
    connection = stream._stream.connection
    connection._connection.close_connection()
    connection.flush()
    await asyncio.sleep(3600)


async def commit_and_go_away(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """Acknowledge, and send GOAWAY right behind it, so that the agent reads both at once."""
    await COMMIT(server, stream, batch)
    await go_away(server, stream, batch)


async def reset(
    server: CollectorServer, stream: grpclib.server.Stream[FlowBatch, BatchAck], batch: FlowBatch
) -> None:
    """Reset the TCP connection."""
    stream._stream._transport.abort()
    await asyncio.sleep(3600)


COMMIT = answer(Outcome.COMMITTED)


class CollectorServer:
    """One listener; `push=False`: the method is unknown here."""

    def __init__(
        self, *, host: str = "127.0.0.1", port: int = 0, push: bool = True, tls: ssl.SSLContext | None = None
    ) -> None:
        self.host, self.port = host, port
        self.script: deque[Step] = deque()
        self.batches: list[FlowBatch] = []
        self.streams = 0
        self.metadata: list[dict[str, Any]] = []
        self.arrived = asyncio.Event()
        self._push, self._tls = push, tls
        self._server: grpclib.server.Server | None = None
        self._transports: set[asyncio.Transport] = set()

    def __mapping__(self) -> dict[str, Handler]:
        if not self._push:
            return {
                "/unrelated.Service/Method": Handler(
                    self._serve, Cardinality.UNARY_UNARY, FlowBatch, BatchAck
                )
            }
        return {PUSH_METHOD: Handler(self._serve, Cardinality.STREAM_STREAM, FlowBatch, BatchAck)}

    async def _serve(self, stream: grpclib.server.Stream[FlowBatch, BatchAck]) -> None:
        self.streams += 1
        self._transports.add(stream._stream._transport)
        self.metadata.append(dict(stream.metadata or {}))
        await stream.send_initial_metadata()
        async for batch in stream:
            self.batches.append(batch)
            self.arrived.set()
            step = self.script.popleft() if self.script else COMMIT
            try:
                await step(self, stream, batch)
            except StopAsyncIteration:
                return

    async def start(self) -> None:
        """Listen; the port stays the same over `stop` and `start`."""
        self._server = grpclib.server.Server([self])
        # A protocol by number, or grpclib and asyncio leave Nagle's algorithm on.
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        await self._server.start(sock=listener, ssl=self._tls)

    async def stop(self) -> None:
        """Close the listener and every connection."""
        if self._server is not None:
            self._server.close()
            for transport in self._transports:  # which grpclib leaves open
                # Python 3.11.2's TLS transport cannot be aborted once its connection is lost.
                with contextlib.suppress(AttributeError):
                    transport.abort()
            self._transports.clear()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), 5)
            self._server = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def until(self, count: int, seconds: float = 10.0) -> None:
        """Wait until so many batches have arrived."""
        async with asyncio.timeout(seconds):
            while len(self.batches) < count:
                self.arrived.clear()
                await self.arrived.wait()

    def sequences(self) -> list[int]:
        """Those of all batches that arrived, in order."""
        return [batch.sequence for batch in self.batches]
