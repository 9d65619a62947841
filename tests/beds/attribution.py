"""The 12,000 attribution cases of the shared data, and batches made by hand, as tests feed them."""

from __future__ import annotations

import ipaddress
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kubenetmon.clickhouse.block import Coded, Column, Constant, FlagMaps, Values
from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.model import BatchIdentity, FlowBatch, FlowRecords, empty_records
from kubenetmon.server.inventory import Inventory, InventoryConfig
from kubenetmon.server.kubernetes_objects import ObjectDecoder
from kubenetmon.server.ranges import PROVIDERS, RangeTable
from kubenetmon.server.ranges.parse import parse

CASE_TIME = 1_764_000_000
"""The observations' Unix second; the cases carry none."""

CASE_CLOUDS = ("aws", "gcp", "azure")


class Tuple(NamedTuple):
    """One direction of a flow, as the cases write it."""

    source: str
    source_port: int
    destination: str
    destination_port: int
    packets: int
    bytes: int


class Flow(NamedTuple):
    """One record."""

    protocol: int
    original: Tuple
    reply: Tuple

    @property
    def family(self) -> int:
        return ipaddress.ip_address(self.original.source).version


@dataclass(frozen=True)
class Case:
    """One flow, who reported it, and what the original says of it."""

    node: str
    flow: Flow
    expect: str | dict[str, Any]


@dataclass(frozen=True)
class CaseSet:
    """One cloud's cases."""

    cloud: str
    region: str
    ignore_udp: bool
    cluster_json: bytes
    cases: Sequence[Case]

    def by_node(self) -> dict[str, list[Case]]:
        """The cases by reporting node, in their order."""
        found: dict[str, list[Case]] = defaultdict(list)
        for case in self.cases:
            found[case.node].append(case)
        return found


def load_cases(shared_data: Path, cloud: str) -> CaseSet:
    """One cloud's cases from the shared data."""
    directory = shared_data / "attribution-cases" / cloud
    settings = json.loads((directory / "settings.json").read_text())
    cases = []
    for line in (directory / "cases.jsonl").read_text().splitlines():
        case = json.loads(line)
        flow = Flow(case["proto"], Tuple(*case["original"]), Tuple(*case["reply"]))
        cases.append(Case(case["node"], flow, case["expect"]))
    return CaseSet(
        settings["cloud"],
        settings["region"],
        settings["ignore_udp"],
        (directory / "cluster.json").read_bytes(),
        cases,
    )


def compared_columns(cases: CaseSet) -> list[str]:
    """The table's columns that the cases speak of, but for the counters."""
    first = next(case.expect for case in cases.cases if not isinstance(case.expect, str))
    return sorted(first.keys() - {"bytesIn", "bytesOut", "packetsIn", "packetsOut"})


def expected_sums(cases: CaseSet) -> dict[tuple[Any, ...], tuple[int, int]]:
    """(`compared_columns`…, direction) → (bytes, packets), as the original would store all the cases."""
    names = compared_columns(cases)
    expected: dict[tuple[Any, ...], tuple[int, int]] = {}
    for case in cases.cases:
        if isinstance(case.expect, str):
            continue
        for direction, suffix in (("out", "Out"), ("in", "In")):
            key = (*(case.expect[name] for name in names), direction)
            before = expected.get(key, (0, 0))
            expected[key] = (
                before[0] + case.expect[f"bytes{suffix}"],
                before[1] + case.expect[f"packets{suffix}"],
            )
    return expected


async def stored_sums(sink: Sink, cases: CaseSet) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """What the table holds, in the form of `expected_sums`."""
    names = compared_columns(cases)
    shown = ", ".join(f"toString({name})" if name.endswith("IPv4") else name for name in names)
    rows = await sink.query(
        f"SELECT {shown}, direction, sum(bytes), sum(packets) FROM default.network_flows_0 GROUP BY ALL"
    )
    return {row[:-2]: row[-2:] for row in rows}


def inventory_of(cluster_json: bytes, config: InventoryConfig | None = None) -> Inventory:
    """The inventory of what `kubectl get -o json` wrote, an hour before `CASE_TIME`."""
    config = config or InventoryConfig()
    inventory = Inventory(config)
    pages = ObjectDecoder(config).dump(cluster_json)
    for node in pages["nodes"].objects:
        inventory.put_node(node)  # type: ignore[arg-type]
    for pod in pages["pods"].objects:
        inventory.put_pod(pod, CASE_TIME - 3600)  # type: ignore[arg-type]
    return inventory


def load_ranges(directory: Path) -> RangeTable:
    """The table of the ranges files in a directory."""
    return RangeTable(
        parse(provider, path.read_bytes(), str(path))
        for provider in PROVIDERS
        if (path := directory / f"{provider}.json").exists()
    )


def records_of(flows: Sequence[Flow], family: int) -> FlowRecords:
    """Flows of one family as arrays."""
    if not flows:
        return empty_records(4 if family == 4 else 6)

    def addresses(texts: Iterable[str]) -> Any:
        numbers = [int(ipaddress.ip_address(text)) for text in texts]
        if family == 4:
            return np.array(numbers, np.uint32)
        return np.array([(number >> 64, number & (2**64 - 1)) for number in numbers], np.uint64)

    original, reply = [flow.original for flow in flows], [flow.reply for flow in flows]
    return FlowRecords(
        4 if family == 4 else 6,
        np.array([flow.protocol for flow in flows], np.uint8),
        *(addresses(one.source if end == 0 else one.destination for one in side)
          for side in (original, reply) for end in (0, 1)),
        *(np.array([one.source_port if end == 0 else one.destination_port for one in side], np.uint16)
          for side in (original, reply) for end in (0, 1)),
        *(np.array([one.packets if unit == 0 else one.bytes for one in side], np.uint64)
          for side in (original, reply) for unit in (0, 1)),
    )  # fmt: skip


def batch_of(flows: Sequence[Flow], node: str, start: int = CASE_TIME, seconds: int = 60) -> FlowBatch:
    """One node's batch of flows of both families, each family in its order."""
    return FlowBatch(
        BatchIdentity(node, bytes(16), 1),
        start,
        start + seconds,
        *(records_of([flow for flow in flows if flow.family == family], family) for family in (4, 6)),
    )


def plain_rows(count: int, columns: Mapping[str, Column]) -> Iterator[dict[str, Any]]:
    """Columns as one dictionary a row: strings, integers, and addresses as text."""
    values: dict[str, list[Any]] = {}
    for name, column in columns.items():
        if isinstance(column, Constant):
            values[name] = [column.value] * count
        elif isinstance(column, Values):
            values[name] = column.array.tolist()
        else:
            assert isinstance(column, Coded | FlagMaps)
            values[name] = [column.dictionary[code] for code in column.codes.tolist()]
        if name.endswith("IPv4"):
            values[name] = [str(ipaddress.IPv4Address(number)) for number in values[name]]
        elif name.endswith("IPv6"):
            values[name] = [str(ipaddress.IPv6Address(bytes(octets))) for octets in values[name]]
        assert len(values[name]) == count, name
    for index in range(count):
        yield {name: column[index] for name, column in values.items()}
