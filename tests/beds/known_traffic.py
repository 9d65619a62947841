"""Known traffic as rows of the table, and what the answers about it must be, worked out without SQL.

Contract: `World.rows` are what the agents of the nodes that report would have had stored; `World.transfers`
is every byte once, from the same flows, by the rule that the documentation gives: as the sender's node saw
it, else as the receiver's did. The original's table and ours differ in what they say of a pod that is gone.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

MINUTE = 60


@dataclass(frozen=True)
class End:
    """A pod, or someone outside of the cluster (no node). `known`: others see its labels."""

    address: str
    node: str = ""
    zone: str = ""
    pod: str = ""
    app: str = ""
    namespace: str = ""
    known: bool = True
    klass: str = "INTRA_VPC"
    service: str = ""
    cloud: str = "aws"
    region: str = "us-west-2"
    cluster: str = "main"


@dataclass(frozen=True)
class Labels:
    """What a row says of an end."""

    node: str = ""
    zone: str = ""
    pod: str = ""
    app: str = ""
    namespace: str = ""

    def named(self, key: str) -> str:
        """What answers call it by a key: a pod is `namespace/pod`."""
        return in_namespace(self, "pod") if key == "pod" else str(getattr(self, key))


def in_namespace(labels: Labels, key: str) -> str:
    """`namespace/name`, the name alone where there is no namespace."""
    name = str(getattr(labels, key))
    return f"{labels.namespace}/{name}" if name and labels.namespace else name


@dataclass(frozen=True)
class Flow:
    """One connection's bytes in one interval."""

    client: End
    server: End
    client_port: int
    server_port: int
    up: int
    down: int
    start: int
    seconds: int = MINUTE
    proto: str = "tcp"


@dataclass(frozen=True)
class Transfer:
    """Bytes one way, counted once; `opener` is 1 where the source opened, `outgoing`: the source is the local
    end of the row that counts."""

    source: Labels
    destination: Labels
    klass: str
    service: str
    opener: int
    outgoing: bool
    bytes: int
    flow: Flow

    @property
    def local(self) -> Labels:
        """The end whose node's report counts."""
        return self.source if self.outgoing else self.destination

    @property
    def remote(self) -> Labels:
        """The other one."""
        return self.destination if self.outgoing else self.source


