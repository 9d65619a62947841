"""The demo's world as network namespaces, and what its own packet counters saw.

    pods --veth-- node-a --+                 +-- node-b --veth-- pods
                           +--- internet ----+
    server --management-- node-a, node-b

Contract: `World` makes everything or nothing; `close` removes everything. The namespaces have no link to
the host's network.

Why the counters and conntrack agree to the byte. On each node both look at the same packets in the same
hook: connection tracking (priority -200 of prerouting) adds an skb's length to its flow, and the nft rules
behind it (priority 0) add the same skb's length to theirs, whatever segmentation offload made of it.
What could tell them apart is kept out:
- Everything metered is forwarded, so prerouting sees it, and sees it once. What the node itself says
  (agent to server, probes over loopback) is not tracked at all.
- A packet that conntrack calls invalid adds to no flow; the rules skip it by the same verdict.
  `tcp_be_liberal`, as kube-proxy can set it, spares packets outside of the TCP window that verdict.
- A repeated SYN of a connection under way, and a repeated SYN/ACK, are let through without being added
  to their flow. The rules skip the first by the flow's state; the second would need an acknowledgement
  that takes a second over a wire that loses nothing, and `retransmitted_handshakes` shows if it happened.
- ICMP is tracked and not metered: the rules take TCP and UDP only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.demo import plan
from kubenetmon.demo.network import Count, Namespace, create_namespace, veth_pair
from kubenetmon.demo.plan import NodePlan, PodPlan

_POD_GATEWAY = "169.254.1.1"
_TABLE = "kubenetmon_demo"
_FLOW_KEY = "ct original ip saddr . ct reply ip saddr . meta l4proto . ct direction"

_NODE_SYSCTLS = {
    # What the agent needs; each is per network namespace, and acct holds for flows that begin later.
    "net.netfilter.nf_conntrack_acct": 1,
    "net.netfilter.nf_conntrack_events": 1,
    "net.netfilter.nf_conntrack_timestamp": 1,
    "net.netfilter.nf_conntrack_tcp_be_liberal": 1,
    # Ended connections leave the table within the demo, so that their last bytes come by way of events.
    "net.netfilter.nf_conntrack_tcp_timeout_time_wait": 2,
    "net.netfilter.nf_conntrack_tcp_timeout_close": 2,
    "net.netfilter.nf_conntrack_udp_timeout": 5,
    "net.ipv4.ip_forward": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.default.rp_filter": 0,
}


@dataclass(frozen=True, slots=True)
class FlowCount:
    """What a node's counters saw of all flows between two addresses, one way.

    `original_source` opened the connections, `reply_source` is who answered (the pod behind a Service).
    `direction` is "original" from the former to the latter, else "reply". Bytes include IP headers.
    """

    node: str
    original_source: str
    reply_source: str
    protocol: str
    direction: str
    count: Count


class World:
    """The namespaces of one run."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self._undo = undo
            self.internet = self._namespace("internet")
            self.server = self._namespace("server")
            self.nodes = {node.name: self._namespace(node.name) for node in plan.NODES}
            self.pods = {pod.name: self._namespace(pod.name) for pod in plan.PODS}
            self._prepare_internet()
            for node in plan.NODES:
                self._prepare_node(node)
            for number, pod in enumerate(plan.PODS):
                self._prepare_pod(pod, f"pod{number}")
            self._undo = undo.pop_all()

    def disable_offloads(self) -> None:
        """Make every packet that a pod or the internet sends an skb of its own."""
        for pod in self.pods.values():
            pod.disable_offloads("eth0")
        for node in plan.NODES:
            self.internet.disable_offloads(node.name)

    def close(self) -> None:
        """Remove the namespaces, and end what still runs in them."""
        self._undo.close()

    def totals(self) -> dict[str, Count]:
        """The counters of all nodes together: `tracked_tcp`, `tracked_udp`, `invalid`, `repeated_syn`."""
        totals: dict[str, Count] = {}
        for node in self.nodes.values():
            for name, count in node.counters(_TABLE).items():
                totals[name] = totals.get(name, Count(0, 0)) + count
        return totals

    def tracked_bytes(self) -> int:
        """Bytes of TCP and UDP that belong to flows, over all nodes: what must be found in ClickHouse.

        A flow between two nodes passes both, and both report it.
        """
        totals = self.totals()
        return totals["tracked_tcp"].bytes + totals["tracked_udp"].bytes

    def flows(self) -> list[FlowCount]:
        """The same bytes by node, pair of addresses, protocol and direction."""
        return [
            FlowCount(name, str(key[0]), str(key[1]), str(key[2]), str(key[3]), count)
            for name, node in self.nodes.items()
            for key, count in node.set_counters(_TABLE, "flows").items()
        ]

    def retransmitted_handshakes(self) -> int:
        """SYN and SYN/ACK packets sent more than once by pods and the internet (see the module's text)."""
        return sum(
            namespace.call(_retransmitted_handshakes) for namespace in (*self.pods.values(), self.internet)
        )

    def _namespace(self, label: str) -> Namespace:
        namespace = create_namespace(label)
        self._undo.callback(namespace.delete)
        return namespace

    def _prepare_internet(self) -> None:
        self.internet.sysctl("net.ipv4.ip_forward", 1)
        for address in plan.INTERNET_ADDRESSES:
            self.internet.address("lo", f"{address}/32")

    def _prepare_node(self, node: NodePlan) -> None:
        namespace = self.nodes[node.name]
        for key, value in _NODE_SYSCTLS.items():
            namespace.sysctl(key, value)
        veth_pair(namespace, "uplink", self.internet, node.name)
        namespace.address("uplink", f"{node.address}/24")
        self.internet.address(node.name, f"{node.gateway}/24")
        self.internet.route(node.pod_cidr, node.address)
        namespace.route("default", node.gateway)
        veth_pair(namespace, "management", self.server, node.name)
        namespace.address("management", f"{node.management}/30")
        self.server.address(node.name, f"{node.server}/30")
        namespace.address("lo", f"{_POD_GATEWAY}/32")
        namespace.nft(_node_rules(node))

    def _prepare_pod(self, pod: PodPlan, interface: str) -> None:
        node, namespace = self.nodes[pod.node], self.pods[pod.name]
        veth_pair(node, interface, namespace, "eth0")
        node.ip("route", "add", f"{pod.address}/32", "dev", interface)
        namespace.address("eth0", f"{pod.address}/32")
        namespace.ip("route", "add", f"{_POD_GATEWAY}/32", "dev", "eth0")
        namespace.route("default", _POD_GATEWAY)


