"""The watcher where no real API server can be made to misbehave so: hostile answers, lists, patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web

from kubenetmon.metrics.catalogue import WATCH_SKIPPED
from kubenetmon.server import kubernetes
from kubenetmon.server.inventory import KINDS
from tests.kubernetes.conftest import IMPATIENT, eventually, following
from tests.unit.watching import FakeApi, bookmark, event, listed, one_pod, pod, relists, streamed


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
