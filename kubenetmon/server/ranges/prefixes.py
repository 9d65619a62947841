"""Which prefixes hold an address, for people: `PrefixMap` has flattened them away.

Contract: immutable, some 10 bytes a prefix (IPv6: 21), one binary search a prefix length. Not for hot paths.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.snapshot import Family

_OCTETS: dict[Family, int] = {4: 4, 6: 16}


@dataclass(frozen=True, slots=True)
class Holder:
    """One prefix that holds an address, and the value given with it."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    value: int


class PrefixList:
    """Prefixes of one family with their values, as `resolve` gives them."""

    def __init__(self, family: Family, keys: NDArray[np.bytes_], values: NDArray[np.int32]) -> None:
        self._family: Family = family
        self._keys = keys
        self._values = values

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return self._keys.nbytes + self._values.nbytes

    def holders(self, address: int) -> list[Holder]:
        """The prefixes that hold the address, the longest first."""
        family, keys, octets = self._family, self._keys, _OCTETS[self._family]
        bits = 8 * octets
        found = []
        for length in range(bits, -1, -1):
            network = address >> (bits - length) << (bits - length)
            wanted = np.array([network.to_bytes(octets) + bytes((length,))], keys.dtype)
            place = int(keys.searchsorted(wanted)[0])
            if place < len(keys) and keys[place] == wanted[0]:
                packed = (network.to_bytes(octets), length)
                prefix: ipaddress.IPv4Network | ipaddress.IPv6Network = (
                    ipaddress.IPv4Network(packed) if family == 4 else ipaddress.IPv6Network(packed)
                )
                found.append(Holder(prefix, int(self._values[place])))
        return found