def _node_rules(node: NodePlan) -> str:
    """The node's nft rules: no tracking of its own talk, Services, masquerading, and the counters."""
    translations = [
        f"ip daddr {service.address} {service.protocol} dport {service.port} "
        f"dnat to numgen inc mod {len(backends)} map {{ "
        + ", ".join(f"{number} : {pod.address}" for number, pod in enumerate(backends))
        + f" }} : {service.target_port}"
        for service in plan.SERVICES
        for backends in [[pod for pod in plan.PODS if pod.app == service.app]]
    ] + [
        f"ip daddr {node.address} tcp dport {port.port} "
        f"dnat to {plan.pod(port.pod).address}:{port.target_port}"
        for port in plan.NODE_PORTS
        if port.node == node.name
    ]
    service_rules = "\n        ".join(translations)
    return f"""
table ip {_TABLE}_nat {{
    chain services {{
        type nat hook prerouting priority dstnat; policy accept;
        {service_rules}
    }}
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {node.pod_cidr} ip daddr != 10.0.0.0/8 oifname "uplink" masquerade
    }}
}}
table inet {_TABLE} {{
    counter tracked_tcp {{}}
    counter tracked_udp {{}}
    counter invalid {{}}
    counter repeated_syn {{}}
    set flows {{
        typeof {_FLOW_KEY}
        size 65536
        flags dynamic
        counter
    }}
    chain own_in {{
        type filter hook prerouting priority raw; policy accept;
        iifname {{ "lo", "management" }} notrack
    }}
    chain own_out {{
        type filter hook output priority raw; policy accept;
        oifname {{ "lo", "management" }} notrack
    }}
    chain again {{
        counter name repeated_syn accept
    }}
    chain seen {{
        type filter hook prerouting priority filter; policy accept;
        ct state untracked accept
        ct state invalid counter name invalid accept
        ct direction original ct status seen-reply tcp flags & (syn | ack) == syn jump again
        meta l4proto tcp counter name tracked_tcp
        meta l4proto udp counter name tracked_udp
        meta l4proto {{ tcp, udp }} update @flows {{ {_FLOW_KEY} }}
    }}
}}
"""


def _retransmitted_handshakes() -> int:
    """`TCPSynRetrans` of /proc/net/netstat of the calling thread's namespace."""
    lines = Path("/proc/thread-self/net/netstat").read_text().splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=True):
        if names.startswith("TcpExt:"):
            return int(dict(zip(names.split(), values.split(), strict=True))["TCPSynRetrans"])
    return 0
