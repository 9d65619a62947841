"""A real HTTP server that publishes ranges files as providers do, and misbehaves on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Publisher:
    """Paths and what they answer; a path with several answers gives them in turn and repeats the last."""

    def __init__(self) -> None:
        self.base = ""
        self.requests: Counter[str] = Counter()
        self.answers: dict[str, list[Answer]] = {}

    def publish(self, path: str, *answers: Answer) -> str:
        """Set what a path answers from now on; returns its URL."""
        self.answers[path] = list(answers)
        self.requests[path] = 0
        return f"{self.base}{path}"

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path] += 1
        answers = self.answers.get(request.path)
        if not answers:
            raise web.HTTPNotFound
        return await answers[min(self.requests[request.path], len(answers)) - 1](request)


@contextlib.asynccontextmanager
async def running_publisher() -> AsyncIterator[Publisher]:
    """A publisher on loopback."""
    publisher = Publisher()
    application = web.Application()
    application.router.add_get("/{path:.*}", publisher.handle)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        host, port = runner.addresses[0][:2]
        publisher.base = f"http://{host}:{port}"
        yield publisher
    finally:
        await runner.cleanup()


def file(body: bytes, etag: str = "") -> Answer:
    """The file, or "not modified" for whoever has it."""

    async def answer(request: web.Request) -> web.StreamResponse:
        headers = {"ETag": etag} if etag else {}
        if etag and request.headers.get("If-None-Match") == etag:
            return web.Response(status=304, headers=headers)
        return web.Response(body=body, headers=headers)

    return answer


def status(code: int, text: str = "") -> Answer:
    """An error page, or what it says."""

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, text=text or f"<html>{code}</html>", content_type="text/html")

    return answer


def truncated(body: bytes) -> Answer:
    """Half of the file, then the connection breaks."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        assert request.transport is not None
        request.transport.close()
        return response

    return answer


def slow(seconds: float, body: bytes) -> Answer:
    """The head at once, the file so much later."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b" ")
        await asyncio.sleep(seconds)
        await response.write(body)
        return response

    return answer


def endless() -> Answer:
    """White space without end."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" " * 65_536)
        return response

    return answer
