"""Prices of data transfer: a versioned file, an organisation's own on top of it, and what an amount costs.

Contract: `read_prices` reads and checks files and raises `ConfigurationError`; all else is pure. Amounts of
money are exact fractions of a dollar until they are shown.

An entry of the file: `id`; `cloud`; `path` (one of `PATHS`, or `class:NAME` for a connectionClass of one's
own `networks`); `way` (`out`: the sender pays, `in`: the receiver, `both`: either for its own); `price` for a
unit of `unit_bytes`, or `tiers` over a calendar month (each `up_to` so many units, the last without), which
all regions of the entry fill together, or with `per: region` each for itself; `source`, `date`, and, where it
was not the source itself, what it was compared with (`checked`). It can be narrowed by `regions` (of the one
who pays, as prefixes), `to_regions` (of the other), `services`, and, for the path `processing`, `flags` of
the connection. Of the entries that fit, the narrowest counts, and among equals the last. `item` and `bill` (a
pattern for usage types) name its line on a bill; `mtu` is the path's largest packet.
`allowances`: what is free each month before the tiers begin, by scope (see `allowances`).
`assume`: a list of {path, entry}: all transfers of that path pass what that entry prices (a NAT gateway), at
the price of the entry, or of one below it (`entry/…`) that fits better.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from kubenetmon.errors import ConfigurationError
from kubenetmon.report.allowances import Allowance, read_allowance
from kubenetmon.report.files import named_entry, number, read_document, text_of, texts_of

PATHS = ("same-zone", "cross-zone", "region-service", "inter-region", "internet", "processing")
WAYS = ("out", "in", "both")
BUILT_IN = Path(__file__).parent / "prices_data" / "list_prices.json"
TIERS_PER = ("entry", "region")
_LISTS = ("regions", "to_regions", "services", "flags")
_KNOWN = frozenset(
    (
        "id",
        "cloud",
        "path",
        "way",
        "price",
        "tiers",
        "per",
        "unit",
        "unit_bytes",
        "source",
        "date",
        "note",
        "checked",
    )
).union(_LISTS, ("item", "bill", "mtu"))
DEFAULT_MTU = 1500


@dataclass(frozen=True, slots=True)
class Tier:
    """A price for a unit up to so many units a month (None: beyond all)."""

    up_to: Fraction | None
    price: Fraction


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """One entry of a price file, itself and no copy of it: bills look entries up for every line."""

    id: str
    cloud: str
    path: str
    way: str
    tiers: tuple[Tier, ...]
    unit: str
    unit_bytes: int
    source: str
    date: str
    note: str = ""
    checked: str = ""
    regions: tuple[str, ...] = ()
    to_regions: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    item: str = ""
    bill: re.Pattern[str] | None = None
    mtu: int = DEFAULT_MTU
    per: str = "entry"

    @property
    def is_free(self) -> bool:
        """True where nothing of it costs anything."""
        return not any(tier.price for tier in self.tiers)

    @property
    def narrowness(self) -> int:
        """How many conditions it has."""
        return sum(bool(one) for one in (self.regions, self.to_regions, self.services, self.flags)) + (
            self.way != "both"
        )

    def fits(self, transfer: Transfer, way: str) -> bool:
        """True where the entry prices such a transfer; flags and assumptions apart."""
        return (
            self.cloud == transfer.cloud
            and self.way in (way, "both")
            and (not self.regions or transfer.region.startswith(self.regions))
            and (not self.to_regions or transfer.other_region.startswith(self.to_regions))
            and (not self.services or transfer.service in self.services)
        )

    def cost(self, amount: int, before: int = 0) -> Fraction:
        """Dollars for `amount` bytes when `before` bytes of the month were moved already."""
        return self._total(before + amount) - self._total(before)

    def parts(self, amount: int, before: int = 0) -> list[tuple[Fraction, Fraction]]:
        """The same as (units, price of a unit), a part for each tier that it touches."""
        found = []
        begin, end, low = self._units(before), self._units(before + amount), Fraction(0)
        for tier in self.tiers:
            high = end if tier.up_to is None else min(tier.up_to, end)
            if high > max(low, begin):
                found.append((high - max(low, begin), tier.price))
            if tier.up_to is None or tier.up_to >= end:
                break
            low = tier.up_to
        return found or [(Fraction(0), self.tiers[0].price)]

    def _total(self, amount: int) -> Fraction:
        return sum((units * price for units, price in self.parts(amount)), Fraction(0))

    def _units(self, amount: int) -> Fraction:
        return Fraction(amount, self.unit_bytes)


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a price depends on, from the side that may pay: its `cloud` and `region`, the other's region, the
    `path` (`unknown` and `unknown-zone` besides `PATHS`), the cloud service at the other end, and flags."""

    cloud: str
    region: str
    other_region: str
    path: str
    service: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PriceList:
    """Entries in the order of their files; `editions` name the files. No entry is under two allowances."""

    entries: tuple[Price, ...]
    editions: tuple[str, ...]
    assumed: Mapping[str, tuple[str, ...]]
    allowances: tuple[Allowance, ...] = ()

    def of(self, transfer: Transfer, way: str) -> list[Price]:
        """The entries that price a transfer: the path's, and one for each thing that processes it."""
        fitting = [one for one in self.entries if one.fits(transfer, way)]
        found = _narrowest([one for one in fitting if one.path == transfer.path and not one.flags])
        processing = [one for one in fitting if one.path == "processing"]
        for flag in transfer.flags:
            found += _narrowest([one for one in processing if flag in one.flags])
        for name in self.assumed.get(transfer.path, ()):
            found += _narrowest([one for one in processing if f"{one.id}/".startswith(f"{name}/")])
        return list(dict.fromkeys(found))

    def allowance_of(self, price: Price) -> Allowance | None:
        """What frees the first bytes under an entry; an entry that costs nothing takes no part."""
        return next((one for one in self.allowances if not price.is_free and one.names(price.id)), None)

    def items(self) -> dict[str, list[Price]]:
        """The entries by their line on a bill."""
        found: dict[str, list[Price]] = {}
        for one in self.entries:
            if one.item:
                found.setdefault(one.item, []).append(one)
        return found


