"""The providers' files: which label wins a prefix, and what is said of files that cannot be used."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.ranges import PROVIDERS, Label, RangeTable
from kubenetmon.server.ranges import parse as parse_module
from kubenetmon.server.ranges.parse import NO_LABEL, ProviderRanges, normalised, parse
from kubenetmon.server.ranges.resolve import resolve
from kubenetmon.server.ranges.table import packed_network

FILES = Path(__file__).parents[1] / "data" / "ranges"


def labels_of(documents: dict[str, Any]) -> dict[str, Label]:
    ranges = [parse(name, json.dumps(document).encode(), name) for name, document in documents.items()]
    return {
        f"{ipaddress.ip_address(prefix[:-1])}/{prefix[-1]}": label
        for prefix, label in winners(ranges).items()
    }


def winners(ranges: list[ProviderRanges]) -> dict[bytes, Label]:
    numbers = {NO_LABEL: 0}
    found = {}
    for family in (4, 6):
        prefixes, of = resolve(ranges, 4 if family == 4 else 6, numbers)
        found.update(zip(prefixes.tolist(), of.tolist(), strict=True))
    labels = list(numbers)
    return {prefix: labels[number] for prefix, number in found.items()}


def aws(*claims: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "prefixes": [{"ip_prefix": p, "region": r, "service": s} for p, r, s in claims if ":" not in p],
        "ipv6_prefixes": [{"ipv6_prefix": p, "region": r, "service": s} for p, r, s in claims if ":" in p],
    }


def gcp(*claims: tuple[str, str, str]) -> dict[str, Any]:
    return {
        "prefixes": [
            {("ipv6Prefix" if ":" in p else "ipv4Prefix"): p, "service": s, "scope": r} for p, r, s in claims
        ]
    }


def google(*prefixes: str) -> dict[str, Any]:
    return {"prefixes": [{("ipv6Prefix" if ":" in p else "ipv4Prefix"): p} for p in prefixes]}


def azure(*tags: tuple[str, str, str, list[str]]) -> dict[str, Any]:
    return {
        "values": [
            {
                "name": name,
                "properties": {"region": region, "systemService": service, "addressPrefixes": prefixes},
            }
            for name, region, service, prefixes in tags
        ]
    }


P = "192.0.2.0/24"


@pytest.mark.parametrize(
    ("services", "winner"),
    [
        (["AMAZON", "S3", "EC2"], "s3"),
        (["S3", "AMAZON"], "s3"),
        (["AMAZON", "EC2"], "amazon"),
        (["EC2", "AMAZON"], "amazon"),
        (["EC2", "CLOUDFRONT", "AMAZON"], "cloudfront"),
        (["DYNAMODB", "KINESIS"], "kinesis"),
        (["ROUTE53 RESOLVER", "EC2"], "route53resolver"),
    ],
)
def test_aws_prefers_s3_then_others_then_amazon_then_ec2(services: list[str], winner: str) -> None:
    document = aws(*[(P, f"region-{index}", service) for index, service in enumerate(services)])
    assert labels_of({"aws": document})[P].service == winner


def test_strings_are_normalised() -> None:
    assert labels_of({"gcp": gcp((P, "US Central1", "Google Cloud"))})[P] == (
        "gcp",
        "uscentral1",
        "googlecloud",
    )


def test_google_overwrites_gcp_and_gcp_overwrites_aws() -> None:
    documents = {
        "google": google(P),
        "gcp": gcp((P, "us-central1", "Google Cloud")),
        "aws": aws((P, "x", "S3")),
    }
    assert labels_of(documents)[P] == ("gcp", "global", "googleservice")
    del documents["google"]
    assert labels_of(documents)[P] == ("gcp", "us-central1", "googlecloud")


@pytest.mark.parametrize(
    ("tags", "label"),
    [
        ([("ActionGroup", "", "", [P])], ("global", "azureservice")),
        ([("AzureCloud.eastus", "eastus", "", [P])], ("eastus", "azurecloud")),
        # One that stands in for an empty service gives way to any named one.
        ([("AzureCloud.eastus", "eastus", "", [P]), ("Sql", "", "AzureSQL", [P])], ("global", "azuresql")),
        # A named one stays, also against AzureStorage: the original compares with "azurestorage".
        ([("Sql", "", "AzureSQL", [P]), ("Storage", "eastus", "AzureStorage", [P])], ("global", "azuresql")),
        (
            [("Sql", "", "AzureSQL", [P]), ("Storage", "eastus", "azurestorage", [P])],
            ("eastus", "azurestorage"),
        ),
        # A region beats global only where the published service is spelled in lower case.
        ([("Sql", "", "AzureSQL", [P]), ("Sql.EastUS", "eastus", "AzureSQL", [P])], ("global", "azuresql")),
        ([("AzureCloud", "", "", [P]), ("AzureCloud.eastus", "eastus", "", [P])], ("eastus", "azurecloud")),
        ([("ActionGroup", "", "", [P]), ("ActionGroup.East", "eastus", "", [P])], ("eastus", "azureservice")),
        (
            [("ActionGroup", "", "", [P]), ("AzureCloud.eastus", "eastus", "", [P])],
            ("global", "azureservice"),
        ),
    ],
)
def test_azure_resolves_as_the_original(tags: list[Any], label: tuple[str, str]) -> None:
    assert labels_of({"azure": azure(*tags)})[P] == ("azure", *label)


def test_azure_leaves_other_clouds_prefixes_alone() -> None:
    documents = {"azure": azure(("Sql", "", "AzureSQL", [P])), "aws": aws((P, "us-west-2", "EC2"))}
    assert labels_of(documents)[P] == ("aws", "us-west-2", "ec2")


def test_all_files_of_documentation_addresses_are_read() -> None:
    ranges = [parse(name, (FILES / f"{name}.json").read_bytes(), name) for name in PROVIDERS]
    assert [one.distinct for one in ranges] == [9, 3, 3, 6]
    assert len(winners(ranges)) == 20


@pytest.mark.parametrize(
    ("provider", "content", "says"),
    [
        ("aws", b"", "x.json is not JSON"),
        ("aws", b"<!DOCTYPE html><html>", "x.json is not JSON"),
        ("aws", b'{"prefixes": [{"ip_prefix": "192.0', "x.json is not JSON"),
        ("aws", b"[" * 100_000, "x.json is not"),
        ("aws", b"\xff\xfe{}", "x.json is not JSON"),
        ("aws", b'{"prefixes": [{"ip_prefix": "\xff"}]}', "x.json is not"),
        ("aws", b"[]", "x.json is not the ranges file of aws"),
        ("aws", b"{}", "missing required field `prefixes`"),
        ("aws", b'{"prefixes": [{"ip_prefix": 7}]}', "$.prefixes[0].ip_prefix"),
        ("aws", b'{"prefixes": {}}', "$.prefixes"),
        ("azure", b'{"values": [{"name": "x", "properties": {"addressPrefixes": [1]}}]}', "$.values[0]"),
        ("gcp", b'{"prefixes": [{"ipv4Prefix": null}]}', "$.prefixes[0].ipv4Prefix"),
        ("aws", b'{"prefixes": []}', "x.json holds no prefixes"),
        ("google", b'{"prefixes": [{}]}', "x.json holds no prefixes"),
        ("azure", b'{"values": []}', "x.json holds no prefixes"),
        ("aws", json.dumps(aws(("192.0.2.0/33", "", ""))).encode(), "prefixes[0].ip_prefix is no network"),
        ("aws", json.dumps(aws(("192.0.2.0/", "", ""))).encode(), "prefixes[0].ip_prefix is no network"),
        ("aws", json.dumps(aws(("192.0.2.0/-1", "", ""))).encode(), "is no network"),
        ("aws", json.dumps(aws(("192.0.2.0/²4", "", ""))).encode(), "is no network"),
        ("aws", json.dumps(aws(("192.0.2/24", "", ""))).encode(), "is no network"),
        ("aws", json.dumps(aws(("192.0.2.0\0/24", "", ""))).encode(), "is no network"),
        ("aws", json.dumps(aws(("\ud800", "", ""))).encode(), "x.json"),
        ("aws", json.dumps(aws(("", "", ""))).encode(), "is no network: ''"),
        ("aws", json.dumps(aws(("192.0.2.1/24", "", ""))).encode(), "host bits are set"),
        ("aws", json.dumps(aws(("0.0.0.0/0", "", ""))).encode(), "absurdly wide: '0.0.0.0/0'"),
        ("aws", json.dumps(aws((P, "", ""), ("::/0", "", ""))).encode(), "ipv6_prefixes[0].ipv6_prefix"),
        ("azure", json.dumps(azure(("Sql", "", "", [P, "x"]))).encode(), "Sql.addressPrefixes[1]"),
        ("gcp", json.dumps(gcp((P, "", ""), ("2001:db8::g/48", "", ""))).encode(), "prefixes[1].ipv6Prefix"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_refused_in_one_line(provider: str, content: bytes, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse(provider, content, "x.json")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bare_address_is_a_network_of_one() -> None:
    assert list(labels_of({"aws": aws(("192.0.2.7", "r", "s"))})) == ["192.0.2.7/32"]


def test_too_many_kinds_are_refused() -> None:
    document = aws(*[(f"10.{i >> 8 & 255}.{i & 255}.0/24", str(i), "x") for i in range(70_000)])
    with pytest.raises(ConfigurationError, match="65536"):
        parse("aws", json.dumps(document).encode(), "x.json")


@pytest.mark.parametrize(
    ("prefixes", "says"),
    [
        ([f"{i}.0.0.0/8" for i in range(1, 34)], "it claims 12.89% of all IPv4 addresses for aws"),
        ([f"{i}.{j}.0.0/16" for i in range(64) for j in range(256)], "it claims 25.00% of all IPv4"),
        ([f"2a{i:02x}::/16" for i in range(65)], "it claims 0.10% of all IPv6 addresses for aws"),
    ],
)
def test_a_file_that_claims_half_the_internet_is_refused(prefixes: list[str], says: str) -> None:
    document = aws(*[(prefix, "r", "s") for prefix in prefixes])
    with pytest.raises(ConfigurationError, match=says):
        parse("aws", json.dumps(document).encode(), "x.json")
    nested = aws(*[(f"{i % 32 + 1}.0.0.0/{8 + i // 32}", "r", "s") for i in range(600)])
    assert parse("aws", json.dumps(nested).encode(), "x.json").distinct == 600


def test_more_prefixes_than_any_provider_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parse_module, "_MOST_CLAIMS", 100)
    document = azure(("Sql", "", "AzureSQL", [f"10.0.{i}.0/24" for i in range(101)]))
    with pytest.raises(ConfigurationError, match="more than 100 prefixes: not azure's"):
        parse("azure", json.dumps(document).encode(), "x.json")


@st.composite
def damaged_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A provider's file in which bytes were changed, removed, repeated or put in, as in a bad transfer."""
    provider = draw(st.sampled_from(PROVIDERS))
    content = bytearray((FILES / f"{provider}.json").read_bytes())
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(content) - 1))
        length = draw(st.integers(1, 40))
        damage = draw(st.sampled_from(["change", "digit", "cut", "repeat", "insert", "end"]))
        if damage == "change":
            content[place] = draw(st.integers(0, 255))
        elif damage == "digit":
            digits = [index for index, byte in enumerate(content) if chr(byte).isdigit()]
            if digits:
                content[digits[place % len(digits)]] = draw(st.sampled_from(b"0123456789/.:f"))
        elif damage == "cut":
            del content[place : place + length]
        elif damage == "repeat":
            content[place:place] = content[place : place + length]
        elif damage == "insert":
            content[place:place] = draw(st.binary(max_size=8))
        else:
            del content[place:]
        if not content:
            break
    return provider, bytes(content)


