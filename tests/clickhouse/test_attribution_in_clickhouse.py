"""Attributed rows in the real engine: what was attributed is what a query answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from kubenetmon.clickhouse.block import encode
from kubenetmon.clickhouse.schema import SchemaOptions, apply, read_table
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.rows import RowsConfig, columns
from tests.beds.attribution import (
    CASE_CLOUDS,
    batch_of,
    expected_sums,
    inventory_of,
    load_cases,
    load_ranges,
    stored_sums,
)
from tests.beds.small_cluster import CONFIG, RANGES, SNAPSHOT, flow

pytestmark = pytest.mark.chdb

TABLE = ("default", "network_flows_0")
NOW = int(time.time())


@pytest.fixture
async def sink(tmp_path: Path) -> AsyncIterator[EmbeddedSink]:
    sink = EmbeddedSink(tmp_path / "db")
    yield sink
    await sink.close()


async def test_both_families_keep_their_addresses_and_sums(sink: EmbeddedSink) -> None:
    await apply(sink, SchemaOptions(ipv6=True))
    schema = await read_table(sink, *TABLE)
    for index, flows in enumerate((
        [flow("10.1.1.5", "198.51.100.1"), flow("fd00:1:1::5", "2001:db8:a:1::1")],
        [flow("10.1.1.5", "198.51.100.1")],
    )):  # fmt: skip
        batch = batch_of(flows, "node-a", NOW - 60)
        count, found = columns(
            Attributor(CONFIG).attribute(batch, SNAPSHOT, RANGES),
            batch,
            RowsConfig("test", "aws", "us-west-2", "blue"),
        )
        await sink.insert(*TABLE, encode(found, schema, count), f"token-{index}", {})
    rows = await sink.query(
        "SELECT toString(localIPv4), toString(localIPv6), toString(remoteIPv6), remoteCloudService,"
        " direction, connectionFlags['LOCAL_INITIATED'], sum(bytes), sum(packets)"
        " FROM network_flows_0 GROUP BY ALL ORDER BY ALL"
    )
    assert rows == [
        ("0.0.0.0", "fd00:1:1::5", "2001:db8:a:1::1", "s3", "out", True, 300, 3),
        ("0.0.0.0", "fd00:1:1::5", "2001:db8:a:1::1", "s3", "in", True, 5000, 5),
        ("10.1.1.5", "::", "::", "s3", "out", True, 600, 6),
        ("10.1.1.5", "::", "::", "s3", "in", True, 10000, 10),
    ]


async def test_a_report_of_a_week_is_there_once(sink: EmbeddedSink) -> None:
    await apply(sink, SchemaOptions())
    batch = batch_of([flow("10.1.1.5", "198.51.100.1")], "node-a", NOW - 7 * 86_400, 7 * 86_400)
    attributed = Attributor(CONFIG).attribute(batch, SNAPSHOT, RANGES)
    count, found = columns(attributed, batch, RowsConfig("test", "aws", "us-west-2", "blue"))
    block = encode(found, await read_table(sink, *TABLE), count)
    for _ in range(2):
        await sink.insert(*TABLE, block, "token", {})
    assert await sink.query(
        "SELECT direction, sum(bytes), sum(intervalSeconds), max(intervalStartTime) < now()"
        " FROM network_flows_0 GROUP BY direction ORDER BY direction"
    ) == [("out", 300, 7 * 86_400, 1), ("in", 5000, 7 * 86_400, 1)]


@pytest.mark.shared
@pytest.mark.parametrize("cloud", CASE_CLOUDS)
async def test_all_cases_come_back_as_the_original_answers(
    sink: EmbeddedSink, shared_data: Path, cloud: str
) -> None:
    await apply(sink, SchemaOptions())
    schema = await read_table(sink, *TABLE)
    cases = load_cases(shared_data, cloud)
    ranges = load_ranges(shared_data / "cloud-ranges")
    snapshot = inventory_of(cases.cluster_json).snapshot()
    config = AttributionConfig(cases.cloud, cases.region, "blue", ignore_udp=cases.ignore_udp)
    for node, of_node in cases.by_node().items():
        batch = batch_of([case.flow for case in of_node], node, NOW - 60)
        count, found = columns(
            Attributor(config).attribute(batch, snapshot, ranges),
            batch,
            RowsConfig("test", cases.cloud, cases.region, "blue"),
        )
        await sink.insert(*TABLE, encode(found, schema, count), node, {})
    assert await stored_sums(sink, cases) == expected_sums(cases)
