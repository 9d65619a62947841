"""What the transfers cost: each line tied to a price entry, and the month projected.

Contract: every byte of `transfers` is charged at the end that pays for it: what goes `out` to its sender,
what comes `in` to its receiver, each only where that end is ours; what processes traffic (NAT gateways, load
balancers) once a byte. Bytes without a price are a line of their own, never silently free. Monthly tiers are
filled by all traffic of the month, whatever is filtered, and their mean price is every line's. Sums are exact
fractions; only what is shown is rounded.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.report.answers import Answer, Column
from kubenetmon.report.flows import SIDE_COLUMNS, Flows, Source, Span
from kubenetmon.report.prices import Price, PriceList, Transfer
from kubenetmon.report.questions import OBSERVATION
from kubenetmon.report.scope import Scope, moment, month_start, next_month
from kubenetmon.report.statements import end_filter
from kubenetmon.report.text import size

NO_PRICE = Price("", "", "", "", (), "", 1, "", "")
PATH_OF_TRANSFER = (
    "multiIf(connectionClass = 'INTRA_VPC', multiIf("
    "sourceRegion != '' AND destinationRegion != '' AND sourceRegion != destinationRegion, 'inter-region', "
    "sourceAvailabilityZone = '' OR destinationAvailabilityZone = '', 'unknown-zone', "
    "sourceAvailabilityZone = destinationAvailabilityZone, 'same-zone', 'cross-zone'), "
    "connectionClass = 'INTRA_REGION', 'region-service', connectionClass = 'INTER_REGION', 'inter-region', "
    "connectionClass = 'PUBLIC_INTERNET', 'internet', "
    "connectionClass IN ('', 'UNKNOWN'), 'unknown', concat('class:', connectionClass))"
)
_COLUMNS = (
    Column("path"),
    Column("entry", title="price entry"),
    Column("bytes", "bytes"),
    Column("price", "price", "mean per unit"),
    Column("cost", "money"),
    Column("date", wide=True),
    Column("source", wide=True),
)


@dataclass(frozen=True, slots=True)
class Line:
    """Bytes that one key moved in a month over a path, one way. `matches`: its end matches the filters;
    `own`: this is the end that the bytes are counted at, which they have one of."""

    month: int
    key: str
    matches: bool
    transfer: Transfer
    way: str
    own: bool
    bytes: int


@dataclass(frozen=True, slots=True)
class Charge:
    """A sum of lines under one price entry (`NO_PRICE`: none)."""

    key: str
    path: str
    price: Price
    bytes: int
    cost: Fraction


def statement(flows: Flows, scope: Scope, by: str) -> str:
    """Bytes by month, key of the end that pays, path, and what else a price depends on."""
    keys = {
        "workload": ("concat({0}Namespace, if({0}Namespace = '', '', '/'), if({0}App = '', {0}Pod, {0}App))"),
        "path": "''",
    }
    key = keys.get(by, f"{{0}}{SIDE_COLUMNS.get(by, 'App')}")
    pays = {
        way: {
            "key": key.format(end),
            "matches": end_filter(scope, end) or "1",
            "region": f"{end}Region",
            "other": f"{other}Region",
            "cloud": f"{end}Cloud",
        }
        for way, end, other in (("out", "source", "destination"), ("in", "destination", "source"))
    }
    chosen = ", ".join(
        f"if(way = 'out', {pays['out'][name]}, {pays['in'][name]}) AS {alias}"
        for name, alias in (
            ("matches", "matching"),
            ("cloud", "cloud"),
            ("region", "region"),
            ("other", "other_region"),
        )
    )
    name = f"if(matching, if(way = 'out', {pays['out']['key']}, {pays['in']['key']}), '')"
    return flows.define() + (
        "SELECT toUnixTimestamp(toDateTime(toStartOfMonth(intervalStartTime, 'UTC'), 'UTC')) AS month, way, "
        "(way = 'out') = (direction = 'out') AS own, "
        f"{chosen}, {name} AS name, {PATH_OF_TRANSFER} AS path, remoteCloudService AS service, "
        "toJSONString(arraySort(arrayFilter(flag -> connectionFlags[flag] AND flag != 'LOCAL_INITIATED', "
        "mapKeys(connectionFlags)))) AS flags, sum(bytes) AS total\n"
        f"FROM (\n{flows.transfers('zone', 'region', 'cloud', 'app', 'pod', 'namespace', 'node')}\n)\n"
        "ARRAY JOIN ['out', 'in'] AS way\n"
        # What is not ours does not pay on our bill.
        "WHERE connectionClass = 'INTRA_VPC' OR own\n"
        "GROUP BY month, way, own, matching, cloud, region, other_region, name, path, service, flags"
    )


async def lines(sink: Sink, source: Source, scope: Scope, by: str) -> list[Line]:
    """What was moved in the scope's span. Raises what the sink raises."""
    rows = await sink.query(statement(Flows(source, Span.of(scope.since, scope.until)), scope, by))
    return [
        Line(
            int(month),
            str(name),
            bool(matches),
            Transfer(cloud, region, other, path, service, tuple(json.loads(flags))),
            way,
            bool(own),
            int(total),
        )
        for month, way, own, matches, cloud, region, other, name, path, service, flags, total in rows
    ]


