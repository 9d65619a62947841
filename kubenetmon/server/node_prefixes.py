"""Which node holds an address prefix: sorted arrays that follow nodes by the prefixes that changed.

Contract: `NodePrefixes` is told who holds a prefix from now on and who no longer; several may, and the best
of them owns it. `lookup()` gives the same immutable `PrefixLookup` until something changed; then array copies
apart only what changed is made anew. Pure, nothing to shut down.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.snapshot import Addresses, Family

BITS: dict[Family, int] = {4: 32, 6: 128}


class Network(NamedTuple):
    """An address prefix: the network's number (host bits are 0) and the prefix length in bits."""

    family: Family
    address: int
    prefix_length: int

    def holds(self, family: Family, address: int) -> bool:
        """Whether the address, a number, lies in it."""
        free = BITS[self.family] - self.prefix_length
        return family == self.family and address >> free == self.address >> free


class Holder(NamedTuple):
    """Who holds a prefix. The greatest owns it: the living before the deleted, then the newest."""

    alive: bool
    created: int
    endpoint: int


Size = tuple[Family, int]
"""Family and prefix length."""


@dataclass(frozen=True, slots=True)
class _Rows:
    """Prefixes of one size, sorted, and their owners' endpoints.

    keys: uint32 for IPv4, 16 bytes big-endian as "S16" for IPv6; endpoints: int32; both of shape (n,).
    """

    keys: NDArray[Any]
    endpoints: NDArray[np.int32]

    def with_changes(self, keys: NDArray[Any], endpoints: NDArray[np.int32]) -> _Rows:
        """The rows after prefixes (sorted) have got other owners; 0: they have none."""
        place = self.keys.searchsorted(keys)
        known = np.zeros(len(keys), np.bool_)
        inside = place < len(self.keys)
        known[inside] = self.keys[place[inside]] == keys[inside]
        old_keys = np.delete(self.keys, place[known])
        old_endpoints = np.delete(self.endpoints, place[known])
        owned = endpoints > 0
        place = old_keys.searchsorted(keys[owned])
        return _Rows(
            np.insert(old_keys, place, keys[owned]), np.insert(old_endpoints, place, endpoints[owned])
        )


class PrefixLookup:
    """The owner of the longest prefix that holds an address. Immutable."""

    def __init__(self, rows: Mapping[Size, _Rows]) -> None:
        """Most clusters have one size of a family, and then one search does."""
        self._rows: dict[Family, list[tuple[int, _Rows]]] = {
            family: sorted(
                ((size[1], one) for size, one in rows.items() if size[0] == family and len(one.keys)),
                key=lambda pair: -pair[0],
            )
            for family in BITS
        }

    def owners(self, family: Family, addresses: Addresses) -> NDArray[np.int32]:
        """Endpoint id of the owner of each address; 0 = none. Shape (n,)."""
        found = np.zeros(len(addresses), np.int32)
        for length, rows in self._rows[family]:
            wanted = _keys(family, addresses & mask(family, length))
            place = np.minimum(rows.keys.searchsorted(wanted), len(rows.keys) - 1)
            # The longest is asked first: what it found stays.
            fitting = (rows.keys.take(place) == wanted) & (found == 0)
            found += rows.endpoints.take(place) * fitting
        return found


class NodePrefixes:
    """Everyone's prefixes."""

    def __init__(self) -> None:
        self._holders: dict[Network, tuple[Holder, ...]] = {}
        self._changed: set[Network] = set()
        self._rows: dict[Size, _Rows] = {}
        self._lookup = PrefixLookup({})

    def add(self, networks: Iterable[Network], holder: Holder) -> None:
        """A node holds these from now on."""
        for network in set(networks):
            self._holders[network] = (*self._holders.get(network, ()), holder)
            self._changed.add(network)

    def remove(self, networks: Iterable[Network], holder: Holder) -> None:
        """It holds them no longer; `holder` as it was given."""
        for network in set(networks):
            left = tuple(held for held in self._holders[network] if held != holder)
            if left:
                self._holders[network] = left
            else:
                del self._holders[network]
            self._changed.add(network)

    def lookup(self) -> PrefixLookup:
        """The answers; the same object while nothing changed."""
        if self._changed:
            by_size: dict[Size, list[Network]] = {}
            for network in sorted(self._changed):
                by_size.setdefault((network.family, network.prefix_length), []).append(network)
            for size, networks in by_size.items():
                self._rows[size] = self._merged(size, networks)
            self._changed.clear()
            self._lookup = PrefixLookup(self._rows)
        return self._lookup

    def _merged(self, size: Size, changed: list[Network]) -> _Rows:
        """`changed`: sorted."""
        keys = _key_array(size[0], [network.address for network in changed])
        owners = [max(self._holders[one]).endpoint if one in self._holders else 0 for one in changed]
        rows = self._rows.get(size) or _Rows(keys[:0], np.zeros(0, np.int32))
        return rows.with_changes(keys, np.array(owners, np.int32))


def mask(family: Family, length: int) -> Any:
    """What leaves the network of an address: uint32 for IPv4; two uint64, high half first, for IPv6."""
    number = (1 << BITS[family]) - (1 << (BITS[family] - length))
    return as_addresses(family, [number])[0]


def as_addresses(family: Family, numbers: Iterable[int]) -> Addresses:
    """Numbers as arrays of `kubenetmon.model`: uint32 of shape (n,), uint64 of shape (n, 2)."""
    if family == 4:
        return np.array(list(numbers), np.uint32)
    return np.array([(number >> 64, number & (2**64 - 1)) for number in numbers], np.uint64).reshape(-1, 2)


def _keys(family: Family, addresses: Addresses) -> NDArray[Any]:
    if family == 4:
        return addresses
    return np.ascontiguousarray(addresses).astype(">u8").view("S16").reshape(-1)


def _key_array(family: Family, addresses: list[int]) -> NDArray[Any]:
    if family == 4:
        return as_addresses(4, addresses)
    return np.array([address.to_bytes(16) for address in addresses], "S16")
