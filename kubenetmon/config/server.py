"""The server's configuration: one YAML file with the original's keys and ours, and `--set key=value`.

Contract: `load` returns a checked, frozen `ServerConfig` or raises `ConfigurationError`, one line that names
the key. Nothing is read from the network or from secrets here; files that keys point to are looked at by the
parts that use them.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kubenetmon.config import places, values
from kubenetmon.config.values import Network
from kubenetmon.errors import ConfigurationError

logger = logging.getLogger(__name__)

DEFAULT_PATH = Path("/etc/kubenetmon-server/config.yaml")
SINGLE_MACHINE_DATABASE = Path("/var/lib/kubenetmon/clickhouse")
"""Where `--role all` keeps its rows unless told, and where questions look unless told."""
_MAX_FILE_BYTES = 1 << 20


def _key(
    default: Any, parse: values.Parser, meaning: str, *, required: bool = False, unused: bool = False
) -> Any:
    metadata = {"parse": parse, "meaning": meaning, "required": required, "unused": unused}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Durations are seconds. The order is that of `docs/configuration.md`."""

    environment: str = _key("", values.text, "Goes into the column `environment`", required=True)
    cloud: str = _key(
        "",
        values.one_of("aws", "gcp", "azure", "none"),
        "This cluster's provider; `none`: none",
        required=True,
    )
    region: str = _key(
        "", values.lower_text, "This cluster's region as the provider writes it", required=True
    )
    cluster: str = _key("", values.text, "This cluster's name", required=True)
    metrics_port: int = _key(8883, values.port, "Port of /metrics, /live and /ready")
    metrics_host: str = _key(
        "", values.listen_address, "Address that metrics_port is served on; empty: all, IPv4 and IPv6"
    )
    grpc_port: int = _key(8884, values.port, "Port that agents report to")
    grpc_host: str = _key(
        "", values.listen_address, "Address that grpc_port is served on; empty: all, IPv4 and IPv6"
    )
    max_grpc_connection_age: float = _key(
        300.0, values.duration, "Connections older than this are closed, so that agents spread anew"
    )
    ignore_udp: bool = _key(True, values.boolean, "Leave UDP flows out")
    num_inserter_workers: int = _key(20, values.positive, "Inserts at the same time")
    clickhouse_inserts_per_second: int = _key(
        25,
        values.positive,
        "What the table bears of one server; near it agents are asked to report less often",
    )
    clickhouse_enabled: bool = _key(True, values.boolean, "`false`: attribute and count, store nothing")
    clickhouse_endpoint: str = _key(
        "", values.endpoint, "`host:port` (native protocol), or `chdb:PATH` for the embedded engine"
    )
    clickhouse_database: str = _key("default", values.identifier, "Database of the table")
    clickhouse_table: str = _key("network_flows_0", values.identifier, "Table that takes the rows")
    clickhouse_credentials_dir: Path = _key(
        Path("/etc/clickhouse"), values.path, "Directory with the files `username` and `password`"
    )
    clickhouse_dial_timeout: float = _key(30.0, values.duration, "Limit for connecting")
    clickhouse_max_idle_connections: int = _key(50, values.positive, "Connections kept open")
    clickhouse_disable_tls: bool = _key(False, values.boolean, "Plain text to ClickHouse")
    clickhouse_insecure_skip_verify: bool = _key(
        False, values.boolean, "TLS without checking the certificate"
    )
    clickhouse_ca: Path | None = _key(None, values.path, "CA bundle (PEM) to check ClickHouse with")
    clickhouse_cert: Path | None = _key(None, values.path, "Client certificate (PEM) to show to ClickHouse")
    clickhouse_key: Path | None = _key(None, values.path, "Key of clickhouse_cert (PEM)")
    clickhouse_compression: str = _key(
        "lz4", values.one_of("lz4", "zstd", "none"), "Compression towards ClickHouse"
    )
    clickhouse_async_insert: bool = _key(
        False,
        values.boolean,
        "Asynchronous inserts, waited for: on ClickHouse 26.2 or newer and into no Distributed table, once a "
        "probe has shown that a repeated token counts once; else synchronous",
    )
    clickhouse_insert_settings: tuple[tuple[str, str | int], ...] = _key(
        (),
        values.query_settings,
        "Query settings sent with every insert, as `insert_quorum: 2` (what decides exactness is refused)",
    )
    clickhouse_undecided: str = _key(
        "hold",
        values.one_of("hold", "insert", "drop"),
        "A batch older than the table's memory of tokens, of which the table cannot tell whether it holds "
        "it: `hold` it (its agent keeps it), `insert` it, or `drop` it and count its bytes",
    )
    clickhouse_drop_held_after: float | None = _key(
        None,
        values.duration,
        "Drop a batch that ClickHouse has refused for so long, and count its bytes, though an earlier server "
        "may have stored it; unset: never",
    )
    kubernetes_source: str = _key(
        "auto",
        values.kubernetes_source,
        "`auto` (in a cluster its API, else kubeconfig), `in-cluster`, `kubeconfig[:PATH]`, `file:PATH`, "
        "`machine` (this machine is the only node)",
    )
    app_labels: tuple[str, ...] = _key(
        ("app.kubernetes.io/name", "k8s-app"), values.texts, "Pod labels that name the app, the first wins"
    )
    instance_id_label: str = _key("control-plane-id", values.text, "Pod label for the instance id")
    zone_label: str = _key("topology.kubernetes.io/zone", values.text, "Node label for the zone")
    cell_label: str = _key("", values.optional_text, "Pod label, else node label, for the cell; empty: none")
    pod_grace: float = _key(300.0, values.duration, "How long a deleted pod keeps its address")
    pod_wait: float = _key(
        2.0, values.duration, "How long a batch waits for pods that the Kubernetes API has not shown yet"
    )
    meter_host_network: bool = _key(
        False,
        values.boolean,
        "Meter the traffic of nodes: to the hostNetwork pod that alone declares the port, else as app `host`",
    )
    private_cidrs: tuple[Network, ...] = _key(
        values.networks("private_cidrs", ["100.64.0.0/10"]),
        values.networks,
        "Further networks of one's own: INTRA_VPC, beside RFC 1918, link-local and the like",
    )
    networks: tuple[places.NetworkSetting, ...] = _key(
        (),
        places.networks,
        "Networks of others by name, before private ones and any provider's: `cidrs`, and where they are: "
        "`cloud`, `region` (default: our own), `zone`, `cluster`, `service` (default: the name), `class` "
        "(default by cloud and region: `INTRA_VPC`, `INTER_REGION`, `PUBLIC_INTERNET`; or any in capitals)",
    )
    peer_clusters: tuple[places.PeerSetting, ...] = _key(
        (),
        places.peer_clusters,
        "Other clusters to watch as well, so that remotes in them get their pod and `remoteCluster`: name to "
        "`kubeconfig`, `cloud`, `region`, `class` (as in `networks`)",
    )
    connection_flags: tuple[tuple[str, tuple[Network, ...]], ...] = _key(
        (), values.flags, "Flag name to networks (NAT gateways, load balancers, …)"
    )
    cloud_ranges_dir: Path | None = _key(
        None, values.path, "Read aws.json, gcp.json, google.json, azure.json here instead of downloading"
    )
    cloud_ranges_cache: Path = _key(
        Path("/var/cache/kubenetmon/ranges"), values.path, "Where downloaded ranges are kept"
    )
    cloud_ranges_refresh: float = _key(86400.0, values.duration, "How often ranges are downloaded anew")
    tls_cert: Path | None = _key(None, values.path, "Certificate (PEM) for agents to see; with tls_key")
    tls_key: Path | None = _key(None, values.path, "Key of tls_cert (PEM)")
    tls_client_ca: Path | None = _key(None, values.path, "CA (PEM) that agents' certificates must come from")
    page_port: int = _key(0, values.port, "Port of the page with answers to look at; 0: no page")
    page_host: str = _key(
        "127.0.0.1",
        values.listen_address,
        "Address that the page is served on; empty: all. It has no login: beyond loopback put one before it",
    )
    page_nodes: str = _key(
        "kubernetes",
        values.optional_text,
        "Where the page has the nodes' instance types from: `kubernetes` (its API), or a file with what "
        "`kubectl get nodes -o json` prints; empty: nowhere",
    )
    page_instance_type: str = _key("", values.optional_text, "The instance type of nodes not in page_nodes")
    page_limits: Path | None = _key(None, values.path, "Limits of further instance types")
    page_prices: tuple[Path, ...] = _key(
        (), values.paths, "Price files of your own on top of the list prices, as for `kubenetmon cost`"
    )
    require_token: bool = _key(
        False, values.boolean, "Agents must show a service account's token and may report for their node only"
    )
    token_audience: str = _key("kubenetmon-server", values.text, "Audience that agents' tokens must have")
    token_accounts: tuple[str, ...] = _key(
        ("kubenetmon-agent/kubenetmon-agent",),
        values.accounts,
        "Service accounts that agents run under, as namespace/name",
    )
    clickhouse_skip_ping: bool = _key(
        False, values.boolean, "A ClickHouse that does not answer at start is said in /ready", unused=True
    )
    clickhouse_batch_size: int = _key(15000, values.positive, "One batch is one insert", unused=True)
    clickhouse_batch_send_timeout: float = _key(
        30.0, values.duration, "A batch is tried until it commits", unused=True
    )
    clickhouse_wait_for_async_insert: bool = _key(
        True, values.boolean, "An ack always means committed", unused=True
    )