def _narrowest(entries: Sequence[Price]) -> list[Price]:
    if not entries:
        return []
    most = max(one.narrowness for one in entries)
    return [one for one in entries if one.narrowness == most][-1:]


def read_prices(own: Iterable[Path] = ()) -> PriceList:
    """The built-in list, and files of one's own on top of it in their order. Raises `ConfigurationError`."""
    entries: dict[str, Price] = {}
    editions: list[str] = []
    assumed: dict[str, tuple[str, ...]] = {}
    allowances: dict[str, Allowance] = {}
    for path in (BUILT_IN, *own):
        document = read_document(path, "prices")
        editions.append(f"{path.name} {document.get('edition', 'without edition')}")
        listed = document.get("prices", [])
        if document.get("currency", "USD") != "USD" or not isinstance(listed, list):
            raise ConfigurationError(f"{path}: prices must be a list, in USD")
        for raw in listed:
            price = _price(raw, path)
            entries.pop(price.id, None)
            entries[price.id] = price
        given = document.get("allowances", [])
        if not isinstance(given, list):
            raise ConfigurationError(f"{path}: allowances must be a list")
        for raw in given:
            allowance = read_allowance(raw, path)
            allowances[allowance.id] = allowance
        _check_allowances(allowances.values(), entries.values(), path)
        for one in document.get("assume", []):
            if not isinstance(one, dict) or one.get("path") not in PATHS or one.get("entry") not in entries:
                raise ConfigurationError(f"{path}: assume needs a path and the id of an entry: {one!r:.80}")
            assumed[one["path"]] = (*assumed.get(one["path"], ()), one["entry"])
    free = tuple(one for one in allowances.values() if one.bytes)
    return PriceList(tuple(entries.values()), tuple(editions), assumed, free)


