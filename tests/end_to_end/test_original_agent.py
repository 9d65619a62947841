"""An agent of the original reports to our server: its wire, a foreign gRPC stack, and its answers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.proto import (
    SUBMIT_METHOD,
    L4Endpoint,
    Observation,
    ObservationSummary,
    ObservedFlow,
    ObservedTuple,
)
from tests.beds.attribution import (
    CASE_CLOUDS,
    Case,
    CaseSet,
    Tuple,
    expected_sums,
    load_cases,
    stored_sums,
)
from tests.beds.server_process import Server

pytestmark = [pytest.mark.shared, pytest.mark.chdb]


def _observations(cases: CaseSet) -> Iterator[bytes]:
    now = int(time.time())
    for case in cases.cases:
        yield bytes(_observation(case, now))


def _observation(case: Case, now: int) -> Observation:
    flow = ObservedFlow(case.flow.protocol, _tuple(case.flow.original), _tuple(case.flow.reply))
    return Observation(flow=flow, node_name=case.node, timestamp=now)


def _tuple(one: Tuple) -> ObservedTuple:
    return ObservedTuple(
        source=_endpoint(one.source, one.source_port),
        destination=_endpoint(one.destination, one.destination_port),
        packets=one.packets,
        bytes=one.bytes,
    )


def _endpoint(address: str, port: int) -> L4Endpoint:
    number = int.from_bytes(bytes(int(part) for part in address.split(".")), "big")
    return L4Endpoint(v4=number, port=port)


@pytest.mark.parametrize("cloud", CASE_CLOUDS)
async def test_all_cases_submitted_are_stored_as_the_original_stores_them(
    tmp_path: Path, shared_data: Path, cloud: str
) -> None:
    cases = load_cases(shared_data, cloud)
    (tmp_path / "cluster.json").write_bytes(cases.cluster_json)
    server = Server(
        tmp_path,
        cloud=cases.cloud,
        region=cases.region,
        ignore_udp=cases.ignore_udp,
        cloud_ranges_dir=str(shared_data / "cloud-ranges"),
        clickhouse_endpoint=f"chdb:{tmp_path / 'engine'}",
    )
    with server.running():
        server.wait_ready()
        with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
            submit = channel.stream_unary(SUBMIT_METHOD)
            summary = ObservationSummary.parse(submit(_observations(cases), timeout=60))
        assert summary.observation_count == len(cases.cases) == 4000
    sink = EmbeddedSink(tmp_path / "engine")
    try:
        assert await stored_sums(sink, cases) == expected_sums(cases)
    finally:
        await sink.close()
