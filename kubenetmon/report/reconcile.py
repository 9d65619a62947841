"""A bill's line items beside what was metered, item by item.

Contract: `read_bill` reads an AWS Cost and Usage Report (CSV, gzip or not, either spelling of its columns) or
a CSV with the columns item, usage and, where known, cost, start and end; and raises `ConfigurationError` that
names file and line. `reconcile` compares; the items are those that price entries name (`item`, `bill`).

Headers that conntrack did not see: with segmentation offload one large packet is counted once, with one
header, and becomes many on the wire. What they add is estimated row by row: payload over what a packet of the
path's MTU carries, less the packets that were counted, times a header's bytes (IPv4 20 or IPv6 40, TCP 32
with timestamps, as Linux sends). It is a lower bound: within a row small packets hide large ones.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from pathlib import Path

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.errors import ConfigurationError
from kubenetmon.report.answers import Answer, Column
from kubenetmon.report.bill import charged, decimal
from kubenetmon.report.cost import FLAGS, PATH_OF_TRANSFER, bill_of
from kubenetmon.report.flows import Flows, Source, Span
from kubenetmon.report.prices import Price, PriceList, Transfer
from kubenetmon.report.questions import OBSERVATION
from kubenetmon.report.scope import Scope

_USAGE_TYPE = ("lineitem/usagetype", "line_item_usage_type", "usage_type", "item", "sku", "meter")
_USAGE = ("lineitem/usageamount", "line_item_usage_amount", "usage", "usage_gb", "quantity")
_COST = ("lineitem/unblendedcost", "line_item_unblended_cost", "cost", "amount")
_START = ("lineitem/usagestartdate", "line_item_usage_start_date", "start")
_KIND = ("lineitem/lineitemtype", "line_item_line_item_type")
_USED = frozenset(("Usage", "DiscountedUsage", "SavingsPlanCoveredUsage", ""))
_MAX_FIELD = 1 << 20
_COLUMNS = (
    Column("item"),
    Column("metered", "bytes"),
    Column("headers", "bytes", "hidden headers (estimate)"),
    Column("billed", "bytes"),
    Column("difference", "bytes"),
    Column("ratio", "ratio", "billed / metered"),
    Column("metered_cost", "money", "metered at list"),
    Column("billed_cost", "money", "billed"),
)


@dataclass(frozen=True, slots=True)
class BillLine:
    """One line: its usage in units of the item (GB), its cost in dollars (None: not said), its start in Unix
    seconds (None: not said)."""

    usage_type: str
    usage: Fraction
    cost: Fraction | None
    start: int | None


def read_bill(path: Path) -> Iterator[BillLine]:
    """The lines of use. Raises `ConfigurationError`."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with path.open("rb") as file:
            plain = gzip.GzipFile(fileobj=file) if packed else file
            with io.TextIOWrapper(plain, "utf-8", newline="") as text:
                yield from _parsed(text, path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from None


def _parsed(file: Iterable[str], path: Path) -> Iterator[BillLine]:
    before = csv.field_size_limit(_MAX_FIELD)
    try:
        reader = csv.reader(file)
        heads = [head.strip().lower().lstrip("\ufeff") for head in next(reader, [])]
        at = {
            name: next((heads.index(one) for one in spellings if one in heads), None)
            for name, spellings in (
                ("type", _USAGE_TYPE),
                ("usage", _USAGE),
                ("cost", _COST),
                ("start", _START),
                ("kind", _KIND),
            )
        }
        if at["type"] is None or at["usage"] is None:
            raise ConfigurationError(
                f"{path} is neither a Cost and Usage Report nor a CSV with the columns item, usage, cost"
            )
        for row in reader:
            if not row:
                continue
            cells = {name: row[place].strip() if place is not None else "" for name, place in at.items()}
            if cells["kind"] not in _USED:
                continue
            usage = _number(cells["usage"], path, reader.line_num)
            cost = _number(cells["cost"], path, reader.line_num) if cells["cost"] else None
            yield BillLine(cells["type"], usage or Fraction(0), cost, _start(cells["start"], path, reader))
    except IndexError:
        raise ConfigurationError(
            f"{path}, line {reader.line_num}: fewer columns than the first line"
        ) from None
    except csv.Error as error:
        raise ConfigurationError(f"{path}, line {reader.line_num}: {error}") from None
    finally:
        csv.field_size_limit(before)


def _number(text: str, path: Path, line: int) -> Fraction:
    try:
        value = Decimal(text or "0")
        if not value.is_finite() or abs(value.adjusted()) > 40:
            raise InvalidOperation
    except InvalidOperation:
        raise ConfigurationError(f"{path}, line {line}: {text[:40]!r} is not a number") from None
    return Fraction(value)


def _start(text: str, path: Path, reader: object) -> int | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text.replace(" UTC", "").replace("Z", "+00:00"))
    except ValueError:
        line = getattr(reader, "line_num", 0)
        raise ConfigurationError(f"{path}, line {line}: {text[:40]!r} is not a time") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


