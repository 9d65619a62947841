"""Attribution alone and the inventory alone: what one observation and one change of a pod cost."""

from __future__ import annotations

import json
import time
from pathlib import Path

import msgspec
import numpy as np

from kubenetmon.server.attributed import Peer
from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.decode import decode_batch
from kubenetmon.server.inventory import Inventory
from kubenetmon.server.ranges import PROVIDERS, RangeTable
from kubenetmon.server.ranges.parse import parse
from tests.beds.attribution import inventory_of
from tests.beds.large_ranges import large_files
from tests.bench import cluster
from tests.bench.accounting import best
from tests.bench.line import Line

_BATCHES, _RECORDS, _ROUNDS = 10, 15_000, 5
_START = 1_764_000_000
_LEAST_PREFIXES = 40_000
_CHANGES = 2_000
_BATCH_EVERY = 50
"""Changes between two snapshots: 1,000 changes and 20 batches a second."""


def measure(directory: Path) -> list[Line]:
    """Lines with the ranges files in that directory, or with made-up ones of their size."""
    ranges = RangeTable([parse(one, (directory / f"{one}.json").read_bytes(), one) for one in PROVIDERS])
    if len(ranges) < _LEAST_PREFIXES:
        ranges = RangeTable([parse(one, content, one) for one, content in large_files().items()])
    inventory = inventory_of(json.dumps(cluster.document()).encode())
    config = AttributionConfig("aws", "us-west-2", "bench")
    plain = _rate(inventory, ranges, config, [])
    peer = Peer("peer", "aws", "us-east-1", "INTER_REGION", inventory.snapshot())
    host = AttributionConfig("aws", "us-west-2", "bench", meter_host_network=True)
    loaded = _rate(inventory, ranges, host, [peer])
    each, with_snapshots = _changes()
    pods = f"{cluster.NODES * cluster.PODS_PER_NODE:,} pods"
    return [
        Line(
            f"observations attributed a CPU second, {pods}, {len(ranges):,} prefixes",
            f"{plain / 1e6:.1f} million",
            "1 million",
            "-",
            plain >= 1e6,
        ),
        Line(
            "the same with host network and a peer cluster",
            f"{loaded / 1e6:.1f} million",
            "1 million",
            "-",
            loaded >= 1e6,
        ),
        Line(
            f"inventory, CPU of one change of a pod among {pods}",
            f"{each * 1e6:.0f} us",
            "100 us",
            "-",
            each <= 100e-6,
        ),
        Line(
            f"the same with a new snapshot every {_BATCH_EVERY} changes",
            f"{with_snapshots * 1e6:.0f} us",
            "100 us",
            "-",
            with_snapshots <= 100e-6,
        ),
    ]


def _rate(inventory: Inventory, ranges: RangeTable, config: AttributionConfig, peers: list[Peer]) -> float:
    """Observations a CPU second; every byte is looked for."""
    generator = np.random.default_rng(1)
    batches = [
        decode_batch(bytes(cluster.batch(node, 1, _START, _RECORDS, generator)), _START + 60)
        for node in range(_BATCHES)
    ]
    attributor, snapshot = Attributor(config), inventory.snapshot()
    spent = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        found = [attributor.attribute(batch, snapshot, ranges, peers) for batch in batches]
        spent.append(time.process_time() - began)
        for batch, one in zip(batches, found, strict=True):
            ignored = sum(part.bytes for part in one.ignored.values())
            if one.total_bytes() + ignored != batch.total_bytes():
                raise RuntimeError("attribution has lost bytes")
    return _BATCHES * _RECORDS / best(spent)


def _changes() -> tuple[float, float]:
    """CPU seconds of one change: a pod goes, or another takes its address."""
    inventory = inventory_of(json.dumps(cluster.document()).encode())
    pods = [record.pod for record in list(inventory._pods.held.values())[:_CHANGES]]
    spent = []
    for every in (0, _BATCH_EVERY):
        now = _START + every
        began = time.process_time()
        for number, pod in enumerate(pods):
            now += 1
            if number % 2:
                inventory.remove_pod(pod.uid, now)
            else:
                successor = msgspec.structs.replace(
                    pod, uid=f"{pod.uid}-{every}", name=f"{pod.name}-{every}", created=now
                )
                inventory.put_pod(successor, now)
            if every and number % every == 0:
                inventory.snapshot()
        inventory.snapshot()
        spent.append((time.process_time() - began) / len(pods))
    return spent[0], spent[1]