@settings(max_examples=300, deadline=None)
@given(damaged_files())
def test_a_damaged_file_is_refused_in_one_line_or_makes_a_sound_table(damaged: tuple[str, bytes]) -> None:
    provider, content = damaged
    try:
        ranges = parse(provider, content, "x.json")
    except ConfigurationError as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert "x.json" in refusal
        assert "\n" not in refusal
        assert len(refusal) < 400
        return
    table = RangeTable([ranges])
    assert 0 < len(table) == ranges.distinct
    edges = np.array([0, 1, 0xC0000200, 0xFFFFFFFF], np.uint32)
    assert all(number < len(table.labels) for number in table.lookup(4, edges).tolist())


@given(st.binary(max_size=200), st.sampled_from(PROVIDERS))
def test_garbage_is_never_a_traceback(content: bytes, provider: str) -> None:
    with pytest.raises(ConfigurationError):
        parse(provider, content, "x.json")


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(P),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["prefixes", "ip_prefix", "region", "service", "values", "name", "properties",
                         "addressPrefixes", "ipv4Prefix", "scope"]), inner, max_size=4),
    max_leaves=12,
), st.sampled_from(PROVIDERS))  # fmt: skip
def test_json_of_any_shape_is_read_or_refused(document: Any, provider: str) -> None:
    refused = ""
    try:
        parse(provider, json.dumps(document).encode(), "x.json")
    except ConfigurationError as error:
        refused = str(error)
    assert "\n" not in refused