class Bill:
    """Lines priced. `before` are lines of the months' beginnings, which fill tiers and cost nothing here."""

    def __init__(self, prices: PriceList, found: Sequence[Line], before: Sequence[Line] = ()) -> None:
        self._find = functools.lru_cache(maxsize=None)(prices.of)
        self._moved = self._by_entry(found)
        self._before = self._by_entry(before)
        self._found = found

    def charges(self) -> list[Charge]:
        """By key, path and entry, of the lines that match the filters; the costliest first."""
        summed: dict[tuple[str, str, Price], tuple[int, Fraction]] = {}
        for line in self._found:
            if not line.matches:
                continue
            for price in self._of(line) or [NO_PRICE] * line.own:
                amount, cost = summed.get((line.key, line.transfer.path, price), (0, Fraction(0)))
                share = self._mean(price, line.month) * line.bytes if price is not NO_PRICE else Fraction(0)
                summed[line.key, line.transfer.path, price] = (amount + line.bytes, cost + share)
        charges = [Charge(*where, amount, cost) for where, (amount, cost) in summed.items()]
        return sorted(charges, key=lambda one: (-one.cost, -one.bytes, one.key, one.path, one.price.id))

    def total(self) -> Fraction:
        """Dollars for all lines, whatever the filters."""
        return sum((price.cost(*self._amounts(price, month)) for price, month in self._moved), Fraction(0))

    def projected(self, month: int, factor: Fraction) -> Fraction:
        """Dollars for a month in which so many times as much is moved."""
        moved = [(price, amount) for (price, when), amount in self._moved.items() if when == month]
        return sum((price.cost(int(amount * factor)) for price, amount in moved), Fraction(0))

    def explained(self) -> list[str]:
        """The arithmetic of each entry and month."""
        told = []
        for price, month in sorted(self._moved, key=lambda one: (one[1], one[0].id)):
            amount, before = self._amounts(price, month)
            parts = " + ".join(
                f"{decimal(units)} {price.unit} x ${decimal(each)}"
                for units, each in price.parts(amount, before)
            )
            after = f" after {before:,} bytes earlier in the month" if before else ""
            told.append(
                f"{_month(month)} {price.id}: {amount:,} bytes{after} / {price.unit_bytes:,} = {parts} "
                f"= ${decimal(price.cost(amount, before))}"
            )
        return told

    def _amounts(self, price: Price, month: int) -> tuple[int, int]:
        return self._moved[price, month], self._before.get((price, month), 0)

    def _mean(self, price: Price, month: int) -> Fraction:
        """Dollars a byte, over all that moved in the month's part that is asked about."""
        amount, before = self._amounts(price, month)
        return price.cost(amount, before) / amount if amount else Fraction(0)

    def _of(self, line: Line) -> list[Price]:
        found = self._find(line.transfer, line.way)
        return found if line.own else [one for one in found if one.path != "processing"]

    def _by_entry(self, found: Sequence[Line]) -> dict[tuple[Price, int], int]:
        summed: dict[tuple[Price, int], int] = {}
        for line in found:
            for price in self._of(line):
                summed[price, line.month] = summed.get((price, line.month), 0) + line.bytes
        return summed


