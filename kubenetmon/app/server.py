"""`--role server`: the parts of a server, from its configuration to its life.

Stopping goes from the outside in: the receiver refuses and answers what it has, the inserter commits or hands
back, the rest follows.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from kubenetmon.app.memory import expect_batches, expect_lists
from kubenetmon.app.page import page_server
from kubenetmon.app.sinks import EMBEDDED_PREFIX, make_sink
from kubenetmon.clickhouse import schema
from kubenetmon.clickhouse.inserter import Inserter, InserterConfig
from kubenetmon.clickhouse.local_queries import LocalQueries
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import ConfigurationError
from kubenetmon.http import HttpServer, Page
from kubenetmon.lag import LoopLag
from kubenetmon.lifecycle import Component, Lifecycle
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.report.page.health import Health
from kubenetmon.server.access import AccessConfig, OpenAccess, TokenAccess
from kubenetmon.server.attributed import NamedNetwork
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.checking import Api, CheckedCluster, Checker, CheckerConfig
from kubenetmon.server.doorway import Certificates, Doorway
from kubenetmon.server.explain import PATH as EXPLAIN_PATH
from kubenetmon.server.explain import Explainer
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.kubernetes_source import DumpFile, choose_source
from kubenetmon.server.latecomers import Latecomers, LatecomersConfig
from kubenetmon.server.machine import MachineCluster, MachineConfig
from kubenetmon.server.pacing import PacingConfig, ReportPacing
from kubenetmon.server.peers import PeerCluster, PeerConfig
from kubenetmon.server.pipeline import Pipeline, PipelineConfig
from kubenetmon.server.ranges.keeper import RangeKeeper, RangesConfig
from kubenetmon.server.rates import Rates, RatesPage
from kubenetmon.server.receiver import Access, Receiver, ReceiverConfig
from kubenetmon.server.refusals import Refusals
from kubenetmon.server.rows import RowsConfig
from kubenetmon.server.snapshot import ClusterView
from kubenetmon.server.token_review import TokenReviewer, TokenReviewerConfig
from kubenetmon.server.unattributed import PATH as UNATTRIBUTED_PATH
from kubenetmon.server.unattributed import Unattributed
from kubenetmon.server.watcher import Watcher, WatcherConfig

STOP_DEADLINE = 25.0
"""Seconds; Kubernetes kills after 30."""

_OTHER_FILES = 1024
"""File descriptors for all but agents: ClickHouse, Kubernetes, metrics, TLS handshakes (512 at once)."""


async def run_server(config: ServerConfig) -> None:
    """Serve agents until told to stop. Raises `KubenetmonError`."""
    expect_lists()
    metrics = Metrics(catalogue.SERVER_METRICS + catalogue.COMMON_METRICS)
    readiness = Readiness()
    parts = await build_server(config, metrics, readiness)
    http = HttpServer(config.metrics_port, metrics=metrics, readiness=readiness, host=config.metrics_host)
    for path, page in parts.pages.items():
        http.add_local_page(path, page)
    lag = LoopLag(metrics=metrics, clock=SYSTEM_CLOCK)
    try:
        await Lifecycle([http, lag, *parts.components], stop_deadline=STOP_DEADLINE).run()
    finally:
        await parts.close()


@dataclass(frozen=True, slots=True)
class ServerParts:
    """A server ready to run; `components` in the order they start, `pages` for this machine's eyes only."""

    components: tuple[Component, ...]
    pages: Mapping[str, Page]
    receiver: Receiver
    pipeline: Pipeline
    sink: Sink | None

    async def close(self) -> None:
        """After the components have ended: let the worker thread and the connections go."""
        self.pipeline.close()
        if self.sink is not None:
            await self.sink.close()