@dataclass
class World:
    """Flows, the nodes that report, and whether the table is ours (`ours`) or the original's."""

    reporting: frozenset[str]
    ours: bool
    flows: list[Flow] = field(default_factory=list)

    def view(self, end: End, observer: str) -> Labels:
        """What a report of `observer` says of an end."""
        if not end.node:
            return Labels()
        if end.known:
            return Labels(end.node, end.zone, end.pod, end.app, end.namespace)
        # A pod that is gone: ours is local by its address on its own node; the original knows nothing.
        return Labels(end.node, end.zone) if self.ours and observer == end.node else Labels()

    def observers(self, flow: Flow) -> list[tuple[str, End, End]]:
        """(node, local, remote) of each report."""
        found = []
        gone = [end for end in (flow.client, flow.server) if end.node and not end.known]
        if gone and not self.ours:
            # The original: of two ends on a node the known one is local, and without any there is no side.
            if not flow.client.node or not flow.server.node:
                return []
            if flow.client.node == flow.server.node:
                local, remote = flow.client, flow.server
                if local in gone:
                    local, remote = remote, local
                return [(local.node, local, remote)] if local.node in self.reporting else []
        if flow.client.node in self.reporting:
            found.append((flow.client.node, flow.client, flow.server))
        if flow.server.node in self.reporting and flow.server.node != flow.client.node:
            found.append((flow.server.node, flow.server, flow.client))
        return found

    def rows(self) -> Iterator[str]:
        """Rows as SQL tuples, in the order of `COLUMNS`."""
        for flow in self.flows:
            for node, local, remote in self.observers(flow):
                opened = local is flow.client
                sent, received = (flow.up, flow.down) if opened else (flow.down, flow.up)
                ports = (flow.client_port, flow.server_port)
                for direction, amount in (("out", sent), ("in", received)):
                    if amount:
                        yield self._row(flow, node, local, remote, direction, amount, ports, opened)

    def _row(
        self,
        flow: Flow,
        node: str,
        local: End,
        remote: End,
        direction: str,
        amount: int,
        ports: tuple[int, int],
        opened: bool,
    ) -> str:
        local_port, remote_port = ports if opened else ports[::-1]
        flags = "map('LOCAL_INITIATED', true)" if self.ours and opened else "map()"
        outside = remote if not remote.node else local
        klass, service = (outside.klass, outside.service) if not remote.node else ("INTRA_VPC", "")
        values = [
            f"toDate({flow.start}, 'UTC')",
            str(flow.start),
            str(flow.seconds),
            quote(flow.proto),
            quote(klass),
            flags,
            quote(direction),
            *self._side(self.view(local, node), local, local_port),
            *self._side(self.view(remote, node), remote, remote_port),
            quote(service),
            str(amount),
            "1",
        ]
        return f"({', '.join(values)})"

    def _side(self, labels: Labels, end: End, port: int) -> list[str]:
        six = ":" in end.address
        addresses = [f"toIPv4({quote('0.0.0.0' if six else end.address)})"]
        if self.ours:
            addresses.append(f"toIPv6({quote(end.address if six else '::')})")
        texts = [
            end.cloud, end.region, end.cluster, labels.zone, labels.node, labels.namespace, labels.pod,
            labels.app,
        ]  # fmt: skip
        return [*map(quote, texts), *addresses, str(port)]

    @property
    def columns(self) -> str:
        """The columns that `rows` fill."""
        six = {side: f", {side}IPv6" if self.ours else "" for side in ("local", "remote")}
        sides = ", ".join(
            ", ".join(
                f"{side}{name}"
                for name in (
                    "Cloud",
                    "Region",
                    "Cluster",
                    "AvailabilityZone",
                    "Node",
                    "Namespace",
                    "Pod",
                    "App",
                    "IPv4",
                )
            )
            + f"{six[side]}, {side}Port"
            for side in ("local", "remote")
        )
        return (
            "date, intervalStartTime, intervalSeconds, proto, connectionClass, connectionFlags, direction, "
            f"{sides}, remoteCloudService, bytes, packets"
        )

    def insert(self, table: str) -> str:
        """The statement that stores all rows."""
        return f"INSERT INTO {table} ({self.columns}) VALUES {', '.join(self.rows())}"

    def insert_select(self, table: str) -> str:
        """The same as a statement without data of its own, as the native protocol wants it."""
        types = {"date": "Date", "intervalStartTime": "DateTime", "connectionFlags": "Map(String, Bool)"}
        types |= dict.fromkeys(("intervalSeconds", "bytes", "packets"), "UInt64")
        types |= {f"{side}Port": "UInt16" for side in ("local", "remote")}
        types |= {f"{side}IPv{n}": f"IPv{n}" for side in ("local", "remote") for n in (4, 6)}
        structure = ", ".join(f"{name} {types.get(name, 'String')}" for name in self.columns.split(", "))
        rows = ", ".join(self.rows())
        return f"INSERT INTO {table} ({self.columns}) SELECT * FROM values({quote(structure)}, {rows})"

    def transfers(self) -> Iterator[Transfer]:
        """Every byte once."""
        for flow in self.flows:
            observers = self.observers(flow)
            for source, destination, amount, opener in (
                (flow.client, flow.server, flow.up, 1),
                (flow.server, flow.client, flow.down, -1),
            ):
                if not observers or not amount:
                    continue
                at = next((one for one in observers if one[1] is source), observers[0])
                node = at[0]
                outside = next((end for end in (source, destination) if not end.node), None)
                yield Transfer(
                    self.view(source, node),
                    self.view(destination, node),
                    outside.klass if outside else "INTRA_VPC",
                    outside.service if outside else "",
                    opener,
                    at[1] is source,
                    amount,
                    flow,
                )

    def summed(self, key: Callable[[Transfer], tuple[object, ...] | None]) -> Counter[tuple[object, ...]]:
        """Bytes by key; None leaves a transfer out."""
        found: Counter[tuple[object, ...]] = Counter()
        for transfer in self.transfers():
            name = key(transfer)
            if name is not None:
                found[name] += transfer.bytes
        return found

    def ends(self, key: str, keep: Callable[[Labels], bool] = lambda _: True) -> dict[str, list[int]]:
        """By an end's label: connections opened, accepted, bytes sent, received; every end counted once that
        is to be kept."""
        opened: dict[str, set[Flow]] = defaultdict(set)
        accepted: dict[str, set[Flow]] = defaultdict(set)
        moved: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        for flow in self.flows:
            observers = self.observers(flow)
            if not observers or not flow.up + flow.down:
                continue
            for end, sent, received, into in (
                (flow.client, flow.up, flow.down, opened),
                (flow.server, flow.down, flow.up, accepted),
            ):
                if not end.node:
                    continue
                own = next((one for one in observers if one[1] is end), observers[0])
                labels = self.view(end, own[0])
                if own[1] is not end and not labels.node and not labels.pod:
                    continue
                if not keep(labels):
                    continue
                name = labels.named(key)
                into[name].add(_connection(flow))
                moved[name][0] += sent
                moved[name][1] += received
        return {
            name: [len(opened[name]), len(accepted[name]), *totals] for name, totals in sorted(moved.items())
        }