async def cost(
    sink: Sink, source: Source, scope: Scope, by: str, prices: PriceList, *, explain: bool = False
) -> Answer:
    """The priced answer. Raises what the sink raises."""
    found = await lines(sink, source, scope, by)
    before = await _earlier(sink, source, scope, month_start(scope.since), scope.since)
    bill = Bill(prices, found, before)
    charges = bill.charges()
    rows = [_row(charge, by) for charge in charges]
    shown = rows[: scope.limit] if scope.limit else rows
    total = sum((charge.cost for charge in charges), Fraction(0))
    month_bill, month_text = await _month_to_date(sink, source, scope, found, prices)
    summary = {"total": decimal(total), **month_text}
    notes = [
        f"Total: {_dollars(total)}"
        + ("." if total == bill.total() else f", of {_dollars(bill.total())} for all traffic.")
    ]
    notes.append(
        f"{_month(month_start(scope.until - 1))} to date: {_dollars(month_bill)}; projected for the month: "
        f"{_dollars(Fraction(month_text['projected']))} (all traffic, at the pace so far)."
    )
    unpriced = sum(charge.bytes for charge in charges if charge.price is NO_PRICE)
    if unpriced:
        notes.append(f"{size(unpriced)} have no price (path unknown, or no entry for that cloud).")
    if len(shown) < len(rows):
        notes.append(f"These are the first {len(shown)} of {len(rows)} rows; --limit 0 shows all.")
    if explain:
        notes += bill.explained()
    used = {charge.price.id: charge.price for charge in charges if charge.price is not NO_PRICE}
    notes.append(
        f"Prices: {', '.join(prices.editions)}; list prices unless you gave your own (--prices FILE)."
    )
    notes += [_told(price) for _, price in sorted(used.items())]
    notes.append(OBSERVATION)
    columns = (Column("name", title=by), *_COLUMNS) if by != "path" else _COLUMNS
    sql = statement(Flows(source, Span.of(scope.since, scope.until)), scope, by)
    return Answer("cost", "Cost", columns, shown, scope.since, scope.until, tuple(notes), sql, summary)


async def _month_to_date(
    sink: Sink, source: Source, scope: Scope, found: Sequence[Line], prices: PriceList
) -> tuple[Fraction, dict[str, str]]:
    begin = month_start(scope.until - 1)
    if scope.since != begin:
        found = await _earlier(sink, source, scope, begin, scope.until)
    bill = Bill(prices, found)
    first = await sink.query(
        f"SELECT toUnixTimestamp(min(intervalStartTime)), count() FROM {source.name} "
        f"WHERE {Span.of(begin, scope.until).condition()}"
    )
    metered_from = max(begin, int(first[0][0])) if first and int(first[0][1]) else begin
    end = next_month(begin)
    rest = Fraction(end - scope.until, max(1, scope.until - metered_from))
    spent = bill.total()
    projected = bill.projected(begin, 1 + rest) if rest > 0 else spent
    return spent, {"month_to_date": decimal(spent), "projected": decimal(projected)}


async def _earlier(sink: Sink, source: Source, scope: Scope, begin: int, end: int) -> list[Line]:
    """What all traffic moved in a span, by path only."""
    if begin >= end:
        return []
    whole = dataclasses.replace(
        scope, since=begin, until=end, namespace="", app="", node="", zone="", limit=0
    )
    return await lines(sink, source, whole, "path")


def _row(charge: Charge, by: str) -> tuple[object, ...]:
    price = charge.price
    mean = (
        ""
        if price is NO_PRICE or not charge.bytes
        else decimal(charge.cost / Fraction(charge.bytes, price.unit_bytes), 6)
    )
    row = (
        charge.path,
        price.id,
        charge.bytes,
        mean,
        None if price is NO_PRICE else decimal(charge.cost),
        price.date,
        price.source,
    )
    return row if by == "path" else (charge.key, *row)


def _told(price: Price) -> str:
    tiers = ", then ".join(
        f"${decimal(tier.price)}" + (f" up to {decimal(tier.up_to)} {price.unit}" if tier.up_to else "")
        for tier in price.tiers
    )
    note = f"; {price.note}" if price.note else ""
    checked = f"; compared with: {price.checked}" if price.checked else ""
    return f"  {price.id}: {tiers} a {price.unit} ({price.date}, {price.source}{checked}{note})"


def decimal(value: Fraction, digits: int = 9) -> str:
    """Decimal text, rounded to so many digits behind the point, without trailing zeros."""
    scaled = round(value * 10**digits)
    return format(Decimal(scaled).scaleb(-digits).normalize(), "f") if scaled else "0"


def _dollars(value: Fraction) -> str:
    return f"${float(value):,.2f}"


def _month(at: int) -> str:
    return moment(at)[:7]
