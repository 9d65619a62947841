"""Pods that speak before the Kubernetes API has shown them: their batches wait a little.

Contract: `wait` returns when every address it is given has an owner or `patience` has passed; what stays
unknown is remembered, so that no later batch waits for it, and the batch is attributed without it (its bytes
have an empty pod, or no side: see `kubenetmon.server.unattributed`). Bounded: at most `most_waiting` batches
wait at once and `most_remembered` addresses are remembered. On the event loop only; a wait may be cancelled.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.server.snapshot import Addresses, ClusterView, Family, Snapshot

_LOOK_AGAIN = 0.1
"""Seconds; cheap while nothing changes."""

Stranger = tuple[Family, bytes]
"""A family and the bytes of an element of its address column."""


@dataclass(frozen=True, slots=True)
class LatecomersConfig:
    """Times in seconds."""

    patience: float = 2.0
    forget_after: float = 300.0
    most_waiting: int = 200
    most_remembered: int = 50_000


class Latecomers:
    """Decides who is waited for, and waits."""

    def __init__(
        self, config: LatecomersConfig, *, cluster: ClusterView, metrics: Metrics, clock: Clock
    ) -> None:
        self._config = config
        self._cluster = cluster
        self._metrics = metrics
        self._clock = clock
        self._waiting = 0
        self._given_up: OrderedDict[Stranger, float] = OrderedDict()

    def fresh(self, strangers: Mapping[Family, Addresses]) -> dict[Family, Addresses]:
        """Those that are worth a wait: none where too many batches wait already."""
        if self._waiting >= self._config.most_waiting:
            return {}
        now = self._clock.monotonic()
        found = {}
        for family, addresses in strangers.items():
            kept = [
                index
                for index, address in enumerate(addresses)
                if self._given_up.get((family, address.tobytes()), 0.0) <= now
            ]
            if kept:
                found[family] = addresses[kept]
        return found

    async def wait(self, strangers: Mapping[Family, Addresses]) -> bool:
        """True where at least one of them is known now, so that attribution is worth a second time."""
        deadline = self._clock.monotonic() + self._config.patience
        count = sum(map(len, strangers.values()))
        left = dict(strangers)
        seen: Snapshot | None = None
        self._waiting += 1
        try:
            while left and self._clock.monotonic() < deadline:
                await self._clock.sleep(_LOOK_AGAIN)
                snapshot = self._cluster.snapshot()
                if snapshot is not seen:
                    seen, left = snapshot, self._unknown(snapshot, left)
        finally:
            self._waiting -= 1
        for family, addresses in left.items():
            for address in addresses:
                self._give_up((family, address.tobytes()))
        unknown = sum(map(len, left.values()))
        self._metrics.add(catalogue.LATE_ADDRESSES, unknown, outcome="unknown")
        self._metrics.add(catalogue.LATE_ADDRESSES, count - unknown, outcome="known")
        return unknown < count

    def _unknown(self, snapshot: Snapshot, strangers: Mapping[Family, Addresses]) -> dict[Family, Addresses]:
        now = int(self._clock.time())
        found = {}
        for family, addresses in strangers.items():
            unknown = (snapshot.pods(family, addresses, now) == 0) & (snapshot.nodes(family, addresses) == 0)
            if unknown.any():
                found[family] = addresses[unknown]
        return found

    def _give_up(self, stranger: Stranger) -> None:
        self._given_up[stranger] = self._clock.monotonic() + self._config.forget_after
        self._given_up.move_to_end(stranger)
        if len(self._given_up) > self._config.most_remembered:
            self._given_up.popitem(last=False)
