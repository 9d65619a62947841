"""The HTTP side of a process: /metrics, /live, /ready, and pages that parts add.

Contract: GET only, read-only. h11 parses; one request at a time per connection; requests, connections and
time are bounded, so that a hostile peer costs at most `_MAX_CONNECTIONS` small buffers. aiohttp would serve
as well and costs the agent 11 MB. At shutdown the port closes first and open connections are dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import inspect
import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, urlsplit

import h11

from kubenetmon import __version__
from kubenetmon.errors import ConfigurationError, cannot_listen
from kubenetmon.metrics import Metrics
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

_MAX_CONNECTIONS = 64
_MAX_REQUEST_BYTES = 16 * 1024
_IDLE_SECONDS = 30.0
_ANSWER_SECONDS = 60.0
_LOOK_AGAIN = 0.1
_PIECE_BYTES = 64 * 1024
_LAST_LOOKS = 10
"""How often a port is looked at once a predecessor has gone."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Response:
    """What a page answers."""

    body: bytes
    content_type: str = TEXT
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


Page = Callable[[Mapping[str, str]], Response | Awaitable[Response]]
"""Takes the query's parameters (the last value of each name)."""


class HttpServer:
    """Component that serves pages on one port; `run` raises `ConfigurationError` when the port is taken.

    /metrics and /ready are there where `metrics` and `readiness` are given; `what` is what logs call it.
    """

    def __init__(
        self,
        port: int,
        *,
        metrics: Metrics | None = None,
        readiness: Readiness | None = None,
        host: str | None = None,
        what: str = "metrics",
        predecessor: Callable[[], bool] | None = None,
    ) -> None:
        """`host`: the address to listen on; none or empty: all.

        While `predecessor` says that another process of ours may have the port, `run` waits for it.
        """
        self._host, self._port, self._predecessor = host or None, port, predecessor
        self._what, self.name = what, f"HTTP server ({what})"
        self._connections: set[asyncio.Task[None]] = set()
        self._pages: dict[str, Page] = {"/live": lambda _: Response(b"ok\n")}
        if metrics is not None:
            self._pages["/metrics"] = lambda _: _metrics_response(metrics)
        if readiness is not None:
            self._pages["/ready"] = lambda _: _ready_response(readiness)
        self._local_only: set[str] = set()
        self.listening = asyncio.Event()

    def add_page(self, path: str, page: Page) -> None:
        """Serve `page` at exactly `path`."""
        self._pages[path] = page

    def add_local_page(self, path: str, page: Page) -> None:
        """The same, for peers on this machine's loopback only, who call it localhost or by an address:
        `kubectl port-forward` and `exec` come so."""
        self.add_page(path, page)
        self._local_only.add(path)

    async def run(self) -> None:
        """Serve until cancelled."""
        server = await self._listen()
        self._port = server.sockets[0].getsockname()[1]
        self.listening.set()
        if "/metrics" in self._pages:
            logger.info("Beginning to serve metrics on port %s:%d/metrics", self._host or "", self._port)
        else:
            logger.info("Beginning to serve the %s on %s:%d", self._what, self._host or "*", self._port)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            for task in self._connections:
                task.cancel()

    async def _listen(self) -> asyncio.Server:
        looks = _LAST_LOOKS
        while True:
            try:
                return await asyncio.start_server(
                    self._serve, self._host, self._port, limit=_MAX_REQUEST_BYTES, reuse_address=True
                )
            except OSError as error:
                if self._predecessor is None or error.errno != errno.EADDRINUSE:
                    looks = 0
                elif not self._predecessor():
                    looks -= 1  # one that was killed does not let go of everything at one instant
                if looks <= 0:
                    raise ConfigurationError(
                        cannot_listen(self._what, self._host or "", self._port, error)
                    ) from error
            await asyncio.sleep(_LOOK_AGAIN)

    async def stop(self) -> None:
        """Nothing to finish: probes and scrapes are welcome until the end."""

    @property
    def port(self) -> int:
        """The port served, once listening."""
        return self._port

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        if len(self._connections) >= _MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._converse(reader, writer, is_loopback(writer.get_extra_info("peername")[0]))
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the peer went away or dawdled, or we are stopping
        finally:
            self._connections.discard(task)
            writer.close()
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, local: bool
    ) -> None:
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_REQUEST_BYTES)
        while True:
            head_only = False
            try:
                async with asyncio.timeout(_IDLE_SECONDS):
                    request = await _next_request(connection, reader)
                if request is None:
                    return
                head_only = request.method == b"HEAD"
                response = await self._answer(request, local)
            except h11.RemoteProtocolError as error:
                response = Response(f"{error}\n".encode(), status=error.error_status_hint)
            if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
                return
            async with asyncio.timeout(_ANSWER_SECONDS):
                await _send(connection, writer, response, head_only=head_only)
            if connection.states != {h11.SERVER: h11.DONE, h11.CLIENT: h11.DONE}:
                return
            connection.start_next_cycle()

    async def _answer(self, request: h11.Request, local: bool) -> Response:
        if request.method not in (b"GET", b"HEAD"):
            return Response(b"only GET is served here\n", status=405)
        target = urlsplit(request.target.decode("latin-1"))
        page = self._pages.get(target.path)
        if page is None:
            known = ", ".join(sorted(self._pages))
            return Response(f"no such page; there are {known}\n".encode(), status=404)
        if target.path in self._local_only and not local:
            return Response(b"only served on loopback: use kubectl port-forward or exec\n", status=403)
        if target.path in self._local_only and not _names_this_machine(request):
            return Response(b"only served under the name localhost or an address\n", status=403)
        try:
            answer = page(dict(parse_qsl(target.query)))
            return await answer if inspect.isawaitable(answer) else answer
        except Exception:
            logger.exception("The page %s failed", target.path)
            return Response(b"this page failed; the log says why\n", status=500)


