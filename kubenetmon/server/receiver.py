"""The server's receiving side: the gRPC port, and what may come in through it.

Contract: `Receiver` owns the listening socket, the connections and every task that settles a batch. Batches
go to the pipeline, which answers when each is settled; nothing is acknowledged before. Batches that come
before the server is ready are answered RETRY_LATER, and a Submit stream is not read until it is.

At shutdown (`stop`): no new connections and streams; Push streams end after the answers to what has been
read; Submit streams may go on to their own end for half of the grace period, then what they brought is
committed and they are told so; what cannot be settled in time is handed back (RETRY_LATER; the pipeline may
still commit it, and the identity keeps that harmless). `run` cuts whatever is left when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import grpclib.server
from grpclib.const import Cardinality, Handler, Status
from grpclib.exceptions import GRPCError

from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError, cannot_listen
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.model import FlowBatch
from kubenetmon.proto import (
    MAX_MESSAGE_BYTES,
    PUSH_METHOD,
    SUBMIT_METHOD,
    BatchAck,
    Observation,
    ObservationSummary,
    Outcome,
)
from kubenetmon.proto import FlowBatch as FlowBatchMessage
from kubenetmon.readiness import Readiness
from kubenetmon.server.access import Grant, OpenAccess
from kubenetmon.server.doorway import Doorway
from kubenetmon.server.flood import PeerBudgets
from kubenetmon.server.push import BATCH_OVERHEAD, PushRpc, PushStream, StreamLimits
from kubenetmon.server.receive_buffer import ReceiveBuffer
from kubenetmon.server.refusals import Refusals
from kubenetmon.server.submit import SLICE_BYTES, SubmitLimits, SubmitStream
from kubenetmon.server.transport import GrpcServer, TransportLimits
from kubenetmon.server.verdict import Verdict

logger = logging.getLogger(__name__)

SubmitRpc = grpclib.server.Stream[Observation, ObservationSummary]

SWEEP_INTERVAL = 1.0
LARGEST_RESERVATION = max(MAX_MESSAGE_BYTES + BATCH_OVERHEAD, SLICE_BYTES)
STOPPING = Verdict(Outcome.RETRY_LATER, "the server is stopping")


@dataclass(frozen=True, slots=True)
class ReceiverConfig:
    """Seconds and bytes.

    `host` empty: all addresses. `memory_limit`: messages read and not settled, over all connections; one
    connection may have `connection_share` of it and all of one address `address_share`, as of
    `max_connections`. Of batches, a connection may bring `batch_burst` at once and then `batches_per_second`,
    which is some six times what a node of 100,000 busy flows sends every 5 s. `stream_window_bytes`: what a
    stream may send before memory is reserved for it; `window_bytes`: what a connection may leave unread in
    all its streams; HTTP/2 has no less than 65,535. `ready_timeout`: how long a Submit stream waits for a
    server that has just started.
    """

    host: str = ""
    port: int = 8884
    max_connection_age: float = 300.0
    max_connections: int = 4096
    max_streams_per_connection: int = 16
    in_flight_per_stream: int = 4
    batch_burst: int = 64
    batches_per_second: float = 8.0
    memory_limit: int = 32 << 20
    address_share: float = 0.5
    connection_share: float = 0.25
    stream_window_bytes: int = 16384
    window_bytes: int = 65535
    message_timeout: float = 15.0
    slice_age: float = 5.0
    ready_timeout: float = 30.0
    stop_grace: float = 15.0


class Access(Protocol):
    """Whoever decides who may report."""

    async def admit(self, metadata: Mapping[str, Any], peer: str) -> Grant:
        """What a request with that metadata may do. Raises `GRPCError`."""
        ...


class BatchPipeline(Protocol):
    """Whoever settles batches."""

    async def process(self, batch: FlowBatch, received_at: float, *, sender_keeps: bool = True) -> Verdict:
        """Return when the batch is committed or has to be sent again."""
        ...

    def join(self, batch: FlowBatch) -> Callable[[], Awaitable[Verdict]] | None:
        """What waits for the verdict of an earlier copy of the batch, if there is one; does not hold this."""
        ...


class Receiver:
    """The component that serves Push and Submit."""

    name = "receiver"

    def __init__(
        self,
        config: ReceiverConfig,
        *,
        pipeline: BatchPipeline,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock,
        wished_report_interval: Callable[[], int],
        refusals: Refusals | None = None,
        access: Access | None = None,
        doorway: Doorway | None = None,
    ) -> None:
        """`wished_report_interval`: what each ack asks of its agent, seconds, 0: nothing. `access`: who may
        report (None: anyone). `doorway`: TLS (None: plain text)."""
        self._config = config
        self._pipeline = pipeline
        self._metrics = metrics
        self._readiness = readiness
        self._clock = clock
        self._refusals = refusals or Refusals(metrics)
        self._access = access or OpenAccess(self._refusals)
        self._doorway = doorway
        self._wished_report_interval = wished_report_interval
        self._memory = PeerBudgets(
            config.memory_limit,
            per_address=max(LARGEST_RESERVATION, int(config.memory_limit * config.address_share)),
            per_connection=max(LARGEST_RESERVATION, int(config.memory_limit * config.connection_share)),
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: GrpcServer | None = None
        self._stopping = False
        self._give_up = asyncio.Event()
        self.listening = asyncio.Event()
        metrics.before_render(self._publish)
        readiness.expect("grpc", f"port {config.port} is not open yet")

    @property
    def port(self) -> int:
        """The port listened on, once `listening` is set."""
        assert self._server is not None
        return self._server.port

    @property
    def connections(self) -> int:
        """Connections open now."""
        return 0 if self._server is None else len(self._server.connections)

    @property
    def connections_accepted(self) -> int:
        """Connections accepted since the start."""
        return 0 if self._server is None else self._server.accepted

    @property
    def bytes_unread(self) -> int:
        """Bytes that have arrived on all streams and were not taken yet."""
        connections = () if self._server is None else self._server.connections
        return sum(buffer.unread for connection in connections for buffer in connection.streams)

    @property
    def memory_reserved(self) -> int:
        """Bytes of messages held or promised now."""
        return self._memory.whole.reserved + self._memory.spare.reserved

    async def run(self) -> None:
        """Serve until cancelled; raises `ConfigurationError` when the port cannot be opened."""
        config = self._config
        limits = TransportLimits(
            config.max_connections,
            max(1, int(config.max_connections * config.address_share)),
            config.max_streams_per_connection,
            config.batch_burst,
            config.batches_per_second,
            config.max_connection_age,
            config.window_bytes,
            config.stream_window_bytes,
        )
        server = GrpcServer(
            self._mapping(),
            limits,
            memory=self._memory,
            clock=self._clock,
            connections_changed=self._count_agents,
            refusals=self._refusals,
            doorway=self._doorway,
        )
        try:
            await server.start(config.host or None, config.port, backlog=1024)
        except OSError as error:
            raise ConfigurationError(cannot_listen("gRPC", config.host, config.port, error)) from None
        self._server = server
        self.listening.set()
        self._readiness.passed("grpc", f"port {server.port}")
        logger.info("Agents can report to port %d", server.port)
        try:
            while True:
                await self._clock.sleep(SWEEP_INTERVAL)
                server.sweep()
        finally:
            self._give_up.set()
            await server.close_all()

    async def stop(self) -> None:
        """Refuse what is new, settle what was read, close; takes at most the grace period."""
        self._stopping = True
        server = self._server
        if server is None:
            return
        server.stop_listening()
        for connection in list(server.connections):
            connection.drain()
        grace = self._config.stop_grace
        if not await self._quiet(grace / 2):
            for connection in list(server.connections):
                connection.drain(everything=True)
            if not await self._quiet(grace / 4):
                self._give_up.set()
                await self._quiet(grace / 4)
        self._readiness.failed("grpc", "the server is stopping")

    async def _quiet(self, timeout: float) -> bool:
        """Wait until nothing is connected and nothing unsettled; whether that came about in time."""
        assert self._server is not None
        deadline = self._clock.monotonic() + timeout
        while self._server.connections or self._tasks:
            if self._clock.monotonic() >= deadline:
                return False
            await self._clock.sleep(0.05)
        return True

    def _mapping(self) -> dict[str, Handler]:
        return {
            PUSH_METHOD: Handler(self._push, Cardinality.STREAM_STREAM, FlowBatchMessage, BatchAck),
            SUBMIT_METHOD: Handler(self._submit, Cardinality.STREAM_UNARY, Observation, ObservationSummary),
        }

    async def _push(self, rpc: PushRpc) -> None:
        self._refuse_when_stopping()
        grant = await self._admit(rpc)
        buffer = self._buffer_of(rpc)
        assert self._server is not None
        self._server.stop_when_draining(buffer)
        limits = StreamLimits(self._config.message_timeout, self._config.in_flight_per_stream)
        stream = PushStream(
            rpc,
            buffer,
            limits,
            pace=lambda: self._keep_pace(buffer),
            wished_report_interval=self._wished_report_interval,
            join=partial(self._join_pushed, grant),
            settle=self._settle_pushed,
            spawn=self._spawn,
            now=self._clock.time,
            rejected=lambda: self._metrics.add(catalogue.SERVER_BATCHES, wire="push", outcome="rejected"),
        )
        try:
            await stream.run()
        except GRPCError:
            self._metrics.add(catalogue.SERVER_ERRORS, type="receive_failed")
            raise

    async def _submit(self, rpc: SubmitRpc) -> None:
        self._refuse_when_stopping()
        grant = await self._admit(rpc)
        buffer = self._buffer_of(rpc)
        await self._wait_until_ready()
        limits = SubmitLimits(
            self._config.slice_age,
            self._config.message_timeout,
            self._config.in_flight_per_stream,
        )
        stream = SubmitStream(
            buffer,
            limits,
            spare=self._memory.spare,
            pace=lambda: self._keep_pace(buffer),
            settle=partial(self._settle_submitted, grant),
            spawn=self._spawn,
            metrics=self._metrics,
            now=self._clock.time,
        )
        try:
            count = await stream.run()
        except GRPCError as error:
            self._metrics.add(catalogue.SERVER_ERRORS, type="receive_failed")
            if grant.denied:
                raise GRPCError(Status.PERMISSION_DENIED, grant.denied) from error
            raise
        await rpc.send_message(ObservationSummary(observation_count=min(count, 0xFFFF_FFFF)))

    async def _admit(self, rpc: grpclib.server.Stream[Any, Any]) -> Grant:
        """What the request's sender may do. Raises `GRPCError`."""
        buffer = rpc._stream.buffer
        assert isinstance(buffer, ReceiveBuffer)
        return await self._access.admit(rpc.metadata or {}, buffer.connection.peer)

    async def _keep_pace(self, buffer: ReceiveBuffer) -> None:
        """Wait while the stream's connection brings more batches than it may; what stops us ends it."""
        wait = buffer.connection.pace.wait(self._clock.monotonic())
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._give_up.wait()

    def _join_pushed(self, grant: Grant, batch: FlowBatch) -> Callable[[], Awaitable[Verdict]] | None:
        grant.check(batch.identity.node_name)
        earlier = self._pipeline.join(batch)
        return None if earlier is None else lambda: self._until_stopping(earlier(), "push")

    async def _settle_pushed(self, batch: FlowBatch) -> Verdict:
        if not self._readiness.ready:
            return Verdict(Outcome.RETRY_LATER, "the server is starting")
        return await self._until_stopping(self._pipeline.process(batch, self._clock.time()), "push")

    async def _settle_submitted(self, grant: Grant, batch: FlowBatch) -> Verdict:
        try:
            grant.check(batch.identity.node_name)
        except GRPCError as error:
            return Verdict(Outcome.REJECTED, error.message or "")
        process = self._pipeline.process(batch, self._clock.time(), sender_keeps=False)
        return await self._until_stopping(process, "submit")

    async def _until_stopping(self, verdict: Awaitable[Verdict], wire: str) -> Verdict:
        """What the pipeline says, or that we stop, whichever comes first."""
        settled = await self._or_stopping(verdict)
        self._metrics.add(catalogue.SERVER_BATCHES, wire=wire, outcome=settled.outcome.name.lower())
        return settled

    async def _or_stopping(self, verdict: Awaitable[Verdict]) -> Verdict:
        processing = asyncio.ensure_future(verdict)
        giving_up = asyncio.ensure_future(self._give_up.wait())
        try:
            await asyncio.wait({processing, giving_up}, return_when=asyncio.FIRST_COMPLETED)
            return processing.result() if processing.done() else STOPPING
        finally:
            giving_up.cancel()
            processing.cancel()  # nobody waits for it any more

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that outlives the stream it came from."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("A batch could not be answered; it will be sent again", exc_info=error)

    async def _wait_until_ready(self) -> None:
        deadline = self._clock.monotonic() + self._config.ready_timeout
        while not self._readiness.ready:
            if self._clock.monotonic() >= deadline or self._stopping:
                raise GRPCError(Status.UNAVAILABLE, "the server is starting; see its /ready")
            await self._clock.sleep(0.1)

    def _refuse_when_stopping(self) -> None:
        if self._stopping:
            raise GRPCError(Status.UNAVAILABLE, "the server is stopping; connect to another")

    def _buffer_of(self, rpc: grpclib.server.Stream[Any, Any]) -> ReceiveBuffer:
        buffer = rpc._stream.buffer
        assert isinstance(buffer, ReceiveBuffer)
        if not buffer.connection.carried_rpc:
            buffer.connection.carried_rpc = True
            self._count_agents()
        return buffer

    def _publish(self) -> None:
        self._metrics.set(catalogue.SERVER_HELD_MEMORY, self.memory_reserved)

    def _count_agents(self) -> None:
        if self._server is not None:
            agents = sum(connection.carried_rpc for connection in self._server.connections)
            self._metrics.set(catalogue.SERVER_AGENTS, agents)
