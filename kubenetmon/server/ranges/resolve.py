"""Which of several claims to one prefix wins, for all prefixes at once.

Contract: pure. The rules are those of DESIGN section 7, applied in the order of `PROVIDERS` and, within a
provider, in the order in which its file makes the claims. Memory and time are in proportion to the claims.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from kubenetmon.server.ranges.parse import (
    AWS,
    AZURE,
    GCP,
    GOOGLE,
    PROVIDERS,
    Label,
    ProviderRanges,
    Tag,
    normalised,
)
from kubenetmon.server.snapshot import Family

_PACKED: Mapping[Family, str] = {4: "S5", 6: "S17"}
"""Of a prefix with its length. Numpy drops zeros at the end, but the last byte, the length, is none."""

_AWS_RANK = {"s3": -1, "amazon": 1, "ec2": 2}  # any other service: 0; the lower wins


def resolve(
    providers: Iterable[ProviderRanges], family: Family, numbers: dict[Label, int]
) -> tuple[NDArray[np.bytes_], NDArray[np.int32]]:
    """The different prefixes of one family, sorted, as numpy's "S5" or "S17", and the label's number of each.

    `numbers` has the labels' and takes new ones. DESIGN section 7 has the rules. The providers count in the
    order of `PROVIDERS` whatever the order given.
    """
    ordered = sorted(providers, key=lambda ranges: PROVIDERS.index(ranges.provider))
    packed = b"".join(ranges.families[family].prefixes for ranges in ordered)
    prefixes, inverse = np.unique(np.frombuffer(packed, _PACKED[family]), return_inverse=True)
    places = inverse.astype(np.int32)
    del packed, inverse
    winners = np.zeros(len(prefixes), np.int32)
    first = 0
    for ranges in ordered:
        cloud = GCP if ranges.provider == GOOGLE else ranges.provider
        labels = [Label(cloud, normalised(tag.region), normalised(tag.service)) for tag in ranges.tags]
        label_of = np.array([numbers.setdefault(label, len(numbers)) for label in labels], np.int32)
        tag = np.frombuffer(ranges.families[family].tag_of, np.uint16)
        place = places[first : first + len(tag)]
        first += len(tag)
        if ranges.provider == AZURE:
            _resolve_azure(winners, place, tag, ranges.tags, label_of, list(numbers))
            continue
        if ranges.provider == AWS:
            # The worst rank first: of what is assigned to one place the last stays.
            rank = np.array([_AWS_RANK.get(label.service, 0) for label in labels])
            order = np.argsort(-rank[tag], kind="stable")
            place, tag = place[order], tag[order]
        winners[place] = label_of[tag]
    return prefixes, winners


def _resolve_azure(
    winners: NDArray[np.int32],
    place: NDArray[np.int32],
    tag: NDArray[np.uint16],
    tags: Sequence[Tag],
    label_of: NDArray[np.int32],
    labels: Sequence[Label],
) -> None:
    """Put to each place in turn its first claim, its second, and so on, all places at once."""
    services: dict[str, int] = {}
    held_service = np.array([services.setdefault(label.service, len(services)) for label in labels])
    held_global = np.array([label.region == "global" for label in labels])
    held_loosely = np.array([label.service in ("azurecloud", "azureservice", "") for label in labels])
    # The original compares what it stored (normalised) with what was published (not): so the second and third
    # rule can only fire where a published name is in lower case. The cases show its answers.
    named = np.array([tag.published_service != "" for tag in tags])
    storage = np.array([tag.published_service == "azurestorage" for tag in tags])
    service = np.array([services.get(tag.service, -1) for tag in tags])
    regional = np.array([tag.region != "global" for tag in tags])

    by_place = np.argsort(place, kind="stable").astype(np.int32)
    group_starts = np.flatnonzero(np.diff(place[by_place], prepend=-1)).astype(np.int32)
    group_sizes = np.diff(group_starts, append=len(by_place))
    turn = np.arange(len(by_place), dtype=np.int32)
    turn -= np.repeat(group_starts, group_sizes)
    by_turn = by_place[np.argsort(turn, kind="stable")]
    del by_place, group_starts, group_sizes
    end = 0
    for size in np.bincount(turn).tolist():
        now = by_turn[end : end + size]
        end += size
        holder, new = winners[place[now]], tag[now]
        takes = (
            (holder == 0)
            | (held_loosely[holder] & named[new])
            | storage[new]
            | (held_global[holder] & regional[new] & (held_service[holder] == service[new]))
        )
        winners[place[now[takes]]] = label_of[new[takes]]
