"""The server's configuration: the original's file works, and every mistake is one line that names the key."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from kubenetmon.config import markdown, server
from kubenetmon.errors import ConfigurationError

ORIGINAL = """\
metrics_port: 8883
grpc_port: 8884
environment: development
cloud: aws
region: US-West-2
cluster: cluster
max_grpc_connection_age: 300s
num_inserter_workers: 20
ignore_udp: true
clickhouse_enabled: true
clickhouse_database: default
clickhouse_endpoint: clickhouse.example.org:9440
clickhouse_dial_timeout: 30s
clickhouse_max_idle_connections: 50
clickhouse_batch_size: 15000
clickhouse_batch_send_timeout: 30s
clickhouse_wait_for_async_insert: false
clickhouse_skip_ping: false
clickhouse_disable_tls: false
clickhouse_insecure_skip_verify: false
"""
SMALL = (
    "cloud=gcp",
    "region=europe-west4",
    "cluster=c",
    "environment=production",
    "clickhouse_endpoint=chdb:/tmp/x",
)


def load(text: str, tmp_path: Path, *overrides: str) -> server.ServerConfig:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    return server.load(path, overrides)


def test_the_originals_file_works_unchanged(tmp_path: Path) -> None:
    config = load(ORIGINAL, tmp_path)
    assert (config.region, config.max_grpc_connection_age) == ("us-west-2", 300.0)
    assert config.clickhouse_endpoint == "clickhouse.example.org:9440"
    assert not config.clickhouse_disable_tls


def test_addresses_to_listen_on_are_all_unless_told_and_the_page_on_loopback(tmp_path: Path) -> None:
    config = load(ORIGINAL, tmp_path)
    assert (config.metrics_host, config.grpc_host, config.page_host) == ("", "", "127.0.0.1")
    config = load(ORIGINAL, tmp_path, "metrics_host=localhost", "grpc_host='[2001:db8::1]'", "page_host=")
    assert (config.metrics_host, config.grpc_host, config.page_host) == ("localhost", "2001:db8::1", "")


def test_overrides_win_over_the_file_and_need_no_file(tmp_path: Path) -> None:
    assert load(ORIGINAL, tmp_path, "grpc_port=9000").grpc_port == 9000
    assert server.load(None, SMALL).cloud == "gcp"


def test_networks_and_flags_are_parsed(tmp_path: Path) -> None:
    text = (
        ORIGINAL + "private_cidrs: [192.0.2.0/24, 2001:db8::/32]\nconnection_flags:\n  NAT: [198.51.100.7]\n"
    )
    config = load(text, tmp_path)
    assert config.private_cidrs[1] == ipaddress.ip_network("2001:db8::/32")
    assert config.connection_flags == (("NAT", (ipaddress.ip_network("198.51.100.7/32"),)),)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("regoin: x", "unknown key 'regoin' in the configuration; did you mean region?"),
        ("metrics_port: eighty", "metrics_port: 'eighty' is not a port"),
        ("metrics_port: 70000", "metrics_port: 70000 is not a port"),
        ("metrics_port: true", "metrics_port: True is not a port"),
        ("metrics_host: metrics.local", "metrics_host: 'metrics.local' is not an address to listen on"),
        ("grpc_host: '127.0.0.1:8884'", "grpc_host: '127.0.0.1:8884' is not an address to listen on"),
        ("page_host: 7", "page_host: '7' is not an address to listen on"),
        ("grpc_port: 8883", "metrics_port and grpc_port are the same"),
        ("cloud: openstack", "cloud: 'openstack' is not one of aws, gcp, azure, none"),
        ("cluster: ''", "cluster is empty"),
        ("cluster: null", "cluster is missing"),
        ("ignore_udp: perhaps", "ignore_udp: 'perhaps' is not true or false"),
        ("max_grpc_connection_age: 300", "max_grpc_connection_age: 300 is not a duration such as 30s"),
        ("max_grpc_connection_age: 0s", "max_grpc_connection_age: '0s' is not a duration"),
        ("clickhouse_endpoint: nowhere", "clickhouse_endpoint: 'nowhere' is not host:port or chdb:PATH"),
        ("clickhouse_endpoint: null", "clickhouse_endpoint is missing: give host:port or chdb:PATH"),
        ("clickhouse_database: 'a; drop'", "clickhouse_database: 'a; drop' is not a ClickHouse name"),
        ("kubernetes_source: etcd", "kubernetes_source: 'etcd' is not one of auto"),
        ("private_cidrs: [10.0.0.1/8]", "private_cidrs: '10.0.0.1/8' is not a network .*host bits"),
        ("connection_flags: [a]", "connection_flags: .* is not a map"),
        ("clickhouse_insert_settings: [a]", "clickhouse_insert_settings: .* is not a map"),
        ("clickhouse_insert_settings: {a b: 1}", "clickhouse_insert_settings: 'a b' is not the name"),
        ("clickhouse_insert_settings: {a: [1]}", r"clickhouse_insert_settings\.a: .* is not text"),
        ("connection_flags: {NAT: [x]}", "connection_flags.NAT: 'x' is not a network"),
        ("tls_cert: /x", "tls_cert and tls_key go together"),
        ("tls_client_ca: /x", "tls_client_ca needs tls_cert"),
        ("num_inserter_workers: 0", "num_inserter_workers: 0 is not a whole number from 1 on"),
    ],
)
def test_each_mistake_names_the_key(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(ORIGINAL + change + "\n", tmp_path)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "must map keys to values"),
        ("a: [b\n", "is not YAML at line"),
        ("1: 2\n", "must map keys to values"),
        ("a: \x00\n", "is not YAML"),
        ("", "environment is missing"),
        ("x: " + "[" * 5000, "is not YAML"),
        ("x" * (1 << 20) + "y", "larger than 1 MiB"),
    ],
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load(text, tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none.yaml cannot be read .* --config FILE"):
        server.load(tmp_path / "none.yaml")


@pytest.mark.parametrize("override", ["cloud", "=x", "cloud=[", "nothing=1"])
def test_bad_overrides_are_named(override: str) -> None:
    with pytest.raises(ConfigurationError):
        server.load(None, (*SMALL, override))


def test_every_key_has_a_line_in_the_page() -> None:
    page = markdown.configuration()
    assert all(f"| `{name}` |" in page for name in server.KEYS)


def test_the_example_of_networks_peers_and_flags_can_be_copied(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(ORIGINAL + markdown.EXAMPLE)
    config = server.load(path)
    assert [(one.name, one.service, one.place.connection_class) for one in config.networks] == [
        ("shared-services", "shared-services", ""),
        ("headquarters", "headquarters", "DIRECT_CONNECT"),
    ]
    assert [(peer.name, str(peer.kubeconfig), peer.place.region) for peer in config.peer_clusters] == [
        ("green", "/etc/kubenetmon-server/green.kubeconfig", ""),
        ("blue", "/etc/kubenetmon-server/blue.kubeconfig", "eu-west-1"),
    ]
    assert dict(config.connection_flags)["LOAD_BALANCER"] == (ipaddress.ip_network("10.0.8.0/24"),)


def test_what_only_a_file_can_say_can_also_be_set(tmp_path: Path) -> None:
    config = server.load(None, [*SMALL, "networks={office: {cidrs: [10.80.0.0/16]}}"])
    assert config.networks[0].cidrs == (ipaddress.ip_network("10.80.0.0/16"),)
    with pytest.raises(ConfigurationError, match=r"networks\.office: unknown key 'cidr'"):
        server.load(None, [*SMALL, "networks={office: {cidr: [10.80.0.0/16]}}"])


def test_a_peer_cannot_have_the_name_of_this_cluster() -> None:
    with pytest.raises(ConfigurationError, match=r"peer_clusters\.c has the name of this cluster"):
        server.load(None, [*SMALL, "peer_clusters={c: /etc/kubeconfig}"])
