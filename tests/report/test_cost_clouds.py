"""Dollars of known traffic on GCP and Azure, to the cent, worked out by hand from the clouds' own lists."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import read_source
from kubenetmon.report.prices import read_prices
from kubenetmon.report.scope import Scope, next_month
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import End, Flow, World

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

GB = 2**30
MONTH = 1_790_812_800  # 2026-10-01


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("clouds"))
    yield opened
    asyncio.run(opened.close())


def _flows(cloud: str, region: str, abroad: str) -> list[Flow]:
    """The same traffic for either: across zones, within one, to another region, a service, the internet."""
    web = End("10.1.0.1", "n1", "a", "web-0", "web", "shop", cloud=cloud, region=region)
    api = End("10.2.0.1", "n2", "b", "api-0", "api", "shop", cloud=cloud, region=region)
    near = End("10.1.0.2", "n1", "a", "near-0", "near", "shop", cloud=cloud, region=region)
    far = End("192.0.2.1", klass="INTER_REGION", service="compute", cloud=cloud, region=abroad)
    bucket = End("192.0.2.2", klass="INTRA_REGION", service="storage", cloud=cloud, region=region)
    internet = End("192.0.2.3", klass="PUBLIC_INTERNET", cloud="", region="")
    moved = [(web, api, 30, 10), (web, near, 4, 4), (api, far, 20, 5), (web, bucket, 70, 1)]
    moved.append((api, internet, 2_000, 3))
    return [
        Flow(client, server, 40_000 + number, 443, up * GB, down * GB, MONTH)
        for number, (client, server, up, down) in enumerate(moved)
    ]


@pytest.mark.parametrize(
    ("cloud", "region", "abroad", "wanted", "total"),
    [
        (
            "gcp",
            "us-central1",
            "europe-west3",
            {
                # A cent a GB out of each zone, nothing into it.
                "gcp/cross-zone-out": (40, "0.4"),
                "gcp/cross-zone-in": (40, "0"),
                "gcp/same-zone": (16, "0"),
                "gcp/inter-region-out/na-europe": (20, "1"),
                "gcp/inter-region-in": (5, "0"),
                "gcp/region-service": (71, "0"),
                # 1 GB free, 1,023 at 12 cents (122.76), 976 at 11 (107.36).
                "gcp/internet-out": (2_000, "230.12"),
                "gcp/internet-in": (3, "0"),
            },
            "231.52",
        ),
        (
            "azure",
            "eastus",
            "westeurope",
            {
                "azure/cross-zone-out": (40, "0"),
                "azure/cross-zone-in": (40, "0"),
                "azure/same-zone": (16, "0"),
                "azure/inter-region-out/na-any": (20, "1"),
                "azure/inter-region-in": (5, "0"),
                "azure/region-service": (71, "0"),
                # 100 GB free, 1,900 at 8.7 cents.
                "azure/internet-out": (2_000, "165.3"),
                "azure/internet-in": (3, "0"),
            },
            "166.3",
        ),
    ],
    ids=["gcp", "azure"],
)
async def test_a_month_of_each_path_is_what_the_list_says(
    sink: EmbeddedSink,
    cloud: str,
    region: str,
    abroad: str,
    wanted: dict[str, tuple[int, str]],
    total: str,
) -> None:
    await sink.query(f"CREATE DATABASE {cloud}")
    await apply(sink, SchemaOptions(cloud, ipv6=True, ttl_days=0))
    world = World(frozenset(("n1", "n2")), True, _flows(cloud, region, abroad))
    await sink.query(world.insert(f"{cloud}.network_flows_0"))
    source = await read_source(sink, cloud, "network_flows_0")
    scope = Scope(since=MONTH, until=next_month(MONTH), limit=0)
    answer = await cost(sink, source, scope, "path", read_prices())
    assert {row["entry"]: (row["bytes"], row["cost"]) for row in answer.records()} == {
        entry: (amount * GB, dollars) for entry, (amount, dollars) in wanted.items()
    }
    assert answer.summary["total"] == answer.summary["month_to_date"] == total
    by_workload = (await cost(sink, source, scope, "workload", read_prices())).records()
    [internet] = [row for row in by_workload if row["entry"] == f"{cloud}/internet-out"]
    assert (internet["name"], internet["cost"]) == ("shop/api", wanted[f"{cloud}/internet-out"][1])
