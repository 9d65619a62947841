"""The Kubernetes API as this program uses it: which cluster, with which credentials, list a page, watch, get.

Contract: `KubernetesClient` owns the HTTP session and the credentials, opened at the first request and again
when the API no longer accepts them; `close` ends both. Loading of configurations, credentials and the
transport are kubernetes-asyncio's; its models are left aside, see `_library`. Every wait has a limit, every
answer a greatest size. `SELECTIONS` has what is asked for of each kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import logging
import os
import socket
import ssl
import sys
import types
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import aiohttp
import yaml

from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.server.inventory import Kind
from kubenetmon.server.kubernetes_source import InCluster, Kubeconfig

logger = logging.getLogger(__name__)

LARGEST_PAGE = 256 << 20
LARGEST_LINE = 16 << 20
"""Bytes. etcd keeps no object above 1.5 MiB; JSON is a few times larger than what etcd keeps."""

_JSON = "application/json"

_PAGE_PATIENCE = 10
"""A page may take so many times the longest silence allowed."""

_LONGEST_WISH = 60.0
"""Seconds; the API may ask us to stay away so long and no longer."""


class ApiError(KubenetmonError):
    """The Kubernetes API did not give what was asked for; asking again later may help.

    `retry_after`: the seconds that the API asks us to wait at least, 0 where it says nothing.
    """

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class RefusedError(ApiError):
    """The API does not allow this request, or does not know its like: another may do."""


class ExpiredError(ApiError):
    """The resource version or the page is too old (410 Gone): list anew."""


class MissingError(ApiError):
    """The API has no such object (404)."""


class UnauthorizedError(ApiError):
    """The API does not accept our credentials (401)."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is asked for of a kind: the API sends no more than that.

    `field_selector` leaves objects out. `from_cache` reads a list from the API server's memory, whole and
    perhaps a little old, and spares etcd; for kinds whose lists are small. `streamed` asks for lists as
    streams of events (beta since Kubernetes 1.32), likewise from memory, but up to date and an object at a
    time.
    """

    field_selector: str = ""
    from_cache: bool = False
    streamed: bool = False


SELECTIONS: Mapping[Kind, Selection] = {
    # Pods that have ended own no address. The API reports a pod that ends as deleted from the selection.
    "pods": Selection("status.phase!=Succeeded,status.phase!=Failed", streamed=True),
    "nodes": Selection(streamed=True),
    "services": Selection(from_cache=True),
}


@cache
def _library() -> Any:
    """kubernetes-asyncio's `config`, `client.configuration` and `client.rest`, without its models.

    Its packages import all 700 typed models when they are imported: 2 s and 72 MB, measured, for classes
    that we never use. So the two packages that do so are put in place empty, and the modules we use are
    imported from them as they are. Where someone imported the library in full, that is used.
    """
    if "kubernetes_asyncio" not in sys.modules:
        specification = importlib.util.find_spec("kubernetes_asyncio")
        assert specification is not None, "kubernetes-asyncio is a dependency of kubenetmon"
        places = list(specification.submodule_search_locations or ())
        package = types.ModuleType("kubernetes_asyncio")
        package.__path__ = places
        client = types.ModuleType("kubernetes_asyncio.client")
        client.__path__ = [os.path.join(place, "client") for place in places]
        sys.modules[package.__name__] = package
        sys.modules[client.__name__] = client
        configuration = importlib.import_module("kubernetes_asyncio.client.configuration")
        client.Configuration = configuration.Configuration  # type: ignore[attr-defined]
        client.ApiClient = object  # type: ignore[attr-defined]  # named by the loader, not used on our way
    return types.SimpleNamespace(
        Configuration=importlib.import_module("kubernetes_asyncio.client.configuration").Configuration,
        Transport=importlib.import_module("kubernetes_asyncio.client.rest").RESTClientObject,
        config=importlib.import_module("kubernetes_asyncio.config"),
    )


class _Session:
    """A configuration, its transport, and how many requests use them now."""

    def __init__(self, configuration: Any, transport: Any) -> None:
        self.configuration = configuration
        self.transport = transport
        self.users = 0
        self.retired = False

    async def retire(self) -> None:
        """Close as soon as no request uses it any more."""
        self.retired = True
        if self.users == 0:
            await self.transport.close()


class KubernetesClient:
    """Lists and watches over one session."""

    def __init__(
        self, source: InCluster | Kubeconfig, *, connect_timeout: float, read_timeout: float
    ) -> None:
        self._source = source
        self._connect_timeout = connect_timeout
        self._read_timeout = read_timeout
        self._session: _Session | None = None
        self._opening = asyncio.Lock()

    async def open(self) -> None:
        """Load configuration and credentials unless that is done. Raises `ConfigurationError`."""
        async with self._opening:
            if self._session is None:
                self._session = await self._load()

    async def list_page(self, kind: Kind, limit: int, continue_token: str) -> bytearray:
        """The body of one page, or of a list from the cache as a whole. Raises `ApiError` and its kinds."""
        query: dict[str, str] = {"limit": str(limit)}
        if SELECTIONS[kind].from_cache:
            query = {"resourceVersion": "0"}
        if continue_token:
            query["continue"] = continue_token
        body = bytearray()
        timeout = aiohttp.ClientTimeout(
            total=_PAGE_PATIENCE * self._read_timeout,
            connect=self._connect_timeout,
            sock_read=self._read_timeout,
        )
        async with self._get_many(kind, "list", query, timeout) as response:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > LARGEST_PAGE:
                    raise ApiError(f"a page of {kind} is larger than {LARGEST_PAGE >> 20} MiB")
        return body

    async def watch(self, kind: Kind, resource_version: str, timeout: int) -> AsyncGenerator[list[bytes]]:
        """Lines of a watch as they come, several at a time, none at first; ends when the server ends it.

        Without a version it begins with all objects there are, up to a bookmark that ends them;
        `RefusedError` where the API does not do that. `timeout` in seconds is the server's; our own is a
        little longer. A line above `LARGEST_LINE` is passed on as an empty one. Raises `ApiError` and its
        kinds.
        """
        query = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(timeout)}
        if resource_version:
            query["resourceVersion"] = resource_version
        else:
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        patience = aiohttp.ClientTimeout(total=timeout + self._read_timeout, connect=self._connect_timeout)
        async with self._get_many(kind, "watch", query, patience) as response:
            _keep_alive(response)
            splitter = LineSplitter(LARGEST_LINE)
            yield []
            async for chunk in response.content.iter_any():
                lines = splitter.feed(chunk)
                if lines:
                    yield lines

    async def get(self, kind: Kind, namespace: str, name: str) -> bytearray:
        """One object; no namespace for nodes. Raises `MissingError`, `ApiError` and its other kinds."""
        place = f"/namespaces/{quote(namespace, safe='')}" if namespace else ""
        path = f"/api/v1{place}/{kind}/{quote(name, safe='')}"
        timeout = aiohttp.ClientTimeout(total=self._read_timeout, connect=self._connect_timeout)
        async with self._get(path, kind, "get", {}, timeout) as response:
            return await _limited(response, kind)

    async def create(self, path: str, body: dict[str, object]) -> bytes:
        """POST an object; the body of the answer. Raises `ApiError` and its kinds."""
        timeout = aiohttp.ClientTimeout(total=self._read_timeout, connect=self._connect_timeout)
        await self.open()
        session = self._session
        assert session is not None
        for last in (False, True):
            async with self._answer(session, path, {}, timeout, body) as response:
                if response.status == 401 and not last:
                    session = await self._renew(session)
                    continue
                kind = path.rpartition("/")[2]
                if response.status == 403:
                    raise ApiError(
                        f"not allowed to create {kind}: bind the ClusterRole kubenetmon-server-token-review "
                        "to this account"
                    )
                if response.status not in (200, 201):
                    await self._refuse(session, response, path, "create", {})
                return bytes(await _limited(response, kind))
        raise AssertionError("unreachable")

    async def close(self) -> None:
        """End the session; requests under way fail."""
        session, self._session = self._session, None
        if session is not None:
            await session.transport.close()

    def _get_many(
        self, kind: Kind, verb: str, query: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if SELECTIONS[kind].field_selector:
            query["fieldSelector"] = SELECTIONS[kind].field_selector
        return self._get(f"/api/v1/{kind}", kind, verb, query, timeout)

    @contextlib.asynccontextmanager
    async def _get(
        self, path: str, kind: Kind, verb: str, query: dict[str, str], timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        await self.open()
        session = self._session
        assert session is not None
        async with self._answer(session, path, query, timeout) as response:
            if response.status != 401:
                await self._refuse(session, response, kind, verb, query)
                yield response
                return
        # A token or certificate was replaced: load what there is now and ask once more.
        session = await self._renew(session)
        async with self._answer(session, path, query, timeout) as response:
            await self._refuse(session, response, kind, verb, query)
            yield response

    @contextlib.asynccontextmanager
    async def _answer(
        self,
        session: _Session,
        path: str,
        query: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        body: dict[str, object] | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session.users += 1
        try:
            response = await self._request(session, path, query, timeout, body)
            try:
                yield response
            finally:
                response.close()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ApiError(
                f"cannot reach the Kubernetes API at {session.configuration.host}: {reason}"
            ) from error
        finally:
            session.users -= 1
            if session.retired and session.users == 0:
                await session.transport.close()

    async def _request(
        self,
        session: _Session,
        path: str,
        query: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        body: dict[str, object] | None,
    ) -> aiohttp.ClientResponse:
        # Compressing a list costs the API server more than it saves on a cluster's own network.
        headers = {"Accept": _JSON, "Accept-Encoding": "identity", "User-Agent": "kubenetmon"}
        try:
            authorization = await session.configuration.get_api_key_with_prefix("BearerToken")
        except _library().config.ConfigException as error:
            raise UnauthorizedError(f"cannot use the Kubernetes source {self._source}: {error}") from error
        if authorization:
            headers["Authorization"] = authorization.strip()
        if body is not None:
            headers["Content-Type"] = _JSON
        response: aiohttp.ClientResponse = await session.transport.request(
            "GET" if body is None else "POST",
            f"{session.configuration.host}{path}",
            headers=headers,
            query_params=query,
            body=body,
            _preload_content=False,
            _request_timeout=timeout,
        )
        return response

    async def _refuse(
        self,
        session: _Session,
        response: aiohttp.ClientResponse,
        kind: str,
        verb: str,
        query: Mapping[str, str],
    ) -> None:
        """Raise the error that an answer other than 200 stands for."""
        host = session.configuration.host
        if response.status == 200:
            return
        if response.status == 401:
            raise UnauthorizedError(
                f"the Kubernetes API at {host} does not accept our credentials ({self._source}): "
                "renew the token or certificate"
            )
        if response.status == 403:
            raise RefusedError(
                f"not allowed to {verb} {kind}: bind the ClusterRole kubenetmon-server "
                "(get, list, watch on pods, nodes, services) to this account"
            )
        if "sendInitialEvents" in query and response.status in (400, 404, 405, 406, 415, 422):
            raise RefusedError(f"the API does not send the list of {kind} as events ({response.status})")
        if response.status == 410 or (verb == "watch" and response.status in (400, 404, 422)):
            raise ExpiredError(f"the API cannot go on from the {kind} known ({response.status})")
        text = (await response.content.read(2048)).decode(errors="replace")
        # Whoever stands before the API may answer 404 as well, and knows nothing of the object.
        if verb == "get" and response.status == 404 and '"reason":"NotFound"' in text:
            raise MissingError(f"the Kubernetes API at {host} has no such object of {kind}")
        wish = response.headers.get("Retry-After", "")
        raise ApiError(
            f"the Kubernetes API at {host} answers {response.status}: {' '.join(text[:300].split())}",
            min(float(wish), _LONGEST_WISH) if wish.isascii() and wish.isdigit() else 0.0,
        )

    async def _renew(self, rejected: _Session) -> _Session:
        async with self._opening:
            if self._session is rejected:
                self._session = await self._load()
                await rejected.retire()
            assert self._session is not None
            return self._session

    async def _load(self) -> _Session:
        library = _library()
        configuration = library.Configuration()
        try:
            if isinstance(self._source, InCluster):
                library.config.load_incluster_config(
                    client_configuration=configuration,
                    token_filename=str(self._source.directory / "token"),
                    cert_filename=str(self._source.directory / "ca.crt"),
                )
            else:
                await library.config.load_kube_config(
                    config_file=self._source.path, client_configuration=configuration, persist_config=False
                )
            return _Session(configuration, library.Transport(configuration))
        except (
            library.config.ConfigException,
            yaml.YAMLError,
            ssl.SSLError,
            OSError,
            ValueError,
            TypeError,
            AttributeError,
            AssertionError,
        ) as error:
            reason = " ".join(str(error).split()) or "it is not a kubeconfig"
            if isinstance(self._source, InCluster):
                reason += " (does the pod have automountServiceAccountToken: true?)"
            raise ConfigurationError(f"cannot use the Kubernetes source {self._source}: {reason}") from error


async def _limited(response: aiohttp.ClientResponse, kind: str) -> bytearray:
    """The body. Raises `ApiError` for one above `LARGEST_LINE`."""
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > LARGEST_LINE:
            raise ApiError(f"the answer to {kind} is larger than {LARGEST_LINE >> 20} MiB")
    return body


class LineSplitter:
    """Cuts a stream of bytes into lines and holds at most one unfinished line of `largest` bytes."""

    def __init__(self, largest: int) -> None:
        self._largest = largest
        self._pending = bytearray()
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that are complete now, without their ends; a line too long comes as an empty one."""
        *complete, rest = chunk.split(b"\n")
        lines: list[bytes] = []
        for part in complete:
            if self._skipping or len(self._pending) + len(part) > self._largest:
                lines.append(b"")
            elif self._pending:
                lines.append(bytes(self._pending) + part)
            else:
                lines.append(part)
            self._pending.clear()
            self._skipping = False
        if self._skipping or len(self._pending) + len(rest) > self._largest:
            self._pending.clear()
            self._skipping = True
        else:
            self._pending += rest
        return lines


def _keep_alive(response: aiohttp.ClientResponse) -> None:
    """Let the kernel find out within half a minute that the other side of an idle watch is gone."""
    connection = response.connection
    transport = connection.transport if connection is not None else None
    known = transport.get_extra_info("socket") if transport is not None else None
    if known is None:
        return
    # asyncio and uvloop hand out a stand-in for the socket; the options belong to the descriptor.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(known.fileno())) as duplicate:
        duplicate.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15)
        duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        duplicate.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
