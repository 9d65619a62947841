"""Keeps the inventory true to the cluster: list once, watch from there, list again only in doubt.

Contract: `Watcher` is the only writer of its `Inventory`. Each kind lives on its own: a list is put as it
comes, in pages or as a stream, then changes are followed from the list's version; a list that breaks off or a
version that expired takes nothing away. Trouble of any kind shows in readiness (check "kubernetes") and in
one log line when it begins and one when it ends; it is retried for ever with growing, jittered pauses. Only a
source that cannot be used at start ends the program (`ConfigurationError`). Stop needs no work: nothing is
unfinished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path

from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    INVENTORY_HISTORY,
    INVENTORY_OBJECTS,
    WATCH_EVENTS,
    WATCH_RELISTS,
    WATCH_SKIPPED,
)
from kubenetmon.readiness import Readiness
from kubenetmon.server.inventory import KINDS, Inventory, InventoryConfig, Kind
from kubenetmon.server.kubernetes import (
    SELECTIONS,
    ApiError,
    ExpiredError,
    KubernetesClient,
    RefusedError,
)
from kubenetmon.server.kubernetes_objects import (
    Current,
    Event,
    KubernetesObject,
    ObjectDecoder,
    Page,
    UnreadableError,
)
from kubenetmon.server.kubernetes_source import DumpFile, choose_source
from kubenetmon.server.pods import Pod
from kubenetmon.server.services import Service

logger = logging.getLogger(__name__)

CHECK = "kubernetes"

_GONE = 410
_EVENTS_AT_ONCE = 200
"""Some 3 ms of work; then others may run."""

_WORTHWHILE_WATCH = 1.0
"""A watch that ends sooner is asked for again only after a pause (seconds)."""

_SKIPPED_LOG_INTERVAL = 60.0


@dataclass(frozen=True, slots=True)
class WatcherConfig:
    """Where to read from and how patiently; all times in seconds.

    `kubernetes_source` is as in `kubenetmon.server.kubernetes_source.choose_source`. A watch is asked to end
    after `watch_timeout` to twice that, so that replicas do not all come back at once; for the same end they
    wait up to `relist_spread` per 100,000 objects before they list again what expired, and up to
    `start_spread` per 5,000 nodes (and at most) before they list pods first.
    """

    kubernetes_source: str = ""
    cluster: str = ""
    inventory: InventoryConfig = field(default_factory=InventoryConfig)
    page_size: int = 500
    watch_timeout: float = 240.0
    connect_timeout: float = 10.0
    read_timeout: float = 30.0
    shortest_pause: float = 0.25
    longest_pause: float = 30.0
    relist_spread: float = 10.0
    start_spread: float = 2.0
    file_poll_interval: float = 1.0
    expire_interval: float = 5.0


class Watcher:
    """Lists and watches pods, nodes and services. Raises `ConfigurationError` where there is no source."""

    name = "kubernetes watcher"

    def __init__(
        self,
        config: WatcherConfig,
        *,
        inventory: Inventory,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock,
        synced: Callable[[], None] | None = None,
    ) -> None:
        """`synced` is called once, when everything has been listed for the first time."""
        self._config = config
        self._when_synced = synced
        self._inventory = inventory
        self._metrics = metrics
        self._readiness = readiness
        self._clock = clock
        self._source = choose_source(config.kubernetes_source, os.environ)
        self._decoder = ObjectDecoder(config.inventory)
        self._synced: set[Kind] = set()
        self._trouble: dict[Kind, str] = {}
        self._skipped_logged_at: dict[Kind, float] = {}
        self._pages_wanted: set[Kind] = set()
        self._announced = False
        self._client: KubernetesClient | None = None
        self._jitter = random.Random()  # noqa: S311 - spreads load, guards nothing
        readiness.expect(CHECK, f"reading pods, nodes and services ({self._source})")
        metrics.before_render(self._count_objects)

    async def run(self) -> None:
        """Follow the cluster until cancelled."""
        if isinstance(self._source, DumpFile):
            self._read_file(self._source.path)
            await _together(self._follow_file(self._source.path), self._expire())
            return
        client = self._client = KubernetesClient(
            self._source,
            connect_timeout=self._config.connect_timeout,
            read_timeout=self._config.read_timeout,
        )
        try:
            await client.open()
            nodes_listed = asyncio.Event()
            await _together(*[self._follow(client, kind, nodes_listed) for kind in KINDS], self._expire())
        finally:
            self._client = None
            await client.close()

    @property
    def follows_api(self) -> bool:
        """Whether there is an API that `current` can ask: a file has none."""
        return not isinstance(self._source, DumpFile)

    async def current(self, kind: Kind, namespace: str, name: str) -> Current:
        """One object as the API has it now; the inventory stays as it is.

        Raises `ApiError` and its kinds, `ConfigurationError` and `UnreadableError`.
        """
        if self._client is None:
            raise ApiError("the cluster is not being followed")
        return self._decoder.one(kind, await self._client.get(kind, namespace, name))

    async def stop(self) -> None:
        """Nothing to finish."""

    async def _follow(self, client: KubernetesClient, kind: Kind, nodes_listed: asyncio.Event) -> None:
        """List and watch one kind for ever."""
        if kind == "pods":
            # Pods take their zone from nodes: in this order nothing is described twice. But not at any price.
            await self._wait_briefly(nodes_listed)
            share = min(self._inventory.counts()["nodes"] / 5000, 1.0)
            await self._clock.sleep(self._config.start_spread * share * self._jitter.random())
        pause = self._config.shortest_pause
        reason = "start"
        version = ""
        while True:
            began = self._clock.monotonic()
            wish = 0.0
            try:
                if not version:
                    self._metrics.add(WATCH_RELISTS, kind=kind, reason=reason)
                async for newest in self._bring_up_to_date(client, kind, version):
                    if not version:
                        self._now_synced(kind)
                        if kind == "nodes":
                            nodes_listed.set()
                    version = newest
                    self._over_trouble(kind)
                if self._clock.monotonic() - began >= _WORTHWHILE_WATCH:
                    continue
            except ExpiredError as error:
                logger.info("Listing %s again: %s", kind, error)
                version, reason = "", "expired"
            except UnreadableError as error:
                self._in_trouble(kind, f"{error}; listing {kind} again")
                version, reason = "", "error"
            except (ApiError, ConfigurationError) as error:
                self._in_trouble(kind, str(error))
                reason = "error"
                wish = getattr(error, "retry_after", 0.0)
            # Only what held for a while ends the patience: a list that succeeds before a watch that fails at
            # once must not be repeated in a tight loop.
            if self._clock.monotonic() - began > self._config.longest_pause:
                pause = self._config.shortest_pause
            wait = max(pause * self._jitter.uniform(0.5, 1.5), wish * self._jitter.uniform(1.0, 1.5))
            if not version and reason == "expired":
                # What made one replica's version expire made all: they come back one after the other.
                wait += self._jitter.uniform(0.0, self._spread(kind))
            await self._clock.sleep(wait)
            pause = min(2 * pause, self._config.longest_pause)

    def _spread(self, kind: Kind) -> float:
        """Seconds over which replicas spread their lists of a kind: the larger the list, the longer."""
        known = self._inventory.counts()[kind]
        return min(self._config.relist_spread * known / 100_000, self._config.longest_pause)

    async def _wait_briefly(self, nodes_listed: asyncio.Event) -> None:
        waiting = asyncio.ensure_future(nodes_listed.wait())
        patience = asyncio.ensure_future(self._clock.sleep(self._config.connect_timeout))
        try:
            await asyncio.wait([waiting, patience], return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
            patience.cancel()

    async def _bring_up_to_date(
        self, client: KubernetesClient, kind: Kind, version: str
    ) -> AsyncGenerator[str, None]:
        """List without a version, then watch; gives the newest version once listed and after each lot."""
        if not version and SELECTIONS[kind].streamed and kind not in self._pages_wanted:
            # Whatever breaks off is tried as pages the next time, in case that something cannot bear it.
            self._pages_wanted.add(kind)
            try:
                async for newest in self._watch(client, kind, ""):
                    self._pages_wanted.discard(kind)
                    yield newest
                return
            except RefusedError:
                pass
        self._pages_wanted.discard(kind)
        if not version:
            version = await self._list(client, kind)
            yield version
        async for newest in self._watch(client, kind, version):
            yield newest

    async def _list(self, client: KubernetesClient, kind: Kind) -> str:
        """Read all pages into the inventory; returns the version to watch from."""
        self._inventory.begin_relist(kind)
        continue_token = ""
        while True:
            body = await client.list_page(kind, self._config.page_size, continue_token)
            page = self._decoder.page(kind, body)
            self._put_page(kind, page)
            if not page.continue_token:
                break
            if page.continue_token == continue_token:
                raise UnreadableError(f"the list of {kind} does not come to an end")
            continue_token = page.continue_token
        if not page.resource_version:
            raise UnreadableError(f"the list of {kind} carries no version")
        self._inventory.end_relist(kind, self._clock.time())
        return page.resource_version

    async def _watch(self, client: KubernetesClient, kind: Kind, version: str) -> AsyncGenerator[str, None]:
        """Apply changes from `version` on, or all there is; gives the newest version after each lot."""
        timeout = int(self._config.watch_timeout * self._jitter.uniform(1.0, 2.0)) or 1
        if not version:
            self._inventory.begin_relist(kind)
        async with contextlib.aclosing(client.watch(kind, version, timeout)) as changes:
            while True:
                try:
                    # Who waits for a list waits as long as for a page; changes may be rare.
                    async with asyncio.timeout(None if version else self._config.read_timeout):
                        lines = await anext(changes)
                except StopAsyncIteration:
                    break
                except TimeoutError:
                    raise ApiError(f"the list of {kind} does not go on") from None
                skipped = 0
                for number, line in enumerate(lines, 1):
                    if not line:
                        skipped += 1
                        continue
                    event = self._decoder.event(kind, line)
                    newest = self._apply(kind, event)
                    if version:
                        version = newest or version
                    elif event.ends_list:
                        self._inventory.end_relist(kind, self._clock.time())
                        version = newest
                    elif event.type == "BOOKMARK":
                        raise ApiError(f"the API does not say where the list of {kind} ends")
                    if number % _EVENTS_AT_ONCE == 0:
                        await asyncio.sleep(0)
                self._metrics.add(WATCH_EVENTS, len(lines), kind=kind)
                self._count_skipped(kind, skipped)
                if version:
                    yield version
        if not version:
            raise ApiError(f"the list of {kind} broke off")

    def _apply(self, kind: Kind, event: Event) -> str:
        """Apply one event; returns its version. Raises `ApiError` for an ERROR event."""
        if event.type == "ERROR":
            if event.error_code == _GONE:
                raise ExpiredError(f"the {kind} known are too old to go on from")
            raise UnreadableError(f"the watch of {kind} ended: {event.error_code} {event.error_message}")
        if event.type in ("ADDED", "MODIFIED"):
            if event.object is None:
                self._count_skipped(kind, 1)
            else:
                self._put(event.object, self._clock.time())
        elif event.type == "DELETED" and event.object is not None:
            self._remove(event.object, self._clock.time())
        elif event.type == "DELETED":
            raise UnreadableError(f"a deleted one of {kind} cannot be understood")
        return event.resource_version

    def _put_page(self, kind: Kind, page: Page) -> None:
        now = self._clock.time()
        for known in page.objects:
            self._put(known, now)
        self._count_skipped(kind, page.skipped)

    def _put(self, known: KubernetesObject, now: float) -> None:
        if isinstance(known, Pod):
            self._inventory.put_pod(known, now)
        elif isinstance(known, Service):
            self._inventory.put_service(known)
        else:
            self._inventory.put_node(known)

    def _remove(self, known: KubernetesObject, now: float) -> None:
        if isinstance(known, Pod):
            self._inventory.remove_pod(known.uid, now)
        elif isinstance(known, Service):
            self._inventory.remove_service(known.uid)
        else:
            self._inventory.remove_node(known.name, now)

    def _read_file(self, path: Path) -> None:
        """Make the inventory what the file says. Raises `ConfigurationError`."""
        try:
            pages = self._decoder.dump(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(
                f"kubernetes_source: cannot read {path}: {error.strerror or error}"
            ) from error
        except UnreadableError as error:
            raise ConfigurationError(
                f"kubernetes_source: {path} is not the output of "
                f"kubectl get pods,nodes,services -A -o json: {error}"
            ) from error
        for kind in KINDS:
            self._inventory.begin_relist(kind)
            self._put_page(kind, pages[kind])
            self._inventory.end_relist(kind, self._clock.time())
            self._now_synced(kind)

    async def _follow_file(self, path: Path) -> None:
        seen = _stamp(path)
        while True:
            await self._clock.sleep(self._config.file_poll_interval)
            stamp = _stamp(path)
            if stamp == seen:
                continue
            try:
                self._read_file(path)
            except ConfigurationError as error:
                # It may be half written: look again at the next turn, and go on with what is known.
                self._in_trouble("pods", str(error))
                continue
            seen = stamp

    async def _expire(self) -> None:
        while True:
            await self._clock.sleep(self._config.expire_interval)
            self._inventory.expire(self._clock.time())

    def _now_synced(self, kind: Kind) -> None:
        self._synced.add(kind)
        self._trouble.pop(kind, None)
        if len(self._synced) == len(KINDS) and not self._announced:
            self._announced = True
            if self._when_synced is not None:
                self._when_synced()
            # Once is enough to be ready, also where one kind has come into trouble since.
            self._readiness.passed(CHECK)
            counts = self._inventory.counts()
            logger.info(
                "There are currently %d pods, %d nodes and %d services in the cluster%s",
                counts["pods"],
                counts["nodes"],
                counts["services"],
                f" {self._config.cluster}" if self._config.cluster else "",
            )
        self._show()

    def _over_trouble(self, kind: Kind) -> None:
        if self._trouble.pop(kind, None) is not None:
            logger.info("Following %s again", kind)
            self._show()

    def _in_trouble(self, kind: Kind, problem: str) -> None:
        if self._trouble.get(kind) != problem:
            logger.warning("Kubernetes: %s", problem)
        self._trouble[kind] = problem
        self._show()

    def _show(self) -> None:
        if self._trouble:
            self._readiness.failed(CHECK, "; ".join(dict.fromkeys(self._trouble.values())))
        elif len(self._synced) == len(KINDS):
            self._readiness.passed(CHECK)

    def _count_skipped(self, kind: Kind, skipped: int) -> None:
        if not skipped:
            return
        self._metrics.add(WATCH_SKIPPED, skipped, kind=kind)
        now = self._clock.monotonic()
        if now - self._skipped_logged_at.get(kind, -math.inf) >= _SKIPPED_LOG_INTERVAL:
            self._skipped_logged_at[kind] = now
            logger.warning(
                "Left out %d of the %s, which cannot be understood (%d so far)",
                skipped,
                kind,
                self._metrics.value(WATCH_SKIPPED, kind=kind),
            )

    def _count_objects(self) -> None:
        for kind, count in self._inventory.counts().items():
            self._metrics.set(INVENTORY_OBJECTS, count, kind=kind)
        self._metrics.set(INVENTORY_HISTORY, self._inventory.history_reach(self._clock.time()))


async def _together(*jobs: Coroutine[None, None, None]) -> None:
    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(job)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when the file does; None when it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
