"""The watcher where no real API server can be made to misbehave so: hostile answers, files, settings."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics.catalogue import WATCH_RELISTS, WATCH_SKIPPED
from kubenetmon.server import kubernetes
from kubenetmon.server.inventory import KINDS
from kubenetmon.server.kubernetes import KubernetesClient, LineSplitter
from kubenetmon.server.kubernetes_source import DumpFile, InCluster, Kubeconfig, choose_source
from tests.kubernetes.conftest import IMPATIENT, Follower, eventually, following

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


async def test_garbage_in_a_watch_leads_to_a_new_list_and_takes_nothing_away(tmp_path: Path) -> None:
    async def garbage(request: web.Request) -> web.StreamResponse:
        return await streamed(request, event("ADDED", pod("new", "10.1.0.2")), b"<html>502</html>\n")

    async with FakeApi(tmp_path, one_pod, garbage).running() as config, following(config) as follower:
        await eventually(lambda: relists(follower, "error") >= 2)
        assert follower.owner("10.1.0.1") == "kept"
        assert follower.readiness.ready


async def test_expired_version_within_the_stream_leads_to_a_new_list(tmp_path: Path) -> None:
    async def expired(request: web.Request) -> web.StreamResponse:
        status = {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired"}
        return await streamed(request, event("ERROR", status))

    patient = replace(IMPATIENT, longest_pause=10.0)
    async with (
        FakeApi(tmp_path, one_pod, expired).running() as config,
        following(config, patient) as follower,
    ):
        await eventually(lambda: relists(follower, "expired") >= 2)
        await asyncio.sleep(0.5)
        assert relists(follower, "expired") <= 6, "pauses grow"
        assert relists(follower, "error") == 0
        assert follower.owner("10.1.0.1") == "kept"


async def test_line_without_end_is_left_out_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "LARGEST_LINE", 1 << 16)

    async def huge(request: web.Request) -> web.StreamResponse:
        flood = [b"x" * (1 << 16)] * 50
        return await streamed(
            request, event("ADDED", pod("a", "10.1.0.2")), *flood, b"\n", event("ADDED", pod("b", "10.1.0.3"))
        )

    async with FakeApi(tmp_path, one_pod, huge).running() as config, following(config) as follower:
        await eventually(lambda: follower.owner("10.1.0.3") == "b")
        assert follower.owner("10.1.0.2") == "a"
        assert follower.metrics.value(WATCH_SKIPPED, kind="pods") == 1
        assert relists(follower, "error") == 0


async def test_watch_that_ends_at_once_is_not_asked_for_in_a_tight_loop(tmp_path: Path) -> None:
    async def closed(request: web.Request) -> web.StreamResponse:
        return await streamed(request, then_wait=0)

    api = FakeApi(tmp_path, one_pod, closed)
    patient = replace(IMPATIENT, longest_pause=10.0)
    async with api.running() as config, following(config, patient) as follower:
        await eventually(lambda: follower.readiness.ready)
        await asyncio.sleep(1.0)
        assert 1 <= api.watch_requests <= 7


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (lambda: web.Response(text="<html>"), "the list of pods is unreadable"),
        (lambda: web.Response(status=500, text="etcd\nis\naway"), "answers 500: etcd is away"),
        (lambda: listed(version=""), "carries no version"),
        (lambda: listed(**{"continue": "same"}), "does not come to an end"),
        (lambda: web.Response(body=b" " * 70_000), "larger than"),
    ],
)
async def test_list_that_cannot_be_used_is_said_in_one_line_and_read_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answer: Callable[[], web.Response],
    complaint: str,
) -> None:
    monkeypatch.setattr(kubernetes, "LARGEST_PAGE", 1 << 16)
    mended = asyncio.Event()

    async def lists(request: web.Request) -> web.Response:
        return await one_pod(request) if mended.is_set() else answer()

    async with FakeApi(tmp_path, lists, streamed).running() as config, following(config) as follower:
        await eventually(lambda: complaint in follower.check()["detail"])
        assert "\n" not in follower.check()["detail"]
        assert not follower.readiness.ready
        mended.set()
        await eventually(lambda: follower.readiness.ready and bool(follower.check()["ok"]))
        assert follower.owner("10.1.0.1") == "kept"


async def test_list_that_breaks_off_takes_nothing_away(tmp_path: Path) -> None:
    lists = 0

    async def breaks_off(request: web.Request) -> web.Response:
        nonlocal lists
        if "continue" in request.query:
            return web.Response(status=500, text="gone") if lists > 1 else listed(pod("b", "10.1.0.2"))
        lists += 1
        return listed(pod("a", "10.1.0.1"), **{"continue": "more"})

    async def garbage(request: web.Request) -> web.StreamResponse:
        return await streamed(request, b"garbage\n")

    async with FakeApi(tmp_path, breaks_off, garbage).running() as config, following(config) as follower:
        await eventually(lambda: lists >= 4)
        assert [follower.owner("10.1.0.1"), follower.owner("10.1.0.2")] == ["a", "b"]


def bookmark(version: str, *, ends_list: bool = False) -> bytes:
    annotations = {"k8s.io/initial-events-end": "true"} if ends_list else {}
    return event(
        "BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": version, "annotations": annotations}}
    )


async def test_list_comes_as_a_stream_where_the_api_can(tmp_path: Path) -> None:
    listing, gone = asyncio.Event(), asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        assert request.query["resourceVersionMatch"] == "NotOlderThan"
        assert "resourceVersion" not in request.query
        response = web.StreamResponse()
        await response.prepare(request)
        pods = [pod("kept", "10.1.0.1")] if gone.is_set() else [pod("kept", "10.1.0.1"), pod("b", "10.1.0.2")]
        for one in pods:
            await response.write(event("ADDED", one))
        await listing.wait()
        await response.write(bookmark("70", ends_list=True) + event("ADDED", pod("new", "10.1.0.3")))
        await gone.wait()
        return response

    async def expired(request: web.Request) -> web.StreamResponse:
        assert request.query["resourceVersion"] in ("5", "70")
        return web.Response(status=410)

    api = FakeApi(tmp_path, one_pod, expired, stream)
    async with api.running() as config, following(config) as follower:
        await eventually(lambda: follower.owner("10.1.0.2") == "b")
        assert not follower.readiness.ready, "what has come so far is known, and not yet all"
        listing.set()
        await eventually(lambda: follower.readiness.ready and follower.owner("10.1.0.3") == "new")
        gone.set()
        await eventually(lambda: follower.inventory.counts()["pods"] == 2)
        assert relists(follower, "expired") >= 1
        assert api.lists == 0


@pytest.mark.parametrize(
    ("parts", "complaint"),
    [
        ([event("ADDED", pod("kept", "10.1.0.1"))], "the list of pods broke off"),
        ([bookmark("9")], "does not say where the list of pods ends"),
        ([b"garbage\n"], "a line of the watch is unreadable"),
        (None, "the list of pods does not go on"),
    ],
)
async def test_stream_that_does_not_do_is_replaced_by_pages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, parts: list[bytes] | None, complaint: str
) -> None:
    async def stream(request: web.Request) -> web.StreamResponse:
        return await streamed(request, *(parts or ()), then_wait=0 if parts else 30.0)

    api = FakeApi(tmp_path, one_pod, streamed, stream)
    async with (
        api.running() as config,
        following(config, replace(IMPATIENT, read_timeout=0.3)) as follower,
    ):
        await eventually(lambda: follower.readiness.ready and bool(follower.check()["ok"]))
        assert follower.owner("10.1.0.1") == "kept"
        assert api.lists == 1
    assert complaint in caplog.text


async def test_each_kind_is_asked_for_as_little_as_is_kept(tmp_path: Path) -> None:
    api = FakeApi(tmp_path, one_pod, streamed)
    async with api.running() as config, following(config) as follower:
        await eventually(lambda: follower.readiness.ready and api.watch_requests > 0)
    of = {kind: [query for query in api.queries if query["kind"] == kind] for kind in KINDS}
    assert {query.get("fieldSelector") for query in of["pods"]} == {
        "status.phase!=Succeeded,status.phase!=Failed"
    }
    assert all("fieldSelector" not in query for kind in ("nodes", "services") for query in of[kind])
    [services] = [query for query in of["services"] if "watch" not in query]
    assert services == {"kind": "services", "resourceVersion": "0"}


async def test_api_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    async def busy(request: web.Request) -> web.Response:
        return web.Response(status=429, text="later", headers={"Retry-After": "1"})

    api = FakeApi(tmp_path, busy, streamed)
    async with api.running() as config, following(config) as follower:
        await eventually(lambda: "answers 429: later" in follower.check()["detail"])
        await asyncio.sleep(1.7)
        assert 2 <= api.lists <= 3, "without the wish it is ten"


async def test_replicas_list_a_large_cluster_again_one_after_the_other(tmp_path: Path) -> None:
    async def many(request: web.Request) -> web.Response:
        return listed(*[pod(f"pod-{number}", f"10.1.1.{number + 1}") for number in range(100)])

    async def expired(request: web.Request) -> web.StreamResponse:
        return web.Response(status=410)

    # A hundred objects as if they were a hundred thousand; each watcher stands for a replica.
    config = replace(IMPATIENT, relist_spread=1000.0, longest_pause=2.0, shortest_pause=0.01)
    async with AsyncExitStack() as stack:
        apis = [FakeApi(tmp_path / str(replica), many, expired) for replica in range(6)]
        for api in apis:
            path = await stack.enter_async_context(api.running())
            await stack.enter_async_context(following(path, config))
        await eventually(lambda: all(len(api.listed_at) >= 2 for api in apis))
    waits = [api.listed_at[1] - api.listed_at[0] for api in apis]
    assert max(waits) - min(waits) > 0.1, "six all at once in a second's spread: once in ten thousand runs"


async def test_replicas_that_start_at_once_list_the_pods_of_a_large_cluster_one_after_the_other(
    tmp_path: Path,
) -> None:
    async def quiet(request: web.Request) -> web.StreamResponse:
        return await streamed(request)

    async def waits(nodes: int) -> list[float]:
        """From the list of nodes to that of pods, of six replicas."""
        # A hundred nodes as if they were five thousand.
        config = replace(IMPATIENT, start_spread=50.0)
        metadata = [{"metadata": {"name": f"node-{number}", "uid": str(number)}} for number in range(nodes)]
        async with AsyncExitStack() as stack:
            apis = [
                FakeApi(tmp_path / f"{nodes}-{replica}", one_pod, quiet, nodes=metadata)
                for replica in range(6)
            ]
            for api in apis:
                path = await stack.enter_async_context(api.running())
                await stack.enter_async_context(following(path, config))
            await eventually(lambda: all(api.listed_at for api in apis))
        return [api.listed_at[0] - api.nodes_listed_at for api in apis]

    many = await waits(100)
    assert max(many) - min(many) > 0.1, "six all at once in a second's spread: once in ten thousand runs"
    assert min(await waits(0)) < 0.1, "where there are no nodes there is nothing to spread"


@asynccontextmanager
async def following_file(path: Path) -> AsyncIterator[Follower]:
    follower = Follower(replace(IMPATIENT, kubernetes_source=f"file:{path}"))
    task = asyncio.create_task(follower.watcher.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write_dump(path: Path, *items: object) -> None:
    path.write_text(json.dumps({"kind": "List", "items": items}))


async def test_file_is_read_and_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    write_dump(path, pod("a", "10.1.0.1"))
    async with following_file(path) as follower:
        await eventually(lambda: follower.readiness.ready)
        assert follower.owner("10.1.0.1") == "a"
        path.write_text('{"kind": "Li')
        await eventually(lambda: not follower.check()["ok"])
        assert str(path) in follower.check()["detail"]
        assert follower.owner("10.1.0.1") == "a"
        write_dump(path, pod("b", "10.1.0.2"))
        await eventually(lambda: follower.owner("10.1.0.2") == "b")
        assert follower.check()["ok"]
        assert follower.inventory.counts()["pods"] == 1


@pytest.mark.parametrize(
    "content", [None, "", "{}", "kind: List", '{"kind": "Pod"}', '{"kind":"Status","items":[]}']
)
async def test_wrong_file_is_named_at_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cluster.json"
    if content is not None:
        path.write_text(content)
    follower = Follower(replace(IMPATIENT, kubernetes_source=f"file:{path}"))
    with pytest.raises(ConfigurationError, match=f"^kubernetes_source: .*{path}") as caught:
        await follower.watcher.run()
    assert "\n" not in str(caught.value)


def test_source_is_found_where_none_is_set(tmp_path: Path) -> None:
    config = tmp_path / ".kube" / "config"
    home = {"HOME": str(tmp_path)}
    with pytest.raises(
        ConfigurationError, match=r"inside Kubernetes.* kubeconfig .*kubernetes_source: file:PATH"
    ):
        choose_source("", home)
    config.parent.mkdir()
    config.touch()
    assert choose_source("", home) == Kubeconfig(str(config))
    other = tmp_path / "other"
    other.touch()
    named = {**home, "KUBECONFIG": f"/nonexistent{os.pathsep}{other}"}
    assert choose_source("", named) == Kubeconfig(named["KUBECONFIG"])
    assert choose_source("", {**home, "KUBERNETES_SERVICE_HOST": "198.18.0.1"}) == InCluster()


def test_source_that_is_set_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    assert choose_source("in-cluster", {}) == InCluster()
    assert choose_source(f"file:{config}", {}) == DumpFile(config)
    assert choose_source(f"kubeconfig:{config}", {}) == Kubeconfig(str(config))
    assert choose_source("kubeconfig", {"KUBECONFIG": str(config)}) == Kubeconfig(str(config))
    for wrong in ("kubeconfig:/nonexistent", "file:", "kubectl", "in-cluster:x"):
        with pytest.raises(ConfigurationError, match=r"^kubernetes_source: "):
            choose_source(wrong, {})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "current-context: x",
        "current-context: x\ncontexts: 7\nclusters: []",
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/nonexistent"},
                    }
                ],
            }
        ),
    ],
)
async def test_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    client = KubernetesClient(Kubeconfig(str(path)), connect_timeout=1, read_timeout=1)
    with pytest.raises(
        ConfigurationError, match=f"cannot use the Kubernetes source kubeconfig {path}: "
    ) as caught:
        await client.open()
    assert "\n" not in str(caught.value)


async def test_missing_service_account_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    client = KubernetesClient(InCluster(tmp_path), connect_timeout=1, read_timeout=1)
    with pytest.raises(ConfigurationError, match=r"in-cluster: .*token"):
        await client.open()


def test_lines_are_cut_wherever_the_chunks_end() -> None:
    text = b"one\n\ntwo three\nfour"
    for size in range(1, len(text) + 1):
        splitter = LineSplitter(100)
        lines = [
            line for start in range(0, len(text), size) for line in splitter.feed(text[start : start + size])
        ]
        assert lines == [b"one", b"", b"two three"]
        assert splitter.feed(b"\n") == [b"four"]


def test_line_that_is_too_long_becomes_an_empty_one() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"12345\n1234\n123") == [b"", b"1234"]
    assert splitter.feed(b"45") == []
    assert splitter.feed(b"678") == []
    assert splitter.feed(b"9\nok\n") == [b"", b"ok"]


def test_library_is_loaded_without_its_models() -> None:
    program = (
        "import sys; from kubenetmon.server.kubernetes import _library; library = _library();"
        "print(library.config.load_kube_config, 'kubernetes_asyncio.client.models' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split()[-1] == "False"
