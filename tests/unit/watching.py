"""A Kubernetes API that answers as a test says."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

from kubenetmon.metrics.catalogue import WATCH_RELISTS
from tests.kubernetes.conftest import Follower

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def pod(name: str, address: str, phase: str = "Running") -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "resourceVersion": "5"},
        "spec": {"nodeName": "node-a"},
        "status": {"phase": phase, "podIP": address},
    }


def listed(*items: object, version: str = "5", **metadata: str) -> web.Response:
    return web.json_response({"metadata": {"resourceVersion": version, **metadata}, "items": items})


def event(kind: str, known: object) -> bytes:
    return json.dumps({"type": kind, "object": known}).encode() + b"\n"


class FakeApi:
    """An API server that answers as a test wants; kinds that the test does not care for are empty.

    Without `streams` it knows nothing of lists as events, as before Kubernetes 1.27.
    """

    def __init__(
        self,
        directory: Path,
        lists: Handler,
        watches: Handler,
        streams: Handler | None = None,
        nodes: Sequence[dict[str, Any]] = (),
    ) -> None:
        self._lists, self._watches, self._streams, self._nodes = lists, watches, streams, nodes
        self._directory = directory
        directory.mkdir(exist_ok=True)
        self.watch_requests = 0
        self.lists = 0
        self.listed_at: list[float] = []
        self.nodes_listed_at = 0.0
        self.queries: list[dict[str, str]] = []

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Path]:
        """Serve; gives a kubeconfig."""
        application = web.Application()
        application.router.add_get("/api/v1/{kind}", self._answer)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        config = self._directory / "kubeconfig"
        content = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        }
        config.write_text(yaml.safe_dump(content))
        try:
            yield config
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        watching = "watch" in request.query
        self.queries.append({"kind": request.match_info["kind"], **request.query})
        if "sendInitialEvents" in request.query:
            if self._streams is None or request.match_info["kind"] != "pods":
                return web.json_response({"kind": "Status", "code": 422}, status=422)
            return await self._streams(request)
        if request.match_info["kind"] != "pods":
            if watching:
                await asyncio.sleep(30)
            if request.match_info["kind"] == "nodes":
                self.nodes_listed_at = time.monotonic()
            return listed(*(self._nodes if request.match_info["kind"] == "nodes" else ()))
        self.watch_requests += watching
        if not watching:
            self.lists += 1
            self.listed_at.append(time.monotonic())
        return await (self._watches if watching else self._lists)(request)


async def streamed(request: web.Request, *parts: bytes, then_wait: float = 30.0) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for part in parts:
        await response.write(part)
    await asyncio.sleep(then_wait)
    return response


async def one_pod(request: web.Request) -> web.Response:
    return listed(pod("kept", "10.1.0.1"))


def relists(follower: Follower, reason: str) -> float:
    return follower.metrics.value(WATCH_RELISTS, kind="pods", reason=reason)


def bookmark(version: str, *, ends_list: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if ends_list else {}
    return event(
        "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": version, "annotations": annotations}}
    )
