"""The component that owns the cloud ranges in use.

Contract: `RangeKeeper.table` is always a whole `RangeTable`, swapped in one assignment; who attributes a
batch takes it once. With a directory given, its files are the ranges and nothing is downloaded; they are read
again when they change. Else each provider is on its own: the copy on disk first, a download when that is
older than `refresh`, the last good copy whatever happens, another attempt with backoff after a failure.
Start-up never waits longer than `patience`: without ranges the server goes on, says so in /ready and logs,
and attribution says UNKNOWN. Reading, parsing and building happen in threads. Nothing to finish at shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import RANGE_AGE, RANGE_PREFIXES, RANGE_REFRESHES, REMOTE_LABELER_ERRORS
from kubenetmon.readiness import Readiness
from kubenetmon.server.ranges.cache import Origin, RangeCache, read_bounded, write_whole
from kubenetmon.server.ranges.fetch import FetchConfig, Fetcher, FetchError, client_session
from kubenetmon.server.ranges.parse import CLOUDS, PROVIDERS, ProviderRanges, parse
from kubenetmon.server.ranges.table import RangeTable

logger = logging.getLogger(__name__)

CHECK = "cloud ranges"
"""The name in /ready."""

DIRECTORY_INTERVAL = 60.0
"""Seconds between looks at whether the files of a directory changed."""

FIRST_RETRY, LONGEST_RETRY = 30.0, 3600.0


@dataclass(frozen=True, slots=True)
class RangesConfig:
    """Where ranges come from. `cloud` and `region` are this cluster's own, in lower case; times: seconds."""

    cloud: str
    region: str
    directory: Path | None = None
    cache_directory: Path | None = None
    refresh: float = 86_400.0
    patience: float = 30.0
    fetch: FetchConfig = field(default_factory=FetchConfig)


