"""`kubenetmon top` against a real server's page and a real table."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.errors import KubenetmonError
from kubenetmon.http import HttpServer
from kubenetmon.metrics import Metrics
from kubenetmon.readiness import Readiness
from kubenetmon.report.top.sources import StreamSource, TableSource
from kubenetmon.server.moved import Digest
from tests.beds.live_server import live_server, workload
from tests.beds.virtual_clock import VirtualClock

COMMAND = (sys.executable, "-m", "kubenetmon", "top")


async def _plain(*arguments: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *COMMAND, *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    out, errors = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode or 0, out.decode(), errors.decode()


async def test_the_stream_needs_no_clickhouse_and_no_terminal() -> None:
    async with live_server() as (address, _):
        status, out, _ = await _plain("--server", address, "--sort", "sent")
    assert status == 0
    assert [line.split()[0] for line in out.splitlines()[4:]] == ["catalog", "frontend"]
    assert "195.31 KiB/s" in out


async def test_two_servers_add_up() -> None:
    async with live_server() as (one, _), live_server() as (two, _):
        source = StreamSource([one, two])
        view = await source.fetch("namespace")
        await source.close()
    assert [(row.name, row.sent, row.received) for row in view.rows] == [("shop", 600_000, 600_000)]


async def test_a_report_is_told_when_it_is_settled_and_nothing_else_is_sent() -> None:
    async with live_server() as (one, rates), live_server() as (two, _):
        source = StreamSource([one, two])
        first = await source.fetch("app")
        waiting = asyncio.create_task(source.fetch("app"))
        await asyncio.sleep(0.3)
        assert not waiting.done(), "nothing is new"
        began = time.monotonic()
        end = first.horizon + 10
        rates.add(Digest("node-a", end - 10, end, {workload("new"): (5e5, 0.0)}))
        assert "new" in {row.name for row in (await waiting).rows}
        assert time.monotonic() - began < 4
        assert {row.name for row in (await source.fetch("namespace")).rows} == {"shop"}
        await source.close()


async def test_no_server_is_one_clear_line() -> None:
    status, _, errors = await _plain("--server", "127.0.0.1:9")
    assert status != 0
    assert len(errors.splitlines()) == 1
    assert "connection refused" in errors
    assert "kubectl port-forward" in errors


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"rows": 5}', b"[]"])
async def test_what_is_no_server_of_ours_is_one_clear_line(body: bytes) -> None:
    from kubenetmon.http import Response

    http = HttpServer(0, metrics=Metrics([]), readiness=Readiness(), host="127.0.0.1")
    http.add_page("/rates", lambda _: Response(body))
    task = asyncio.create_task(http.run())
    await asyncio.wait_for(http.listening.wait(), 5)
    source = StreamSource([f"127.0.0.1:{http.port}"])
    with pytest.raises(KubenetmonError, match="no server of kubenetmon"):
        await source.fetch("app")
    await source.close()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.chdb
async def test_the_table_shows_what_the_stream_would(tmp_path: Path) -> None:
    sink = EmbeddedSink(tmp_path / "engine")
    await apply(sink, SchemaOptions(ipv6=True, ttl_days=0))
    minute = 1_800_000_000
    columns = (
        "date, intervalStartTime, intervalSeconds, proto, direction, connectionClass, connectionFlags, "
        "localNode, localApp, localPod, localNamespace, localAvailabilityZone, remoteNode, remoteApp, "
        "remotePod, remoteNamespace, remoteAvailabilityZone, bytes, packets"
    )

    def row(
        at: int, direction: str, path: str, local: tuple[str, ...], remote: tuple[str, ...], count: int
    ) -> str:
        ends = ", ".join(f"'{value}'" for value in (*local, *remote))
        flags = "map('LOCAL_INITIATED', true)"
        return f"(toDate({at}), {at}, 60, 'tcp', '{direction}', '{path}', {flags}, {ends}, {count}, 1)"

    client = ("node-a", "client", "client-0", "shop", "zone-1")
    server = ("node-b", "server", "server-0", "shop", "zone-2")
    nobody = ("", "", "", "", "")
    rows = [
        row(minute, "out", "INTRA_VPC", client, server, 600),
        row(minute, "in", "INTRA_VPC", client, server, 6000),
        row(minute, "out", "INTRA_VPC", server, client, 6000),
        row(minute, "in", "INTRA_VPC", server, client, 600),
        row(minute, "out", "PUBLIC_INTERNET", client, nobody, 60),
        row(minute - 60, "out", "PUBLIC_INTERNET", client, nobody, 120),
    ]
    await sink.query(f"INSERT INTO default.network_flows_0 ({columns}) VALUES {', '.join(rows)}")
    clock = VirtualClock(float(minute + 90))
    source = TableSource(sink, "default", "network_flows_0", clock=clock)
    view = await source.fetch("app")
    assert {(one.name, one.path): (one.sent, one.received) for one in view.rows} == {
        ("client", "cross-zone"): (10.0, 100.0),
        ("server", "cross-zone"): (100.0, 10.0),
        ("client", "internet"): (1.0, 0.0),
    }
    internet = next(one for one in view.rows if one.path == "internet")
    assert internet.history == (0.0,) * 18 + (2.0, 1.0)
    assert (view.horizon, view.nodes) == (minute + 60, 2)
    later = TableSource(sink, "default", "network_flows_0", clock=VirtualClock(float(minute + 9999)))
    assert (await later.fetch("zone")).horizon == 0
    await sink.close()
