"""What the transfers cost: each line tied to a price entry, and the month projected.

Contract: every byte of `transfers` is charged at the end that pays for it: what goes `out` to its sender,
what comes `in` to its receiver, each only where that end is ours; what processes traffic (NAT gateways, load
balancers) once a byte. How lines are priced is `bill`'s: all traffic of the month fills tiers and allowances,
whatever is filtered. Sums are exact fractions; only what is shown is rounded.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from fractions import Fraction

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import SYSTEM_CLOCK, Clock
from kubenetmon.report.allowances import Allowance
from kubenetmon.report.answers import Answer, Column
from kubenetmon.report.bill import NO_PRICE, Bill, Charge, Line, decimal, month_name
from kubenetmon.report.flows import Flows, Source, Span, name_of
from kubenetmon.report.prices import Price, PriceList, Transfer
from kubenetmon.report.questions import OBSERVATION
from kubenetmon.report.scope import KEYS, Scope, month_start, next_month
from kubenetmon.report.statements import end_filter
from kubenetmon.report.text import size

PATH_OF_TRANSFER = (
    "multiIf(connectionClass = 'INTRA_VPC', multiIf("
    "sourceRegion != '' AND destinationRegion != '' AND sourceRegion != destinationRegion, 'inter-region', "
    "sourceAvailabilityZone = '' OR destinationAvailabilityZone = '', 'unknown-zone', "
    "sourceAvailabilityZone = destinationAvailabilityZone, 'same-zone', 'cross-zone'), "
    "connectionClass = 'INTRA_REGION', 'region-service', connectionClass = 'INTER_REGION', 'inter-region', "
    "connectionClass = 'PUBLIC_INTERNET', 'internet', "
    "connectionClass IN ('', 'UNKNOWN'), 'unknown', concat('class:', connectionClass))"
)
FLAGS = (
    "toJSONString(arraySort(arrayFilter(flag -> connectionFlags[flag] AND flag != 'LOCAL_INITIATED', "
    "mapKeys(connectionFlags))))"
)
"""Names of networks that the connection passed, as JSON."""
_COLUMNS = (
    Column("path"),
    Column("entry", title="price entry"),
    Column("bytes", "bytes"),
    Column("price", "price", "mean per unit"),
    Column("cost", "money"),
    Column("date", wide=True),
    Column("source", wide=True),
)


def statement(flows: Flows, scope: Scope, by: str) -> str:
    """Bytes by month, key of the end that pays, path, and what else a price depends on."""
    keys = {
        "workload": ("concat({0}Namespace, if({0}Namespace = '', '', '/'), if({0}App = '', {0}Pod, {0}App))"),
        "path": "''",
    }
    key = keys[by] if by in keys else name_of(by, "{0}")
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
    return flows.define(by) + (
        "SELECT toUnixTimestamp(toDateTime(toStartOfMonth(intervalStartTime, 'UTC'), 'UTC')) AS month, way, "
        "(way = 'out') = (direction = 'out') AS own, "
        f"{chosen}, {name} AS name, {PATH_OF_TRANSFER} AS path, remoteCloudService AS service, "
        f"{FLAGS} AS flags, sum(bytes) AS total\n"
        f"FROM (\n{flows.transfers('region', 'cloud', 'cluster', *KEYS)}\n)\n"
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


async def bill_of(sink: Sink, source: Source, scope: Scope, by: str, prices: PriceList) -> Bill:
    """The scope's span priced, after what its first month moved before it. Raises what the sink raises."""
    found = await lines(sink, source, scope, by)
    before = await _earlier(sink, source, scope, month_start(scope.since), scope.since)
    return Bill(prices, found, before)


