"""Brings sealed batches to a server, each exactly once as far as the server can tell.

Contract: the one reader of the outbox. A session is one connection to one address: by Push, batches go out
in order, a few at a time, and stay in the outbox until the server answers for each; whatever goes wrong, the
session ends and the next one sends the unanswered again, under their identity. Where the server knows no
Push (the original's), a session hands the batches over by Submit instead, which is exact only while nothing
fails: a Submit whose outcome is unknown is counted and not repeated, and a batch that may have left by Push
never goes by Submit. `stop` sends what is left without waiting for its turn and returns once all is answered
for; the lifecycle's deadline ends it earlier, and then it says what may be missing.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from grpclib.const import Status

from kubenetmon.agent.addresses import Addresses
from kubenetmon.agent.connection import Connection, ConnectionFailedError, Timeouts
from kubenetmon.agent.credentials import Credentials
from kubenetmon.agent.observations import frames
from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.agent.push import PushConfig, PushSession
from kubenetmon.agent.schedule import Backoff, Schedule
from kubenetmon.clock import Clock
from kubenetmon.config.agent import AgentConfig
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import COLLECTOR_ERRORS
from kubenetmon.proto import BatchAck, Outcome
from kubenetmon.readiness import Readiness
from kubenetmon.waiting import first_of

logger = logging.getLogger(__name__)

CHECK = "server"
"""The sender's name in /ready."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SenderConfig:
    """Durations are seconds."""

    host: str
    port: int
    credentials: Credentials = field(default_factory=Credentials)
    jitter: float = 10.0
    """A report goes out at most this long after it was sealed."""
    submit_timeout: float = 60.0
    push: PushConfig = field(default_factory=PushConfig)
    backoff: Backoff = field(default_factory=Backoff)
    timeouts: Timeouts = field(default_factory=Timeouts)

    @classmethod
    def from_agent(cls, config: AgentConfig) -> Self:
        """What the environment says, the rest at its defaults."""
        return cls(
            host=config.server_host,
            port=config.server_port,
            credentials=Credentials(
                ca=config.tls_ca, certificate=config.tls_cert, key=config.tls_key, token=config.token_file
            ),
            jitter=min(config.report_interval / 6, 10.0),
        )


