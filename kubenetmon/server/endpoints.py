"""The endpoints' table: what is known of each, as numbers into dictionaries of strings.

Contract: it is grown at the end and never changed in place, so that an id, once given, keeps its meaning in
every `Columns` taken before the next `compact`; that makes new columns and new ids, and leaves what snapshots
hold as it was. Pure data.

Many endpoints share a namespace, an app, a node: of a batch's thousands of endpoints only the few strings
that differ are looked at one by one. Pods' names all differ, and are a list.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kubenetmon.clickhouse.block import Words
from kubenetmon.clickhouse.native import used_entries


class Description(NamedTuple):
    """What is known of one endpoint; empty = unknown."""

    pod: str = ""
    namespace: str = ""
    node: str = ""
    zone: str = ""
    app: str = ""
    instance_id: str = ""
    cell: str = ""


_SHARED = Description._fields[1:]
"""The fields that many endpoints have in common."""
_NODE = _SHARED.index("node")


@dataclass(frozen=True, slots=True)
class Columns:
    """An `EndpointTable` of n endpoints.

    `codes` of shape (6, n): numbers into `dictionaries`, by field of `Description` behind `pod`. The lists
    may grow behind what a snapshot knows; entries never change.
    """

    pods: Sequence[str]
    dictionaries: tuple[Sequence[str], ...]
    codes: NDArray[np.int32]
    node_id: NDArray[np.int32]

    def describe(self, endpoint: int) -> Description:
        """What an id stands for."""
        shared = zip(self.dictionaries, self.codes[:, endpoint].tolist(), strict=True)
        return Description(self.pods[endpoint], *[strings[code] for strings, code in shared])

    def column(self, field: str, ids: NDArray[np.integer[Any]]) -> Words:
        """One field of `Description` for some ids of shape (m,)."""
        if field == "pod":
            return Words(np.arange(len(ids)), list(map(self.pods.__getitem__, ids.tolist())))
        number = _SHARED.index(field)
        strings = self.dictionaries[number]
        used = used_entries(self.codes[number].take(ids), len(strings))
        return Words(used.inverse, [strings[code] for code in used.ids.tolist()])


class Endpoints:
    """Gives out ids for descriptions; id 0 is "nothing known"."""

    def __init__(self) -> None:
        self._pods: list[str] = []
        self._dictionaries: list[dict[str, int]] = [{} for _ in _SHARED]
        """Numbers by string, in their order."""
        self._strings: list[list[str]] = [[] for _ in _SHARED]
        self._codes = np.zeros((len(_SHARED), 1024), np.int32)
        self._node_ids = np.zeros(1024, np.int32)
        self.add(Description(), 0)

    def __len__(self) -> int:
        return len(self._pods)

    def add(self, description: Description, node_id: int) -> int:
        """A new id for that description."""
        endpoint = len(self)
        if endpoint == len(self._node_ids):
            self._node_ids = _grown(self._node_ids)
            self._codes = _grown(self._codes)
        self._node_ids[endpoint] = node_id
        self._codes[:, endpoint] = [self._code(number, value) for number, value in enumerate(description[1:])]
        self._pods.append(description.pod)
        return endpoint

    def description(self, endpoint: int) -> Description:
        """What an id stands for."""
        return self.columns().describe(endpoint)

    def nodes_of(self, used: NDArray[np.bool_]) -> set[str]:
        """The names of those endpoints' nodes."""
        strings = self._strings[_NODE]
        return {strings[code] for code in np.unique(self._codes[_NODE, : len(self)][used]).tolist()}

    def columns(self) -> Columns:
        """The table as it is now."""
        count = len(self)
        return Columns(self._pods, tuple(self._strings), self._codes[:, :count], self._node_ids[:count])

    def compact(self, used: NDArray[np.bool_], node_ids: Mapping[str, int]) -> NDArray[np.int32]:
        """Keep the ids used, of shape (ids there are,), and number them and their nodes anew.

        Returns an array of the same shape: the new id of each old one, 0 where it is not used. No object is
        made for each endpoint: what is freed beside what lives leaves holes.
        """
        used = used.copy()
        used[0] = True
        new_ids = (np.cumsum(used, dtype=np.int32) - np.int32(1)) * used
        codes = self._codes[:, : len(self)][:, used]
        self._pods = list(compress(self._pods, used.tobytes()))
        kept = len(self)
        room = max(1024, kept + kept // 2)
        self._codes = np.zeros((len(_SHARED), room), np.int32)
        for number, strings in enumerate(self._strings):
            left = used_entries(codes[number], len(strings))
            self._strings[number] = [strings[code] for code in left.ids.tolist()]
            self._dictionaries[number] = {string: code for code, string in enumerate(self._strings[number])}
            self._codes[number, :kept] = left.inverse
        of_node = np.array([node_ids.get(node, 0) for node in self._strings[_NODE]], np.int32)
        self._node_ids = np.zeros(room, np.int32)
        self._node_ids[:kept] = of_node[self._codes[_NODE, :kept]]
        return new_ids

    def _code(self, number: int, value: str) -> int:
        dictionary = self._dictionaries[number]
        code = dictionary.get(value)
        if code is None:
            code = dictionary[value] = len(dictionary)
            self._strings[number].append(value)
        return code


def _grown(array: NDArray[np.int32]) -> NDArray[np.int32]:
    return np.concatenate([array, np.zeros_like(array)], axis=-1)