class RangeKeeper:
    """Keeps the ranges current."""

    name = "cloud ranges"

    def __init__(
        self,
        config: RangesConfig,
        *,
        metrics: Metrics,
        readiness: Readiness,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._config = config
        self._metrics = metrics
        self._readiness = readiness
        self._clock = clock
        self._table = RangeTable()
        self._ranges: dict[str, ProviderRanges] = {}
        self._origins: dict[str, Origin] = {}
        self._cache = RangeCache(config.cache_directory) if config.cache_directory else None
        self._rebuilding = asyncio.Lock()
        self._attempted: set[str] = set()
        self._settled = asyncio.Event()
        self._gate_open = False
        self._problem = ""
        readiness.expect(CHECK, "the cloud ranges are being loaded")
        metrics.before_render(self._export_ages)

    @property
    def table(self) -> RangeTable:
        """The ranges in use now."""
        return self._table

    async def run(self) -> None:
        """Load the ranges and keep them current.

        Raises `ConfigurationError` at start for a directory that cannot be used, and for a region that is
        none of its cloud's.
        """
        if self._config.directory is not None:
            await self._keep_directory(self._config.directory)
        else:
            await self._keep_downloads()

    async def stop(self) -> None:
        """Nothing is under way that would have to end in order."""

    async def _keep_directory(self, directory: Path) -> None:
        seen = await asyncio.to_thread(_signature, directory)
        await self._adopt(await asyncio.to_thread(_read_directory, directory))
        self._metrics.add(RANGE_REFRESHES, result="succeeded")
        self._open_gate()
        while True:
            await self._clock.sleep(min(self._config.refresh, DIRECTORY_INTERVAL))
            now = await asyncio.to_thread(_signature, directory)
            if now == seen:
                continue
            seen = now
            try:
                found = await asyncio.to_thread(_read_directory, directory)
                for ranges, origin in found:
                    self._refuse_shrunken(ranges, origin.url)
                await self._adopt(found)
            except ConfigurationError as error:
                self._note_failure(f"{error}; the ranges read before stay in use")
            else:
                self._metrics.add(RANGE_REFRESHES, result="succeeded")
            self._report()

    async def _keep_downloads(self) -> None:
        if self._cache is not None:
            await self._adopt(await asyncio.to_thread(_read_cache, self._cache))
        async with client_session() as session:
            fetcher = Fetcher(self._config.fetch, session, self._clock)
            tasks = [
                asyncio.create_task(self._keep_provider(provider, fetcher), name=f"ranges of {provider}")
                for provider in PROVIDERS
            ]
            settled = asyncio.create_task(self._settled.wait())
            patience = asyncio.create_task(self._clock.sleep(self._config.patience))
            self._settle()
            try:
                await asyncio.wait([settled, patience, *tasks], return_when=asyncio.FIRST_COMPLETED)
                self._open_gate()
                await asyncio.gather(*tasks)
            finally:
                for task in (settled, patience, *tasks):
                    task.cancel()
                await asyncio.gather(settled, patience, *tasks, return_exceptions=True)

    async def _keep_provider(self, provider: str, fetcher: Fetcher) -> None:
        failures = 0
        while True:
            await self._clock.sleep(self._wait(provider, failures))
            try:
                fetched = await fetcher.fetch(provider, self._origins.get(provider))
                if fetched.ranges is not None:
                    self._refuse_shrunken(fetched.ranges, fetched.origin.url)
            except (FetchError, ConfigurationError) as error:
                failures += 1
                stays = "the copy in use stays" if provider in self._ranges else "none are known"
                self._note_failure(f"The ranges of {provider} could not be refreshed, {stays}: {error}")
            else:
                failures = 0
                if fetched.ranges is None or fetched.body is None:
                    self._origins[provider] = fetched.origin
                    if self._cache is not None:
                        await asyncio.to_thread(self._cache.renew, provider, fetched.origin)
                else:
                    if self._cache is not None:
                        await asyncio.to_thread(self._cache.store, provider, fetched.origin, fetched.body)
                    await self._adopt([(fetched.ranges, fetched.origin)])
                self._metrics.add(RANGE_REFRESHES, result="succeeded")
            self._attempted.add(provider)
            self._settle()
            self._report()

    def _wait(self, provider: str, failures: int) -> float:
        """Seconds until the next attempt."""
        spread = random.uniform(0.5, 1.5)  # noqa: S311 (spreads load, no secret)
        if failures:
            return min(LONGEST_RETRY, FIRST_RETRY * 2.0 ** (failures - 1), self._config.refresh) * spread
        if provider not in self._origins:
            return 0.0
        age = max(self._clock.time() - self._origins[provider].fetched_at, 0.0)
        return max(self._config.refresh - age, 0.0)

    async def _adopt(self, found: Sequence[tuple[ProviderRanges, Origin]]) -> None:
        """Put these providers' ranges in use beside those of the others."""
        async with self._rebuilding:
            known = self._ranges | {ranges.provider: ranges for ranges, _ in found}
            self._table = await asyncio.to_thread(RangeTable, list(known.values()))
            self._ranges = known
        for ranges, origin in found:
            self._origins[ranges.provider] = origin
            self._metrics.set(RANGE_PREFIXES, ranges.distinct, provider=ranges.provider)
            logger.info("Loaded %d prefixes of %s from %s", ranges.distinct, ranges.provider, origin.url)

    def _refuse_shrunken(self, ranges: ProviderRanges, source: str) -> None:
        """Raise `ConfigurationError` for a file that lost what no provider gives up within a day."""
        known = self._ranges.get(ranges.provider)
        if known is None:
            return
        lost = ""
        if 2 * ranges.distinct < known.distinct:
            lost = f"{ranges.distinct} prefixes and the copy in use {known.distinct}"
        elif (
            ranges.provider == self._config.cloud
            and self._config.region in known.regions() - ranges.regions()
        ):
            lost = f"nothing of the region {self._config.region} and the copy in use does"
        if lost:
            way = "" if self._config.directory else "remove the cached copy and "
            raise ConfigurationError(
                f"{source} holds {lost}: refused as cut off; if it is right, {way}restart the server"
            )

    def _note_failure(self, message: str) -> None:
        logger.warning(message)
        self._metrics.add(RANGE_REFRESHES, result="failed")
        self._metrics.add(REMOTE_LABELER_ERRORS, type="get_cloud_ranges")

    def _settle(self) -> None:
        """End the wait at start when more waiting would not help."""
        if self._table.covers(self._config.cloud) or len(self._attempted) == len(PROVIDERS):
            self._settled.set()

    def _open_gate(self) -> None:
        """The wait at start is over: the server may work with the ranges there are."""
        if self._config.region:
            self._table.check_region(self._config.cloud, self._config.region)
        self._gate_open = True
        self._readiness.passed(CHECK)
        self._report()

    def _report(self) -> None:
        """Say in /ready, and in the log when it changes, what is wrong with the ranges in use."""
        if not self._gate_open:
            return
        cloud, problem = self._config.cloud, ""
        if not len(self._table):
            problem = "no cloud ranges are loaded: public addresses get the class UNKNOWN"
        elif cloud in CLOUDS and not self._table.covers(cloud):
            problem = f"the ranges of {cloud} are missing: addresses in no range get the class UNKNOWN"
        elif self._config.region:
            try:
                self._table.check_region(cloud, self._config.region)
            except ConfigurationError as error:
                problem = str(error)
        if problem and problem != self._problem:
            logger.warning("Attribution is incomplete: %s", problem)
        self._problem = problem
        if problem:
            self._readiness.failed(CHECK, problem)
        else:
            missing = [provider for provider in PROVIDERS if provider not in self._ranges]
            lacking = f", none of {', '.join(missing)}" if missing else ""
            self._readiness.passed(CHECK, f"{len(self._table)} prefixes{lacking}")

    def _export_ages(self) -> None:
        now = self._clock.time()
        for provider, origin in self._origins.items():
            self._metrics.set(RANGE_AGE, max(now - origin.fetched_at, 0.0), provider=provider)


def _read_cache(cache: RangeCache) -> list[tuple[ProviderRanges, Origin]]:
    found = []
    for provider in PROVIDERS:
        kept = cache.load(provider)
        if kept is None:
            continue
        origin, body = kept
        try:
            found.append((parse(provider, body, f"the cached copy of {origin.url}"), origin))
        except ConfigurationError as error:
            logger.warning("%s", error)
    return found


def _read_directory(directory: Path) -> list[tuple[ProviderRanges, Origin]]:
    found = []
    for provider in PROVIDERS:
        path = directory / f"{provider}.json"
        try:
            body = read_bounded(path)
            modified = path.stat().st_mtime
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"cloud_ranges_dir: {path} cannot be read: {error}") from error
        found.append((parse(provider, body, str(path)), Origin(str(path), "", modified)))
    if not found:
        names = ", ".join(f"{provider}.json" for provider in PROVIDERS)
        raise ConfigurationError(
            f"cloud_ranges_dir: {directory} holds none of {names};"
            f" write them with `kubenetmon ranges download --out {directory}`"
        )
    return found


