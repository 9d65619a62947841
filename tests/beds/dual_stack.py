"""IPv6 in the demo's world: a second address for each pod and the internet, and counters of the same kind.

Contract: `DualStack` adds to a `World` that is there and goes with it. It writes the pods' second addresses
into the cluster's JSON and gives the table its IPv6 columns, both before the server starts. Ports of its own
serve IPv6, so that the traffic of both families stands side by side in one namespace.
"""

from __future__ import annotations

import ipaddress
import json
import subprocess
import sys
from pathlib import Path

from kubenetmon.demo import plan
from kubenetmon.demo.actors import python_environment
from kubenetmon.demo.network import Namespace
from kubenetmon.demo.traffic import Job, Script
from kubenetmon.demo.world import FlowCount, World

INTERNET_ADDRESS = "2001:db8::10"
TCP_PORT, UDP_PORT = 8086, 5356

_GATEWAY = "fe80::1"
_KEY = "ct original ip6 saddr . ct reply ip6 saddr . meta l4proto . ct direction"
_RULES = f"""
table inet dual_stack {{
    set flows {{
        typeof {_KEY}
        size 65536
        flags dynamic
        counter
    }}
    chain seen {{
        type filter hook prerouting priority filter; policy accept;
        ct state untracked,invalid accept
        ct direction original ct status seen-reply tcp flags & (syn | ack) == syn accept
        meta nfproto ipv6 meta l4proto {{ tcp, udp }} update @flows {{ {_KEY} }}
    }}
}}
"""


def pod_address(pod: plan.PodPlan) -> str:
    """10.244.1.11 → fd00:10:244:1::11."""
    first, second, third, last = pod.address.split(".")
    return f"fd00:{first}:{second}:{third}::{last}"


def _pod_network(node: plan.NodePlan) -> str:
    first, second, third, _ = node.pod_cidr.split(".")
    return f"fd00:{first}:{second}:{third}::/64"


class DualStack:
    """The second family of one world."""

    def __init__(self, world: World, config: Path, cluster: Path) -> None:
        self._world = world
        world.internet.sysctl("net.ipv6.conf.all.forwarding", 1)
        world.internet.address("lo", f"{INTERNET_ADDRESS}/128")
        for number, node in enumerate(plan.NODES, 1):
            self._prepare_node(node, f"fd00:ffff:{number}::")
        for number, pod in enumerate(plan.PODS):
            self._prepare_pod(pod, f"pod{number}")
        _extend(cluster)
        subprocess.run(
            [sys.executable, "-m", "kubenetmon", "schema", "apply", "--ipv6", "--config", str(config)],
            env=python_environment(),
            stdout=subprocess.DEVNULL,
            check=True,
        )

    def flows(self) -> list[FlowCount]:
        """As `World.flows`, of IPv6."""
        return [
            FlowCount(name, _canonical(key[0]), _canonical(key[1]), str(key[2]), str(key[3]), count)
            for name, node in self._world.nodes.items()
            for key, count in node.set_counters("dual_stack", "flows").items()
        ]

    def scripts(self, seed: int) -> dict[str, tuple[Namespace, Script]]:
        """Short and long connections of both protocols between the nodes, within one, and to the internet."""
        catalogs = [pod_address(pod) for pod in plan.PODS if pod.app == "catalog"]
        coredns = pod_address(plan.pod_of_app("coredns"))
        clients = (plan.pod_of_app("frontend"), plan.pod_of_app("checkout"))
        asking = (
            *(
                Job("tcp", host, TCP_PORT, (1, 2_000), (0, 30_000), 0.05, per_connection=1)
                for host in catalogs
            ),
            *(Job("tcp", host, TCP_PORT, (1, 900), (1, 90_000), pause=0.2) for host in catalogs),
            Job("tcp", INTERNET_ADDRESS, TCP_PORT, (100, 200_000), (0, 5_000), 0.3, per_connection=3),
            Job("udp", coredns, UDP_PORT, (0, 1_200), (0, 1_200), 0.05, per_connection=1),
            Job("udp", coredns, UDP_PORT, (0, 1_200), (0, 1_200), 0.05, per_connection=300),
        )
        serving = Script(tcp_ports=(TCP_PORT,), udp_ports=(UDP_PORT,), tcp_address="::", udp_address="::")
        places = {pod.name: self._world.pods[pod.name] for pod in plan.PODS}
        written = {name: (place, serving) for name, place in places.items()}
        written["internet"] = (self._world.internet, serving)
        for number, pod in enumerate(clients, 1):
            written[pod.name] = (places[pod.name], Script(jobs=asking, seed=seed + 1_000 * number))
        return {f"{name}, IPv6": script for name, script in written.items()}

    def _prepare_node(self, node: plan.NodePlan, network: str) -> None:
        namespace = self._world.nodes[node.name]
        namespace.sysctl("net.ipv6.conf.all.forwarding", 1)
        namespace.address("uplink", f"{network}2/64")
        self._world.internet.address(node.name, f"{network}1/64")
        namespace.route("default", f"{network}1")
        self._world.internet.route(_pod_network(node), f"{network}2")
        namespace.nft(_RULES)

    def _prepare_pod(self, pod: plan.PodPlan, interface: str) -> None:
        node, namespace = self._world.nodes[pod.node], self._world.pods[pod.name]
        node.address(interface, f"{_GATEWAY}/64")
        node.ip("-6", "route", "add", f"{pod_address(pod)}/128", "dev", interface)
        namespace.address("eth0", f"{pod_address(pod)}/128")
        namespace.ip("-6", "route", "add", "default", "via", _GATEWAY, "dev", "eth0")


def _extend(cluster: Path) -> None:
    document = json.loads(cluster.read_text())
    pods = {pod.name: pod for pod in plan.PODS}
    nodes = {node.name: node for node in plan.NODES}
    for item in document["items"]:
        name = item["metadata"]["name"]
        if item["kind"] == "Pod":
            item["status"]["podIPs"].append({"ip": pod_address(pods[name])})
        elif item["kind"] == "Node":
            item["spec"]["podCIDRs"].append(_pod_network(nodes[name]))
    cluster.write_text(json.dumps(document))


def _canonical(address: object) -> str:
    return str(ipaddress.IPv6Address(str(address)))
