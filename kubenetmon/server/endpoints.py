"""The endpoints' table: a column of strings per thing known, grown at the end and never changed in place.

Contract: an id, once given, keeps its meaning in every `Columns` taken before the next `compact`; that makes
new columns and new ids, and leaves what snapshots hold as it was. Pure data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
        self._columns: tuple[list[str], ...] = tuple([] for _ in Description._fields)
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

    def nodes_of(self, endpoints: Iterable[int]) -> set[str]:
        """The names of those endpoints' nodes."""
        node = self._columns[Description._fields.index("node")]
        return {node[endpoint] for endpoint in endpoints}

    def columns(self) -> Columns:
        """The table as it is now."""
        pod, namespace, node, zone, app, instance_id, cell = self._columns
        return Columns(pod, namespace, node, zone, app, instance_id, cell, self._node_ids[: len(self)])

    def compact(self, used: Iterable[int], node_ids: Mapping[str, int]) -> NDArray[np.int32]:
        """Keep the ids used and number them and their nodes anew.

        Returns an array of shape (ids before,) int32: the new id of each old one, 0 where it is not used.
        """
        kept = sorted({0, *used})
        new_ids = np.zeros(len(self), np.int32)
        new_ids[kept] = np.arange(len(kept), dtype=np.int32)
        self._columns = tuple([column[endpoint] for endpoint in kept] for column in self._columns)
        self._node_ids = np.zeros(max(1024, 2 * len(kept)), np.int32)
        self._node_ids[: len(kept)] = [node_ids.get(node, 0) for node in self._columns[2]]
        return new_ids
