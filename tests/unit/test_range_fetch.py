"""Downloads of ranges from a real HTTP server on loopback, well and badly behaved."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.server.ranges import PROVIDERS, download
from kubenetmon.server.ranges.cache import Origin
from kubenetmon.server.ranges.fetch import FetchConfig, Fetcher, FetchError
from tests.beds.publisher import Publisher, endless, file, running_publisher, slow, status, truncated

FILES = Path(__file__).parents[1] / "data" / "ranges"
AWS = (FILES / "aws.json").read_bytes()
AZURE = (FILES / "azure.json").read_bytes()


@pytest.fixture
async def publisher(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Publisher]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with running_publisher() as publisher:
        yield publisher


def config(publisher: Publisher, **changes: float | int) -> FetchConfig:
    urls = {name: f"{publisher.base}/{name}.json" for name in PROVIDERS}
    urls["azure"] = f"{publisher.base}/azure-{{date}}.json"
    settings = {"first_wait": 0.01, "timeout": 5.0, **changes}
    return FetchConfig(urls=urls, **settings)  # type: ignore[arg-type]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def azure_path(days_ago: int) -> str:
    day = datetime.datetime.now(datetime.UTC).date() - datetime.timedelta(days=days_ago)
    return f"/azure-{day:%Y%m%d}.json"


async def test_a_file_is_fetched_checked_and_kept_with_its_etag(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    url = publisher.publish("/aws.json", file(AWS, '"one"'))
    fetcher = Fetcher(config(publisher), session, SYSTEM_CLOCK)
    fetched = await fetcher.fetch("aws")
    assert fetched.body == AWS
    assert fetched.ranges is not None
    assert fetched.ranges.distinct == 9
    assert (fetched.origin.url, fetched.origin.etag) == (url, '"one"')

    again = await fetcher.fetch("aws", fetched.origin)
    assert again.body is None
    assert again.ranges is None
    assert again.origin.fetched_at >= fetched.origin.fetched_at

    changed = await fetcher.fetch("aws", Origin(url, '"older"', 0.0))
    assert changed.body == AWS


async def test_what_may_pass_is_tried_again(publisher: Publisher, session: aiohttp.ClientSession) -> None:
    publisher.publish("/aws.json", status(500), truncated(AWS), file(AWS))
    fetched = await Fetcher(config(publisher), session, SYSTEM_CLOCK).fetch("aws")
    assert fetched.body == AWS
    assert publisher.requests["/aws.json"] == 3


async def test_attempts_end(publisher: Publisher, session: aiohttp.ClientSession) -> None:
    url = publisher.publish("/aws.json", status(503))
    with pytest.raises(FetchError) as caught:
        await Fetcher(config(publisher), session, SYSTEM_CLOCK).fetch("aws")
    assert str(caught.value) == f"{url} answered HTTP 503 (3 attempts)"


async def test_what_cannot_pass_is_not_tried_again(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    fetcher = Fetcher(config(publisher, most_bytes=1 << 20), session, SYSTEM_CLOCK)
    for answer, says in (
        (status(404), "answered HTTP 404"),
        (status(403), "answered HTTP 403"),
        (file(b"<html>sign in first</html>"), "is not JSON"),
        (file(AWS[: len(AWS) // 2]), "is not JSON"),
        (file(b'{"prefixes": []}'), "holds no prefixes"),
        (endless(), "larger than 1048576 bytes"),
    ):
        publisher.publish("/aws.json", answer)
        with pytest.raises(FetchError, match=says):
            await fetcher.fetch("aws")
        assert publisher.requests["/aws.json"] == 1


async def test_a_slow_server_is_given_up(publisher: Publisher, session: aiohttp.ClientSession) -> None:
    publisher.publish("/aws.json", slow(30.0, AWS))
    fetcher = Fetcher(config(publisher, timeout=0.2, attempts=2), session, SYSTEM_CLOCK)
    with pytest.raises(FetchError, match=r"did not answer within 0.2s \(2 attempts\)"):
        await asyncio.wait_for(fetcher.fetch("aws"), 5)


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/9.9 hello\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b"X: " + b"x" * 100_000 + b"\r\n\r\n",
        OK + b"Content-Length: many\r\n\r\n",
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhel",
        OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Encoding: br\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Encoding: zstd\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Content-Type: text/html; charset=\xff\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 304 Not Modified\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: http://[::bad\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    ],
)
async def test_whatever_a_server_answers_it_is_a_failed_fetch_in_one_line(
    session: aiohttp.ClientSession, answer: bytes
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/aws.json"
    bounds = FetchConfig(urls={"aws": url}, first_wait=0.001, timeout=2.0, attempts=2)
    try:
        with pytest.raises(FetchError) as caught:
            await Fetcher(bounds, session, SYSTEM_CLOCK).fetch("aws")
    finally:
        server.close()
        await server.wait_closed()
    assert url in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


async def test_a_file_that_grows_when_unpacked_is_given_up_in_time(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    packed = gzip.compress(b" " * (100 << 20), 1)

    async def bomb(request: web.Request) -> web.Response:
        return web.Response(body=packed, headers={"Content-Encoding": "gzip"})

    publisher.publish("/aws.json", bomb)
    fetcher = Fetcher(config(publisher, most_bytes=1 << 20), session, SYSTEM_CLOCK)
    with pytest.raises(FetchError, match="larger than 1048576 bytes"):
        await fetcher.fetch("aws")
    assert publisher.requests["/aws.json"] == 1


async def test_no_server_is_one_line(publisher: Publisher, session: aiohttp.ClientSession) -> None:
    urls = {"aws": "http://127.0.0.1:9/aws.json", "gcp": "no address"}
    fetcher = Fetcher(FetchConfig(urls=urls, first_wait=0.01), session, SYSTEM_CLOCK)
    for provider in urls:
        with pytest.raises(FetchError) as caught:
            await fetcher.fetch(provider)
        assert urls[provider] in str(caught.value)
        assert "\n" not in str(caught.value)


async def test_azure_is_found_by_looking_back_for_its_date(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    publisher.publish(azure_path(0), file(b"<html>not here</html>"))
    publisher.publish(azure_path(5), file(AZURE, '"a"'))
    publisher.publish(azure_path(12), file(AZURE, '"b"'))
    fetcher = Fetcher(config(publisher), session, SYSTEM_CLOCK)
    fetched = await fetcher.fetch("azure")
    assert fetched.origin.url == publisher.base + azure_path(5)

    # What is known is asked for again only after everything newer.
    assert (await fetcher.fetch("azure", fetched.origin)).ranges is None
    publisher.publish(azure_path(3), file(AZURE))
    assert (await fetcher.fetch("azure", fetched.origin)).origin.url == publisher.base + azure_path(3)
    assert publisher.requests[azure_path(12)] == 0


async def test_azure_is_given_up_after_ninety_days(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    publisher.publish(azure_path(95), file(AZURE))
    with pytest.raises(FetchError, match="no ranges of azure were published in the last 90 days"):
        await Fetcher(config(publisher), session, SYSTEM_CLOCK).fetch("azure")
    assert sum(publisher.requests.values()) == 91


async def test_azure_is_not_looked_for_on_a_server_that_is_down(
    publisher: Publisher, session: aiohttp.ClientSession
) -> None:
    publisher.publish(azure_path(0), status(502))
    with pytest.raises(FetchError, match="HTTP 502"):
        await Fetcher(config(publisher, attempts=1), session, SYSTEM_CLOCK).fetch("azure")
    assert sum(publisher.requests.values()) == 1


async def test_download_writes_what_it_can_and_names_what_failed(
    publisher: Publisher, tmp_path: Path
) -> None:
    for name in ("aws", "google"):
        publisher.publish(f"/{name}.json", file((FILES / f"{name}.json").read_bytes()))
    publisher.publish(azure_path(1), file(AZURE))
    lines: list[str] = []
    out = tmp_path / "new" / "ranges"
    with pytest.raises(KubenetmonError, match="the ranges of gcp could not be downloaded"):
        await download(out, progress=lines.append, config=config(publisher))
    assert sorted(path.name for path in out.iterdir()) == ["aws.json", "azure.json", "google.json"]
    assert (out / "aws.json").read_bytes() == AWS
    assert len(lines) == 4
    publisher.publish("/gcp.json", file((FILES / "gcp.json").read_bytes()))
    assert await download(out, ["gcp"], lines.append, config=config(publisher)) == {"gcp": 3}


async def test_download_into_nowhere_is_one_line(publisher: Publisher, tmp_path: Path) -> None:
    publisher.publish("/aws.json", file(AWS))
    (tmp_path / "file").write_text("")
    (tmp_path / "out" / "aws.json").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match=r"aws\.json cannot be written"):
        await download(tmp_path / "out", ["aws"], lambda line: None, config=config(publisher))
    with pytest.raises(ConfigurationError, match=r"--out: .*/file cannot be made"):
        await download(tmp_path / "file", ["aws"], lambda line: None, config=config(publisher))
