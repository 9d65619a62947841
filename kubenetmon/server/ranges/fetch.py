"""Downloads: one provider's file at a time, checked before anyone sees it.

Contract: `Fetcher.fetch` either returns a file that parses (or says that the known copy is still current) or
raises `FetchError` with one line that says what went wrong and where. Time, size and attempts are bounded;
nothing is kept. Files are parsed in a thread, off the event loop. The session belongs to the caller.
"""

from __future__ import annotations

import asyncio
import datetime
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import aiohttp

from kubenetmon import __version__
from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.server.ranges.cache import MOST_BYTES, Origin
from kubenetmon.server.ranges.parse import AWS, AZURE, GCP, GOOGLE, ProviderRanges, parse

URLS: Mapping[str, str] = {
    AWS: "https://ip-ranges.amazonaws.com/ip-ranges.json",
    GCP: "https://www.gstatic.com/ipranges/cloud.json",
    GOOGLE: "https://www.gstatic.com/ipranges/goog.json",
    # No permalink: the date is that of publication, some day of each week or so.
    AZURE: "https://download.microsoft.com/download/7/1/D/71D86715-5596-4529-9B13-DA13A5DE5B63/"
    "ServiceTags_Public_{date}.json",
}

AZURE_LOOK_BACK_DAYS = 90


def client_session() -> aiohttp.ClientSession:
    """A session as downloads need it: proxies as the environment says, and our name."""
    return aiohttp.ClientSession(trust_env=True, headers={"User-Agent": f"kubenetmon/{__version__}"})


class FetchError(KubenetmonError):
    """A provider's ranges could not be downloaded; what is known of them stays in use."""


class _AbsentError(FetchError):
    """There is no such file, and asking again will not change that."""


class _PassingError(FetchError):
    """The attempt failed in a way that the next may not."""


@dataclass(frozen=True, slots=True)
class FetchConfig:
    """Bounds of one download. `urls` may hold `{date}` for a file that is looked for by its date."""

    urls: Mapping[str, str] = field(default_factory=lambda: dict(URLS))
    attempts: int = 3
    first_wait: float = 1.0
    connect_timeout: float = 10.0
    timeout: float = 60.0
    most_bytes: int = MOST_BYTES


@dataclass(frozen=True, slots=True)
class Fetched:
    """A provider's current file and what it says; both are None where the known copy is still current."""

    origin: Origin
    body: bytes | None
    ranges: ProviderRanges | None


class Fetcher:
    """Downloads and checks; holds nothing but its bounds."""

    def __init__(self, config: FetchConfig, session: aiohttp.ClientSession, clock: Clock) -> None:
        self._config = config
        self._session = session
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=config.timeout, connect=config.connect_timeout)

    async def fetch(self, provider: str, known: Origin | None = None) -> Fetched:
        """The provider's file as published now, unless it is the `known` one. Raises `FetchError`."""
        url = self._config.urls[provider]
        if "{date}" not in url:
            return await self._persistently(provider, url, known)
        newest: FetchError | None = None
        for dated in self._dated(url):
            if known is not None and dated == known.url:
                return await self._persistently(provider, dated, known)
            try:
                return await self._persistently(provider, dated, None)
            except _AbsentError as error:
                newest = newest or error
        raise FetchError(
            f"no ranges of {provider} were published in the last {AZURE_LOOK_BACK_DAYS} days"
            f" as far as the first address tells: {newest}"
        )

    def _dated(self, url: str) -> Iterator[str]:
        today = datetime.datetime.fromtimestamp(self._clock.time(), datetime.UTC).date()
        for days in range(AZURE_LOOK_BACK_DAYS + 1):
            yield url.format(date=f"{today - datetime.timedelta(days=days):%Y%m%d}")

    async def _persistently(self, provider: str, url: str, known: Origin | None) -> Fetched:
        for attempt in range(1, self._config.attempts + 1):
            try:
                return await self._once(provider, url, known)
            except _PassingError as error:
                if attempt == self._config.attempts:
                    raise FetchError(f"{error} ({attempt} attempts)") from error
                wait = self._config.first_wait * 2 ** (attempt - 1)
                await self._clock.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 (spreads load, no secret)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def _once(self, provider: str, url: str, known: Origin | None) -> Fetched:
        headers = {"If-None-Match": known.etag} if known is not None and known.etag else {}
        now = self._clock.time()
        try:
            async with self._session.get(url, headers=headers, timeout=self._timeout) as response:
                if response.status == 304 and known is not None:
                    return Fetched(Origin(url, known.etag, now), None, None)
                if response.status in (408, 425, 429) or response.status >= 500:
                    raise _PassingError(f"{url} answered HTTP {response.status}")
                if response.status != 200:
                    raise _AbsentError(f"{url} answered HTTP {response.status}")
                body = await self._body(url, response)
                etag = response.headers.get("ETag", "")
        except TimeoutError:
            raise _PassingError(f"{url} did not answer within {self._config.timeout:g}s") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise _PassingError(f"{url} cannot be read: {reason:.200}") from error
        except ValueError as error:
            raise _AbsentError(f"{url} is no address that can be fetched: {error}") from error
        try:
            ranges = await asyncio.to_thread(parse, provider, body, url)
        except ConfigurationError as error:
            # A page that says "not found" under HTTP 200 looks like this.
            raise _AbsentError(str(error)) from error
        return Fetched(Origin(url, etag, now), body, ranges)

    async def _body(self, url: str, response: aiohttp.ClientResponse) -> bytes:
        parts: list[bytes] = []
        size = 0
        async for part in response.content.iter_any():
            size += len(part)
            if size > self._config.most_bytes:
                raise _AbsentError(f"{url} is larger than {self._config.most_bytes} bytes")
            parts.append(part)
        return b"".join(parts)