KEYS: Mapping[str, dataclasses.Field[Any]] = {item.name: item for item in dataclasses.fields(ServerConfig)}


def load(
    path: Path | None, overrides: Sequence[str] = (), defaults: Mapping[str, object] | None = None
) -> ServerConfig:
    """Read the file (None: no file), apply `key=value` overrides, check everything.

    `defaults` stand in for what neither names (the single-machine role has defaults for required keys).
    Raises `ConfigurationError`.
    """
    given: dict[str, object] = dict(defaults or {})
    if path is not None:
        given.update(_read(path))
    given.update(_parse_overrides(overrides))
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name not in KEYS:
            raise ConfigurationError(_unknown(name))
        if value is None:
            continue
        chosen[name] = KEYS[name].metadata["parse"](name, value)
        if KEYS[name].metadata["unused"]:
            logger.info("%s is accepted and has no meaning here: %s", name, KEYS[name].metadata["meaning"])
    for name, item in KEYS.items():
        if item.metadata["required"] and not chosen.get(name):
            raise ConfigurationError(f"{name} is missing: set it in the configuration or with --set {name}=…")
    config = ServerConfig(**chosen)
    _check_together(config)
    return config


def _check_together(config: ServerConfig) -> None:
    if config.clickhouse_enabled and not config.clickhouse_endpoint:
        raise ConfigurationError(
            "clickhouse_endpoint is missing: give host:port or chdb:PATH, or set clickhouse_enabled: false"
        )
    for prefix in ("tls", "clickhouse"):
        if (getattr(config, f"{prefix}_cert") is None) != (getattr(config, f"{prefix}_key") is None):
            raise ConfigurationError(f"{prefix}_cert and {prefix}_key go together: set both or neither")
    if any(peer.name == config.cluster for peer in config.peer_clusters):
        raise ConfigurationError(
            f"peer_clusters.{config.cluster} has the name of this cluster: a row could not say which is meant"
        )
    if config.tls_client_ca is not None and config.tls_cert is None:
        raise ConfigurationError("tls_client_ca needs tls_cert and tls_key: set them or remove it")
    ports = [name for name in ("metrics_port", "grpc_port", "page_port") if getattr(config, name)]
    for first, second in itertools.combinations(ports, 2):
        if getattr(config, first) == getattr(config, second):
            raise ConfigurationError(f"{first} and {second} are the same: choose another for one of them")
    if config.require_token and config.kubernetes_source.partition(":")[0] in ("file", "machine"):
        raise ConfigurationError(
            "require_token asks the Kubernetes API, which kubernetes_source: "
            f"{config.kubernetes_source} does without: remove one of the two"
        )
    if config.require_token and config.tls_cert is None:
        logger.warning(
            "require_token is set without tls_cert, so that anyone on the way can read agents' tokens: set "
            "tls_cert and tls_key"
        )
    if config.environment not in ("development", "staging", "production"):
        logger.warning(
            "environment %r is none of development, staging, production; it is used as it is",
            config.environment,
        )


def _read(path: Path) -> dict[str, object]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ConfigurationError(f"{path} is larger than 1 MiB: that is not a configuration")
        document = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"configuration {path} cannot be read ({error.strerror}): give another with --config FILE"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        raise ConfigurationError(f"configuration {path} is not YAML{where}: {_problem(error)}") from error
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise ConfigurationError(f"configuration {path} must map keys to values, as in `cloud: aws`")
    return document


def _problem(error: Exception) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _parse_overrides(overrides: Sequence[str]) -> dict[str, object]:
    given: dict[str, object] = {}
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise ConfigurationError(f"--set {override}: write it as --set key=value")
        try:
            given[name.strip()] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError as error:
            raise ConfigurationError(f"--set {name}: the value is not YAML ({_problem(error)})") from error
    return given


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else "`kubenetmon config` lists the keys"
    return f"unknown key {name!r} in the configuration; {hint}"
