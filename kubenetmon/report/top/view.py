"""What is shown: rates of workloads by path, with their history. Pure data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from kubenetmon.errors import printable
from kubenetmon.report.paths import PATHS


@dataclass(frozen=True, slots=True)
class TopRow:
    """Rates in bytes/s. `history` has one rate a slot, the oldest first, sent and received together."""

    namespace: str
    name: str
    path: str
    sent: float
    received: float
    history: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Both directions."""
        return self.sent + self.received

    @property
    def path_name(self) -> str:
        """The path in words."""
        return PATHS.get(self.path) or printable(self.path.removeprefix("class:"))


@dataclass(frozen=True, slots=True)
class TopView:
    """One answer of a source.

    `horizon`: Unix seconds up to which it is complete, 0 when nothing has come yet; `interval`: seconds that
    the rates are over; `notes`: what an operator should know about it.
    """

    source: str
    rows: Sequence[TopRow] = ()
    horizon: int = 0
    slot_seconds: int = 10
    interval: int = 0
    nodes: int = 0
    notes: Sequence[str] = field(default_factory=tuple)


def merged(views: Sequence[TopView]) -> TopView:
    """Several servers' views as one; each server knows its own agents."""
    if len(views) == 1:
        return views[0]
    alive = [view for view in views if view.horizon]
    horizon = min((view.horizon for view in alive), default=0)
    slot = max((view.slot_seconds for view in alive), default=10)
    rows: dict[tuple[str, str, str], TopRow] = {}
    for view in alive:
        late = (view.horizon - horizon) // slot
        for row in view.rows:
            key = (row.namespace, row.name, row.path)
            history = row.history[: len(row.history) - late]
            before = rows.get(key)
            if before is None:
                rows[key] = TopRow(*key, row.sent, row.received, history)
            else:
                rows[key] = TopRow(
                    *key,
                    before.sent + row.sent,
                    before.received + row.received,
                    _sum_from_the_end(before.history, history),
                )
    return TopView(
        ", ".join(view.source for view in views),
        list(rows.values()),
        horizon,
        slot,
        max((view.interval for view in alive), default=0),
        sum(view.nodes for view in alive),
        [note for view in views for note in view.notes],
    )


def _sum_from_the_end(first: tuple[float, ...], second: tuple[float, ...]) -> tuple[float, ...]:
    length = max(len(first), len(second))
    padded = [(0.0,) * (length - len(one)) + one for one in (first, second)]
    return tuple(a + b for a, b in zip(*padded, strict=True))
