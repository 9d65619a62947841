"""What a provider gives away each month, and how it is shared by those that may take it.

An allowance of a price file: `id`; `entries` (ids of price entries, each with those below it, `entry/…`);
`amount` in units of `unit_bytes` a calendar month, 0 for none; `scope`: `account`, one for all regions
together, or `region`, one for each; `except_regions` (prefixes) that have no part in it; `source`, `date`,
`note` and `checked` as a price entry has them. The entries' tiers begin beyond what is free.

What was moved earlier in the month takes it first. What is left is shared in proportion to the bytes that
each region moved, by largest remainder: whole bytes, none free twice and none lost.

Contract: `read_allowance` raises `ConfigurationError`; all else is pure.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from kubenetmon.errors import ConfigurationError
from kubenetmon.report.files import named_entry, number, text_of, texts_of

Key = TypeVar("Key", bound=Hashable)
SCOPES = ("account", "region")
_KNOWN = frozenset(
    (
        "id",
        "entries",
        "amount",
        "unit",
        "unit_bytes",
        "scope",
        "except_regions",
        "source",
        "date",
        "note",
        "checked",
    )
)


@dataclass(frozen=True, slots=True)
class Allowance:
    """Bytes a month that cost nothing under some price entries."""

    id: str
    entries: tuple[str, ...]
    amount: Fraction
    unit: str
    unit_bytes: int
    scope: str
    source: str
    date: str
    note: str = ""
    checked: str = ""
    except_regions: tuple[str, ...] = ()

    @property
    def bytes(self) -> int:
        """Whole bytes a month, of the account or of each region."""
        return int(self.amount * self.unit_bytes)

    def names(self, entry: str) -> bool:
        """True for the id of a price entry that it is for."""
        return any(f"{entry}/".startswith(f"{one}/") for one in self.entries)

    def has_part(self, region: str) -> bool:
        """True where a region may take of it."""
        return not (self.except_regions and region.startswith(self.except_regions))


def shared(total: int, wanted: Mapping[Key, int]) -> dict[Key, int]:
    """`total` bytes, but no more than all want, in proportion to what each wants; of equal remainders the
    first in order gets the byte."""
    sum_wanted = sum(wanted.values())
    if total >= sum_wanted:
        return dict(wanted)
    shares = {key: total * amount // sum_wanted for key, amount in wanted.items()}
    left = total - sum(shares.values())
    by_remainder = sorted(wanted, key=lambda key: -(total * wanted[key] % sum_wanted))
    for key in by_remainder[:left]:
        shares[key] += 1
    return shares


def read_allowance(raw: Any, path: Path) -> Allowance:
    """One allowance of a file. Raises `ConfigurationError`."""
    name = named_entry(raw, "an allowance", _KNOWN, path)
    if raw.get("scope") not in SCOPES:
        raise ConfigurationError(
            f"{path}: {name}: scope {raw.get('scope')!r:.40} is not one of {', '.join(SCOPES)}"
        )
    entries = texts_of(raw, "entries", name, path)
    if not entries:
        raise ConfigurationError(f"{path}: {name}: name the entries that it is for")
    unit_bytes = int(number(raw.get("unit_bytes", 2**30), "unit_bytes", path))
    if unit_bytes < 1:
        raise ConfigurationError(f"{path}: {name}: unit_bytes is too small")
    return Allowance(
        id=name,
        entries=entries,
        amount=Fraction(number(raw.get("amount"), "amount", path)),
        unit=str(raw.get("unit", "GB")),
        unit_bytes=unit_bytes,
        scope=raw["scope"],
        source=text_of(raw, "source", path),
        date=text_of(raw, "date", path),
        note=str(raw.get("note", "")),
        checked=str(raw.get("checked", "")),
        except_regions=texts_of(raw, "except_regions", name, path),
    )
