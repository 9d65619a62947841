"""Price files: exact, tiered, narrowed, overridden; and what is wrong in one is said in a line."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError
from kubenetmon.report.allowances import shared
from kubenetmon.report.prices import BUILT_IN, PATHS, PriceList, Transfer, read_prices

GB = 2**30
PRICES = read_prices()


@pytest.fixture(scope="module")
def prices() -> PriceList:
    return PRICES


def own(tmp_path: Path, **document: Any) -> Path:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"format": 1, **document}))
    return path


def entry(**changed: Any) -> dict[str, Any]:
    return {
        "id": "x/y", "cloud": "aws", "path": "cross-zone", "way": "out", "price": "0.001",
        "source": "contract", "date": "2026-01-01", **changed,
    }  # fmt: skip


def tiered(**changed: Any) -> dict[str, Any]:
    made = entry(tiers=[{"up_to": "100", "price": "0"}, {"price": "0.05"}], **changed)
    del made["price"]
    return made


def allowance(**changed: Any) -> dict[str, Any]:
    return {
        "id": "x/free", "entries": ["aws/cross-zone-out"], "amount": "5", "scope": "account",
        "source": "contract", "date": "2026-01-01", **changed,
    }  # fmt: skip


def test_every_entry_has_a_source_and_a_date_and_every_cloud_every_path(prices: PriceList) -> None:
    for one in prices.entries:
        assert one.source.startswith("https://")
        assert one.date.startswith("20")
        assert one.checked, f"{one.id}: say with what it was compared, or that it was not found again"
    for free in prices.allowances:
        assert free.source.startswith("https://")
        assert free.checked, f"{free.id}: say with what it was compared, or that it was not found again"
    for cloud in ("aws", "gcp", "azure"):
        for path in PATHS:
            for way in ("out", "in"):
                transfer = Transfer(cloud, "nowhere-1", "elsewhere-2", path, "s3", ("NAT_GATEWAY",))
                assert prices.of(transfer, way), (cloud, path, way)
    assert json.loads(BUILT_IN.read_text())["edition"]


@pytest.mark.parametrize(
    ("transfer", "way", "ids"),
    [
        (Transfer("aws", "us-west-2", "us-west-2", "cross-zone", ""), "out", ["aws/cross-zone-out"]),
        (Transfer("aws", "us-west-2", "us-west-2", "cross-zone", ""), "in", ["aws/cross-zone-in"]),
        (Transfer("aws", "us-west-2", "us-west-2", "region-service", "s3"), "out", ["aws/region-service"]),
        (
            Transfer("aws", "us-west-2", "us-west-2", "region-service", "ec2"),
            "out",
            ["aws/region-public-out"],
        ),
        (
            Transfer("aws", "us-east-1", "us-east-2", "inter-region", ""),
            "out",
            ["aws/inter-region-out/us-east"],
        ),
        (Transfer("aws", "us-east-1", "eu-west-1", "inter-region", ""), "out", ["aws/inter-region-out"]),
        (
            Transfer("aws", "us-east-1", "", "internet", "", ("NAT_GATEWAY", "MINE")),
            "out",
            ["aws/internet-out", "aws/nat-gateway"],
        ),
        (
            Transfer("aws", "sa-east-1", "", "region-service", "s3", ("NAT_GATEWAY",)),
            "out",
            ["aws/region-service", "aws/nat-gateway/sa-east-1"],
        ),
        (
            Transfer("aws", "us-east-1", "us-east-1", "cross-zone", "", ("NLB",)),
            "out",
            ["aws/cross-zone-out", "aws/network-load-balancer"],
        ),
        (Transfer("gcp", "us-east1", "us-west1", "inter-region", ""), "out", ["gcp/inter-region-out"]),
        (
            Transfer("gcp", "europe-west4", "us-east1", "inter-region", ""),
            "out",
            ["gcp/inter-region-out/europe-na"],
        ),
        (
            Transfer("gcp", "asia-east1", "us-east1", "inter-region", ""),
            "out",
            ["gcp/inter-region-out/asia"],
        ),
        (Transfer("azure", "eastus2", "westus3", "inter-region", ""), "out", ["azure/inter-region-out"]),
        (
            Transfer("azure", "uksouth", "eastus", "inter-region", ""),
            "out",
            ["azure/inter-region-out/europe-any"],
        ),
        (Transfer("azure", "japaneast", "", "internet", ""), "out", ["azure/internet-out/asia"]),
        (Transfer("none", "", "", "internet", ""), "out", []),
        (Transfer("aws", "us-east-1", "", "unknown-zone", ""), "out", []),
    ],
)
def test_the_narrowest_entry_prices_a_transfer(
    prices: PriceList, transfer: Transfer, way: str, ids: list[str]
) -> None:
    assert [one.id for one in prices.of(transfer, way)] == ids


def test_tiers_are_exact_to_the_cent(prices: PriceList) -> None:
    [internet] = prices.of(Transfer("aws", "us-west-2", "", "internet", ""), "out")
    # The first 10 TB are those beyond the free ones, which are an allowance.
    assert internet.cost(GB) == Fraction("0.09")
    assert internet.cost(10_240 * GB) == Fraction("0.09") * 10_240
    assert internet.cost(200_000 * GB) == (
        Fraction("0.09") * 10_240 + Fraction("0.085") * 40_960 + Fraction("0.07") * 102_400
        + Fraction("0.05") * 46_400
    )  # fmt: skip
    assert internet.cost(GB, before=10_240 * GB) == Fraction("0.085")


@settings(deadline=None)
@given(st.lists(st.integers(0, 300_000 * GB), min_size=1, max_size=6))
def test_a_month_costs_the_same_in_any_parts(parts: list[int]) -> None:
    [internet] = PRICES.of(Transfer("gcp", "us-central1", "", "internet", ""), "out")
    before, total = 0, Fraction(0)
    for part in parts:
        total += internet.cost(part, before)
        assert internet.cost(part, before) == sum(
            units * price for units, price in internet.parts(part, before)
        )
        before += part
    assert total == internet.cost(before)


def test_ones_own_entry_replaces_and_adds(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        edition="contract 7",
        prices=[
            entry(id="aws/cross-zone-out", price="0.004"),
            entry(id="ours/to-s3", path="internet", way="both", services=["cdn"], price="0.01"),
        ],
        assume=[{"path": "internet", "entry": "aws/nat-gateway"}],
    )
    prices = read_prices([path])
    [crossing] = prices.of(Transfer("aws", "r", "r", "cross-zone", ""), "out")
    assert (crossing.cost(GB), crossing.source) == (Fraction("0.004"), "contract")
    ids = [one.id for one in prices.of(Transfer("aws", "r", "", "internet", "cdn"), "in")]
    assert set(ids) >= {"aws/nat-gateway"}
    there = prices.of(Transfer("aws", "eu-west-1", "", "internet", ""), "out")
    assert [one.id for one in there] == ["aws/internet-out", "aws/nat-gateway/eu-west-1"]
    assert prices.editions == ("list_prices.json 2026-11", "own.json contract 7")


def test_ones_own_allowance_replaces_adds_and_ends(tmp_path: Path) -> None:
    path = own(
        tmp_path,
        prices=[tiered(id="azure/internet-out/asia", cloud="azure", path="internet")],
        allowances=[
            allowance(id="aws/free-internet-out", entries=["aws/internet-out"], amount="500"),
            allowance(),
            allowance(id="azure/free-internet-out", entries=["azure/internet-out"], amount="0"),
        ],
    )
    prices = read_prices([path])
    assert [(one.id, one.bytes) for one in prices.allowances] == [
        ("aws/free-internet-out", 500 * GB), ("x/free", 5 * GB)
    ]  # fmt: skip
    found = {one.id: one for one in prices.entries}
    assert prices.allowance_of(found["azure/internet-out/asia"]) is None
    for name in ("aws/internet-out", "aws/internet-out/sa-east-1"):
        free = prices.allowance_of(found[name])
        assert free is not None
        assert free.id == "aws/free-internet-out"
    assert prices.allowance_of(found["aws/internet-in"]) is None


@given(st.integers(0, 10**15), st.dictionaries(st.integers(), st.integers(0, 10**16), max_size=8))
def test_what_is_free_is_shared_to_the_byte_and_in_proportion(total: int, wanted: dict[int, int]) -> None:
    shares = shared(total, wanted)
    everything = sum(wanted.values())
    assert shares.keys() == wanted.keys()
    assert sum(shares.values()) == min(total, everything)
    for key, share in shares.items():
        assert 0 <= share <= wanted[key]
        if total < everything:
            assert abs(share - Fraction(total * wanted[key], everything)) < 1


def test_the_odd_bytes_go_to_the_largest_remainders() -> None:
    assert shared(10, {"a": 1, "b": 10, "c": 10}) == {"a": 0, "b": 5, "c": 5}
    assert shared(11, {"a": 3, "b": 10, "c": 10}) == {"a": 1, "b": 5, "c": 5}
    assert shared(1, {"a": 7, "b": 7}) == {"a": 1, "b": 0}


def test_a_class_of_ones_own_networks_can_be_priced(tmp_path: Path) -> None:
    prices = read_prices([own(tmp_path, prices=[entry(path="class:PEERED", way="both", price="0.01")])])
    [peered] = prices.of(Transfer("aws", "r", "r", "class:PEERED", ""), "in")
    assert peered.cost(GB) == Fraction("0.01")


def test_yaml_is_taken_and_a_price_is_no_binary_fraction(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(
        "format: 1\nprices:\n- {id: aws/cross-zone-in, cloud: aws, path: cross-zone, way: in, price: 0.1,\n"
        "   source: mail, date: 2026-01-02}\n"
    )
    [crossing] = read_prices([path]).of(Transfer("aws", "r", "r", "cross-zone", ""), "in")
    assert crossing.cost(GB) == Fraction(1, 10)
    assert crossing.date == "2026-01-02"


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"format": 2}, "format: 1"),
        ({"prices": {}}, "must be a list"),
        ({"currency": "EUR", "prices": []}, "in USD"),
        ({"prices": ["x"]}, "must be a map"),
        ({"prices": [entry(prise="1")]}, "unknown key 'prise'"),
        ({"prices": [entry(path="moon")]}, "path 'moon' is not one of same-zone"),
        ({"prices": [entry(price="-1")]}, "price '-1' is not a number from 0 on"),
        ({"prices": [entry(price="NaN")]}, "price 'NaN'"),
        ({"prices": [entry(price=True)]}, "price True"),
        ({"prices": [entry(source="")]}, "source is missing"),
        ({"prices": [entry(tiers=[])]}, "either price or tiers"),
        ({"prices": [{**entry(), "price": None}]}, "price None"),
        ({"prices": [entry(bill="(")]}, "bill is not a pattern"),
        ({"prices": [entry(path="processing")]}, "name them"),
        ({"prices": [entry(regions="us")]}, "regions must be a list"),
        ({"prices": [entry(unit_bytes=0)]}, "too small"),
        ({"assume": [{"path": "internet", "entry": "nobody"}]}, "assume needs a path"),
        ({"prices": [entry(per="region")]}, "per 'region' must be one of entry, region, and goes with tiers"),
        ({"prices": [{**tiered(), "per": "planet"}]}, "per 'planet' must be one of entry, region"),
        ({"prices": [{**tiered(), "per": ["region"]}]}, "per ['region'] must be one of"),
        ({"allowances": {}}, "allowances must be a list"),
        ({"allowances": ["x"]}, "an allowance must be a map"),
        ({"allowances": [allowance(scope="planet")]}, "x/free: scope 'planet' is not one of account, region"),
        ({"allowances": [allowance(scope=["account"])]}, "scope ['account'] is not one of"),
        ({"allowances": [{**allowance(), "scope": None}]}, "scope None is not one of account, region"),
        ({"allowances": [allowance(amount="-1")]}, "amount '-1' is not a number from 0 on"),
        ({"allowances": [allowance(amont="1")]}, "unknown key 'amont'"),
        ({"allowances": [allowance(entries=[])]}, "name the entries that it is for"),
        ({"allowances": [allowance(entries=["aws/moon"])]}, "x/free: there is no entry 'aws/moon'"),
        ({"allowances": [allowance(unit_bytes=0)]}, "unit_bytes is too small"),
        ({"allowances": [allowance(source="")]}, "source is missing"),
        (
            {"allowances": [allowance(entries=["aws/internet-out/sa-east-1"])]},
            "aws/internet-out/sa-east-1 is under two allowances, aws/free-internet-out and x/free",
        ),
        (
            {"prices": [tiered(id="aws/internet-out", path="internet")]},
            "aws/internet-out: its first tier is free and so is aws/free-internet-out",
        ),
    ],
)
def test_a_wrong_file_is_one_line_that_names_it(tmp_path: Path, document: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        read_prices([own(tmp_path, **document)])
    assert says in str(caught.value)
    assert "own.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "tiers",
    [
        [{"price": "1"}, {"price": "2"}],
        [{"up_to": "5", "price": "1"}],
        [{"up_to": "5", "price": "1"}, {"up_to": "3", "price": "1"}, {"price": "0"}],
        [{"up_to": "5"}, {"price": "0"}],
        ["x"],
        "x",
        [],
    ],
)
def test_tiers_rise_and_end(tmp_path: Path, tiers: object) -> None:
    document = {key: value for key, value in entry(tiers=tiers).items() if key != "price"}
    with pytest.raises(ConfigurationError, match="rising up_to"):
        read_prices([own(tmp_path, prices=[document])])


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"{", b"[]", b"", b"a: &a [*a]", b"!!python/object:os.system x"]
)
def test_what_is_no_document_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prices.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"prices\.yaml"):
        read_prices([path])
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_prices([tmp_path / "none"])
