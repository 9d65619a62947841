"""The longest-prefix match against a brute force over `ipaddress`."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.ranges.parse import NO_LABEL, PROVIDERS, parse
from kubenetmon.server.ranges.resolve import resolve
from kubenetmon.server.ranges.table import PrefixMap, packed_network
from tests.beds.attribution import load_ranges

FILES = Path(__file__).parents[1] / "data" / "ranges"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Few distinct bits, so that prefixes nest, touch and share halves; the ends of the number line are in.
OCTETS4 = st.lists(st.sampled_from([0, 1, 127, 128, 255]), min_size=4, max_size=4)
OCTETS6 = st.lists(st.sampled_from([0, 1, 255]), min_size=16, max_size=16)


@st.composite
def networks(draw: st.DrawFn) -> Network:
    octets = bytes(draw(st.one_of(OCTETS4, OCTETS6)))
    length = draw(st.integers(0, 8 * len(octets)))
    return ipaddress.ip_network((octets, length), strict=False)


def as_array(addresses: list[int], family: int) -> Any:
    if family == 4:
        return np.array(addresses, np.uint32)
    halves = [(number >> 64, number & (2**64 - 1)) for number in addresses]
    return np.array(halves, np.uint64).reshape(-1, 2)


def brute_force(address: int, family: int, values: dict[Network, int]) -> int:
    holding = [
        network
        for network in values
        if network.version == family
        and int(network.network_address) <= address <= int(network.broadcast_address)
    ]
    return values[max(holding, key=lambda network: network.prefixlen)] if holding else 0


@settings(max_examples=400)
@given(st.dictionaries(networks(), st.integers(1, 5), max_size=12), st.lists(networks(), max_size=5))
def test_every_address_gets_its_longest_prefix(values: dict[Network, int], others: list[Network]) -> None:
    prefix_map = PrefixMap({packed_network(network): value for network, value in values.items()})
    for family, bits in ((4, 32), (6, 128)):
        edges = {0, 2**bits - 1}
        for network in [*values, *others]:
            if network.version == family:
                edges |= {int(network.network_address), int(network.broadcast_address)}
        wanted = sorted(
            {near for edge in edges for near in (edge - 1, edge, edge + 1) if 0 <= near < 2**bits}
        )
        found = prefix_map.lookup(4 if family == 4 else 6, as_array(wanted, family))
        assert found.dtype == np.int32
        assert found.tolist() == [brute_force(address, family, values) for address in wanted]


def test_no_addresses_and_no_prefixes() -> None:
    for prefix_map in (PrefixMap({}), PrefixMap.of_networks([ipaddress.ip_network("192.0.2.0/24")])):
        assert prefix_map.lookup(4, np.empty(0, np.uint32)).shape == (0,)
        assert prefix_map.lookup(6, np.empty((0, 2), np.uint64)).shape == (0,)
    assert PrefixMap({}).lookup(6, np.full((1, 2), 2**64 - 1, np.uint64)).tolist() == [0]


@pytest.fixture(scope="module")
def table() -> RangeTable:
    return load_ranges(FILES)


@pytest.mark.parametrize(
    ("address", "label"),
    [
        ("198.51.100.1", ("aws", "us-west-2", "s3")),
        ("198.51.100.33", ("aws", "eu-west-1", "s3")),
        ("198.51.100.113", ("aws", "", "amazon")),
        ("198.51.100.128", ("", "", "")),
        ("203.0.113.70", ("gcp", "global", "googleservice")),
        ("203.0.113.1", ("gcp", "us-central1", "googlecloud")),
        ("192.0.2.130", ("azure", "eastus", "azurestorage")),
        ("192.0.2.193", ("azure", "eastus", "azurestorage")),
        ("192.0.2.225", ("azure", "global", "azuresql")),
        ("203.0.113.129", ("azure", "global", "azureservice")),
        ("2001:db8:a:1::1", ("aws", "us-west-2", "s3")),
        ("2001:db8:a:2::1", ("aws", "us-west-2", "amazon")),
        ("2001:db8:d::1", ("gcp", "global", "googleservice")),
        ("2001:db8:f::1", ("", "", "")),
    ],
)
def test_labels_of_documentation_addresses(table: RangeTable, address: str, label: tuple[str, ...]) -> None:
    one = ipaddress.ip_address(address)
    found = table.lookup(4 if one.version == 4 else 6, as_array([int(one)], one.version))
    assert table.labels[found[0]] == label


def test_regions_are_known_by_cloud(table: RangeTable) -> None:
    assert table.has_region("aws", "us-west-2")
    assert not table.has_region("aws", "us west-2")
    assert not table.has_region("gcp", "us-west-2")
    assert not table.has_region("aws", "global")
    assert table.covers("gcp")
    table.check_region("azure", "eastus")
    with pytest.raises(
        ConfigurationError, match="region: 'moon-1' is none of the regions of gcp; they are: us-central1"
    ):
        table.check_region("gcp", "moon-1")
    RangeTable().check_region("aws", "moon-1")


@pytest.mark.shared
def test_real_ranges_agree_with_a_walk_over_prefix_lengths(shared_data: Path) -> None:
    directory = shared_data / "cloud-ranges"
    ranges = [parse(name, (directory / f"{name}.json").read_bytes(), name) for name in PROVIDERS]
    numbers = {NO_LABEL: 0}
    winners: dict[bytes, int] = {}
    for family in (4, 6):
        prefixes, of = resolve(ranges, 4 if family == 4 else 6, numbers)
        winners.update(zip(prefixes.tolist(), of.tolist(), strict=True))
    labels = list(numbers)
    table = RangeTable(ranges)
    assert sum(len(prefix) == 5 for prefix in winners) == 45_183
    assert table.nbytes < 10_000_000
    random = np.random.default_rng(7)
    for size, family in ((4, 4), (16, 6)):
        starts = [int.from_bytes(prefix[:-1]) for prefix in winners if len(prefix) == size + 1]
        picked = [starts[index] for index in random.integers(0, len(starts), 3000)]
        moves = random.integers(-2, 5000, 3000).tolist()
        wanted = [start + move for start, move in zip(picked, moves, strict=True)]
        found = table.lookup(4 if family == 4 else 6, as_array(wanted, family))
        for address, label in zip(wanted, found.tolist(), strict=True):
            expected = ("", "", "")
            for length in range(8 * size, -1, -1):
                start = address >> (8 * size - length) << (8 * size - length)
                held = winners.get(start.to_bytes(size) + bytes((length,)))
                if held is not None:
                    expected = labels[held]
                    break
            assert table.labels[label] == expected
