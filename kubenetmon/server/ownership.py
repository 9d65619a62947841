"""Who owned an address when: claims of endpoints on addresses, and the sorted arrays that answer in bulk.

Contract: one `AddressHistory` holds one address family. Claims come and end as pods do; `rows()` gives the
same immutable `OwnershipRows` until something changed, and then rebuilds only what belongs to the addresses
that changed (array copies apart). Pure: times are given by the caller, nothing to shut down.

Who owns an address at second t, by these rules in this order:
1. of the claims with start <= t < end, the one created last (equal: the one made last);
2. of the ended claims with end <= t < end + grace, the one that ended last;
3. of the claims with start > t, the one that starts first: a report carries the second its interval began,
   and the pod may have started within that interval;
4. no one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.snapshot import Addresses, Family

FOREVER = 2**32 - 1
"""The end of a claim that still holds; times are whole Unix seconds below it."""

_MAX_CLAIMS_PER_ADDRESS = 64


class Claim:
    """One endpoint's hold on one address from `start` to `end` (Unix seconds, end excluded)."""

    __slots__ = ("address", "created", "end", "endpoint", "family", "start")

    def __init__(self, family: Family, address: int, start: int, created: int, endpoint: int) -> None:
        self.family: Family = family
        self.address = address
        self.start = start
        self.end = FOREVER
        self.created = created
        self.endpoint = endpoint


@dataclass(frozen=True, slots=True)
class OwnershipRows:
    """Rows sorted by (address, start): `endpoints[i]` owns the address in `keys[i]` from start to `ends[i]`.

    keys: uint64 (address << 32 | start) for IPv4; for IPv6 20 bytes, address then start, both big-endian, as
    numpy's "S20", whose order is that of the numbers. Row 0 is a sentinel that matches nothing.
    """

    family: Family
    keys: NDArray[Any]
    ends: NDArray[np.int64]
    endpoints: NDArray[np.int32]

    def owners(self, addresses: Addresses, at: int) -> NDArray[np.int32]:
        """Endpoint id that owned each address at second `at`; 0 = none. Shape (n,)."""
        at = min(max(at, 0), FOREVER - 1)
        if self.family == 4:
            wanted = addresses.astype(np.uint64) << np.uint64(32)
            row = self.keys.searchsorted(wanted | np.uint64(at), side="right") - 1
            same = (self.keys.take(row) ^ wanted) < np.uint64(1 << 32)
        else:
            wanted_bytes = _ipv6_keys(addresses, at)
            row = self.keys.searchsorted(wanted_bytes, side="right") - 1
            found = self.keys.take(row)
            halves = (found.view(np.uint8).reshape(-1, 20), wanted_bytes.view(np.uint8).reshape(-1, 20))
            same = (halves[0][:, :16] == halves[1][:, :16]).all(axis=1)
        same &= self.ends.take(row) > at
        owners: NDArray[np.int32] = self.endpoints.take(row)
        owners *= same
        return owners


def _ipv6_keys(addresses: Addresses, at: int) -> NDArray[np.bytes_]:
    keys = np.empty((len(addresses), 20), np.uint8)
    keys[:, :16] = np.ascontiguousarray(addresses).astype(">u8").view(np.uint8).reshape(-1, 16)
    keys[:, 16:] = np.frombuffer(at.to_bytes(4, "big"), np.uint8)
    return keys.view("S20").reshape(-1)