async def cost(
    sink: Sink,
    source: Source,
    scope: Scope,
    by: str,
    prices: PriceList,
    *,
    explain: bool = False,
    clock: Clock = SYSTEM_CLOCK,
) -> Answer:
    """The priced answer. What `clock` has not reached yet is not metered, but projected. Raises what the sink
    raises."""
    bill = await bill_of(sink, source, scope, by, prices)
    charges = bill.charges()
    rows = [_row(charge, by) for charge in charges]
    shown = rows[: scope.limit] if scope.limit else rows
    total = sum((charge.cost for charge in charges), Fraction(0))
    now = int(clock.time())
    reached = min(scope.until, now) if now > scope.since else scope.until
    month_bill, month_text = await _month_to_date(sink, source, scope, reached, bill, prices)
    summary = {"total": decimal(total), **month_text}
    notes = [
        f"Total: {_dollars(total)}"
        + ("." if total == bill.total() else f", of {_dollars(bill.total())} for all traffic.")
    ]
    notes.append(
        f"{month_name(month_start(reached - 1))} to date: {_dollars(month_bill)}; projected for the "
        f"month: {_dollars(Fraction(month_text['projected']))} (all traffic, at the pace so far)."
    )
    unpriced = sum(charge.bytes for charge in charges if charge.price is NO_PRICE)
    if unpriced:
        notes.append(f"{size(unpriced)} have no price (path unknown, or no entry for that cloud).")
    if len(shown) < len(rows):
        notes.append(f"These are the first {len(shown)} of {len(rows)} rows; --limit 0 shows all.")
    if explain:
        notes += [*bill.explained(), *_filtered(scope, charges)]
    used = {charge.price.id: charge.price for charge in charges if charge.price is not NO_PRICE}
    notes.append(
        f"Prices: {', '.join(prices.editions)}; list prices unless you gave your own (--prices FILE)."
    )
    notes += [_told(price) for _, price in sorted(used.items())]
    notes += [_told_allowance(one) for one in prices.allowances if any(map(one.names, used))]
    notes.append(OBSERVATION)
    columns = (Column("name", title=by), *_COLUMNS) if by != "path" else _COLUMNS
    sql = statement(Flows(source, Span.of(scope.since, scope.until)), scope, by)
    span = (scope.since, scope.until)
    cut = len(shown) < len(rows)
    return Answer("cost", "Cost", columns, shown, *span, tuple(notes), sql, summary, cut)


async def _month_to_date(
    sink: Sink, source: Source, scope: Scope, reached: int, bill: Bill, prices: PriceList
) -> tuple[Fraction, dict[str, str]]:
    """Of the month in which `reached` lies, up to which there can be rows."""
    begin = month_start(reached - 1)
    if scope.since != begin:
        bill = Bill(prices, await _earlier(sink, source, scope, begin, reached))
    first = await sink.query(
        f"SELECT toUnixTimestamp(min(intervalStartTime)), count() FROM {source.name} "
        f"WHERE {Span.of(begin, reached).condition()}"
    )
    metered_from = max(begin, int(first[0][0])) if first and int(first[0][1]) else begin
    end = next_month(begin)
    rest = Fraction(end - reached, max(1, reached - metered_from))
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


def _filtered(scope: Scope, charges: Sequence[Charge]) -> list[str]:
    """What the filters leave of the arithmetic, by entry; nothing without filters."""
    if not scope.filters:
        return []
    sums: dict[str, tuple[int, Fraction]] = {}
    for charge in charges:
        if charge.price is not NO_PRICE:
            amount, dollars = sums.get(charge.price.id, (0, Fraction(0)))
            sums[charge.price.id] = (amount + charge.bytes, dollars + charge.cost)
    named = ", ".join(f"{key} {value}" for key, value in scope.filters.items())
    parts = "; ".join(
        f"{name} {amount:,} bytes = ${decimal(dollars)}" for name, (amount, dollars) in sorted(sums.items())
    )
    return [
        "That is the arithmetic of all traffic, which fills tiers. "
        f"Of {named}, at the mean price: {parts or 'nothing'}."
    ]


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
    each = ", each region for itself" if price.per == "region" else ""
    return f"  {price.id}: {tiers} a {price.unit}{each} ({_origin(price)})"


def _told_allowance(one: Allowance) -> str:
    whose = (
        "the account's regions share them in proportion to their bytes"
        if one.scope == "account"
        else "in each region"
    )
    return f"  {one.id}: {decimal(one.amount)} {one.unit} a month are free; {whose} ({_origin(one)})"


def _origin(one: Price | Allowance) -> str:
    note = f"; {one.note}" if one.note else ""
    checked = f"; compared with: {one.checked}" if one.checked else ""
    return f"{one.date}, {one.source}{checked}{note}"


def _dollars(value: Fraction) -> str:
    return f"${float(value):,.2f}"
