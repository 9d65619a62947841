"""The HTTP side: the three standard pages, and peers that misbehave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from kubenetmon import http
from kubenetmon.errors import ConfigurationError
from kubenetmon.http import HttpServer, Response
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import LOOP_LAG
from kubenetmon.readiness import Readiness


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    made = HttpServer(0, metrics=Metrics([LOOP_LAG]), readiness=Readiness(), host="127.0.0.1")
    task = asyncio.create_task(made.run())
    await asyncio.wait_for(made.listening.wait(), 5)
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def ask(server: HttpServer, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return answer


def get(path: str, method: str = "GET") -> bytes:
    return f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()


async def test_metrics_are_served_as_prometheus_text(server: HttpServer) -> None:
    answer = await ask(server, get("/metrics"))
    assert b"200" in answer.split(b"\r\n")[0]
    assert b"text/plain; version=0.0.4" in answer
    assert b"\nkubenetmon_event_loop_lag_max_seconds 0" in answer


async def test_ready_turns_200_once_every_check_has_passed_and_stays(server: HttpServer) -> None:
    readiness = server._readiness
    readiness.expect("ClickHouse", "not asked yet")
    assert b"503" in (await ask(server, get("/ready"))).split(b"\r\n")[0]
    readiness.passed("ClickHouse")
    readiness.failed("ClickHouse", "gone away")
    answer = await ask(server, get("/ready"))
    assert b"200" in answer.split(b"\r\n")[0]
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["checks"]["ClickHouse"] == {"ok": False, "detail": "gone away"}


async def test_live_answers_and_head_has_no_body(server: HttpServer) -> None:
    assert (await ask(server, get("/live"))).endswith(b"\r\n\r\nok\n")
    assert (await ask(server, get("/live", "HEAD"))).endswith(b"\r\n\r\n")


async def test_two_requests_share_a_connection(server: HttpServer) -> None:
    first = b"GET /live HTTP/1.1\r\nHost: x\r\n\r\n"
    assert (await ask(server, first + get("/live"))).count(b"ok\n") == 2


async def test_a_failing_page_is_a_500_and_serving_goes_on(server: HttpServer) -> None:
    def broken(_: object) -> Response:
        raise RuntimeError("no")

    server.add_page("/broken", broken)
    assert b"500" in (await ask(server, get("/broken"))).split(b"\r\n")[0]
    assert (await ask(server, get("/live"))).endswith(b"ok\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x00\x01\x02\r\n\r\n", b"400"),
        (b"GET /live HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", b"431"),
        (b"POST /live HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", b"405"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999\r\n\r\n" + b"a" * 99_999, b"413"),
        (get("/nowhere"), b"404"),
    ],
    ids=["garbage", "huge header", "wrong method", "huge body", "unknown page"],
)
async def test_bad_requests_get_a_clear_status(
    server: HttpServer, request_bytes: bytes, status: bytes
) -> None:
    try:
        answer = await ask(server, request_bytes)
    except ConnectionResetError:
        # We answered and closed while the peer was still sending; the kernel may throw our answer away.
        answer = status
    assert status in answer.split(b"\r\n")[0]
    assert (await ask(server, get("/live"))).endswith(b"ok\n")


async def test_connections_are_bounded(server: HttpServer) -> None:
    opened = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(80)]
    reader, writer = opened[-1]
    assert await asyncio.wait_for(reader.read(), 5) == b""
    for _, writer in opened:
        writer.close()
    await asyncio.sleep(0.1)
    assert (await ask(server, get("/live"))).endswith(b"ok\n")


async def test_a_taken_port_is_one_clear_line(server: HttpServer) -> None:
    second = HttpServer(server.port, metrics=Metrics([]), readiness=Readiness(), host="127.0.0.1")
    with pytest.raises(ConfigurationError, match=f"metrics port {server.port} cannot be served"):
        await second.run()


async def test_a_port_that_a_predecessor_has_is_waited_for(server: HttpServer) -> None:
    there = True
    second = HttpServer(
        server.port,
        metrics=Metrics([]),
        readiness=Readiness(),
        host="127.0.0.1",
        predecessor=lambda: there,
    )
    task = asyncio.create_task(second.run())
    await asyncio.sleep(1.5)
    assert not task.done()
    assert not second.listening.is_set()
    there = False
    with pytest.raises(ConfigurationError, match="cannot be served"):
        await asyncio.wait_for(task, 10)


async def test_a_port_that_a_predecessor_lets_go_is_served() -> None:
    metrics, readiness = Metrics([]), Readiness()
    first = HttpServer(0, metrics=metrics, readiness=readiness, host="127.0.0.1")
    old = asyncio.create_task(first.run())
    await asyncio.wait_for(first.listening.wait(), 5)
    second = HttpServer(
        first.port, metrics=metrics, readiness=readiness, host="127.0.0.1", predecessor=lambda: True
    )
    new = asyncio.create_task(second.run())
    await asyncio.sleep(0.2)
    old.cancel()
    await asyncio.wait_for(second.listening.wait(), 5)
    assert (await ask(second, get("/live"))).endswith(b"ok\n")
    new.cancel()
    await asyncio.gather(old, new, return_exceptions=True)


async def test_a_local_page_is_for_loopback_only(server: HttpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.add_local_page("/debug/secret", lambda _: Response(b"ours"))
    assert (await ask(server, get("/debug/secret"))).endswith(b"ours")
    monkeypatch.setattr(http, "is_loopback", lambda _: False)
    answer = await ask(server, get("/debug/secret"))
    assert b"403" in answer.split(b"\r\n")[0]
    assert b"ours" not in answer
    assert b"200" in (await ask(server, get("/live"))).split(b"\r\n")[0]


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True),
     ("10.0.0.1", False), ("::ffff:10.0.0.1", False), ("fe80::1%eth0", False), ("2001:db8::1", False)],
)  # fmt: skip
def test_what_counts_as_loopback(host: str, local: bool) -> None:
    assert http.is_loopback(host) is local