def _signature(directory: Path) -> list[tuple[int, int] | None]:
    """What changes when the files of a directory do."""
    signature: list[tuple[int, int] | None] = []
    for provider in PROVIDERS:
        try:
            status = (directory / f"{provider}.json").stat()
        except OSError:
            signature.append(None)
        else:
            signature.append((status.st_mtime_ns, status.st_size))
    return signature


async def download(
    out: Path,
    providers: Sequence[str] = PROVIDERS,
    progress: Callable[[str], None] = print,
    *,
    config: FetchConfig | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> dict[str, int]:
    """Write `<provider>.json` for each provider into `out`, made if need be; returns prefixes by provider.

    `progress` gets one line a provider. A provider that fails leaves its file as it was. Raises
    `KubenetmonError` at the end when one failed, `ConfigurationError` when `out` cannot be written.
    """
    failed: list[str] = []
    done: dict[str, int] = {}
    try:
        await asyncio.to_thread(out.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(f"--out: {out} cannot be made: {error}") from error
    async with client_session() as session:
        fetcher = Fetcher(config or FetchConfig(), session, clock)

        async def one(provider: str) -> None:
            try:
                fetched = await fetcher.fetch(provider)
            except FetchError as error:
                failed.append(provider)
                progress(f"{provider}: failed: {error}")
                return
            assert fetched.body is not None
            assert fetched.ranges is not None
            path = out / f"{provider}.json"
            try:
                await asyncio.to_thread(write_whole, path, fetched.body)
            except OSError as error:
                raise ConfigurationError(f"--out: {path} cannot be written: {error}") from error
            done[provider] = fetched.ranges.distinct
            progress(f"{provider}: {fetched.ranges.distinct} prefixes from {fetched.origin.url} in {path}")

        results = await asyncio.gather(*map(one, providers), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    if failed:
        raise KubenetmonError(f"the ranges of {', '.join(failed)} could not be downloaded")
    return done
