"""What answers about known traffic must be, worked out without SQL by the rules that the documentation gives.

`keep` says which end the filters leave: which end that is differs by question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.beds.known_traffic import MINUTE, Labels, Transfer, World, in_namespace

Keep = Callable[[Labels], bool]
Minutes = dict[tuple[str, int], Counter[int]]


def everyone(_: Labels) -> bool:
    """No filter."""
    return True


def keeping(filters: dict[str, str]) -> Keep:
    """The ends that match all filters."""
    return lambda labels: all(getattr(labels, name) == value for name, value in filters.items())


@dataclass
class Balance:
    """By (client, server, replica): bytes and connections; by server: its replicas."""

    bytes: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    connections: dict[tuple[str, str, str], set[object]] = field(default_factory=dict)
    replicas: dict[str, set[str]] = field(default_factory=dict)

    def rows(self, client: str = "") -> set[tuple[str, str, str]]:
        """A row for each replica of each server that has several, and each of its clients."""
        return {
            (caller, server, pod)
            for caller, server, _ in self.bytes
            for pod in self.replicas[server]
            if len(self.replicas[server]) > 1 and client in ("", caller, caller.partition("/")[2])
        }


def balance(world: World, keep: Keep = everyone) -> Balance:
    """The filters are the server's."""
    found = Balance()
    for one in world.transfers():
        client, server = (one.source, one.destination) if one.opener == 1 else (one.destination, one.source)
        if not server.pod or not server.app or not keep(server):
            continue
        names = in_namespace(client, "app"), in_namespace(server, "app"), server.named("pod")
        found.bytes[names] += one.bytes
        ports = (one.flow.client, one.flow.server, one.flow.client_port)
        found.connections.setdefault(names, set()).add(ports)
        found.replicas.setdefault(names[1], set()).add(names[2])
    return found


def minutes(world: World, by: str, keep: Keep = everyone) -> Minutes:
    """Bytes by minute of each (name, way), way 0 sent and 1 received; each end as its own node saw it."""
    found: Minutes = {}
    for flow in world.flows:
        for node, local, remote in world.observers(flow):
            # A pod that is gone has no node in the original's rows.
            same = world.view(remote, node).node == world.view(local, node).node != ""
            if same and by in ("node", "zone"):
                continue
            sent, received = (flow.up, flow.down) if local is flow.client else (flow.down, flow.up)
            told = [(world.view(local, node), sent, received)]
            if same:
                told.append((world.view(remote, node), received, sent))
            parts = -(-flow.seconds // MINUTE)
            for labels, out, into in told:
                for way, amount in enumerate((out, into) if keep(labels) else ()):
                    counts = found.setdefault((labels.named(by), way), Counter())
                    for part in range(parts):
                        share = amount // parts + (part < amount % parts)
                        counts[flow.start + part * MINUTE] += share
    return found


def reasons(one: Transfer) -> list[str]:
    """Why a transfer is not attributed."""
    local, remote, inside = one.local, one.remote, one.klass == "INTRA_VPC"
    told = {
        "local pod unknown": not local.pod and not local.app,
        "local pod has no app label": local.pod and not local.app,
        "remote pod has no app label": remote.pod and not remote.app,
        "private address of nobody known": inside and not remote.pod and not remote.node,
        "zone unknown between known ends": inside
        and local.node
        and remote.node
        and not (local.zone and remote.zone),
        "path unknown (no cloud ranges)": one.klass == "UNKNOWN",
    }
    return [reason for reason, fits in told.items() if fits]


def unattributed(world: World, by: str, keep: Keep = everyone) -> Counter[tuple[str, str]]:
    """Bytes by reason and the local end's name; the filters are the local end's."""
    found: Counter[tuple[str, str]] = Counter()
    for one in world.transfers():
        if keep(one.local):
            for reason in reasons(one):
                found[reason, one.local.named(by)] += one.bytes
    return found
