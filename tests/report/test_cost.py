"""Dollars of known traffic to the cent, on the original's table and ours; and a bill beside them."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import pytest_asyncio

from kubenetmon.clickhouse.rollup_tables import apply_rollups
from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.errors import ConfigurationError
from kubenetmon.report.answers import Answer, render
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.prices import PriceList, read_prices
from kubenetmon.report.reconcile import BillLine, read_bill, reconcile
from kubenetmon.report.scope import Scope, moment, month_start, next_month
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import ABROAD, INTERNET, S3, End, Flow, World
from tests.beds.virtual_clock import VirtualClock
from tests.clickhouse.conftest import original_ddl

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

GB = 2**30
NOW = int(time.time())
LAST_MONTH = month_start(month_start(NOW) - 1)
MONTH = next_month(LAST_MONTH) - LAST_MONTH
ALL = Scope(since=LAST_MONTH, until=next_month(LAST_MONTH), limit=0)

WEB = End("10.1.0.1", "n1", "a", "web-1", "web", "shop")
API = End("10.2.0.1", "n2", "b", "api-1", "api", "shop")
NEAR = End("10.1.0.2", "n1", "a", "near-1", "", "shop")
LOST = End("10.3.0.1", "n3", "", "lost-1", "lost", "shop")
FLOWS = [
    Flow(WEB, API, 40_000, 80, 30 * GB, 10 * GB, LAST_MONTH + 60),
    Flow(WEB, NEAR, 40_001, 80, 5 * GB, 5 * GB, LAST_MONTH + 60),
    Flow(WEB, S3, 40_002, 443, 500 * GB, 7 * GB, LAST_MONTH + 60),
    Flow(API, ABROAD, 40_003, 443, 50 * GB, 3 * GB, LAST_MONTH + 60),
    Flow(WEB, INTERNET, 40_004, 443, 60 * GB, GB, LAST_MONTH + 60),
    Flow(API, INTERNET, 40_005, 443, 140 * GB, GB, LAST_MONTH + 15 * 86_400),
    Flow(WEB, LOST, 40_006, 80, 2 * GB, GB, LAST_MONTH + 60),
]


@pytest.fixture(scope="module")
def prices() -> PriceList:
    return read_prices()


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("cost"))
    yield opened
    asyncio.run(opened.close())


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["original", "rollups"])
async def source(request: pytest.FixtureRequest, sink: EmbeddedSink) -> AsyncIterator[Source]:
    name = f"cost_{request.param}"
    await sink.query(f"CREATE DATABASE {name}")
    if request.param == "original":
        await sink.query(original_ddl(name))
    else:
        await apply(sink, SchemaOptions(name, ipv6=True))
    world = World(frozenset(("n1", "n2", "n3")), request.param != "original", list(FLOWS))
    await sink.query(world.insert(f"{name}.network_flows_0"))
    if request.param == "rollups":
        await apply_rollups(sink, SchemaOptions(name), NOW)
    yield await read_source(sink, name, "network_flows_0")
    await sink.query(f"DROP DATABASE {name} SYNC")


def costs(answer: Answer, *keys: str) -> dict[tuple[str, ...], tuple[int, str]]:
    """Bytes and dollars by columns."""
    return {tuple(row[key] for key in keys): (row["bytes"], row["cost"]) for row in answer.records()}


async def test_each_path_costs_what_its_entry_says(
    sink: EmbeddedSink, source: Source, prices: PriceList
) -> None:
    answer = await cost(sink, source, ALL, "path", prices)
    assert costs(answer, "path", "entry") == {
        ("cross-zone", "aws/cross-zone-out"): (40 * GB, "0.4"),
        ("cross-zone", "aws/cross-zone-in"): (40 * GB, "0.4"),
        ("same-zone", "aws/same-zone"): (20 * GB, "0"),  # each end has its line
        ("region-service", "aws/region-service"): (507 * GB, "0"),
        ("inter-region", "aws/inter-region-out"): (50 * GB, "1"),
        ("inter-region", "aws/inter-region-in"): (3 * GB, "0"),
        ("internet", "aws/internet-out"): (200 * GB, "9"),
        ("internet", "aws/internet-in"): (2 * GB, "0"),
        ("unknown-zone", ""): (3 * GB, None),
    }
    assert answer.summary["total"] == "10.8"
    assert all(
        row["source"].startswith("https://") and row["date"] for row in answer.records() if row["entry"]
    )
    assert any("3.00 GiB have no price" in note for note in answer.notes)


async def test_workloads_share_tiers_and_add_up(
    sink: EmbeddedSink, source: Source, prices: PriceList
) -> None:
    answer = await cost(sink, source, ALL, "workload", prices)
    found = costs(answer, "name", "entry")
    assert found["shop/web", "aws/internet-out"] == (60 * GB, "2.7")
    assert found["shop/api", "aws/internet-out"] == (140 * GB, "6.3")
    assert found["shop/web", "aws/cross-zone-out"] == (30 * GB, "0.3")
    assert found["shop/web", "aws/cross-zone-in"] == (10 * GB, "0.1")
    assert found["shop/near-1", "aws/same-zone"] == (10 * GB, "0")
    assert sum(Fraction(row["cost"] or 0) for row in answer.records()) == Fraction("10.8")


@pytest.mark.parametrize(
    ("by", "name"), [("namespace", "shop"), ("app", "api"), ("pod", "shop/api-1"), ("zone", "b")]
)
async def test_it_is_grouped_as_asked(
    sink: EmbeddedSink, source: Source, prices: PriceList, by: str, name: str
) -> None:
    found = costs(await cost(sink, source, ALL, by, prices), "name", "entry")
    wanted = (50 * GB, "1")
    assert found[name, "aws/inter-region-out"] == wanted


async def test_a_filter_leaves_tiers_to_all_traffic(
    sink: EmbeddedSink, source: Source, prices: PriceList
) -> None:
    scope = Scope(since=ALL.since, until=ALL.until, app="api", limit=0)
    answer = await cost(sink, source, scope, "path", prices)
    assert costs(answer, "entry")[("aws/internet-out",)] == (140 * GB, "6.3")
    assert answer.summary["total"] == "7.7"  # 6.3 + 1 + 0.1 out + 0.3 in
    assert any("of $10.80 for all traffic" in note for note in answer.notes)
    told = (await cost(sink, source, scope, "path", prices, explain=True)).notes
    [own] = [note for note in told if note.startswith("That is the arithmetic of all traffic")]
    assert "Of app api, at the mean price:" in own
    assert f"aws/internet-out {140 * GB:,} bytes = $6.3" in own
    whole = (await cost(sink, source, ALL, "path", prices, explain=True)).notes
    assert not any("That is the arithmetic" in note for note in whole)


async def test_what_came_before_fills_the_tiers(
    sink: EmbeddedSink, source: Source, prices: PriceList
) -> None:
    scope = Scope(since=LAST_MONTH + 10 * 86_400, until=ALL.until, limit=0)
    answer = await cost(sink, source, scope, "path", prices, explain=True)
    # 60 GB of the 100 free ones are gone: 40 are left of the 140.
    assert costs(answer, "entry")[("aws/internet-out",)] == (140 * GB, "9")
    told = next(note for note in answer.notes if "aws/internet-out in us-west-2:" in note)
    assert "150,323,855,360 bytes - 42,949,672,960 free / 1,073,741,824 = 100 GB x $0.09 = $9" in told
    assert answer.summary["month_to_date"] == "10.8"


async def test_the_month_is_projected_at_the_pace_so_far(
    sink: EmbeddedSink, source: Source, prices: PriceList
) -> None:
    half = Scope(since=LAST_MONTH, until=LAST_MONTH + 60 + MONTH // 2, limit=0)
    answer = await cost(sink, source, half, "path", prices)
    assert answer.summary["month_to_date"] in ("1.8", "10.8")
    spent = Fraction(answer.summary["month_to_date"])
    assert spent < Fraction(answer.summary["projected"])
    whole = await cost(sink, source, ALL, "path", prices)
    assert whole.summary["projected"] == whole.summary["month_to_date"] == "10.8"


async def test_ones_own_prices_and_a_nat_gateway(sink: EmbeddedSink, source: Source, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({
        "format": 1, "edition": "1",
        "prices": [{"id": "aws/cross-zone-in", "cloud": "aws", "path": "cross-zone", "way": "in",
                    "price": "0.002", "source": "contract", "date": "2026-01-01"}],
        "assume": [{"path": "internet", "entry": "aws/nat-gateway"}],
    }))  # fmt: skip
    answer = await cost(sink, source, ALL, "path", read_prices([own]))
    found = costs(answer, "path", "entry")
    assert found["cross-zone", "aws/cross-zone-in"] == (40 * GB, "0.08")
    assert found["internet", "aws/nat-gateway"] == (202 * GB, "9.09")
    assert any("own.json 1" in note for note in answer.notes)


async def test_a_flag_is_processing_once_a_byte(sink: EmbeddedSink, prices: PriceList) -> None:
    await sink.query("CREATE DATABASE flagged")
    await sink.query(original_ddl("flagged"))
    world = World(frozenset(("n1", "n2")), False, [FLOWS[0], FLOWS[4]])
    await sink.query(world.insert("flagged.network_flows_0").replace("map()", "map('LOAD_BALANCER', true)"))
    answer = await cost(sink, await read_source(sink, "flagged", "network_flows_0"), ALL, "path", prices)
    found = costs(answer, "path", "entry")
    assert found["cross-zone", "aws/load-balancer"] == (40 * GB, "0.32")
    assert found["internet", "aws/load-balancer"] == (61 * GB, "0.488")
    await sink.query("DROP DATABASE flagged SYNC")


async def test_tiers_begin_anew_with_each_month(sink: EmbeddedSink, prices: PriceList) -> None:
    await sink.query("CREATE DATABASE months")
    await sink.query(original_ddl("months"))
    world = World(frozenset(("n1", "n2")), False)
    world.flows = [
        Flow(WEB, INTERNET, 40_004, 443, 150 * GB, 0, at)
        for at in (LAST_MONTH - 60, LAST_MONTH, LAST_MONTH + 86_400)
    ]
    await sink.query(world.insert("months.network_flows_0"))
    source = await read_source(sink, "months", "network_flows_0")
    scope = Scope(since=month_start(LAST_MONTH - 1), until=ALL.until, limit=0)
    answer = await cost(sink, source, scope, "path", prices, explain=True)
    # 50 GB beyond the free 100 in the first month, 200 in the second.
    assert costs(answer, "entry") == {("aws/internet-out",): (450 * GB, "22.5")}
    assert answer.summary["month_to_date"] == "18"
    for told in ("free / 1,073,741,824 = 50 GB x $0.09 = $4.5", "= 200 GB x $0.09 = $18"):
        assert any(told in note for note in answer.notes)
    await sink.query("DROP DATABASE months SYNC")


async def test_half_a_month_is_projected_to_the_cent(sink: EmbeddedSink, prices: PriceList) -> None:
    await sink.query("CREATE DATABASE half")
    await sink.query(original_ddl("half"))
    world = World(frozenset(("n1", "n2")), False, [Flow(WEB, API, 40_000, 80, 9 * GB, GB, LAST_MONTH)])
    await sink.query(world.insert("half.network_flows_0").replace("map()", "map('NAT_GATEWAY', true)"))
    source = await read_source(sink, "half", "network_flows_0")
    scope = Scope(since=LAST_MONTH, until=LAST_MONTH + MONTH // 2, limit=0)
    answer = await cost(sink, source, scope, "path", prices)
    # 10 GB: a cent at each end, and 4.5 cents for the gateway that they passed once.
    assert costs(answer, "entry")[("aws/nat-gateway",)] == (10 * GB, "0.45")
    assert answer.summary == {"total": "0.65", "month_to_date": "0.65", "projected": "1.3"}
    # What is asked beyond now cannot have been metered yet, and is as much projected.
    clock = VirtualClock(scope.until)
    for until in (scope.until + 60, ALL.until, ALL.until + 40 * 86_400):
        later = Scope(since=LAST_MONTH, until=until, limit=0)
        answer = await cost(sink, source, later, "path", prices, clock=clock)
        assert answer.summary == {"total": "0.65", "month_to_date": "0.65", "projected": "1.3"}
        assert any(note.startswith(f"{moment(LAST_MONTH)[:7]} to date: $0.65") for note in answer.notes)
    await sink.query("DROP DATABASE half SYNC")


async def test_an_empty_table_costs_nothing(sink: EmbeddedSink, prices: PriceList) -> None:
    await sink.query("CREATE DATABASE nothing")
    await sink.query(original_ddl("nothing"))
    source = await read_source(sink, "nothing", "network_flows_0")
    answer = await cost(sink, source, ALL, "workload", prices, explain=True)
    assert answer.rows == []
    assert answer.summary == {"total": "0", "month_to_date": "0", "projected": "0"}
    compared = await reconcile(sink, source, ALL, prices, [])
    assert compared.rows == []
    assert render(compared, "table")
    await sink.query("DROP DATABASE nothing SYNC")


async def test_a_bill_beside_what_was_metered(sink: EmbeddedSink, source: Source, prices: PriceList) -> None:
    bill = [
        BillLine("USW2-DataTransfer-Regional-Bytes", Fraction(41), Fraction("0.41"), LAST_MONTH),
        BillLine("USW2-DataTransfer-Regional-Bytes", Fraction(41), Fraction("0.41"), LAST_MONTH + 3600),
        BillLine("USW2-DataTransfer-Regional-Bytes", Fraction(99), Fraction(1), LAST_MONTH - 1),
        BillLine("USW2-NatGateway-Bytes", Fraction(4), Fraction("0.18"), None),
        BillLine("BoxUsage:m5.large", Fraction(744), Fraction(70), None),
    ]
    answer = await reconcile(sink, source, ALL, prices, bill)
    found = {row["item"]: row for row in answer.records()}
    regional = found["DataTransfer-Regional-Bytes"]
    assert (regional["metered"], regional["billed"], regional["difference"]) == (80 * GB, 82 * GB, 2 * GB)
    assert (regional["metered_cost"], regional["billed_cost"]) == ("0.8", "0.82")
    assert (found["NatGateway-Bytes"]["metered"], found["NatGateway-Bytes"]["ratio"]) == (0, None)
    assert found["DataTransfer-Out-Bytes"]["metered"] == 200 * GB
    assert found["DataTransfer-Out-Bytes"]["billed_cost"] is None
    assert any("1 lines of the bill lie outside" in note for note in answer.notes)
    assert any("BoxUsage:m5.large" in note for note in answer.notes)


async def test_headers_that_offload_hid_are_estimated_row_by_row(
    sink: EmbeddedSink, prices: PriceList, tmp_path: Path
) -> None:
    await sink.query("CREATE DATABASE headers")
    await sink.query(original_ddl("headers"))
    world = World(frozenset(("n1", "n2")), False, [Flow(WEB, API, 40_000, 80, 0, 0, LAST_MONTH)])
    payload, packets, segments = 1_448_000, 25, 1000
    for port, (amount, count) in enumerate(
        [(payload + packets * 52, packets), (payload + segments * 52, segments), (100 * 52, 100)], 40_000
    ):
        world.flows = [Flow(WEB, API, port, 80, amount, 0, LAST_MONTH)]
        await sink.query(
            world.insert("headers.network_flows_0").replace(f"{amount}, 1)", f"{amount}, {count})")
        )
    source = await read_source(sink, "headers", "network_flows_0")
    answer = await reconcile(sink, source, ALL, prices, [], mtu=1500)
    [row] = answer.records()
    # 25 large packets were 1,000 of 1,448 bytes on the wire: 975 headers, on both sides' lines of the bill.
    assert row["headers"] == 2 * (segments - packets) * 52
    assert row["metered"] == 2 * (2 * payload + (packets + segments + 100) * 52)
    # What processes both ways' traffic does so once a byte: its line has the headers of one side.
    own = tmp_path / "own.json"
    assumed = [{"path": "cross-zone", "entry": "aws/nat-gateway"}]
    own.write_text(json.dumps({"format": 1, "edition": "1", "prices": [], "assume": assumed}))
    answer = await reconcile(sink, source, ALL, read_prices([own]), [], mtu=1500, explain=True)
    found = {row["item"]: row for row in answer.records()}
    assert found["NatGateway-Bytes"]["metered"] * 2 == found["DataTransfer-Regional-Bytes"]["metered"]
    assert found["NatGateway-Bytes"]["headers"] == (segments - packets) * 52
    assert found["DataTransfer-Regional-Bytes"]["headers"] == 2 * (segments - packets) * 52
    assert any("aws/nat-gateway" in note and " = $" in note for note in answer.notes)
    short = Scope(since=ALL.since, until=ALL.until, limit=1)
    answer = await reconcile(sink, source, short, read_prices([own]), [], mtu=1500)
    assert len(answer.rows) == 1
    assert any("first 1 of 2 rows" in note for note in answer.notes)
    # The same where the connections' flags say it.
    await sink.query("TRUNCATE TABLE headers.network_flows_0")
    world.flows = [Flow(WEB, API, 40_000, 80, payload + packets * 52, 0, LAST_MONTH)]
    amount = payload + packets * 52
    flagged = world.insert("headers.network_flows_0").replace("map()", "map('NAT_GATEWAY', true)")
    await sink.query(flagged.replace(f"{amount}, 1)", f"{amount}, {packets})"))
    answer = await reconcile(sink, source, ALL, prices, [], mtu=1500)
    found = {row["item"]: row for row in answer.records()}
    assert found["NatGateway-Bytes"]["headers"] == (segments - packets) * 52
    await sink.query("DROP DATABASE headers SYNC")


CUR = """\
identity/LineItemId,lineItem/UsageType,lineItem/UsageStartDate,lineItem/UsageAmount,lineItem/UnblendedCost,lineItem/LineItemType
a,USE1-USW2-AWS-Out-Bytes,2026-10-01T00:00:00Z,1.5,0.03,Usage
b,DataTransfer-Regional-Bytes,2026-10-01T01:00:00Z,0.0000000001,0,Usage
c,Tax,2026-10-01T01:00:00Z,1,3,Tax
"""


@pytest.mark.parametrize("packed", [False, True])
async def test_a_cost_and_usage_report_is_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "cur.csv"
    path.write_bytes(gzip.compress(CUR.encode()) if packed else CUR.encode())
    assert [(line.usage_type, line.usage, line.cost, line.start) for line in read_bill(path)] == [
        ("USE1-USW2-AWS-Out-Bytes", Fraction("1.5"), Fraction("0.03"), 1_790_812_800),
        ("DataTransfer-Regional-Bytes", Fraction(1, 10**10), Fraction(0), 1_790_816_400),
    ]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "neither a Cost and Usage Report nor"),
        (b"a,b\n1,2\n", "neither a Cost and Usage Report nor"),
        (b"item,usage\nx,many\n", "line 2: 'many' is not a number"),
        (b"item,usage\nx,1e999999\n", "line 2"),
        (b"item,usage\nx\n", "line 2: fewer columns"),
        (b"item,usage,start\nx,1,soon\n", "line 2: 'soon' is not a time"),
        (b"item,usage\n\xff,1\n", "cannot be read"),
        (b"\x1f\x8bgarbage", "cannot be read"),
        (b'item,usage\n"' + b"x" * (2 << 20) + b'",1\n', "field larger"),
    ],
    ids=["empty", "other", "word", "endless", "short", "time", "bytes", "gzip", "long"],
)
async def test_a_bill_that_cannot_be_read_is_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bill.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        list(read_bill(path))
    assert says in str(caught.value)
    assert "bill.csv" in str(caught.value)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        list(read_bill(tmp_path / "none"))