class AddressHistory:
    """All claims on the addresses of one family."""

    def __init__(self, family: Family, grace: int) -> None:
        self._family: Family = family
        self._grace = grace
        self._claims: dict[int, tuple[Claim, ...]] = {}
        self._changed: set[int] = set()
        self._rows = OwnershipRows(family, self._keys([(0, 0)]), np.zeros(1, np.int64), np.zeros(1, np.int32))

    def __len__(self) -> int:
        """Addresses with at least one claim."""
        return len(self._claims)

    def add(self, claim: Claim) -> None:
        """A new claim, holding from now on."""
        claims = (*self._claims.get(claim.address, ()), claim)
        if len(claims) > _MAX_CLAIMS_PER_ADDRESS:
            # An address that changes hands every few seconds: what ended longest ago goes first.
            oldest = min(claims, key=lambda held: held.end)
            claims = tuple(held for held in claims if held is not oldest)
        self._claims[claim.address] = claims
        self._changed.add(claim.address)

    def end(self, claim: Claim, at: int) -> None:
        """The claim holds no longer; it stays known as history."""
        claim.end = max(at, claim.start)
        self._changed.add(claim.address)

    def move(self, claim: Claim, endpoint: int) -> None:
        """The claim's owner is described by another endpoint from now on."""
        claim.endpoint = endpoint
        self._changed.add(claim.address)

    def forget(self, claim: Claim) -> None:
        """Remove an ended claim from history; harmless when it is gone already."""
        claims = tuple(held for held in self._claims.get(claim.address, ()) if held is not claim)
        if claims:
            self._claims[claim.address] = claims
        else:
            self._claims.pop(claim.address, None)
        self._changed.add(claim.address)

    def claims(self) -> Iterable[Claim]:
        """Every claim there is."""
        for claims in self._claims.values():
            yield from claims

    def rows(self) -> OwnershipRows:
        """The answers as arrays; the same object while nothing changed."""
        if self._changed:
            self._rows = self._merge(sorted(self._changed))
            self._changed.clear()
        return self._rows

    def renumber(self, new_ids: NDArray[np.int32]) -> None:
        """Endpoint id i is called new_ids[i] from now on."""
        rows = self.rows()
        self._rows = OwnershipRows(rows.family, rows.keys, rows.ends, new_ids.take(rows.endpoints))
        for claim in self.claims():
            claim.endpoint = int(new_ids[claim.endpoint])

    def _merge(self, changed: list[int]) -> OwnershipRows:
        """The rows with those of the changed addresses (sorted) replaced: slices of old and of new ones."""
        starts: list[tuple[int, int]] = []
        ends: list[int] = []
        endpoints: list[int] = []
        bounds = [0]
        for address in changed:
            for start, end, endpoint in self._steps(self._claims.get(address, ())):
                starts.append((address, start))
                ends.append(end)
                endpoints.append(endpoint)
            bounds.append(len(starts))
        old = self._rows
        # Row 0, the sentinel, has the address 0, which no one can claim: it stays the first.
        first = old.keys.searchsorted(self._keys([(address, 0) for address in changed]), side="left")
        last = old.keys.searchsorted(self._keys([(address, FOREVER) for address in changed]), side="right")
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
            self._family,
            merged(old.keys, self._keys(starts)),
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
            owner = self._owner(claims, start)
            if owner is None:
                continue
            if steps and steps[-1][2] == owner.endpoint and steps[-1][1] == start:
                steps[-1] = (steps[-1][0], end, owner.endpoint)
            else:
                steps.append((start, end, owner.endpoint))
        return steps

    def _owner(self, claims: tuple[Claim, ...], at: int) -> Claim | None:
        owner: Claim | None = None
        for claim in claims:
            if claim.start <= at < claim.end and (owner is None or claim.created >= owner.created):
                owner = claim
        if owner is not None:
            return owner
        for claim in claims:
            if claim.end <= at < claim.end + self._grace and (owner is None or claim.end >= owner.end):
                owner = claim
        if owner is not None:
            return owner
        for claim in claims:
            if claim.start > at and (owner is None or claim.start < owner.start):
                owner = claim
        return owner

    def _keys(self, starts: list[tuple[int, int]]) -> NDArray[Any]:
        if self._family == 4:
            return np.array([address << 32 | start for address, start in starts], np.uint64)
        return np.array(
            [address.to_bytes(16, "big") + start.to_bytes(4, "big") for address, start in starts], "S20"
        )
