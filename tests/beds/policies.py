"""What NetworkPolicies let through, told from the objects, as networking.k8s.io/v1 defines it.

Contract: `allows` decides over one new connection of one pod of a Deployment. It knows what policies here are
made of: labels, networks, ports by number and by name; it raises `ValueError` for a field that it does not
know, so that no rule is passed over.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.beds.manifests import Object


@dataclass(frozen=True)
class Peer:
    """Who is at the other end; `labels` is None for what is no pod, such as a node or another network."""

    address: str
    labels: Mapping[str, str] | None = None
    namespace_labels: Mapping[str, str] = field(default_factory=dict)


def allows(
    objects: Iterable[Object], deployment: Object, way: str, peer: Peer, port: int, protocol: str
) -> bool:
    """Whether a pod of the Deployment may be reached (`way` "Ingress"), or reach out ("Egress"), at a port.

    Raises `ValueError` for a policy with a field that is not known here.
    """
    template = deployment["spec"]["template"]
    chosen = [
        policy["spec"]
        for policy in objects
        if policy["kind"] == "NetworkPolicy"
        and policy["metadata"]["namespace"] == deployment["metadata"]["namespace"]
        and _selects(policy["spec"]["podSelector"], template["metadata"]["labels"])
        and way in policy["spec"]["policyTypes"]
    ]
    if not chosen:
        return True
    names = _named_ports(template["spec"]) if way == "Ingress" else {}
    return any(
        _rule_allows(rule, "from" if way == "Ingress" else "to", peer, port, protocol, names)
        for policy in chosen
        for rule in policy.get(way.lower(), [])
    )


def _rule_allows(
    rule: Mapping[str, Any], side: str, peer: Peer, port: int, protocol: str, names: Mapping[str, int]
) -> bool:
    _known(rule, "ports", side)
    ports, peers = rule.get("ports"), rule.get(side)
    for one in ports or []:
        _known(one, "port", "protocol")
    open_ports = [(names.get(one["port"], one["port"]), one.get("protocol", "TCP")) for one in ports or []]
    right_port = not ports or (port, protocol) in open_ports
    return right_port and (not peers or any(_is(one, peer) for one in peers))


def _is(wanted: Mapping[str, Any], peer: Peer) -> bool:
    _known(wanted, "ipBlock", "podSelector", "namespaceSelector")
    if block := wanted.get("ipBlock"):
        _known(block, "cidr", "except")
        networks = [ipaddress.ip_network(text) for text in (block["cidr"], *block.get("except", []))]
        within = [ipaddress.ip_address(peer.address) in network for network in networks]
        return within[0] and not any(within[1:])
    if peer.labels is None:
        return False
    if "namespaceSelector" not in wanted:
        raise ValueError(f"a peer of the policy's own namespace: {wanted}")
    of_namespace = _selects(wanted["namespaceSelector"], peer.namespace_labels)
    return of_namespace and _selects(wanted.get("podSelector", {}), peer.labels)


def _selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    _known(selector, "matchLabels")
    return all(labels.get(name) == value for name, value in selector.get("matchLabels", {}).items())


def _named_ports(pod: Mapping[str, Any]) -> dict[str, int]:
    ports = [one for container in pod["containers"] for one in container.get("ports", [])]
    return {one["name"]: one["containerPort"] for one in ports}


def _known(found: Mapping[str, Any], *names: str) -> None:
    if unknown := set(found) - set(names):
        raise ValueError(f"does not know {', '.join(sorted(unknown))}")