async def build_server(
    config: ServerConfig,
    metrics: Metrics,
    readiness: Readiness,
    *,
    node_name: str = "",
    ipv6_table: bool = False,
) -> ServerParts:
    """Join the server's parts. Raises `KubenetmonError`.

    `node_name` is this machine's, for `kubernetes_source: machine`. An embedded engine's table is made here
    if it is not there, since nobody else can reach it; `ipv6_table`: with the IPv6 columns.
    """
    cluster, cluster_part, api = _cluster(config, metrics, readiness, node_name)
    refusals = Refusals(metrics)
    doorway = _doorway(config, refusals)
    access, reviewer = _access(config, cluster, refusals, readiness)
    ranges = RangeKeeper(
        RangesConfig(
            cloud=config.cloud,
            region=config.region,
            directory=config.cloud_ranges_dir,
            cache_directory=config.cloud_ranges_cache,
            refresh=config.cloud_ranges_refresh,
        ),
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
    )
    rates = Rates(clock=SYSTEM_CLOCK)
    peers = _peers(config, metrics, readiness)
    unattributed = Unattributed(metrics=metrics)
    sink, inserter = await _clickhouse(config, metrics, readiness, ipv6_table=ipv6_table)
    pacing = ReportPacing(
        PacingConfig(config.clickhouse_inserts_per_second, config.num_inserter_workers),
        metrics=metrics,
        clock=SYSTEM_CLOCK,
    )
    attributor = Attributor(
        AttributionConfig(
            cloud=config.cloud,
            region=config.region,
            cluster=config.cluster,
            ignore_udp=config.ignore_udp,
            meter_host_network=config.meter_host_network,
            private_cidrs=config.private_cidrs,
            networks=_networks(config),
            connection_flags=dict(config.connection_flags),
            ipv6=True,
        )
    )
    pipeline = Pipeline(
        PipelineConfig(
            rows=RowsConfig(config.environment, config.cloud, config.region, config.cluster),
            inserters=config.num_inserter_workers,
        ),
        cluster=cluster,
        ranges=ranges,
        attributor=attributor,
        inserter=inserter,
        pacing=pacing,
        metrics=metrics,
        clock=SYSTEM_CLOCK,
        rates=rates,
        unattributed=unattributed,
        peers=peers,
        latecomers=_latecomers(config, cluster, metrics),
    )
    explainer = Explainer(
        config.cluster,
        cluster=cluster,
        peers=peers,
        ranges=ranges,
        attributor=attributor,
        checker=_checker(config, cluster, api, peers),
        clock=SYSTEM_CLOCK,
    )
    live: dict[str, Page] = {RatesPage.PATH: RatesPage(rates, clock=SYSTEM_CLOCK).page}
    pages: dict[str, Page] = {UNATTRIBUTED_PATH: unattributed.page, EXPLAIN_PATH: explainer.page, **live}
    receiver = Receiver(
        ReceiverConfig(
            host=config.grpc_host,
            port=config.grpc_port,
            max_connection_age=config.max_grpc_connection_age,
            max_connections=_connections_affordable(),
        ),
        pipeline=pipeline,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
        wished_report_interval=pacing.wish,
        refusals=refusals,
        access=access,
        doorway=doorway,
    )
    components: list[Component] = [*([inserter] if inserter else []), ranges, cluster_part]
    components += [*peers, *([reviewer] if reviewer else []), receiver]
    if sink is not None and config.clickhouse_endpoint.startswith(EMBEDDED_PREFIX):
        directory = Path(config.clickhouse_endpoint.removeprefix(EMBEDDED_PREFIX))
        components.append(LocalQueries(directory, sink=sink))
    if config.page_port:
        health = Health(metrics, readiness, lambda: rates.view("app"))
        components.append(page_server(config, sink=sink, health=health, more=live))
    return ServerParts(tuple(components), pages, receiver, pipeline, sink)


async def _clickhouse(
    config: ServerConfig, metrics: Metrics, readiness: Readiness, *, ipv6_table: bool
) -> tuple[Sink | None, Inserter | None]:
    if not config.clickhouse_enabled:
        return None, None
    sink = make_sink(config)
    if config.clickhouse_endpoint.startswith(EMBEDDED_PREFIX):
        wanted = schema.SchemaOptions(
            database=config.clickhouse_database, table=config.clickhouse_table, ipv6=ipv6_table
        )
        await schema.apply(sink, wanted)
    inserter = Inserter(
        InserterConfig(
            database=config.clickhouse_database,
            table=config.clickhouse_table,
            workers=config.num_inserter_workers,
            settings=dict(config.clickhouse_insert_settings),
            asynchronous=config.clickhouse_async_insert,
            undecided=cast(Literal["hold", "insert", "drop"], config.clickhouse_undecided),
            drop_held_after=config.clickhouse_drop_held_after,
        ),
        sink=sink,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
    )
    return sink, inserter


