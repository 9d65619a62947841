"""Lines of transfers, priced: allowances, tiers, and the arithmetic told.

Contract: pure. Bytes without a price are a line of their own, never silently free. A meter is what is read
for one price: an entry's bytes in one month, by region where tiers or an allowance look at regions. All
traffic of the month fills tiers and allowances, whatever is filtered, and what was moved earlier in the month
does so first. A line's price is the mean of its meter. Sums are exact fractions.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from kubenetmon.report.allowances import Allowance, shared
from kubenetmon.report.prices import Price, PriceList, Transfer
from kubenetmon.report.scope import moment

NO_PRICE = Price("", "", "", "", (), "", 1, "", "")


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


class Meter(NamedTuple):
    """What one price is read from; `region` is empty where it does not matter."""

    price: Price
    region: str
    month: int

    def __str__(self) -> str:
        return f"{self.price.id} in {self.region}" if self.region else self.price.id


class Bill:
    """Lines priced. `before` are lines of the months' beginnings, which take allowances and fill tiers first
    and cost nothing here."""

    def __init__(self, prices: PriceList, found: Sequence[Line], before: Sequence[Line] = ()) -> None:
        self.lines = found
        self._prices = prices
        self._find = functools.lru_cache(maxsize=None)(prices.of)
        self._by_region = functools.lru_cache(maxsize=None)(
            lambda price: price.per == "region" or prices.allowance_of(price) is not None
        )
        self._moved = self._metered(found)
        self._reckoned = Reckoning(prices, self._moved, self._metered(before))

    def charges(self) -> list[Charge]:
        """By key, path and entry, of the lines that match the filters; the costliest first."""
        summed: dict[tuple[str, str, Price], tuple[int, Fraction]] = {}
        for line in self.lines:
            if not line.matches:
                continue
            for price in self._of(line) or [NO_PRICE] * line.own:
                amount, cost = summed.get((line.key, line.transfer.path, price), (0, Fraction(0)))
                if price is not NO_PRICE:
                    cost += self._reckoned.mean(self._meter(price, line)) * line.bytes
                summed[line.key, line.transfer.path, price] = (amount + line.bytes, cost)
        charges = [Charge(*where, amount, cost) for where, (amount, cost) in summed.items()]
        return sorted(charges, key=lambda one: (-one.cost, -one.bytes, one.key, one.path, one.price.id))

    def total(self) -> Fraction:
        """Dollars for all lines, whatever the filters."""
        return self._reckoned.total()

    def projected(self, month: int, factor: Fraction) -> Fraction:
        """Dollars for a month in which so many times as much is moved, from its beginning."""
        moved = {meter: int(amount * factor) for meter, amount in self._moved.items() if meter.month == month}
        return Reckoning(self._prices, moved, {}).total()

    def explained(self) -> list[str]:
        """The arithmetic of each allowance, entry and month."""
        return self._reckoned.explained()

    def _of(self, line: Line) -> list[Price]:
        return charged(self._find(line.transfer, line.way), own=line.own)

    def _meter(self, price: Price, line: Line) -> Meter:
        return Meter(price, line.transfer.region if self._by_region(price) else "", line.month)

    def _metered(self, found: Sequence[Line]) -> dict[Meter, int]:
        summed: dict[Meter, int] = {}
        for line in found:
            for price in self._of(line):
                meter = self._meter(price, line)
                summed[meter] = summed.get(meter, 0) + line.bytes
        return summed


def charged(found: Sequence[Price], *, own: bool) -> list[Price]:
    """Of the entries that price a transfer those that one end pays: what processes it does so once a byte, at
    the end that the bytes are counted at."""
    return [one for one in found if own or one.path != "processing"]


class Reckoning:
    """Dollars for what meters read, after what they read earlier in the same months."""

    def __init__(self, prices: PriceList, moved: Mapping[Meter, int], before: Mapping[Meter, int]) -> None:
        self._moved, self._before = moved, before
        self._free: dict[Meter, int] = {}
        self._free_before: dict[Meter, int] = {}
        self._takers: dict[tuple[int, Allowance, str], list[Meter]] = {}
        for meter in sorted(moved.keys() | before.keys(), key=_order):
            allowance = prices.allowance_of(meter.price)
            if allowance is not None and allowance.has_part(meter.region):
                whose = meter.region if allowance.scope == "region" else ""
                self._takers.setdefault((meter.month, allowance, whose), []).append(meter)
        for (_, allowance, _), takers in self._takers.items():
            taken = shared(allowance.bytes, {one: before.get(one, 0) for one in takers})
            left = allowance.bytes - sum(taken.values())
            self._free_before.update(taken)
            self._free.update(shared(left, {one: moved.get(one, 0) for one in takers}))
        self._pools: dict[Meter, tuple[int, int]] = {}
        for meter in moved.keys() | before.keys():
            paid, earlier = self._pools.get(_pool(meter), (0, 0))
            self._pools[_pool(meter)] = (
                paid + self._paid(meter),
                earlier + before.get(meter, 0) - self._free_before.get(meter, 0),
            )
        self._means = {pool: self._cost(pool) / paid for pool, (paid, _) in self._pools.items() if paid}

    def total(self) -> Fraction:
        """Dollars for all."""
        return sum(map(self._cost, self._pools), Fraction(0))

    def mean(self, meter: Meter) -> Fraction:
        """Dollars a byte that it read, free ones among them."""
        amount, paid = self._moved.get(meter, 0), self._paid(meter)
        return self._means[_pool(meter)] * Fraction(paid, amount) if paid else Fraction(0)

    def explained(self) -> list[str]:
        """First how allowances are shared, then each pool's tiers, by month."""
        told = [(key[0], 0, self._share_told(*key, takers)) for key, takers in self._takers.items()]
        told += [(pool.month, 1, self._pool_told(pool)) for pool in sorted(self._pools, key=_order)]
        return [text for _, _, text in sorted(told, key=lambda one: one[:2]) if text]

    def _paid(self, meter: Meter) -> int:
        return self._moved.get(meter, 0) - self._free.get(meter, 0)

    def _cost(self, pool: Meter) -> Fraction:
        return pool.price.cost(*self._pools[pool])

    def _share_told(self, month: int, allowance: Allowance, region: str, takers: Sequence[Meter]) -> str:
        taken = sum(self._free_before[one] for one in takers)
        shares = [
            f"{one} {self._free[one]:,} of {self._moved[one]:,} bytes" for one in takers if one in self._moved
        ]
        if not shares:
            return ""
        earlier = f", {taken:,} bytes of them taken earlier in the month" if taken else ""
        return (
            f"{month_name(month)} {allowance.id}: {decimal(allowance.amount)} {allowance.unit} free for "
            f"{f'region {region}' if region else allowance.scope}{earlier}; shared by bytes: "
            + "; ".join(shares)
        )

    def _pool_told(self, pool: Meter) -> str:
        members = [one for one in self._moved if _pool(one) == pool]
        if not members:
            return ""
        price, (paid, earlier) = pool.price, self._pools[pool]
        amount = sum(self._moved[one] for one in members)
        free = f" - {amount - paid:,} free" if amount > paid else ""
        after = f" after {earlier:,} paid bytes earlier in the month" if earlier else ""
        parts = " + ".join(
            f"{decimal(units)} {price.unit} x ${decimal(each)}" for units, each in price.parts(paid, earlier)
        )
        return (
            f"{month_name(pool.month)} {pool}: {amount:,} bytes{free}{after} / {price.unit_bytes:,} = "
            f"{parts} = ${decimal(price.cost(paid, earlier))}"
        )


def _pool(meter: Meter) -> Meter:
    """The meters whose paid bytes fill the same tiers have the same."""
    return meter if meter.price.per == "region" else meter._replace(region="")


def _order(meter: Meter) -> tuple[int, str, str]:
    return meter.month, meter.price.id, meter.region


def decimal(value: Fraction, digits: int = 9) -> str:
    """Decimal text, rounded to so many digits behind the point, without trailing zeros."""
    scaled = round(value * 10**digits)
    return format(Decimal(scaled).scaleb(-digits).normalize(), "f") if scaled else "0"


def month_name(at: int) -> str:
    """`2026-11`, for a Unix second of it (UTC)."""
    return moment(at)[:7]