class Sender:
    """Component; one task, and one more for reading while a Push is open."""

    name = "sender"

    def __init__(
        self,
        config: SenderConfig,
        *,
        outbox: Outbox,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock,
        wished_report_interval: Callable[[int], None],
        chance: random.Random | None = None,
    ) -> None:
        """`wished_report_interval` takes what each ack asks for, in seconds; 0: nothing."""
        self._config = config
        self._outbox = outbox
        self._metrics, self._readiness, self._clock = metrics, readiness, clock
        self._wished_report_interval = wished_report_interval
        self._chance = chance if chance is not None else random.Random()  # noqa: S311 - spreads load, no secret
        self._addresses = Addresses(config.host, config.port, clock=clock, chance=self._chance)
        self._schedule = Schedule(
            outbox, jitter=config.jitter, backoff=config.backoff, clock=clock, chance=self._chance
        )
        self._stopping = asyncio.Event()
        self._drained = asyncio.Event()
        self._address = ""
        self._connected = False
        self._answers = 0
        self._fallback_said = False

    async def run(self) -> None:
        """Send until cancelled. Raises `ConfigurationError` when TLS files or the token cannot be read."""
        self._config.credentials.check()
        self._readiness.expect(CHECK, f"waiting for a first connection to {self._target}")
        logger.info("Connecting to %s", self._target)
        failures = 0
        while True:
            await self._wait_for_work()
            began, answers = self._clock.monotonic(), self._answers
            try:
                await self._session()
            except ConnectionFailedError as error:
                self._failed(error)
            lasted = self._clock.monotonic() - began
            proven = self._answers > answers or lasted > self._config.backoff.longest
            failures = 0 if proven else failures + 1
            if not (self._connected and self._outbox.empty):
                await self._pause(failures)

    async def stop(self) -> None:
        """Return once every batch is answered for; cancelled before that, say what may be missing."""
        self._schedule.hurry = True
        self._stopping.set()
        self._outbox.changed.set()
        try:
            await self._drained.wait()
        except asyncio.CancelledError:
            logger.warning(
                "Stopping with %d batches unacknowledged: %d metered bytes may be missing in ClickHouse",
                len(self._outbox.waiting()),
                self._outbox.unsettled_bytes,
            )
            raise

    @property
    def _target(self) -> str:
        return f"{self._config.host} port {self._config.port}"

    async def _wait_for_work(self) -> None:
        """Until a batch is due; for ever once everything is sent and we are stopping."""
        while True:
            self._outbox.changed.clear()
            if self._stopping.is_set() and self._outbox.empty:
                self._drained.set()
            elif not self._connected:
                return  # with nothing to send yet: /ready says early whether the server is there
            wait = self._schedule.until_due()
            if wait == 0.0:
                return
            await first_of(self._clock, wait, self._outbox.changed)

    async def _pause(self, failures: int) -> None:
        backoff = self._config.backoff
        if self._stopping.is_set():
            await self._clock.sleep(backoff.pause(min(failures, 1), self._chance))
        else:
            await first_of(self._clock, backoff.pause(failures, self._chance), self._stopping)

    def _failed(self, error: ConnectionFailedError) -> None:
        self._metrics.add(COLLECTOR_ERRORS, type="send_failed")
        hint = ""
        if error.status in (Status.UNAUTHENTICATED, Status.PERMISSION_DENIED):
            hint = "; check KUBENETMON_TOKEN_FILE and KUBENETMON_TLS_CERT"
        self._readiness.failed(CHECK, f"{error}{hint}")
        waiting = len(self._outbox.waiting())
        unsent = f"{waiting} batches wait to be sent again" if waiting else "nothing waits to be sent"
        logger.warning("The connection to %s failed, %s: %s%s", self._target, unsent, error, hint)

    async def _session(self) -> None:
        connection = await self._connect()
        self._address = connection.address
        try:
            try:
                stream = await connection.push()
            except ConnectionFailedError as error:
                if error.status is not Status.UNIMPLEMENTED:
                    raise
                self._connected = True
                await self._submit_all(connection)
                return
            self._connected = True
            self._readiness.passed(CHECK, f"connected to {self._address}")
            session = PushSession(
                self._config.push,
                stream=stream,
                outbox=self._outbox,
                schedule=self._schedule,
                clock=self._clock,
                chance=self._chance,
                answered=self._answered,
            )
            try:
                await session.run()
            finally:
                self._say_accepted(session.accepted_records)
        except ConnectionFailedError:
            self._addresses.failed(self._address)
            raise
        finally:
            connection.close()

    async def _connect(self) -> Connection:
        """A connection to the first address that takes one. Raises `ConnectionFailedError`."""
        try:
            candidates = await self._addresses.candidates()
        except OSError as error:
            raise ConnectionFailedError(f"{self._config.host} does not resolve: {error}") from error
        tls, metadata = self._config.credentials.current()
        failure = ConnectionFailedError(f"{self._config.host} has no addresses")
        for address in candidates:
            connection = Connection(
                address,
                self._config.port,
                server_name=self._config.host,
                tls=tls,
                metadata=metadata,
                timeouts=self._config.timeouts,
                clock=self._clock,
            )
            try:
                await connection.open()
            except ConnectionFailedError as error:
                failure = ConnectionFailedError(f"{address}: {error}")
                self._addresses.failed(address)
            else:
                return connection
        raise failure

    def _answered(self, ack: BatchAck) -> None:
        self._answers += 1
        if ack.outcome is Outcome.COMMITTED:
            self._readiness.passed(CHECK, f"connected to {self._address}")
        else:
            self._readiness.failed(CHECK, f"{self._address} answered {ack.outcome.name}: {ack.reason}")
        self._wished_report_interval(ack.wished_report_interval)

    async def _submit_all(self, connection: Connection) -> None:
        """Hand over by Submit what may go by it. Raises `ConnectionFailedError`."""
        if not self._fallback_said:
            self._fallback_said = True
            logger.warning(
                "The server at %s has no Push: reporting by the original's Submit, which is exact only while "
                "no connection fails",
                connection.address,
            )
        self._readiness.passed(CHECK, f"connected to {connection.address}, by Submit")
        accepted = 0
        try:
            while batch := self._schedule.next_due(self._bound_to_push()):
                accepted += await self._submit(connection, batch)
        finally:
            self._say_accepted(accepted)
        if bound := self._bound_to_push():
            raise ConnectionFailedError(
                f"{connection.address} has no Push, and {len(bound)} batches that may have left by Push "
                "wait for a server that has it"
            )

    def _bound_to_push(self) -> set[int]:
        return {batch.sequence for batch in self._outbox.waiting() if batch.went_by_push}

    async def _submit(self, connection: Connection, batch: SealedBatch) -> int:
        self._outbox.leaves_by_submit(batch)
        try:
            result = await connection.submit(frames(batch.message), timeout=self._config.submit_timeout)
        except ConnectionFailedError as error:
            self._outbox.did_not_leave(batch)
            if error.status is Status.UNIMPLEMENTED:
                raise ConnectionFailedError(
                    f"{connection.address} has neither Push nor Submit: is it kubenetmon's server?"
                ) from error
            raise
        except asyncio.CancelledError:
            self._outbox.submit_unknown(batch)
            raise
        self._answers += 1
        if result.accepted == batch.records:
            self._outbox.submitted(batch)
            return batch.records
        self._outbox.submit_unknown(batch)
        problem = result.problem or f"the server confirmed {result.accepted} of {batch.records} records"
        raise ConnectionFailedError(
            f"the outcome of a Submit is unknown, its {batch.metered_bytes} metered bytes are not repeated: "
            f"{problem}"
        )

    def _say_accepted(self, records: int) -> None:
        if records:
            logger.info(
                "The server at %s accepted %d datapoints over the last stream", self._address, records
            )