def _cluster(
    config: ServerConfig, metrics: Metrics, readiness: Readiness, node_name: str
) -> tuple[Inventory | MachineCluster, Component, Api | None]:
    """What is known of the cluster, who keeps it so, and the API that can be asked."""
    if config.kubernetes_source == "machine":
        machine = MachineCluster(MachineConfig(node_name), clock=SYSTEM_CLOCK)
        return machine, machine, None
    inventory_config = _inventory_config(config)
    inventory = Inventory(inventory_config)
    watcher = Watcher(
        WatcherConfig(
            kubernetes_source="" if config.kubernetes_source == "auto" else config.kubernetes_source,
            cluster=config.cluster,
            inventory=inventory_config,
        ),
        inventory=inventory,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
        synced=expect_batches,
    )
    return inventory, watcher, watcher if watcher.follows_api else None


def _checker(
    config: ServerConfig,
    cluster: Inventory | MachineCluster,
    api: Api | None,
    peers: Sequence[PeerCluster],
) -> Checker:
    own = CheckedCluster(config.cluster, cluster.inventory, api, config.kubernetes_source)
    others = [CheckedCluster(peer.peer().name, peer.inventory, peer) for peer in peers]
    return Checker(CheckerConfig(), [own, *others])


def _latecomers(config: ServerConfig, cluster: ClusterView, metrics: Metrics) -> Latecomers | None:
    """A machine of its own has no pods to wait for."""
    if config.kubernetes_source == "machine":
        return None
    wanted = LatecomersConfig(patience=config.pod_wait)
    return Latecomers(wanted, cluster=cluster, metrics=metrics, clock=SYSTEM_CLOCK)


def _inventory_config(config: ServerConfig) -> InventoryConfig:
    return InventoryConfig(
        app_labels=config.app_labels,
        instance_id_label=config.instance_id_label,
        zone_label=config.zone_label,
        cell_label=config.cell_label,
        pod_grace=config.pod_grace,
    )


def _peers(config: ServerConfig, metrics: Metrics, readiness: Readiness) -> list[PeerCluster]:
    """Raises `ConfigurationError` that names the key."""
    found = []
    for peer in config.peer_clusters:
        place = peer.place.resolved(config.cloud, config.region)
        wanted = PeerConfig(
            peer.name,
            f"kubeconfig:{peer.kubeconfig}",
            place.cloud,
            place.region,
            place.connection_class,
            _inventory_config(config),
        )
        try:
            found.append(PeerCluster(wanted, metrics=metrics, readiness=readiness, clock=SYSTEM_CLOCK))
        except ConfigurationError as error:
            reason = str(error).removeprefix("kubernetes_source: ")
            raise ConfigurationError(f"peer_clusters.{peer.name}: {reason}") from error
    return found


def _networks(config: ServerConfig) -> tuple[NamedNetwork, ...]:
    found = []
    for one in config.networks:
        place = one.place.resolved(config.cloud, config.region)
        found.append(
            NamedNetwork(
                one.name,
                one.cidrs,
                place.cloud,
                place.region,
                place.connection_class,
                one.zone,
                one.service,
                one.cluster,
            )
        )
    return tuple(found)


def _doorway(config: ServerConfig, refusals: Refusals) -> Doorway | None:
    """TLS towards agents, if it is wanted. Raises `ConfigurationError` that names the key."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    return Doorway(Certificates(config.tls_cert, config.tls_key, config.tls_client_ca).context, refusals)


def _access(
    config: ServerConfig, cluster: ClusterView, refusals: Refusals, readiness: Readiness
) -> tuple[Access, TokenReviewer | None]:
    if not config.require_token:
        return OpenAccess(refusals), None
    setting = "" if config.kubernetes_source == "auto" else config.kubernetes_source
    source = choose_source(setting, os.environ)
    assert isinstance(cluster, Inventory)  # the configuration was checked for both
    assert not isinstance(source, DumpFile)
    reviewer = TokenReviewer(TokenReviewerConfig(), source=source, readiness=readiness, clock=SYSTEM_CLOCK)
    access = TokenAccess(
        AccessConfig(audience=config.token_audience, accounts=config.token_accounts),
        reviewer=reviewer,
        node_of_pod=cluster.node_of_pod,
        refusals=refusals,
        clock=SYSTEM_CLOCK,
    )
    return access, reviewer


def _connections_affordable() -> int:
    """As many agents as file descriptors allow, once the soft limit is where the hard one lets it be."""
    wanted = ReceiverConfig().max_connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = wanted + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < enough:
        soft = enough if hard == resource.RLIM_INFINITY else min(hard, enough)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        return max(1, min(wanted, soft - _OTHER_FILES))
    return wanted