REGIONS = st.sampled_from(["", "global", "eastus", "West US"])
SERVICES = st.sampled_from(
    ["", "S3", "AMAZON", "EC2", "azurecloud", "AzureSQL", "AzureStorage", "azurestorage"]
)
PREFIXES = st.sampled_from(
    ["192.0.2.0/24", "192.0.2.0/25", "198.51.100.0/24", "2001:db8::/32", "2001:db8::/48"]
)
CLAIMS = st.lists(st.tuples(PREFIXES, REGIONS, SERVICES), min_size=1, max_size=8)
TAGS = st.lists(
    st.tuples(
        st.sampled_from(["Sql", "AzureCloud.x"]),
        REGIONS,
        SERVICES,
        st.lists(PREFIXES, min_size=1, max_size=3),
    ),
    min_size=1,
    max_size=5,
)


@given(CLAIMS, CLAIMS, st.lists(PREFIXES, min_size=1, max_size=3), TAGS)
def test_labels_are_those_of_the_rules_read_one_claim_at_a_time(
    of_aws: list[tuple[str, str, str]],
    of_gcp: list[tuple[str, str, str]],
    of_google: list[str],
    of_azure: list[tuple[str, str, str, list[str]]],
) -> None:
    documents = {
        "azure": azure(*of_azure), "google": google(*of_google), "gcp": gcp(*of_gcp), "aws": aws(*of_aws)
    }  # fmt: skip
    assert labels_of(documents) == {
        str(ipaddress.ip_network(prefix)): label
        for prefix, label in _by_the_rules(of_aws, of_gcp, of_google, of_azure).items()
    }


