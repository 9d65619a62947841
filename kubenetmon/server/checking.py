"""Compares what the server holds of an address now with what the Kubernetes API says of it now.

Contract: `Checker.check` asks for each pod, node and Service that has the address, in our cluster and in
peers, by namespace and name, which is what `get` in our ClusterRole is for. It changes nothing: neither the
inventory nor readiness. Bounded: one question at a time, `_MOST_OBJECTS` objects each, one after the other,
`CheckerConfig.seconds` for the turn and as many for the answers; nothing is kept. What goes wrong is part of
the answer. Nothing to shut down: the connections are those of whoever follows the cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Literal, Protocol

from kubenetmon.errors import ConfigurationError
from kubenetmon.model import TCP
from kubenetmon.server.inventory import Inventory, Kind
from kubenetmon.server.kubernetes import ApiError, MissingError, RefusedError
from kubenetmon.server.kubernetes_objects import Current, KubernetesObject, UnreadableError
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod, uid_text
from kubenetmon.server.snapshot import Family

Verdict = Literal["same", "differs", "gone", "changed", "not permitted", "no answer", "not asked"]

_MOST_OBJECTS = 5
_LATE = "a watch event is late or lost"

NOTHING = "no pod, node or Service known to the server has it now: there is nothing to check"
BUSY = "the server is busy with the checks of others: ask again in a moment"


class Api(Protocol):
    """Whoever can ask a cluster's API."""

    async def current(self, kind: Kind, namespace: str, name: str) -> Current:
        """As `kubenetmon.server.watcher.Watcher.current`."""
        ...


@dataclass(frozen=True, slots=True)
class CheckedCluster:
    """A cluster by name, what is known of it, and its API; None where it has none, as `source` then says."""

    name: str
    inventory: Inventory
    api: Api | None
    source: str = ""


@dataclass(frozen=True, slots=True)
class CheckerConfig:
    """How long a question waits for its turn, and then for all its answers (seconds)."""

    seconds: float = 4.0


class Checker:
    """Answers whether the API says the same."""

    def __init__(self, config: CheckerConfig, clusters: Sequence[CheckedCluster]) -> None:
        self._config = config
        self._clusters = clusters
        self._turn = asyncio.Lock()

    async def check(self, family: Family, address: int, port: int) -> dict[str, Any]:
        """What the API says of each object that has the address, or that port of it (0: none).

        Keys: `objects`, `left_out` (how many more there are), and `note` where there are none.
        """
        try:
            async with asyncio.timeout(self._config.seconds):
                await self._turn.acquire()
        except TimeoutError:
            return {"objects": [], "left_out": 0, "note": BUSY}
        try:
            return await self._check(family, address, port)
        finally:
            self._turn.release()

    async def _check(self, family: Family, address: int, port: int) -> dict[str, Any]:
        held = self._held(family, address, port)
        asked = held[:_MOST_OBJECTS]
        answers: list[Current | tuple[Verdict, str]] = []
        try:
            async with asyncio.timeout(self._config.seconds):
                for cluster, one in asked:
                    answers.append(await _ask(cluster, one))
        except TimeoutError:
            silence: tuple[Verdict, str] = "no answer", f"no answer within {self._config.seconds:g} s"
            answers += [silence] * (len(asked) - len(answers))
        # What the watch brought meanwhile counts: the answers are of now.
        still = {_identity(cluster, one): one for cluster, one in self._held(family, address, port)}
        objects = []
        for (cluster, one), answer in zip(asked, answers, strict=True):
            now = still.get(_identity(cluster, one))
            objects.append({**_shown(cluster, one), **_judged(now, answer, (family, address))})
        note = {} if held else {"note": NOTHING}
        return {"objects": objects, "left_out": len(held) - len(asked), **note}

    def _held(self, family: Family, address: int, port: int) -> list[tuple[CheckedCluster, KubernetesObject]]:
        return [
            (cluster, one)
            for cluster in self._clusters
            for one in cluster.inventory.holders(family, address, port)
        ]


