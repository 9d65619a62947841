"""The endpoints' table: a column of strings per thing known, grown at the end and never changed in place.

Contract: an id, once given, keeps its meaning in every `Columns` taken before the next `compact`; that makes
new columns and new ids, and leaves what snapshots hold as it was. Pure data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Description(NamedTuple):
    """What is known of one endpoint; empty = unknown."""

    pod: str = ""
    namespace: str = ""
    node: str = ""
    zone: str = ""
    app: str = ""
    instance_id: str = ""
    cell: str = ""


_NODE = Description._fields.index("node")


@dataclass(frozen=True, slots=True)
class Columns:
    """An `EndpointTable`. The lists may grow behind the ids that a snapshot knows; entries never change."""

    pod: Sequence[str]
    namespace: Sequence[str]
    node: Sequence[str]
    zone: Sequence[str]
    app: Sequence[str]
    instance_id: Sequence[str]
    cell: Sequence[str]
    node_id: NDArray[np.int32]


class Endpoints:
    """Gives out ids for descriptions; id 0 is "nothing known"."""

    def __init__(self) -> None:
        self._columns: list[list[str]] = [[] for _ in Description._fields]
        self._node_ids = np.zeros(1024, np.int32)
        self.add(Description(), 0)

    def __len__(self) -> int:
        return len(self._columns[0])

    def add(self, description: Description, node_id: int) -> int:
        """A new id for that description."""
        endpoint = len(self)
        if endpoint == len(self._node_ids):
            grown = np.zeros(2 * endpoint, np.int32)
            grown[:endpoint] = self._node_ids
            self._node_ids = grown
        self._node_ids[endpoint] = node_id
        for column, value in zip(self._columns, description, strict=True):
            column.append(value)
        return endpoint

    def description(self, endpoint: int) -> Description:
        """What an id stands for."""
        return Description(*[column[endpoint] for column in self._columns])

    def nodes_of(self, used: NDArray[np.bool_]) -> set[str]:
        """The names of those endpoints' nodes."""
        return set(compress(self._columns[_NODE], used.tobytes()))

    def columns(self) -> Columns:
        """The table as it is now."""
        pod, namespace, node, zone, app, instance_id, cell = self._columns
        return Columns(pod, namespace, node, zone, app, instance_id, cell, self._node_ids[: len(self)])

    def compact(self, used: NDArray[np.bool_], node_ids: Mapping[str, int]) -> NDArray[np.int32]:
        """Keep the ids used, of shape (ids there are,), and number them and their nodes anew.

        Returns an array of the same shape: the new id of each old one, 0 where it is not used. No object is
        made for each endpoint: what is freed beside what lives leaves holes.
        """
        used = used.copy()
        used[0] = True
        new_ids = (np.cumsum(used, dtype=np.int32) - np.int32(1)) * used
        flags = used.tobytes()
        for number, column in enumerate(self._columns):
            self._columns[number] = list(compress(column, flags))
        kept = len(self)
        self._node_ids = np.zeros(max(1024, kept + kept // 2), np.int32)
        self._node_ids[:kept] = np.fromiter(
            (node_ids.get(node, 0) for node in self._columns[_NODE]), np.int32
        )
        return new_ids