def _metrics_response(metrics: Metrics) -> Response:
    return Response(metrics.render(), "text/plain; version=0.0.4; charset=utf-8")


def _ready_response(readiness: Readiness) -> Response:
    body = json.dumps(readiness.report(), indent=1).encode() + b"\n"
    return Response(body, JSON, 200 if readiness.ready else 503)


def is_loopback(host: str) -> bool:
    """Whether a peer's address, as the socket names it, is on this machine's loopback."""
    return ipaddress.ip_address(host.removeprefix("::ffff:").partition("%")[0]).is_loopback


def _names_this_machine(request: h11.Request) -> bool:
    """Whether the request is for localhost or an address: any other name that leads here may be a foreign web
    page's, whose scripts a browser would let read the answer (DNS rebinding)."""
    name = dict(request.headers).get(b"host", b"localhost").decode("latin-1").lower()
    name = re.sub(r":[0-9]*$", "", name).removeprefix("[").removesuffix("]")
    if name == "localhost":
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


async def _next_request(connection: h11.Connection, reader: asyncio.StreamReader) -> h11.Request | None:
    """The next request with its body read and forgotten, or None when the peer is done."""
    request: h11.Request | None = None
    body = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_MAX_REQUEST_BYTES))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += len(event.data)
            if body > _MAX_REQUEST_BYTES:
                raise h11.RemoteProtocolError("a request body is not read here", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage):
            return request
        else:  # ConnectionClosed, PAUSED
            return None


async def _send(
    connection: h11.Connection, writer: asyncio.StreamWriter, response: Response, *, head_only: bool
) -> None:
    head = h11.Response(
        status_code=response.status,
        headers=[
            ("content-type", response.content_type),
            ("content-length", str(len(response.body))),
            ("server", f"kubenetmon/{__version__}"),
            ("x-content-type-options", "nosniff"),
            *response.headers,
        ],
    )
    writer.write(connection.send(head) or b"")
    if not head_only:
        # In pieces: of a large body that many callers share, each holds one piece more than the kernel took.
        for begin in range(0, len(response.body), _PIECE_BYTES):
            piece = response.body[begin : begin + _PIECE_BYTES]
            writer.write(connection.send(h11.Data(data=piece)) or b"")
            await writer.drain()
    writer.write(connection.send(h11.EndOfMessage()) or b"")
    await writer.drain()
