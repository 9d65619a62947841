"""IPv4 and IPv6 side by side, from the kernel to ClickHouse, both to the byte of what the node's nft saw."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Count
from kubenetmon.demo.processes import GRPC_PORT, METRICS_PORT, Role
from tests.beds.pages import page
from tests.beds.router import CLIENT, CLIENT6, SERVER, SERVER6, SERVICE, SERVICE_PORT, RouterBed

pytestmark = [pytest.mark.root, pytest.mark.chdb]

FILES = Path(__file__).parents[1] / "data" / "ranges"
NODE, NODE6 = "192.0.2.1", "2001:db8:1::1"
SERVICE6 = "2001:db8:96::80"
HOST_PORT = 9100
AGENT_METRICS_PORT = 8882
NAMES = [f"{protocol}_{side}" for protocol in ("tcp", "udp") for side in ("original", "reply")]
FAMILIES = "\n".join(
    [
        "table inet families {",
        *(f"counter {name}_{family} {{}}" for name in NAMES for family in (4, 6)),
        "chain seen { type filter hook prerouting priority filter; policy accept;",
        'iifname "lo" accept',  # where the agent speaks to the server
        *(
            f"meta nfproto ipv{family} meta l4proto {protocol} ct direction {side} "
            f"counter name {protocol}_{side}_{family}"
            for protocol, side in (name.split("_") for name in NAMES)
            for family in (4, 6)
        ),
        "}",
        "}",
    ]
)
DNAT6 = f"""
table ip6 service {{
    chain service {{
        type nat hook prerouting priority dstnat; policy accept;
        ip6 daddr {SERVICE6} tcp dport {SERVICE_PORT} dnat to [{SERVER6}]:8080
    }}
}}
"""


def pod(name: str, node: str, *addresses: str, **spec: Any) -> dict[str, Any]:
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": name, "labels": {"k8s-app": name}},
        "spec": {"nodeName": node, **spec},
        "status": {"phase": "Running", "podIPs": [{"ip": address} for address in addresses]},
    }


CLUSTER = [
    {
        "kind": "Node",
        "metadata": {"name": "node-a", "labels": {"topology.kubernetes.io/zone": "zone-1"}},
        "spec": {"podCIDRs": ["192.0.2.128/25", "2001:db8:1:1::/64"]},
        "status": {"addresses": [{"type": "InternalIP", "address": one} for one in (NODE, NODE6)]},
    },
    pod("client", "node-a", CLIENT, CLIENT6),
    pod(
        "exporter", "node-a", NODE, NODE6, hostNetwork=True,
        containers=[{"ports": [{"containerPort": HOST_PORT}]}],
    ),
]  # fmt: skip


def server_files(directory: Path) -> Path:
    """The configuration; the "internet" of the bed is S3 in both families."""
    ranges = directory / "ranges"
    shutil.copytree(FILES, ranges)
    where = {"region": "us-west-2", "service": "S3"}
    prefixes = [{"ip_prefix": "198.51.100.0/24", **where}]
    of_ipv6 = [{"ipv6_prefix": "2001:db8:2::/48", **where}]
    (ranges / "aws.json").write_text(json.dumps({"prefixes": prefixes, "ipv6_prefixes": of_ipv6}))
    (directory / "cluster.json").write_text(json.dumps({"kind": "List", "items": CLUSTER}))
    config = directory / "config.yaml"
    config.write_text(
        json.dumps(
            {
                "environment": "development", "cloud": "aws", "region": "us-west-2", "cluster": "blue",
                "grpc_port": GRPC_PORT, "metrics_port": METRICS_PORT, "ignore_udp": False,
                "meter_host_network": True, "clickhouse_endpoint": f"chdb:{directory / 'engine'}",
                "kubernetes_source": f"file:{directory / 'cluster.json'}", "cloud_ranges_dir": str(ranges),
            }
        )
    )  # fmt: skip
    return config


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("dual") as made:
        made.node.nft(DNAT6)
        made.node.nft(FAMILIES)
        yield made


def talk_to_the_node(bed: RouterBed, address: str) -> None:
    """The client asks the hostNetwork pod of the node."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    def listen() -> socket.socket:
        return socket.create_server((address, HOST_PORT), family=family)

    with bed.node.call(listen) as listener:
        listener.settimeout(10)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(bytes(30_000))

        thread = threading.Thread(target=serve)
        thread.start()
        with bed.client.call(lambda: socket.create_connection((address, HOST_PORT), 10)) as connection:
            connection.sendall(b"metrics, please")
            while connection.recv(1 << 16):
                pass
        thread.join()


