"""What is free each month, in dollars of known traffic to the cent: over regions, clouds and months."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.report.answers import Answer
from kubenetmon.report.cost import cost
from kubenetmon.report.flows import Source, read_source
from kubenetmon.report.limits import Limits, read_limits
from kubenetmon.report.page.asked import Answers, Asked
from kubenetmon.report.prices import PriceList, read_prices
from kubenetmon.report.reconcile import reconcile
from kubenetmon.report.scope import Scope, next_month
from kubenetmon.report.views import apply_views
from tests.beds.described_sink import DescribedSink
from tests.beds.known_traffic import INTERNET, End, Flow, World

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

GB = 2**30
TODAY = datetime.now(UTC)
OCTOBER = f"{TODAY.year - (TODAY.month <= 10)}-10"
"""The last that is over: hourly rollups keep 400 days, and the sums below are of a month of 31."""
MONTH = int(datetime.fromisoformat(f"{OCTOBER}-01T00:00Z").timestamp())
NEXT = next_month(MONTH)
DAY = 86_400
PRICES = read_prices()
DOCUMENT = Path(__file__).parents[2] / "docs" / "prices.md"
Table = Callable[..., Awaitable[Source]]

OREGON = End("10.1.0.1", "n1", "a", "web-1", "web", "shop")
IRELAND = End("10.2.0.1", "n2", "b", "api-1", "api", "shop", region="eu-west-1")
TOKYO = End("10.3.0.1", "n3", "c", "box-1", "box", "till", region="ap-northeast-1")
GOVERNMENT = End("10.4.0.1", "n4", "d", "gov-1", "gov", "till", region="us-gov-west-1")
LONDON = End("10.5.0.1", "n5", "e", "bank-1", "bank", "till", cloud="azure", region="uksouth")
OSAKA = End("10.6.0.1", "n6", "f", "bank-2", "bank", "till", cloud="azure", region="japanwest")
IOWA = End("10.7.0.1", "n7", "g", "data-1", "data", "shop", cloud="gcp", region="us-central1")
NODES = frozenset(f"n{number}" for number in range(1, 8))


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedSink]:
    opened = DescribedSink(tmp_path_factory.mktemp("allowances"))
    yield opened
    asyncio.run(opened.close())


_names = itertools.count()


@asynccontextmanager
async def table(sink: EmbeddedSink, *sent: tuple[End, int, int]) -> AsyncIterator[Source]:
    """A table in which each (end, bytes, at) went out to the internet."""
    name = f"free_{next(_names)}"
    await sink.query(f"CREATE DATABASE {name}")
    await apply(sink, SchemaOptions(name, ipv6=True, ttl_days=0))
    flows = [
        Flow(end, INTERNET, 40_000 + number, 443, amount, 0, at)
        for number, (end, amount, at) in enumerate(sent)
    ]
    await sink.query(World(NODES, True, flows).insert(f"{name}.network_flows_0"))
    yield await read_source(sink, name, "network_flows_0")
    await sink.query(f"DROP DATABASE {name} SYNC")


def scope(since: int = MONTH, until: int = NEXT, **more: Any) -> Scope:
    return Scope(since=since, until=until, limit=0, **more)


def costs(answer: Answer, *keys: str) -> dict[Any, tuple[int, str]]:
    """Bytes and dollars by columns."""
    found = {}
    for row in answer.records():
        found[tuple(row[key] for key in keys) if len(keys) > 1 else row[keys[0]]] = (
            row["bytes"],
            row["cost"],
        )
    return found


def told(answer: Answer, beginning: str) -> str:
    return next(note for note in answer.notes if note.startswith(beginning))


@pytest.mark.parametrize(
    ("amount", "dollars"),
    [(1, "0"), (99 * GB, "0"), (100 * GB, "0"), (101 * GB, "0.09"), (10_341 * GB, "921.685")],
    ids=["a byte", "under", "at", "beyond", "second tier"],
)
async def test_one_region_has_all_of_it(sink: EmbeddedSink, amount: int, dollars: str) -> None:
    async with table(sink, (OREGON, amount, MONTH)) as source:
        answer = await cost(sink, source, scope(), "path", PRICES)
    assert costs(answer, "entry") == {"aws/internet-out": (amount, dollars)}
    assert answer.summary == {"total": dollars, "month_to_date": dollars, "projected": dollars}


@pytest.mark.parametrize(
    ("oregon", "tokyo", "dollars"),
    [
        (60 * GB, 39 * GB, {"aws/internet-out": "0", "aws/internet-out/ap-northeast-1": "0"}),
        (60 * GB, 40 * GB, {"aws/internet-out": "0", "aws/internet-out/ap-northeast-1": "0"}),
        # 25 and 75 GB are free.
        (50 * GB, 150 * GB, {"aws/internet-out": "2.25", "aws/internet-out/ap-northeast-1": "8.55"}),
    ],
    ids=["under", "at", "beyond"],
)
async def test_regions_share_it_by_their_bytes(
    sink: EmbeddedSink, oregon: int, tokyo: int, dollars: dict[str, str]
) -> None:
    async with table(sink, (OREGON, oregon, MONTH), (TOKYO, tokyo, MONTH + DAY)) as source:
        answer = await cost(sink, source, scope(), "path", PRICES)
        halved = await cost(sink, source, scope(namespace="till"), "workload", PRICES)
    assert {entry: price for entry, (_, price) in costs(answer, "entry").items()} == dollars
    assert costs(halved, "name") == {"till/box": (tokyo, dollars["aws/internet-out/ap-northeast-1"])}


async def test_the_page_about_prices_is_as_it_is(sink: EmbeddedSink, tmp_path: Path) -> None:
    file, arithmetic = re.findall(r"```(?:yaml)?\n(.+?)```", DOCUMENT.read_text(), re.DOTALL)
    own = tmp_path / "own.yaml"
    own.write_text(file)
    assert read_prices([own]).allowances[0].bytes == 500 * GB
    async with table(sink, (OREGON, 50 * GB, MONTH), (TOKYO, 150 * GB, MONTH)) as source:
        answer = await cost(sink, source, scope(), "path", PRICES, explain=True)
    assert set(arithmetic.replace("2026-10", OCTOBER).strip().splitlines()) <= set(answer.notes)


async def test_three_that_do_not_divide_lose_no_byte(sink: EmbeddedSink) -> None:
    third = 50 * GB + 1
    async with table(sink, *((end, third, MONTH) for end in (OREGON, IRELAND, TOKYO))) as source:
        answer = await cost(sink, source, scope(), "workload", PRICES, explain=True)
    shares = told(answer, f"{OCTOBER} aws/free-internet-out: 100 GB free for account; shared by bytes: ")
    free = [int(part.split(" of ")[0].split()[-1].replace(",", "")) for part in shares.split("; ")[1:]]
    free[0] = int(shares.split("shared by bytes: ")[1].split(" of ")[0].split()[-1].replace(",", ""))
    assert sum(free) == 100 * GB
    assert max(free) - min(free) == 1
    paid = [Fraction(third - one, GB) for one in (free[0], free[1], free[2])]
    wanted = (paid[0] + paid[1]) * Fraction("0.09") + paid[2] * Fraction("0.114")
    assert abs(Fraction(answer.summary["total"]) - wanted) < Fraction(1, 10**6)


async def test_paid_tiers_begin_in_each_region(sink: EmbeddedSink) -> None:
    # 50 GB are free in each; then each has 10,240 GB at the first price of the same entry.
    amount = 10_290 * GB
    async with table(sink, (OREGON, amount, MONTH), (IRELAND, amount, MONTH)) as source:
        answer = await cost(sink, source, scope(), "path", PRICES, explain=True)
    assert costs(answer, "entry") == {"aws/internet-out": (2 * amount, "1843.2")}
    for region in ("us-west-2", "eu-west-1"):
        line = told(answer, f"{OCTOBER} aws/internet-out in {region}: ")
        assert line.endswith("- 53,687,091,200 free / 1,073,741,824 = 10240 GB x $0.09 = $921.6")
    assert "each region for itself" in told(answer, "  aws/internet-out:")
    assert "the account's regions share them" in told(answer, "  aws/free-internet-out: 100 GB")


async def test_each_cloud_has_its_own_and_some_regions_none(sink: EmbeddedSink) -> None:
    sent = [
        (OREGON, 110 * GB, MONTH),
        (GOVERNMENT, 10 * GB, MONTH),
        (LONDON, 150 * GB, MONTH),
        (OSAKA, 50 * GB, MONTH),
        (IOWA, 11 * GB, MONTH),
    ]
    async with table(sink, *sent) as source:
        answer = await cost(sink, source, scope(), "zone", PRICES)
        paths = await cost(sink, source, scope(), "path", PRICES)
    assert {zone: dollars for zone, (_, dollars) in costs(answer, "name").items()} == {
        "a": "0.9",  # 10 GB beyond the free ones
        "d": "0.9",  # 10 GB, of which none are
        "e": "6.525",  # 75 GB at 0.087
        "f": "3",  # 25 GB at 0.12
        "g": "1.2",  # the first of 11 GB is free by its tier
    }
    assert answer.summary["total"] == paths.summary["total"] == "12.525"


async def test_the_regions_of_a_billing_zone_fill_tiers_together(sink: EmbeddedSink) -> None:
    texas = End("10.8.0.1", "n1", "h", "bank-3", "bank", "till", cloud="azure", region="southcentralus")
    async with table(sink, (LONDON, 10_000 * GB, MONTH), (texas, 1_000 * GB, MONTH)) as source:
        answer = await cost(sink, source, scope(), "path", PRICES, explain=True)
    assert costs(answer, "entry") == {"azure/internet-out": (11_000 * GB, "945.64")}
    assert "= 10235 GB x $0.087 + 665 GB x $0.083 = $945.64" in told(
        answer, f"{OCTOBER} azure/internet-out: "
    )


async def test_it_begins_anew_each_month_and_what_was_earlier_takes_it_first(sink: EmbeddedSink) -> None:
    sent = [
        (OREGON, 150 * GB, MONTH - DAY),
        (OREGON, 60 * GB, MONTH),
        (IRELAND, 20 * GB, MONTH + 10 * DAY),
        (TOKYO, 60 * GB, MONTH + 10 * DAY),
    ]
    async with table(sink, *sent) as source:
        both = await cost(sink, source, scope(since=MONTH - 2 * DAY), "path", PRICES, explain=True)
        first = await cost(sink, source, scope(until=MONTH + DAY), "path", PRICES)
        rest = await cost(sink, source, scope(since=MONTH + DAY), "path", PRICES, explain=True)
    october = Fraction(40, 140)  # of each byte, beyond 100 of 140 GB
    wanted = Fraction("4.5") + 80 * october * Fraction("0.09") + 60 * october * Fraction("0.114")
    assert abs(Fraction(both.summary["total"]) - wanted) < Fraction(1, 10**8)
    assert first.summary["total"] == "0"
    # 40 GB are left: 10 in Ireland, 30 in Tokyo.
    assert costs(rest, "entry") == {
        "aws/internet-out": (20 * GB, "0.9"), "aws/internet-out/ap-northeast-1": (60 * GB, "3.42")
    }  # fmt: skip
    assert told(rest, f"{OCTOBER} aws/free").endswith(
        "64,424,509,440 bytes of them taken earlier in the month; shared by bytes: "
        "aws/internet-out in eu-west-1 10,737,418,240 of 21,474,836,480 bytes; "
        "aws/internet-out/ap-northeast-1 in ap-northeast-1 32,212,254,720 of 64,424,509,440 bytes"
    )


async def test_the_month_is_projected_with_one_allowance(sink: EmbeddedSink) -> None:
    half = MONTH + (NEXT - MONTH) // 2
    async with table(sink, (OREGON, 40 * GB, MONTH), (TOKYO, 40 * GB, MONTH)) as source:
        answer = await cost(sink, source, scope(until=half), "path", PRICES)
    # 80 GB each, 50 of them free.
    assert answer.summary == {"total": "0", "month_to_date": "0", "projected": "6.12"}


async def test_page_view_and_reconcile_say_the_same(sink: EmbeddedSink) -> None:
    sent = [(OREGON, 50 * GB, MONTH), (TOKYO, 90 * GB, MONTH), (TOKYO, 60 * GB, MONTH + DAY)]
    async with table(sink, *sent) as source:
        answer = await cost(sink, source, scope(), "path", PRICES)

        async def limits() -> Limits:
            return read_limits({}, "", None)

        asked = Asked("cost", "path", scope(), "json")
        paged = json.loads(await Answers(sink, prices=PRICES, limits=limits).body(asked, source))
        compared = await reconcile(sink, source, scope(), PRICES, [])
        later = await reconcile(sink, source, scope(since=MONTH + DAY), PRICES, [])
        await apply_views(sink, SchemaOptions(source.database, ipv6=True), NEXT)
        viewed = await sink.query(
            f"SELECT region, sum(bytes) FROM {source.database}.network_flows_0_cost("
            f"since = {MONTH}, until = {NEXT}) WHERE own AND path = 'internet' AND way = 'out' "
            "GROUP BY region ORDER BY region"
        )
    assert answer.summary["total"] == "10.8"
    assert paged["summary"] == answer.summary
    assert [row["metered_cost"] for row in compared.records()] == ["10.8"]
    # Of 60 GB none are free any more: the 140 before took all 100.
    assert [row["metered_cost"] for row in later.records()] == ["6.84"]
    assert viewed == [("ap-northeast-1", 150 * GB), ("us-west-2", 50 * GB)]


@pytest.mark.parametrize(
    ("given", "dollars"),
    [
        ({"amount": "0"}, "21.6"),
        ({"amount": "150"}, "5.4"),
        ({"scope": "region"}, "5.7"),
        ({"entries": ["aws/internet-out/ap-northeast-1"]}, "10.2"),
    ],
    ids=["none", "more", "each region", "one region"],
)
async def test_an_organisation_has_its_own(
    sink: EmbeddedSink, tmp_path: Path, given: dict[str, Any], dollars: str
) -> None:
    own = tmp_path / "own.json"
    entry = {
        "id": "aws/free-internet-out", "entries": ["aws/internet-out"], "amount": "100", "scope": "account",
        "source": "contract", "date": "2026-01-01", **given,
    }  # fmt: skip
    own.write_text(json.dumps({"format": 1, "edition": "1", "allowances": [entry]}))
    prices: PriceList = read_prices([own])
    async with table(sink, (OREGON, 50 * GB, MONTH), (TOKYO, 150 * GB, MONTH)) as source:
        answer = await cost(sink, source, scope(), "path", prices)
    assert answer.summary["total"] == dollars
