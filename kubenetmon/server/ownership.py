"""Who owned an address when: claims of endpoints on addresses, and the sorted arrays that answer in bulk.

Contract: one `AddressHistory` holds keys of one width. Claims come and end as pods do; `rows()` gives the
same immutable `OwnershipRows` until something changed, and then rebuilds only what belongs to the keys that
changed (array copies apart). Pure: times are given by the caller, nothing to shut down.

A key is an IPv4 address (4 bytes), an IPv6 address (16), or either with a protocol and a port behind it
(7 and 19): what pods on the host's network hold of their node's address.

Who owns a key at second t, by these rules in this order:
1. of the claims with start <= t < end, the one created last (equal: the one made last); a port that several
   hold is nobody's, because which of them spoke cannot be told;
2. of the ended claims with end <= t < end + grace, the one that ended last;
3. of the claims with start > t, the one that starts first: a report carries the second its interval began,
   and the pod may have started within that interval;
4. no one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.shrinking import Shrinking
from kubenetmon.server.snapshot import Addresses, Family, Moment

FOREVER = 2**32 - 1
"""The end of a claim that still holds; times are whole Unix seconds below it."""

Width = Literal[4, 16, 7, 19]
IPV4, IPV6, IPV4_PORT, IPV6_PORT = 4, 16, 7, 19
ADDRESS_WIDTH: dict[Family, Width] = {4: 4, 6: 16}
PORT_WIDTH: dict[Family, Width] = {4: 7, 6: 19}

_MAX_CLAIMS_PER_ADDRESS = 64


def port_key(address: int, protocol: int, port: int) -> int:
    """The key of one port of an address, as a number."""
    return address << 24 | protocol << 16 | port


class Claim(msgspec.Struct, eq=False, gc=False):
    """One endpoint's hold on one key, a number of `width` bytes, from `start` to `end` (Unix seconds, end
    excluded)."""

    width: Width
    key: int
    start: int
    created: int
    endpoint: int
    end: int = FOREVER


Claims = Claim | tuple[Claim, ...]
"""One claim bare: with a hundred thousand pods a tuple around each counts."""


def each_of(claims: Claims) -> tuple[Claim, ...]:
    """As a tuple in any case."""
    return (claims,) if isinstance(claims, Claim) else claims


def compact_claims(claims: tuple[Claim, ...]) -> Claims:
    """To be kept."""
    return claims[0] if len(claims) == 1 else claims


@dataclass(frozen=True, slots=True)
class OwnershipRows:
    """Rows sorted by (key, start): `endpoints[i]` owns the key in `keys[i]` from start to `ends[i]`.

    keys: uint64 (address << 32 | start) for IPv4; for others their bytes, then the start's four, big-endian,
    as numpy's "S", whose order is that of the numbers. Row 0 is a sentinel that matches nothing.
    """

    width: Width
    keys: NDArray[Any]
    ends: NDArray[np.int64]
    endpoints: NDArray[np.int32]

    def owners(self, addresses: Addresses, at: Moment) -> NDArray[np.int32]:
        """Endpoint id that owned each address at that second; 0 = none. Shape (n,)."""
        moment = _moment(at)
        if self.width == IPV4:
            wanted = addresses.astype(np.uint64) << np.uint64(32)
            row = self.keys.searchsorted(wanted | moment.astype(np.uint64), side="right") - 1
            same = (self.keys.take(row) ^ wanted) < np.uint64(1 << 32)
            return self._owners(row, same, moment)
        octets = np.ascontiguousarray(addresses).astype(">u8").view(np.uint8).reshape(-1, 16)
        return self._owners_of_octets(octets, moment)

    def owners_of_ports(
        self,
        addresses: Addresses,
        protocols: NDArray[np.uint8],
        ports: NDArray[np.uint16],
        at: Moment,
    ) -> NDArray[np.int32]:
        """Endpoint id that alone had each port of an address at that second; 0 = none. Shape (n,)."""
        octets = np.empty((len(addresses), self.width), np.uint8)
        kind = ">u4" if self.width == IPV4_PORT else ">u8"
        octets[:, :-3] = (
            np.ascontiguousarray(addresses).astype(kind).view(np.uint8).reshape(-1, self.width - 3)
        )
        octets[:, -3] = protocols
        octets[:, -2:] = ports.astype(">u2").view(np.uint8).reshape(-1, 2)
        return self._owners_of_octets(octets, _moment(at))

    def _owners_of_octets(self, octets: NDArray[np.uint8], moment: NDArray[Any]) -> NDArray[np.int32]:
        wanted = np.empty((len(octets), self.width + 4), np.uint8)
        wanted[:, : self.width] = octets
        wanted[:, self.width :] = moment.astype(">u4").reshape(-1, 1).view(np.uint8)
        row = self.keys.searchsorted(wanted.view(f"S{self.width + 4}").reshape(-1), side="right") - 1
        found = self.keys.take(row).view(np.uint8).reshape(wanted.shape)
        return self._owners(row, (found[:, : self.width] == octets).all(axis=1), moment)

    def _owners(
        self, row: NDArray[np.intp], same: NDArray[np.bool_], moment: NDArray[Any]
    ) -> NDArray[np.int32]:
        same &= self.ends.take(row) > moment
        owners: NDArray[np.int32] = self.endpoints.take(row)
        owners *= same
        return owners


def _moment(at: Moment) -> NDArray[np.int64]:
    """Shape () or (n,); an array also where it is one number, which has no byte order to change."""
    return np.asarray(np.clip(at, 0, FOREVER - 1))


class AddressHistory:
    """All claims on keys of one width."""

    def __init__(self, width: Width, grace: int) -> None:
        self._width: Width = width
        self._grace = grace
        self._exclusive = width in (IPV4_PORT, IPV6_PORT)
        self._claims: Shrinking[int, Claims] = Shrinking()
        self._changed: set[int] = set()
        self._rows = OwnershipRows(width, self._keys([0], [0]), np.zeros(1, np.int64), np.zeros(1, np.int32))

    def __len__(self) -> int:
        """Addresses with at least one claim."""
        return len(self._claims.held)

    def add(self, claim: Claim) -> None:
        """A new claim, holding from now on."""
        claims = (*self.of(claim.key), claim)
        if len(claims) > _MAX_CLAIMS_PER_ADDRESS:
            # An address that changes hands every few seconds: what ended longest ago goes first.
            oldest = min(claims, key=lambda held: held.end)
            claims = tuple(held for held in claims if held is not oldest)
        self._claims.held[claim.key] = compact_claims(claims)
        self._changed.add(claim.key)

    def end(self, claim: Claim, at: int) -> None:
        """The claim holds no longer; it stays known as history."""
        claim.end = max(at, claim.start)
        self._changed.add(claim.key)

    def move(self, claim: Claim, endpoint: int) -> None:
        """The claim's owner is described by another endpoint from now on."""
        claim.endpoint = endpoint
        self._changed.add(claim.key)

    def forget(self, claim: Claim) -> None:
        """Remove an ended claim from history; harmless when it is gone already."""
        claims = tuple(held for held in self.of(claim.key) if held is not claim)
        if claims:
            self._claims.held[claim.key] = compact_claims(claims)
        else:
            self._claims.remove(claim.key)
        self._changed.add(claim.key)

    def of(self, key: int) -> tuple[Claim, ...]:
        """The claims on one key that are still known, in the order they were made."""
        return each_of(self._claims.held.get(key, ()))

    def mark_endpoints(self, used: NDArray[np.bool_]) -> None:
        """Set what a claim says, of shape (endpoints there are,)."""
        used[np.fromiter((claim.endpoint for claim in self._each()), np.int32)] = True

    def _each(self) -> Iterator[Claim]:
        return itertools.chain.from_iterable(map(each_of, self._claims.held.values()))

    def rows(self) -> OwnershipRows:
        """The answers as arrays; the same object while nothing changed."""
        if self._changed:
            self._rows = self._merge(sorted(self._changed))
            self._changed.clear()
        return self._rows

    def renumber(self, new_ids: NDArray[np.int32]) -> None:
        """Endpoint id i is called new_ids[i] from now on; what the claims say is for those who made them."""
        rows = self.rows()
        self._rows = OwnershipRows(rows.width, rows.keys, rows.ends, new_ids.take(rows.endpoints))

    def _merge(self, changed: list[int]) -> OwnershipRows:
        """The rows with those of the changed addresses (sorted) replaced: slices of old and of new ones."""
        owned: list[int] = []
        starts: list[int] = []
        ends: list[int] = []
        endpoints: list[int] = []
        bounds = [0]
        for address in changed:
            for start, end, endpoint in self._steps(self.of(address)):
                owned.append(address)
                starts.append(start)
                ends.append(end)
                endpoints.append(endpoint)
            bounds.append(len(starts))
        old = self._rows
        # Row 0, the sentinel, has the address 0, which no one can claim: it stays the first.
        first = old.keys.searchsorted(self._keys(changed, [0] * len(changed)), side="left")
        last = old.keys.searchsorted(self._keys(changed, [FOREVER] * len(changed)), side="right")
        # Changed addresses with no other between them are replaced as one run.
        breaks = np.flatnonzero(first[1:] != last[:-1])
        run_first, run_last = np.append(0, breaks + 1), np.append(breaks, len(changed) - 1)
        kept_from, kept_to = [0, *last[run_last].tolist()], [*first[run_first].tolist(), len(old.keys)]
        kept = [slice(*pair) for pair in zip(kept_from, kept_to, strict=True)]
        new_bounds = np.array(bounds)
        new_from, new_to = new_bounds[run_first].tolist(), new_bounds[run_last + 1].tolist()
        added = [slice(*pair) for pair in zip(new_from, new_to, strict=True)]

        def merged(old_column: NDArray[Any], new_column: NDArray[Any]) -> NDArray[Any]:
            pieces = [old_column[kept[0]]]
            for new_rows, old_rows in zip(added, kept[1:], strict=True):
                pieces.append(new_column[new_rows])
                pieces.append(old_column[old_rows])
            return np.concatenate(pieces)

        return OwnershipRows(
            self._width,
            merged(old.keys, self._keys(owned, starts)),
            merged(old.ends, np.array(ends, np.int64)),
            merged(old.endpoints, np.array(endpoints, np.int32)),
        )

    def _steps(self, claims: tuple[Claim, ...]) -> list[tuple[int, int, int]]:
        """The rules of this module's docstring as steps (start, end, endpoint), sorted, without gaps."""
        if len(claims) == 1:
            claim = claims[0]
            end = FOREVER if claim.end == FOREVER else min(claim.end + self._grace, FOREVER)
            return [(0, end, claim.endpoint)]
        bounds = {0}
        for claim in claims:
            bounds.update((claim.start, claim.end, min(claim.end + self._grace, FOREVER)))
        ordered = sorted(bounds)
        steps: list[tuple[int, int, int]] = []
        for start, end in itertools.pairwise(ordered):
            endpoint = self._owner(claims, start)
            if not endpoint:
                continue
            if steps and steps[-1][2] == endpoint and steps[-1][1] == start:
                steps[-1] = (steps[-1][0], end, endpoint)
            else:
                steps.append((start, end, endpoint))
        return steps

    def _owner(self, claims: tuple[Claim, ...], at: int) -> int:
        """The endpoint that owns the key at that second, 0 for none."""
        holding = [claim for claim in claims if claim.start <= at < claim.end]
        if holding:
            if self._exclusive and len({claim.endpoint for claim in holding}) > 1:
                return 0
            # Of equals the last: reversed, because max takes the first.
            return max(reversed(holding), key=lambda claim: claim.created).endpoint
        lately = [claim for claim in claims if claim.end <= at < claim.end + self._grace]
        if lately:
            return max(reversed(lately), key=lambda claim: claim.end).endpoint
        later = [claim for claim in claims if claim.start > at]
        return min(later, key=lambda claim: claim.start).endpoint if later else 0

    def _keys(self, keys: list[int], starts: list[int]) -> NDArray[Any]:
        """The rows' keys for claims' keys and the seconds from which they are owned."""
        if self._width == IPV4:
            return np.array(keys, np.uint64) << np.uint64(32) | np.array(starts, np.uint64)
        width = self._width + 4
        octets = (key << 32 | start for key, start in zip(keys, starts, strict=True))
        return np.frombuffer(b"".join(number.to_bytes(width) for number in octets), f"S{width}")