def _connection(flow: Flow) -> Flow:
    return Flow(flow.client, flow.server, flow.client_port, flow.server_port, 0, 0, 0, 0, flow.proto)


def quote(text: str) -> str:
    """A SQL literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


S3 = End("52.92.0.1", klass="INTRA_REGION", service="s3")
INTERNET = End("93.184.216.34", klass="PUBLIC_INTERNET")
ABROAD = End("3.250.0.1", klass="INTER_REGION", service="ec2")
PRIVATE = End("10.99.0.1")
NOWHERE = End("198.18.0.9", klass="UNKNOWN")
STRANGE = 'it\'s \\ "odd" `名`'


def make_world(*, ours: bool, begin: int, minutes: int, seed: int = 1, count: int = 400) -> World:
    """A world of three zones (one without a name), a node without an agent, pods that are gone, apps and pods
    of one name in two namespaces, and every path; `begin` is a minute's start."""
    dice = random.Random(seed)
    nodes = {"node-1": "zone-a", "node-2": "zone-b", "node-3": "zone-a", "node-4": "", "silent": "zone-b"}
    pods = []
    for number, (node, zone) in enumerate(nodes.items(), 1):
        for each, app in enumerate(("web", "api", "db", STRANGE), 1):
            pods.append(End(f"10.{number}.0.{each}", node, zone, f"{app}-{number}", app, f"ns-{each % 2}"))
        pods.append(End(f"10.{number}.0.9", node, zone, f"plain-{number}", "", "ns-0"))
    for address, node, name, team in (
        ("10.1.0.21", "node-1", "twin-0", "team-a"),
        ("10.2.0.21", "node-2", "twin-1", "team-a"),
        ("10.2.0.22", "node-2", "twin-0", "team-b"),
        ("10.3.0.22", "node-3", "twin-1", "team-b"),
    ):
        pods.append(End(address, node, nodes[node], name, "twin", team))
    ghost = End("10.2.0.77", "node-2", "zone-b", known=False)
    everyone = [*pods, ghost]
    if ours:
        everyone += [End(f"fd00::{n}", node, nodes[node], f"six-{n}", "six", "ns-6") for n, node in
                     enumerate(("node-1", "node-2"), 1)]  # fmt: skip
    outside = [S3, INTERNET, ABROAD, PRIVATE, NOWHERE]
    world = World(frozenset(nodes) - {"silent"}, ours)
    for number in range(count):
        client = dice.choice(everyone)
        server = dice.choice([*everyone, *outside, *outside])
        if client == server:
            continue
        if not server.node and dice.random() < 0.2:
            client, server = server, client
        world.flows += [
            Flow(
                client,
                server,
                32_768 + number,
                443 if not server.node else 8080,
                dice.randrange(1, 1 << dice.randrange(1, 40)),
                dice.choice([0, dice.randrange(1, 1 << dice.randrange(1, 40))]),
                begin + MINUTE * dice.randrange(minutes),
                dice.choice([MINUTE, MINUTE, MINUTE, 300, 5000]),
            )
            for _ in range(dice.choice([1, 1, 2]))
        ]
    return world
