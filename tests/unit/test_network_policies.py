"""The network policies let through what the configuration beside them needs, and nothing else comes in."""

from __future__ import annotations

import urllib.parse
from collections.abc import Iterator
from typing import Any

import pytest

from kubenetmon.config.server import ServerConfig
from kubenetmon.server.ranges.fetch import URLS
from tests.beds import manifests
from tests.beds.charts import ORIGINAL_SERVER, effective, objects_of_server, overlay
from tests.beds.manifests import Object, pick, render_chart
from tests.beds.policies import Peer, allows

NODE = Peer("10.0.0.7")
OUTSIDE = Peer("203.0.113.9")
POD = Peer("10.244.1.9", {"app": "shop"}, {"kubernetes.io/metadata.name": "shop"})
PROMETHEUS = Peer("10.244.1.8", {"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
DNS = Peer("10.244.0.2", {"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"})
CLICKHOUSE = "clickhouse.default.svc.cluster.local"


def chart(endpoint: str, **policy: Any) -> list[Object]:
    values = manifests.production_values("server")
    return render_chart(
        "server",
        {**values, "inserter": {"endpoint": endpoint}, "networkPolicy": {"enabled": True, **policy}},
    )


def with_endpoint(objects: list[Object], endpoint: str) -> list[Object]:
    """An overlay as its user edits config.yaml."""
    edited = []
    for one in manifests.without_hashes(objects):
        if one["kind"] == "ConfigMap":
            lines = one["data"]["config.yaml"].splitlines()
            kept = [line for line in lines if not line.startswith("clickhouse_endpoint:")]
            assert len(kept) == len(lines) - 1
            one["data"]["config.yaml"] = "\n".join([*kept, f"clickhouse_endpoint: {endpoint}", ""])
        edited.append(one)
    return edited


POLICED = {
    "overlay production": objects_of_server(overlay("production")),
    "overlay production, plain text": with_endpoint(
        objects_of_server(overlay("production")), f"{CLICKHOUSE}:9000"
    ),
    "overlay production, TLS": with_endpoint(
        objects_of_server(overlay("production")), "clickhouse.example.org:9440"
    ),
    "chart, production": render_chart("server", manifests.production_values("server")),
    "chart, TLS": chart("clickhouse.example.org:9440"),
    "chart, two servers": chart("clickhouse-0.example.org:9440, [2001:db8::9]:19000"),
    "chart, original's values": render_chart(
        "server",
        {
            **ORIGINAL_SERVER,
            "networkPolicy": {"enabled": True},
            "service": {"type": "ClusterIP", "port": 9884},
            "metrics": {"enabled": True, "port": 9883},
        },
    ),
}


def needed(config: ServerConfig) -> Iterator[tuple[str, str, Peer, int, str]]:
    """What the server's configuration makes it do: what for, which way, with whom, port and protocol."""
    yield "agents' reports", "Ingress", NODE, config.grpc_port, "TCP"
    yield "metrics", "Ingress", PROMETHEUS, config.metrics_port, "TCP"
    for protocol in ("UDP", "TCP"):
        yield "names", "Egress", DNS, 53, protocol
    for port in (443, 6443):  # a policy may see the Service's port, or the API server's own
        yield "the Kubernetes API", "Egress", NODE, port, "TCP"
    if config.cloud_ranges_dir is None:
        for url in URLS.values():
            parts = urllib.parse.urlsplit(url)
            yield url, "Egress", OUTSIDE, parts.port or {"https": 443, "http": 80}[parts.scheme], "TCP"
    for endpoint in config.clickhouse_endpoint.split(","):
        for peer in (OUTSIDE, POD):
            yield "ClickHouse", "Egress", peer, int(endpoint.rpartition(":")[2]), "TCP"


def server(objects: list[Object]) -> tuple[Object, ServerConfig]:
    found = objects_of_server(objects)
    return pick(found, "Deployment", "kubenetmon-server"), effective(*manifests.server_settings(found))


@pytest.mark.parametrize("name", sorted(POLICED))
def test_what_the_configuration_needs_is_let_through(name: str) -> None:
    deployment, config = server(POLICED[name])
    assert pick(POLICED[name], "NetworkPolicy")
    wanted = list(needed(config))
    assert len(wanted) >= 12
    for why, way, peer, port, protocol in wanted:
        assert allows(POLICED[name], deployment, way, peer, port, protocol), (why, port)


@pytest.mark.parametrize("name", sorted(POLICED))
def test_nothing_else_is(name: str) -> None:
    deployment, config = server(POLICED[name])
    for peer in (NODE, POD, OUTSIDE, PROMETHEUS):
        for port in (config.page_port or 8885, 22, 10250):
            assert not allows(POLICED[name], deployment, "Ingress", peer, port, "TCP")
        assert not allows(POLICED[name], deployment, "Ingress", peer, config.grpc_port, "UDP")
        for port in (25, 8123):
            assert not allows(POLICED[name], deployment, "Egress", peer, port, "TCP")
    assert not allows(POLICED[name], deployment, "Ingress", OUTSIDE, config.metrics_port, "TCP")


def test_the_chart_opens_the_ports_of_its_endpoints_alone() -> None:
    objects = chart("clickhouse.example.org:9440")
    deployment, _ = server(objects)
    assert not allows(objects, deployment, "Egress", OUTSIDE, 9000, "TCP")


def test_who_may_report_and_read_metrics_can_be_narrowed() -> None:
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    objects = chart(f"{CLICKHOUSE}:9440", agents=["10.0.0.0/16"], metrics=[monitoring])
    deployment, config = server(objects)
    for peer, port, allowed in (
        (NODE, config.grpc_port, True),
        (POD, config.grpc_port, False),
        (PROMETHEUS, config.metrics_port, True),
        (POD, config.metrics_port, False),
    ):
        assert allows(objects, deployment, "Ingress", peer, port, "TCP") is allowed, (peer, port)


def test_more_ways_out_can_be_given() -> None:
    """For another cluster's API, or a resolver, at a port of its own."""
    rule = {"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}], "ports": [{"port": 16443, "protocol": "TCP"}]}
    objects = chart(f"{CLICKHOUSE}:9440", egress=[rule])
    deployment, _ = server(objects)
    assert allows(objects, deployment, "Egress", OUTSIDE, 16443, "TCP")
    assert not allows(objects, deployment, "Egress", NODE, 16443, "TCP")


def test_a_rule_that_is_not_understood_is_no_rule_passed_over() -> None:
    objects = chart(f"{CLICKHOUSE}:9440")
    deployment, _ = server(objects)
    pick(objects, "NetworkPolicy")["spec"]["egress"][0]["ports"][0]["endPort"] = 60
    with pytest.raises(ValueError, match="endPort"):
        allows(objects, deployment, "Egress", NODE, 53, "UDP")
