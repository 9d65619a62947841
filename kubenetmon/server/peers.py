"""Other clusters, watched as well so that remotes in them get a name.

Contract: a `PeerCluster` is a component with an inventory and a watcher of its own. It never stands in the
way: until it is read, and while it cannot be, its pods are what they were without it (a named network, a
private address, the internet); /ready shows that and stays as it is. What is known of it when its API goes
away stays known. Stop needs no work.
"""

from __future__ import annotations

from dataclasses import dataclass

from kubenetmon.clock import Clock
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.server.attributed import Peer
from kubenetmon.server.inventory import Inventory, InventoryConfig, Kind
from kubenetmon.server.kubernetes_objects import Current
from kubenetmon.server.watcher import Watcher, WatcherConfig


@dataclass(frozen=True, slots=True)
class PeerConfig:
    """Which cluster, where it is (lower case), and what class its remotes are.

    `kubernetes_source` as in `kubenetmon.server.kubernetes_source.choose_source`.
    """

    name: str
    kubernetes_source: str
    cloud: str
    region: str
    connection_class: str
    inventory: InventoryConfig


class PeerCluster:
    """One cluster of `peer_clusters`. Raises `ConfigurationError` where there is no source."""

    def __init__(self, config: PeerConfig, *, metrics: Metrics, readiness: Readiness, clock: Clock) -> None:
        self.name = f"peer cluster {config.name}"
        self._config = config
        self._metrics = metrics
        self._inventory = Inventory(config.inventory)
        self._check = _PeerReadiness(self.name, readiness)
        # The watch's own counters would count two clusters in one; what matters of a peer is exported below.
        self._watcher = Watcher(
            WatcherConfig(
                kubernetes_source=config.kubernetes_source, cluster=config.name, inventory=config.inventory
            ),
            inventory=self._inventory,
            metrics=Metrics(catalogue.SERVER_METRICS),
            readiness=self._check,
            clock=clock,
        )
        metrics.before_render(self._count)

    def peer(self) -> Peer:
        """The cluster as known now."""
        config = self._config
        return Peer(
            config.name, config.cloud, config.region, config.connection_class, self._inventory.snapshot()
        )

    async def current(self, kind: Kind, namespace: str, name: str) -> Current:
        """One object there as that cluster's API has it now; raises as `Watcher.current` does."""
        return await self._watcher.current(kind, namespace, name)

    @property
    def inventory(self) -> Inventory:
        """What is known of it."""
        return self._inventory

    async def run(self) -> None:
        """Follow it until cancelled."""
        await self._watcher.run()

    async def stop(self) -> None:
        """Nothing to finish."""
        await self._watcher.stop()

    def _count(self) -> None:
        counts = self._inventory.counts()
        for kind in ("pods", "nodes"):
            self._metrics.set(catalogue.PEER_OBJECTS, counts[kind], cluster=self._config.name, kind=kind)
        self._metrics.set(catalogue.PEER_FOLLOWED, int(self._check.passing), cluster=self._config.name)


class _PeerReadiness(Readiness):
    """The watcher's one check under the peer's name, beside the server's own and gating nothing."""

    def __init__(self, name: str, shown_in: Readiness) -> None:
        super().__init__()
        self._name, self._shown_in = name, shown_in
        self.passing = False

    def expect(self, name: str, detail: str) -> None:
        self._show(False, detail)

    def passed(self, name: str, detail: str = "") -> None:
        self._show(True, detail)

    def failed(self, name: str, detail: str) -> None:
        self._show(False, detail)

    def _show(self, passing: bool, detail: str) -> None:
        self.passing = passing
        self._shown_in.inform(self._name, passing, detail)
