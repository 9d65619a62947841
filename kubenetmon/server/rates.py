"""Who moves how much right now: the last ten minutes of every workload and path, for `kubenetmon top`.

Contract: `add` takes what a batch moved once it is settled. `view` is what is shown. Nothing here is exact
bookkeeping: it is gone with the process, one replica sees only its own agents, and a batch that two replicas
settle shows at both. Memory is bounded: beyond `_MOST_ROWS` workloads the pods of an app are taken together,
beyond that everything is "others". No task, nothing to shut down.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kubenetmon.clock import Clock
from kubenetmon.http import JSON, TEXT, Response
from kubenetmon.server.moved import Digest, Workload

SLOT_SECONDS = 10
SLOTS = 60
KEYS = ("app", "pod", "namespace", "node", "zone")

_MOST_ROWS = 8192
_MOST_NODES = 16384
_STALE_SECONDS = 180
"""A node that is so far behind the newest report does not hold up the history of the others."""


@dataclass(slots=True)
class _Row:
    index: int
    reporter: str
    last_end: int = 0
    seconds: int = 1
    sent: float = 0.0
    received: float = 0.0


@dataclass(slots=True)
class _Node:
    start: int
    end: int


@dataclass(slots=True)
class _Sum:
    sent: float = 0.0
    received: float = 0.0
    indexes: list[int] = field(default_factory=list)


class Rates:
    """The last ten minutes, in slots of ten seconds."""

    def __init__(self, *, clock: Clock) -> None:
        self._clock = clock
        self._rows: dict[Workload, _Row] = {}
        self._free: list[int] = []
        self._nodes: dict[str, _Node] = {}
        self._sent = np.zeros((64, SLOTS), np.float32)
        self._received = np.zeros((64, SLOTS), np.float32)
        self._newest = 0  # the number of the slot that was filled last
        self._views: dict[str, tuple[int, dict[str, Any]]] = {}
        self._changes = 0
        self._waiting: set[asyncio.Future[None]] = set()

    def add(self, one: Digest) -> None:
        """Take a settled batch."""
        newest = (one.end - 1) // SLOT_SECONDS
        if newest > int(self._clock.time()) // SLOT_SECONDS + SLOTS:
            return  # an agent whose clock is far ahead would wipe out everybody's history
        self._changes += 1
        for each in self._waiting:
            if not each.done():
                each.set_result(None)
        self._advance(newest)
        known = self._nodes.get(one.node)
        if known is None and len(self._nodes) >= _MOST_NODES:
            return
        if known is None or one.end > known.end:
            self._nodes[one.node] = _Node(one.start, one.end)
        length = one.end - one.start
        rows = []
        for workload, (sent, received) in one.amounts.items():
            row = self._row(workload, one.node)
            if row.last_end != one.end:
                if one.end < row.last_end:
                    rows.append((row.index, sent, received))
                    continue
                row.last_end, row.seconds, row.sent, row.received = one.end, length, 0.0, 0.0
            row.sent += sent
            row.received += received
            rows.append((row.index, sent, received))
        if rows:
            self._spread(rows, one.start, one.end)

    @property
    def changes(self) -> int:
        """How many batches were taken."""
        return self._changes

    async def newer(self, changes: int, seconds: float) -> None:
        """Return once more than `changes` batches were taken, after `seconds` at the latest."""
        if self._changes > changes:
            return
        waiting = asyncio.get_running_loop().create_future()
        self._waiting.add(waiting)
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await waiting
        finally:
            self._waiting.discard(waiting)

    def view(self, by: str) -> dict[str, Any]:
        """What is shown, for JSON: rates in bytes/s over each node's last report, the highest first.

        `by` is one of `KEYS`. `history` has one number a slot, the oldest first, sent and received together.
        It ends at `horizon` (Unix seconds): up to there every node that reports has reported. Each answer is
        made once for any number of callers.
        """
        made = self._views.get(by)
        if made is None or made[0] != self._changes:
            made = self._views[by] = (self._changes, self._make_view(by))
        return made[1]

    def _make_view(self, by: str) -> dict[str, Any]:
        newest_end = max((node.end for node in self._nodes.values()), default=0)
        live = {name: node for name, node in self._nodes.items() if node.end > newest_end - _STALE_SECONDS}
        horizon = min((node.end for node in live.values()), default=0)
        shown = range(max(self._newest - SLOTS + 1, 0), horizon // SLOT_SECONDS)
        slots = [slot % SLOTS for slot in shown]
        sums: dict[tuple[str, str, str], _Sum] = {}
        for workload, row in self._rows.items():
            namespace, name = _named(workload, by)
            into = sums.setdefault((namespace, name, workload.path), _Sum())
            into.indexes.append(row.index)
            node = live.get(row.reporter)
            if node is not None and row.last_end == node.end:
                into.sent += row.sent / row.seconds
                into.received += row.received / row.seconds
        rows: list[dict[str, Any]] = []
        for (namespace, name, path), one in sorted(sums.items()):
            history = self._sent[one.indexes].sum(axis=0) + self._received[one.indexes].sum(axis=0)
            each = [round(float(value) / SLOT_SECONDS) for value in history[slots]]
            if one.sent or one.received or any(each):
                rows.append(
                    {
                        "namespace": namespace,
                        "name": name,
                        "path": path,
                        "sent": round(one.sent),
                        "received": round(one.received),
                        "history": each,
                    }
                )
        rows.sort(
            key=lambda row: (-row["sent"] - row["received"], row["namespace"], row["name"], row["path"])
        )
        return {
            "by": by,
            "horizon": horizon,
            "slot_seconds": SLOT_SECONDS,
            "nodes": len(live),
            "late_nodes": sorted(set(self._nodes) - set(live))[:20],
            "interval": max((node.end - node.start for node in live.values()), default=0),
            "rows": rows,
        }

    def _advance(self, newest: int) -> None:
        """Make room for slots up to `newest`, and forget what has left the history."""
        if newest <= self._newest:
            return
        fresh = [slot % SLOTS for slot in range(max(self._newest + 1, newest - SLOTS + 1), newest + 1)]
        self._sent[:, fresh] = 0
        self._received[:, fresh] = 0
        self._newest = newest
        oldest = (newest - SLOTS + 1) * SLOT_SECONDS
        for workload in [workload for workload, row in self._rows.items() if row.last_end <= oldest]:
            self._forget(workload)
        for name in [name for name, node in self._nodes.items() if node.end <= oldest]:
            del self._nodes[name]

    def _row(self, workload: Workload, reporter: str) -> _Row:
        row = self._rows.get(workload)
        if row is not None:
            return row
        if len(self._rows) >= _MOST_ROWS:
            workload = workload._replace(pod="", node="", zone="")
            if len(self._rows) >= _MOST_ROWS * 3 // 2:
                workload = Workload("", "others", "", "", "", workload.path)
            if workload in self._rows:
                return self._rows[workload]
        index = self._free.pop() if self._free else len(self._rows)
        if index >= len(self._sent):
            more = np.zeros_like(self._sent)
            self._sent = np.concatenate([self._sent, more])
            self._received = np.concatenate([self._received, more])
        made = self._rows[workload] = _Row(index, reporter)
        return made

    def _forget(self, workload: Workload) -> None:
        index = self._rows.pop(workload).index
        self._sent[index] = 0
        self._received[index] = 0
        self._free.append(index)

    def _spread(self, rows: Iterable[tuple[int, float, float]], start: int, end: int) -> None:
        """Share the bytes out over the slots of the interval that are still shown."""
        indexes, sent, received = (np.array(column) for column in zip(*rows, strict=True))
        first = max(start // SLOT_SECONDS, self._newest - SLOTS + 1)
        for slot in range(first, (end - 1) // SLOT_SECONDS + 1):
            inside = min(end, (slot + 1) * SLOT_SECONDS) - max(start, slot * SLOT_SECONDS)
            share = inside / (end - start)
            np.add.at(self._sent[:, slot % SLOTS], indexes, sent * share)
            np.add.at(self._received[:, slot % SLOTS], indexes, received * share)


def _named(workload: Workload, by: str) -> tuple[str, str]:
    """Namespace and name under which a workload is shown; of a pod without an app, its own name."""
    if by == "app":
        return workload.namespace, workload.app or workload.pod
    if by == "pod":
        return workload.namespace, workload.pod or workload.app
    return "", str(getattr(workload, by))


class RatesPage:
    """`/rates?by=app`: what `Rates` holds, as JSON; with `&after=STATE`, as its header `etag` named it, as
    soon as there is something newer, or 204 when there is nothing for `WAIT_SECONDS`.

    So a client that asks again and again is told of each report when it is settled, and of nothing else. At
    most `_MOST_WAITING` wait (others are told 204 at once), and one body is made a second for all of them.
    """

    PATH = "/rates"
    WAIT_SECONDS = 8.0
    _MOST_WAITING = 16
    _MADE_SECONDS = 1.0

    def __init__(self, rates: Rates, *, clock: Clock) -> None:
        self._rates, self._clock = rates, clock
        self._life = secrets.token_hex(4)
        self._bodies: dict[str, tuple[float, int, bytes]] = {}
        self._waiting = 0

    async def page(self, parameters: Mapping[str, str]) -> Response:
        """The answer; one body is made for all callers until the next report comes."""
        by, after = parameters.get("by", "app"), parameters.get("after", "")
        if by not in KEYS:
            return Response(f"by is one of {', '.join(KEYS)}\n".encode(), status=400)
        if after == self._tag(self._rates.changes):
            if self._waiting < self._MOST_WAITING:
                await self._wait()
            if after == self._tag(self._rates.changes):
                return Response(b"", TEXT, 204)
        made = self._bodies.get(by)
        if made is not None and after == self._tag(made[1]):
            await self._clock.sleep(max(0.0, made[0] + self._MADE_SECONDS - self._clock.monotonic()))
            made = self._bodies[by]
        now, changes = self._clock.monotonic(), self._rates.changes
        if made is None or (made[1] != changes and now - made[0] >= self._MADE_SECONDS):
            body = json.dumps(self._rates.view(by), separators=(",", ":")).encode()
            made = self._bodies[by] = (now, changes, body)
        return Response(made[2], JSON, headers=(("etag", self._tag(made[1])),))

    def _tag(self, changes: int) -> str:
        return f"{self._life}-{changes}"

    async def _wait(self) -> None:
        self._waiting += 1
        try:
            await self._rates.newer(self._rates.changes, self.WAIT_SECONDS)
        finally:
            self._waiting -= 1
