"""`kubenetmon ranges download`: the providers' files into a directory, for `cloud_ranges_dir`.

Contract: each provider on its own, each file checked and written whole; a provider that fails leaves its file
as it was. Nothing outlives the call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.server.ranges.cache import write_whole
from kubenetmon.server.ranges.fetch import FetchConfig, Fetcher, FetchError, client_session
from kubenetmon.server.ranges.parse import PROVIDERS


async def run(out: Path) -> int:
    """Download everything, telling each step on standard output; returns the exit code 0 or raises."""
    await download(out)
    return 0


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
