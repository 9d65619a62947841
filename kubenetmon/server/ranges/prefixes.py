"""Which prefixes hold an address, for people: `PrefixMap` has flattened them away.

Contract: immutable, some 10 bytes a prefix (IPv6: 21), one binary search a prefix length. Not for hot paths.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
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
    """Prefixes with their values, as given to `PrefixMap`."""

    def __init__(self, values: Mapping[bytes, int]) -> None:
        self._keys: dict[Family, NDArray[np.bytes_]] = {}
        self._values: dict[Family, NDArray[np.int32]] = {}
        for family, octets in _OCTETS.items():
            keys = [key for key in values if len(key) == octets + 1]
            packed = np.frombuffer(b"".join(keys), f"S{octets + 1}")
            order = packed.argsort()
            self._keys[family] = packed[order]
            self._values[family] = np.fromiter((values[key] for key in keys), np.int32, len(keys))[order]

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        return sum(self._keys[family].nbytes + self._values[family].nbytes for family in _OCTETS)

    def holders(self, family: Family, address: int) -> list[Holder]:
        """The prefixes that hold the address, the longest first."""
        keys, octets = self._keys[family], _OCTETS[family]
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
                found.append(Holder(prefix, int(self._values[family][place])))
        return found