def _check_allowances(allowances: Iterable[Allowance], entries: Iterable[Price], path: Path) -> None:
    """Each is for entries that there are, and no byte would be free by two of them or by a tier as well."""
    under: dict[str, str] = {}
    for allowance in allowances:
        named = [one for one in entries if allowance.names(one.id)]
        for name in allowance.entries:
            if not any(f"{one.id}/".startswith(f"{name}/") for one in named):
                raise ConfigurationError(f"{path}: {allowance.id}: there is no entry {name!r:.60}")
        for price in named if allowance.bytes else ():
            if price.id in under:
                raise ConfigurationError(
                    f"{path}: {price.id} is under two allowances, {under[price.id]} and {allowance.id}: "
                    "take it out of one, or give one the amount 0"
                )
            under[price.id] = allowance.id
            if not price.tiers[0].price and not price.is_free:
                raise ConfigurationError(
                    f"{path}: {price.id}: its first tier is free and so is {allowance.id}: let the tiers "
                    f"begin with the first price, or give {allowance.id} the amount 0"
                )


def _price(raw: Any, path: Path) -> Price:
    name = named_entry(raw, "a price", _KNOWN, path)
    for key, allowed in (("path", PATHS), ("way", WAYS)):
        own_class = key == "path" and text_of(raw, key, path).startswith("class:")
        if text_of(raw, key, path) not in allowed and not own_class:
            raise ConfigurationError(f"{path}: {name}: {key} {raw[key]!r} is not one of {', '.join(allowed)}")
    if ("price" in raw) == ("tiers" in raw):
        raise ConfigurationError(f"{path}: {name}: give either price or tiers")
    if raw["path"] == "processing" and not raw.get("flags"):
        raise ConfigurationError(f"{path}: {name}: what processes traffic is known by flags: name them")
    per = raw.get("per", "entry")
    if per not in TIERS_PER or ("per" in raw and "tiers" not in raw):
        raise ConfigurationError(
            f"{path}: {name}: per {per!r:.40} must be one of {', '.join(TIERS_PER)}, and goes with tiers"
        )
    try:
        bill = re.compile(raw["bill"]) if "bill" in raw else None
    except (re.error, TypeError) as error:
        raise ConfigurationError(f"{path}: {name}: bill is not a pattern ({error})") from None
    unit_bytes = int(number(raw.get("unit_bytes", 2**30), "unit_bytes", path))
    mtu = int(number(raw.get("mtu", DEFAULT_MTU), "mtu", path))
    if unit_bytes < 1 or mtu < 100:
        raise ConfigurationError(f"{path}: {name}: unit_bytes or mtu is too small")
    return Price(
        id=name,
        cloud=text_of(raw, "cloud", path),
        path=raw["path"],
        way=raw["way"],
        tiers=_tiers(raw, name, path),
        unit=str(raw.get("unit", "GB")),
        unit_bytes=unit_bytes,
        source=text_of(raw, "source", path),
        date=text_of(raw, "date", path),
        note=str(raw.get("note", "")),
        checked=str(raw.get("checked", "")),
        **{key: texts_of(raw, key, name, path) for key in _LISTS},
        item=str(raw.get("item", "")),
        bill=bill,
        mtu=mtu,
        per=per,
    )


def _tiers(raw: Mapping[str, Any], name: str, path: Path) -> tuple[Tier, ...]:
    if "price" in raw:
        return (Tier(None, Fraction(number(raw["price"], "price", path))),)
    tiers = []
    listed = raw["tiers"]
    for tier in listed if isinstance(listed, list) else ():
        if not isinstance(tier, dict) or "price" not in tier:
            break
        up_to = Fraction(number(tier["up_to"], "up_to", path)) if "up_to" in tier else None
        tiers.append(Tier(up_to, Fraction(number(tier["price"], "price", path))))
    edges = [tier.up_to for tier in tiers]
    inner = [edge for edge in edges[:-1] if edge is not None]
    ordered = len(inner) == len(edges) - 1 and inner == sorted(set(inner))
    if not tiers or len(tiers) != len(listed) or edges[-1] is not None or not ordered:
        raise ConfigurationError(
            f"{path}: {name}: each tier has a price and a rising up_to, and the last has no up_to"
        )
    return tuple(tiers)
