"""Longest-prefix match over arrays.

Contract: `PrefixMap` and `RangeTable` never change once built and are safe to read from any thread. Prefixes
are flattened into disjoint intervals when built, so that a look-up is one binary search whatever the nesting.
Addresses are as in `kubenetmon.model`: uint32 of shape (n,), or uint64 of shape (n, 2), high half first.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network

import numpy as np
from numpy.typing import NDArray

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.ranges.parse import NO_LABEL, Label, ProviderRanges
from kubenetmon.server.ranges.prefixes import PrefixList
from kubenetmon.server.ranges.resolve import resolve
from kubenetmon.server.snapshot import Addresses, Family

_LOW_HALF = (1 << 64) - 1

Network = IPv4Network | IPv6Network


def packed_network(network: Network) -> bytes:
    """A network as the key of a `PrefixMap`: address in network order and length."""
    return network.network_address.packed + bytes((network.prefixlen,))


class PrefixMap:
    """The value of the longest prefix that holds an address; 0 where none does."""

    def __init__(self, values: Mapping[bytes, int]) -> None:
        """`values`: prefix (address in network order, 4 or 16 bytes, and length, 1 byte) → int32 above 0."""
        ipv4, ipv6 = (sorted(key for key in values if len(key) == width) for width in (5, 17))
        self._build(((key, values[key]) for key in ipv4), ((key, values[key]) for key in ipv6))

    @classmethod
    def of_sorted(cls, prefixes: NDArray[np.bytes_], values: NDArray[np.int32]) -> PrefixMap:
        """The same for prefixes of one family, as `resolve` gives them."""
        found = cls.__new__(cls)
        pairs = _in_lots(prefixes, values)
        found._build(*((pairs, ()) if prefixes.itemsize == 5 else ((), pairs)))
        return found

    def _build(self, ipv4: Iterable[tuple[bytes, int]], ipv6: Iterable[tuple[bytes, int]]) -> None:
        _, low, self._values4 = _flatten(ipv4, 32)
        self._starts4 = low.astype(np.uint32)
        high, low, self._values6 = _flatten(ipv6, 128)
        # A 128-bit boundary becomes one 64-bit number that keeps the order: the rank of its high half among
        # all high halves, then the rank of its low half among all low halves.
        self._high6, high_rank = np.unique(high, return_inverse=True)
        self._low6, low_rank = np.unique(low, return_inverse=True)
        self._starts6 = (high_rank + 1) * (len(self._low6) + 1) + (low_rank + 1)
        # By high half: the value behind its last boundary, and whether the low half matters at all.
        last = np.searchsorted(high_rank, np.arange(len(self._high6)), side="right") - 1
        self._value_behind6 = self._values6[last]
        self._divided6 = (np.bincount(high_rank) > 1) | (low[last] != 0)

    @classmethod
    def of_networks(cls, networks: Iterable[Network]) -> PrefixMap:
        """Membership: 1 inside any of the networks, 0 outside."""
        return cls({packed_network(network): 1 for network in networks})

    def lookup(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """The value for each address, shape (n,)."""
        if family == 4:
            interval = np.searchsorted(self._starts4, addresses, side="right")
            return self._values4[interval - 1]
        high = addresses[:, 0]
        nearest = np.searchsorted(self._high6, high, side="right") - 1
        found = self._value_behind6[nearest]
        inside = np.flatnonzero(self._divided6[nearest] & (self._high6[nearest] == high))
        if len(inside):
            low_rank = np.searchsorted(self._low6, addresses[inside, 1], side="right")
            place = (nearest[inside] + 1) * (len(self._low6) + 1) + low_rank
            found[inside] = self._values6[np.searchsorted(self._starts6, place, side="right") - 1]
        return found

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        arrays = (
            *(self._starts4, self._values4),
            *(self._starts6, self._values6, self._high6, self._low6, self._value_behind6, self._divided6),
        )
        return sum(one.nbytes for one in arrays)


def _in_lots(prefixes: NDArray[np.bytes_], values: NDArray[np.int32]) -> Iterator[tuple[bytes, int]]:
    """Pairs of plain objects, never many at once."""
    for start in range(0, len(prefixes), 4096):
        lot = slice(start, start + 4096)
        yield from zip(prefixes[lot].tolist(), values[lot].tolist(), strict=True)


def _flatten(
    pairs: Iterable[tuple[bytes, int]], bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int32]]:
    """Disjoint intervals: high and low halves of their starts (the first is 0, ascending), and their values.

    `pairs` of prefix and value are sorted: by address, and of equal addresses the wider prefix first.
    """
    last = 0
    high, low, found = array("Q", [0]), array("Q", [0]), array("i", [0])
    open_ends: list[int] = []
    open_values = [0]

    def boundary(start: int, value: int) -> None:
        nonlocal last
        if start == last:
            found[-1] = value
        elif value != found[-1]:
            last = start
            high.append(start >> 64)
            low.append(start & _LOW_HALF)
            found.append(value)

    for key, value in pairs:
        start = int.from_bytes(key[:-1])
        while open_ends and open_ends[-1] <= start:
            open_values.pop()
            boundary(open_ends.pop(), open_values[-1])
        boundary(start, value)
        open_ends.append(start + (1 << (bits - key[-1])))
        open_values.append(value)
    while open_ends:
        open_values.pop()
        end = open_ends.pop()
        if end < 1 << bits:
            boundary(end, open_values[-1])
    return np.array(high, np.uint64), np.array(low, np.uint64), np.array(found, np.int32)


class RangeTable:
    """All providers' prefixes with their labels."""

    def __init__(self, providers: Iterable[ProviderRanges] = ()) -> None:
        providers = list(providers)
        numbers: dict[Label, int] = {NO_LABEL: 0}
        self._maps: dict[Family, PrefixMap] = {}
        self._lists: dict[Family, PrefixList] = {}
        self.prefixes = 0
        used: set[int] = set()
        # One family after the other: what it takes to build a table is larger than the table.
        for family in (4, 6):
            prefixes, winners = resolve(providers, family, numbers)
            self._maps[family] = PrefixMap.of_sorted(prefixes, winners)
            self._lists[family] = PrefixList(family, prefixes, winners)
            self.prefixes += len(prefixes)
            used.update(np.unique(winners).tolist())
        self.labels: Sequence[Label] = tuple(numbers)
        self._regions: dict[str, set[str]] = {}
        for label in (self.labels[number] for number in used):
            regions = self._regions.setdefault(label.cloud, set())
            if label.region not in ("", "global"):
                regions.add(label.region)

    def __len__(self) -> int:
        return self.prefixes

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        maps, lists = self._maps.values(), self._lists.values()
        return sum(one.nbytes for one in maps) + sum(one.nbytes for one in lists)

    def lookup(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """The id of each address' label, shape (n,); 0 = in nobody's ranges."""
        return self._maps[family].lookup(family, addresses)

    def holders(self, family: Family, address: int) -> list[tuple[Network, Label]]:
        """Every prefix that holds the address, the longest (which `lookup` answers with) first."""
        return [(one.network, self.labels[one.value]) for one in self._lists[family].holders(address)]

    def covers(self, cloud: str) -> bool:
        """True when the ranges of that cloud's own regions are here, so that a miss means "not theirs"."""
        return bool(self._regions.get(cloud))

    def has_region(self, cloud: str, region: str) -> bool:
        """True when that cloud has prefixes in that region, spelled as in labels."""
        return region in self._regions.get(cloud, ())

    def check_region(self, cloud: str, region: str) -> None:
        """Raise `ConfigurationError` when this cloud's ranges are here and none is in the region."""
        if self.covers(cloud) and not self.has_region(cloud, region):
            known = ", ".join(sorted(self._regions[cloud]))
            raise ConfigurationError(
                f"region: {region!r} is none of the regions of {cloud}; they are: {known}"
            )