def _by_the_rules(
    of_aws: list[tuple[str, str, str]],
    of_gcp: list[tuple[str, str, str]],
    of_google: list[str],
    of_azure: list[tuple[str, str, str, list[str]]],
) -> dict[str, Label]:
    found: dict[str, Label] = {}
    order = {"s3": 0, "amazon": 2, "ec2": 3}
    for prefix, region, service in of_aws:
        new = Label("aws", normalised(region), normalised(service))
        old = found.get(prefix)
        if old is None or order.get(new.service, 1) <= order.get(old.service, 1):
            found[prefix] = new
    for prefix, region, service in of_gcp:
        found[prefix] = Label("gcp", normalised(region), normalised(service))
    for prefix in of_google:
        found[prefix] = Label("gcp", "global", "googleservice")
    for name, region, service, prefixes in of_azure:
        region = region or "global"
        shown = service or ("azurecloud" if "azurecloud" in name.lower() else "azureservice")
        for prefix in prefixes:
            old = found.get(prefix)
            if old is not None:
                unnamed = old.service in ("azurecloud", "azureservice", "")
                nearer = old.region == "global" and region != "global" and old.service == shown
                if not (unnamed and service) and service != "azurestorage" and not nearer:
                    continue
            found[prefix] = Label("azure", normalised(region), normalised(shown))
    return found


def test_packed_networks_are_what_files_give() -> None:
    network = ipaddress.ip_network("2001:db8::/32")
    ranges = parse("aws", json.dumps(aws((str(network), "r", "s"))).encode(), "x")
    assert winners([ranges]) == {packed_network(network): Label("aws", "r", "s")}