async def reconcile(
    sink: Sink,
    source: Source,
    scope: Scope,
    prices: PriceList,
    bill: Iterable[BillLine],
    mtu: int = 0,
    *,
    explain: bool = False,
) -> Answer:
    """Metered against billed, for each item that occurs on either side. `mtu` stands in for the entries',
    `explain` shows the arithmetic of what is metered. The scope has no filters: a bill cannot be filtered.

    The headers are worked out from rows, not rollups. Raises what the sink raises.
    """
    priced = await bill_of(sink, source, scope, "path", prices)
    clouds = {line.transfer.cloud for line in priced.lines}
    items = {
        name: [one for one in entries if one.cloud in clouds] for name, entries in prices.items().items()
    }
    items = {name: entries for name, entries in items.items() if entries}
    billed, others, outside = _billed(bill, items, scope)
    moved: dict[str, int] = {}
    costs: dict[str, Fraction] = {}
    for charge in priced.charges():
        if charge.price.item:
            moved[charge.price.item] = moved.get(charge.price.item, 0) + charge.bytes
            costs[charge.price.item] = costs.get(charge.price.item, Fraction(0)) + charge.cost
    hidden = await _hidden_headers(sink, source, scope, prices, mtu)
    rows = []
    for item in sorted(moved.keys() | billed.keys(), key=lambda one: (-moved.get(one, 0), one)):
        entries = items.get(item) or prices.items()[item]
        usage, cost = billed.get(item, (Fraction(0), None))
        metered, on_bill = moved.get(item, 0), round(usage * entries[0].unit_bytes)
        rows.append(
            (
                item,
                metered,
                hidden.get(item, 0),
                on_bill,
                on_bill - metered,
                float(Fraction(on_bill, metered)) if metered else None,
                decimal(costs.get(item, Fraction(0))),
                None if cost is None else decimal(cost),
            )
        )
    notes = [
        "Hidden headers are what segmentation offload kept conntrack from counting, at least; they are on "
        "the bill and not in metered. What no agent saw (nodes without one, host traffic, UDP where it is "
        "ignored, other services of the account) is on the bill only.",
    ]
    if outside:
        notes.append(f"{outside:,} lines of the bill lie outside of the span and were left out.")
    if others:
        names = ", ".join(sorted(others)[:8]) + (", …" if len(others) > 8 else "")
        notes.append(f"Lines that no price entry names were left out: {names}.")
    shown = rows[: scope.limit or None]
    cut = len(shown) < len(rows)
    if cut:
        notes.append(f"These are the first {len(shown)} of {len(rows)} rows; --limit 0 shows all.")
    if explain:
        notes += priced.explained()
    notes.append(OBSERVATION)
    span = (scope.since, scope.until)
    return Answer("reconcile", "Metered against billed", _COLUMNS, shown, *span, tuple(notes), cut=cut)


def _billed(
    bill: Iterable[BillLine], items: Mapping[str, Sequence[Price]], scope: Scope
) -> tuple[dict[str, tuple[Fraction, Fraction | None]], set[str], int]:
    """Usage and cost by item; the usage types that no item names; how many lines lie outside of the span."""
    summed: dict[str, tuple[Fraction, Fraction | None]] = {}
    others: set[str] = set()
    known: dict[str, str] = {}
    outside = 0
    for line in bill:
        if line.usage_type not in known:
            known[line.usage_type] = _item_of(line.usage_type, items)
        item = known[line.usage_type]
        if not item:
            others.add(line.usage_type)
            continue
        if line.start is not None and not scope.since <= line.start < scope.until:
            outside += 1
            continue
        usage, cost = summed.get(item, (Fraction(0), None))
        if line.cost is not None:
            cost = (cost or Fraction(0)) + line.cost
        summed[item] = (usage + line.usage, cost)
    return summed, others, outside


def _item_of(usage_type: str, items: Mapping[str, Sequence[Price]]) -> str:
    for item, entries in items.items():
        if usage_type == item or any(one.bill and one.bill.search(usage_type) for one in entries):
            return item
    return ""


async def _hidden_headers(
    sink: Sink, source: Source, scope: Scope, prices: PriceList, mtu: int
) -> dict[str, int]:
    """Bytes by item, estimated from rows."""
    raw = Source(source.database, source.table, source.ipv6)
    flows = Flows(raw, Span.of(scope.since, scope.until))
    header = "if(startsWith(toString(localAddress), '::ffff:'), 20, 40) + if(proto = 'tcp', 32, 8)"
    sizes = sorted({mtu or one.mtu for one in prices.entries})
    sums = ", ".join(
        f"sum(toInt64(greatest(0, ceil((bytes - packets * head) / ({size} - head)) - packets)) * head)"
        for size in sizes
    )
    rows = await sink.query(
        f"{flows.define()}SELECT way, (way = 'out') = (direction = 'out') AS own, "
        "if(way = 'out', sourceCloud, destinationCloud) AS cloud, "
        "if(way = 'out', sourceRegion, destinationRegion) AS region, "
        "if(way = 'out', destinationRegion, sourceRegion) AS other_region, "
        f"{PATH_OF_TRANSFER} AS path, remoteCloudService AS service, {FLAGS} AS flags, {sums}\n"
        f"FROM (\nSELECT *, {header} AS head FROM (\n{flows.transfers('zone', 'region', 'cloud')}\n)\n)\n"
        "ARRAY JOIN ['out', 'in'] AS way\nWHERE (connectionClass = 'INTRA_VPC' OR own) AND bytes > packets\n"
        "GROUP BY way, own, cloud, region, other_region, path, service, flags"
    )
    found: dict[str, int] = {}
    for way, own, cloud, region, other_region, path, service, flags, *estimates in rows:
        transfer = Transfer(cloud, region, other_region, path, service, tuple(json.loads(flags)))
        for price in charged(prices.of(transfer, str(way)), own=bool(own)):
            estimate = int(estimates[sizes.index(mtu or price.mtu)])
            found[price.item] = found.get(price.item, 0) + estimate
    return found