async def _ask(cluster: CheckedCluster, one: KubernetesObject) -> Current | tuple[Verdict, str]:
    if cluster.api is None:
        return "not asked", f"kubernetes_source is {cluster.source}: there is no API to ask"
    kind = _kind(one)
    try:
        return await cluster.api.current(kind, _namespace(one), one.name)
    except MissingError:
        return "gone", f"gone: the API has no such object (404), {_LATE}"
    except RefusedError:
        return "not permitted", (
            f"not allowed to get {kind}: `get` on {kind} is missing in the ClusterRole of the server's "
            "account (kubenetmon-server has get, list, watch on pods, nodes, services)"
        )
    except (ApiError, ConfigurationError, UnreadableError) as error:
        return "no answer", f"no answer: {error}"


def _judged(
    held: KubernetesObject | None, answer: Current | tuple[Verdict, str], asked: tuple[Family, int]
) -> dict[str, Any]:
    if not isinstance(answer, Current):
        verdict, because = answer
        if held is None and verdict == "gone":
            verdict, because = "changed", "gone: the server has learned it while it asked"
        return {"verdict": verdict, "because": because}
    found = {
        "uid": uid_text(answer.object.uid),
        "resource_version": answer.resource_version,
        **({"phase": answer.phase} if answer.phase else {}),
    }
    if held is None:
        because = "the server has learned of a change while it asked: ask again"
        return {"verdict": "changed", "because": because, **found}
    if differences := _differences(held, answer, asked):
        because = f"the API says otherwise, {_LATE}: {'; '.join(differences)}"
        return {"verdict": "differs", "because": because, "differences": differences, **found}
    place = f" on {answer.object.node}" if isinstance(answer.object, Pod) else ""
    because = f"the API says the same: {_addresses(answer.object)}, {answer.phase}{place}".rstrip(", ")
    return {"verdict": "same", "because": because, **found}


def _differences(held: KubernetesObject, answer: Current, asked: tuple[Family, int]) -> list[str]:
    """What the API says otherwise of all that is kept of the object."""
    current = answer.object
    if current.uid != held.uid:
        return [f"another one has that name: uid {uid_text(current.uid)}, here {uid_text(held.uid)}"]
    if answer.over:
        return [f"phase {answer.phase}: a pod that has ended owns no address"]
    differences = []
    family, address = asked
    if address not in (current.ipv4 if family == 4 else current.ipv6):
        differences.append(f"{_text(family, address)} is not among its addresses ({_addresses(current)})")
    elif (held.ipv4, held.ipv6) != (current.ipv4, current.ipv6):
        differences.append(f"addresses {_addresses(current)}, here {_addresses(held)}")
    before, now = _kept(held), _kept(current)
    return differences + [
        f"{name} {now[name] or 'none'}, here {before[name] or 'none'}"
        for name in before
        if now[name] != before[name]
    ]


def _kept(one: KubernetesObject) -> dict[str, str]:
    """What is kept of it beside its identity and addresses, as people read it."""
    if isinstance(one, Pod):
        ports = [f"{'tcp' if port >> 16 == TCP else 'udp'} {port & 0xFFFF}" for port in one.host_ports]
        return {
            "node": one.node,
            "app": one.app,
            "instance id": one.instance_id,
            "cell": one.cell,
            "started": _time(one.started),
            "ports": " and ".join(ports),
        }
    if isinstance(one, Node):
        networks = [f"{_text(net.family, net.address)}/{net.prefix_length}" for net in one.pod_networks]
        return {"zone": one.zone, "cell": one.cell, "pod networks": " and ".join(networks)}
    return {}


def _shown(cluster: CheckedCluster, one: KubernetesObject) -> dict[str, str]:
    return {
        "cluster": cluster.name,
        "kind": _kind(one).removesuffix("s"),
        "namespace": _namespace(one),
        "name": one.name,
    }


def _identity(cluster: CheckedCluster, one: KubernetesObject) -> tuple[str, Kind, int | str, str]:
    return cluster.name, _kind(one), one.uid, one.name


def _kind(one: KubernetesObject) -> Kind:
    return "pods" if isinstance(one, Pod) else "nodes" if isinstance(one, Node) else "services"


def _namespace(one: KubernetesObject) -> str:
    return "" if isinstance(one, Node) else one.namespace


def _addresses(one: KubernetesObject) -> str:
    texts = [_text(4, address) for address in one.ipv4] + [_text(6, address) for address in one.ipv6]
    return " and ".join(texts) or "none"


def _text(family: Family, address: int) -> str:
    return str(IPv4Address(address) if family == 4 else IPv6Address(address))


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if seconds else ""