def quiet(bed: RouterBed) -> dict[str, Count]:
    """The counters once the last packet has passed."""
    while True:
        before = bed.node.counters("families")
        time.sleep(0.5)
        if bed.node.counters("families") == before:
            return before


def traffic(bed: RouterBed, server: str, service: str) -> None:
    """Connections and datagrams of one family, some of them by way of a Service."""
    bed.tcp(50_000, 200_000, to=server)
    bed.tcp(1_000, 300_000, to=service, port=SERVICE_PORT)
    bed.udp([100, 1200, 7], answers=2, to=server)


async def ask(engine: Path, sql: str) -> list[tuple[Any, ...]]:
    sink = EmbeddedSink(engine)
    try:
        return await sink.query(sql)
    finally:
        await sink.close()


def test_both_families_are_in_the_table_to_the_byte(bed: RouterBed, tmp_path: Path) -> None:
    config = server_files(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "kubenetmon", "schema", "apply", "--ipv6", "--config", str(config)],
        env=python_environment(), check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    server = Role(
        "the server", bed.node, ["--role", "server", "--config", str(config)], log=tmp_path / "server.log"
    )
    try:
        server.wait_ready()
        agent = Role(
            "the agent", bed.node, ["--role", "agent"], log=tmp_path / "agent.log",
            environment={
                "NODE_NAME": "node-a", "COLLECTION_INTERVAL": "1s", "KUBENETMON_REPORT_INTERVAL": "2s",
                "KUBENETMON_SERVER_SERVICE_HOST": "127.0.0.1", "METRICS_PORT": str(AGENT_METRICS_PORT),
                "KUBENETMON_SERVER_SERVICE_PORT": str(GRPC_PORT), "SKIP_CONNTRACK_SANITY_CHECK": "true",
            },
        )  # fmt: skip
        try:
            _wait_until_reading(bed, agent)
            traffic(bed, SERVER, SERVICE)
            traffic(bed, SERVER6, SERVICE6)
            counted = quiet(bed)
            truth = {
                family: Counter({name: counted[f"{name}_{family}"].bytes for name in NAMES})
                for family in (4, 6)
            }
            for address in (NODE, NODE6):
                talk_to_the_node(bed, address)
            agent.stop()
        finally:
            agent.kill()
        server.stop()
    finally:
        server.kill()
    check_rows(tmp_path / "engine", truth)


def check_rows(engine: Path, truth: dict[int, Counter[str]]) -> None:
    sql = """
        SELECT toString(localIPv4), toString(localIPv6), toString(remoteIPv4), toString(remoteIPv6), proto,
            toString(direction), localPod, localAvailabilityZone, remotePod, remoteCloudService,
            connectionClass, sum(bytes)
        FROM default.network_flows_0 GROUP BY ALL
    """
    rows = asyncio.run(ask(engine, sql))
    spoken_to = set()
    metered: dict[int, Counter[str]] = {4: Counter(), 6: Counter()}
    for local4, local6, remote4, remote6, protocol, direction, pod_name, zone, *remote, size in rows:
        family = 4 if local6 == "::" else 6
        local, there = (local4, remote4) if family == 4 else (local6, remote6)
        assert (local4 == "0.0.0.0") is (family == 6), "an address of the other family"
        spoken_to.add(there)
        assert (pod_name, zone) == ("client", "zone-1")
        assert local == {4: CLIENT, 6: CLIENT6}[family]
        if there in (NODE, NODE6):
            assert remote == ["exporter", "", "INTRA_VPC"]
            assert size > (30_000 if direction == "in" else 15)
            continue
        # After DNAT: the address behind the Service, in S3's range of either family.
        assert there == {4: SERVER, 6: SERVER6}[family]
        assert remote == ["", "s3", "INTRA_REGION"]
        metered[family][f"{protocol}_{'original' if direction == 'out' else 'reply'}"] += size
    assert metered == truth
    assert all(count > 0 for counts in truth.values() for count in counts.values())
    assert spoken_to == {NODE, NODE6, SERVER, SERVER6}


def _wait_until_reading(bed: RouterBed, agent: Role) -> None:
    """Until the agent's /ready says that conntrack is read, so that nothing of ours is the baseline."""

    def ready() -> bool:
        try:
            return page(AGENT_METRICS_PORT, "/ready")[0] == 200
        except OSError:
            return False

    deadline = time.monotonic() + 60
    while not bed.node.call(ready):
        agent.check()
        assert time.monotonic() < deadline
        time.sleep(0.2)
