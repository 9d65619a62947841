"""A cluster's traffic in a table of ours, for the page: 18 apps in three zones, and what they use outside.

What is put in is known: `World.sums` has the bytes of each path, each counted once.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

from kubenetmon.clickhouse.schema import SchemaOptions, apply
from kubenetmon.clickhouse.sinks import Sink

NODES = tuple((f"node-{letter}{number}", f"us-west-2{letter}") for letter in "abc" for number in (1, 2))
APPS = {
    # app: (namespace, replicas)
    "frontend": ("shop", 4), "catalog": ("shop", 3), "checkout": ("shop", 3), "cart": ("shop", 2),
    "payments": ("shop", 2), "search": ("shop", 3), "recommendations": ("shop", 2), "ads": ("shop", 1),
    "email": ("shop", 1), "shipping": ("shop", 2), "currency": ("shop", 1), "postgres": ("data", 3),
    "kafka": ("data", 3), "backup": ("data", 1), "prometheus": ("observe", 2), "loki": ("observe", 2),
    "ingress": ("edge", 3), "legacy-billing-importer-nightly": ("finance", 1),
}  # fmt: skip
CALLS = (
    # client, server, bytes there and back a minute
    ("ingress", "frontend", 900_000, 14_000_000), ("frontend", "catalog", 300_000, 6_000_000),
    ("frontend", "cart", 90_000, 400_000), ("frontend", "search", 200_000, 2_500_000),
    ("frontend", "recommendations", 100_000, 900_000), ("frontend", "ads", 60_000, 300_000),
    ("checkout", "payments", 70_000, 60_000), ("checkout", "shipping", 40_000, 30_000),
    ("checkout", "email", 80_000, 9_000), ("checkout", "currency", 9_000, 12_000),
    ("catalog", "postgres", 500_000, 5_000_000), ("cart", "postgres", 300_000, 500_000),
    ("payments", "postgres", 50_000, 80_000), ("search", "postgres", 200_000, 1_500_000),
    ("shipping", "kafka", 900_000, 40_000), ("email", "kafka", 20_000, 300_000),
    ("postgres", "postgres", 2_000_000, 90_000), ("kafka", "kafka", 4_000_000, 200_000),
    ("prometheus", "frontend", 4_000, 90_000), ("frontend", "loki", 700_000, 9_000),
    ("legacy-billing-importer-nightly", "postgres", 90_000, 800_000),
)  # fmt: skip
OUTSIDE = (
    # app, class, cloud, region, service, address, bytes out and in a minute
    ("ingress", "PUBLIC_INTERNET", "", "", "", "203.0.113.9", 12_000_000, 900_000),
    ("backup", "INTRA_REGION", "aws", "us-west-2", "s3", "198.51.100.7", 9_000_000, 60_000),
    ("loki", "INTRA_REGION", "aws", "us-west-2", "s3", "198.51.100.8", 1_500_000, 400_000),
    ("payments", "PUBLIC_INTERNET", "", "", "", "203.0.113.77", 40_000, 60_000),
    ("catalog", "INTER_REGION", "aws", "eu-west-1", "ec2", "198.51.100.90", 900_000, 300_000),
    ("search", "PUBLIC_INTERNET", "gcp", "us-central1", "googlecloud", "192.0.2.7", 80_000, 300_000),
    ("legacy-billing-importer-nightly", "UNKNOWN", "", "", "", "192.0.2.200", 9_000, 90_000),
    ("email", "PARTNER", "", "", "mailhouse", "192.0.2.66", 90_000, 4_000),
)  # fmt: skip


@dataclass
class World:
    """Where every pod is, and what was put in."""

    pods: dict[str, list[tuple[str, str, str]]] = field(default_factory=dict)
    sums: Counter[str] = field(default_factory=Counter)
    rows: list[str] = field(default_factory=list)


_OPENED = "{'LOCAL_INITIATED': true}"
_COLUMNS = (
    "date, intervalStartTime, intervalSeconds, environment, proto, direction, connectionClass, "
    "connectionFlags, localCloud, localRegion, localNode, localAvailabilityZone, localNamespace, localApp, "
    "localPod, localPort, remoteCloud, remoteRegion, remoteCloudService, remoteNode, "
    "remoteAvailabilityZone, remoteNamespace, remoteApp, remotePod, remotePort, remoteIPv4, bytes, packets"
)


async def fill(
    sink: Sink, start: int, minutes: int, *, every: int = 1, seed: int = 7, ipv6: bool = True
) -> World:
    """Make a table that keeps rows for ever; put in `minutes` minutes from `start` (Unix seconds)."""
    await apply(sink, SchemaOptions(ipv6=ipv6, ttl_days=0))
    chance, world = random.Random(seed), World()
    for app, (_, replicas) in APPS.items():
        world.pods[app] = [
            (f"{app}-{chance.randrange(16**5):05x}-{number}", *NODES[chance.randrange(len(NODES))])
            for number in range(replicas)
        ]
    for minute in range(0, minutes, every):
        at = (start - start % 60) + 60 * minute
        busy = 0.5 + 0.5 * abs(12 - (at // 3600) % 24) / 12
        for client, server, there, back in CALLS:
            _call(world, chance, at, busy, client, server, there, back)
        for app, *rest in OUTSIDE:
            _outside(world, chance, at, busy, app, *rest)
        if len(world.rows) > 20_000 or minute + every >= minutes:
            values, world.rows = world.rows, []
            await sink.query(f"INSERT INTO default.network_flows_0 ({_COLUMNS}) VALUES {', '.join(values)}")
    return world


def _amount(chance: random.Random, busy: float, mean: int) -> int:
    return int(mean * busy * chance.uniform(0.4, 1.6))


def _call(
    world: World, chance: random.Random, at: int, busy: float, client: str, server: str, there: int, back: int
) -> None:
    one = chance.choice(world.pods[client])
    # The first replica takes more than its share of what frontend asks, as with connections kept for long.
    others = [pod for pod in world.pods[server] if pod != one] or world.pods[server]
    two = others[0] if client == "frontend" and chance.random() < 0.6 else chance.choice(others)
    sent, received = _amount(chance, busy, there), _amount(chance, busy, back)
    path = "same-zone" if one[2] == two[2] else "cross-zone"
    world.sums[path] += sent + received
    port = chance.randrange(32768, 60999)
    ends = ((client, one, port), (server, two, 8080))
    for (app, mine, my_port), (peer, other, other_port), flags, out, into in (
        (ends[0], ends[1], _OPENED, sent, received),
        (ends[1], ends[0], "{}", received, sent),
    ):
        if mine[1] == other[1] and mine is two:
            continue  # seen once, by who opened
        remote = (
            "aws",
            "us-west-2",
            "",
            other[1],
            other[2],
            APPS[peer][0],
            peer,
            other[0],
            other_port,
            "10.0.0.1",
        )
        _rows(world, at, "INTRA_VPC", flags, app, mine, my_port, remote, out, into)


def _outside(
    world: World, chance: random.Random, at: int, busy: float, app: str, path: str, cloud: str, region: str,
    service: str, address: str, there: int, back: int,
) -> None:  # fmt: skip
    sent, received = _amount(chance, busy, there), _amount(chance, busy, back)
    world.sums[path] += sent + received
    remote = (cloud, region, service, "", "", "", "", "", 443, address)
    mine = chance.choice(world.pods[app])
    port = chance.randrange(32768, 60999)
    _rows(world, at, path, _OPENED, app, mine, port, remote, sent, received)


def _rows(
    world: World, at: int, path: str, flags: str, app: str, mine: tuple[str, str, str], port: int,
    remote: tuple[object, ...], out: int, into: int,
) -> None:  # fmt: skip
    pod, node, zone = mine
    local = f"'aws', 'us-west-2', '{node}', '{zone}', '{APPS[app][0]}', '{app}', '{pod}', {port}"
    other = ", ".join(str(value) if isinstance(value, int) else f"'{value}'" for value in remote)
    day = datetime.fromtimestamp(at, UTC).date()
    for direction, amount in (("out", out), ("in", into)):
        world.rows.append(
            f"('{day}', {at}, 60, 'production', 'tcp', '{direction}', '{path}', {flags}, {local}, "
            f"{other}, {amount}, {amount // 1000 + 1})"
        )
