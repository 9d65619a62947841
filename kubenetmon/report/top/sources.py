"""Where a `TopView` comes from: servers' live view over HTTP, or the table in ClickHouse.

Contract: `fetch` answers within `_TIMEOUT` or raises `KubenetmonError` with one line that says what to do; it
may be called again after an error, and be cancelled.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from typing import Any, Protocol

import aiohttp

from kubenetmon.clickhouse.sinks import Sink
from kubenetmon.clock import Clock
from kubenetmon.errors import MachineError
from kubenetmon.report.cost import PATH_OF_TRANSFER
from kubenetmon.report.flows import SIDE_COLUMNS, Flows, Span, name_of, read_source
from kubenetmon.report.scope import KEYS
from kubenetmon.report.top.view import TopRow, TopView, merged

_TIMEOUT = 10.0
_MOST_BYTES = 64 << 20
_MINUTE = 60
_HISTORY_MINUTES = 20
_TABLE_ROWS = 2000
"""Workloads and paths that the table is asked for; the rest is in no sum shown."""


class TopSource(Protocol):
    """Whoever knows the rates."""

    async def fetch(self, by: str) -> TopView:
        """The rates now, grouped by one of `kubenetmon.report.scope.KEYS`; asked again for the same, a source
        may wait until there is something newer."""
        ...


class StreamSource:
    """The servers' own live view: no ClickHouse is needed.

    Each server is told which state it has shown here, and answers when it has a newer one, or after some
    seconds without a body.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        """`addresses`: host:port of `metrics_port`, of every replica."""
        self._addresses = tuple(addresses)
        self._session: aiohttp.ClientSession | None = None
        self._by = ""
        self._views: dict[str, tuple[str, TopView]] = {}
        self._asking: dict[str, asyncio.Task[None]] = {}

    async def fetch(self, by: str) -> TopView:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TIMEOUT))
        if by != self._by:
            await self._forget()
            self._by = by
        for address in self._addresses:
            if address not in self._asking:
                self._asking[address] = asyncio.create_task(self._ask(self._session, address, by))
        missing = [task for address, task in self._asking.items() if address not in self._views]
        await asyncio.wait(
            missing or self._asking.values(),
            return_when=asyncio.ALL_COMPLETED if missing else asyncio.FIRST_COMPLETED,
        )
        done = {address: task for address, task in self._asking.items() if task.done()}
        for address in done:
            del self._asking[address]
        failed = [error for task in done.values() if (error := task.exception()) is not None]
        if failed:
            raise failed[0]
        return merged([self._views[address][1] for address in self._addresses])

    async def close(self) -> None:
        """Let go of the connections."""
        await self._forget()
        if self._session is not None:
            await self._session.close()

    async def _forget(self) -> None:
        asking, self._asking, self._views = self._asking, {}, {}
        for task in asking.values():
            task.cancel()
        await asyncio.gather(*asking.values(), return_exceptions=True)

    async def _ask(self, session: aiohttp.ClientSession, address: str, by: str) -> None:
        known = self._views.get(address)
        parameters = {"by": by, **({"after": known[0]} if known is not None and known[0] else {})}
        try:
            async with session.get(f"http://{address}/rates", params=parameters) as answer:
                if answer.status == 204 and known is not None:
                    return
                if answer.status != 200:
                    said = (await answer.content.read(200)).decode(errors="replace").strip()
                    raise MachineError(f"{address} answers {answer.status}: {said}")
                body = await answer.content.read(_MOST_BYTES)
                while not answer.content.at_eof():
                    body += await answer.content.read(_MOST_BYTES)
                    if len(body) > _MOST_BYTES:
                        raise MachineError(f"{address} answers with more than {_MOST_BYTES >> 20} MiB")
            self._views[address] = answer.headers.get("etag", ""), _view_of(body, address)
        except MachineError:
            self._views.pop(address, None)
            raise
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            self._views.pop(address, None)
            raise MachineError(
                f"no server answers at {address} ({_reason(error)}): name its metrics port with --server, "
                "after `kubectl port-forward deploy/kubenetmon-server 8883`, or read the table with --table"
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            self._views.pop(address, None)
            raise MachineError(f"{address} is no server of kubenetmon ({_reason(error)})") from None


def _view_of(body: bytes, address: str) -> TopView:
    document: dict[str, Any] = json.loads(body)
    rows = [
        TopRow(
            str(row["namespace"]),
            str(row["name"]),
            str(row["path"]),
            float(row["sent"]),
            float(row["received"]),
            tuple(float(value) for value in row["history"]),
        )
        for row in document["rows"]
    ]
    late = [str(name) for name in document["late_nodes"]]
    notes = [f"no report from {', '.join(late[:5])}{', …' if len(late) > 5 else ''}"] if late else []
    return TopView(
        address,
        rows,
        int(document["horizon"]),
        max(1, int(document["slot_seconds"])),
        int(document["interval"]),
        int(document["nodes"]),
        notes,
    )


class TableSource:
    """The rows in ClickHouse, by the minute; the sink is the caller's to close."""

    def __init__(self, sink: Sink, database: str, table: str, *, clock: Clock) -> None:
        self._sink, self._database, self._table, self._clock = sink, database, table, clock

    async def fetch(self, by: str) -> TopView:
        source = await read_source(self._sink, self._database, self._table, raw=True)
        until = int(self._clock.time()) // _MINUTE * _MINUTE + _MINUTE
        span = Span.of(until - (_HISTORY_MINUTES + 2) * _MINUTE, until)
        flows = Flows(source, span)
        newest = await self._sink.query(
            f"{flows.define()}SELECT toUnixTimestamp(max(intervalStartTime)), uniqExact(localNode) FROM flows"
        )
        last, nodes = int(newest[0][0]), int(newest[0][1])
        if not last:
            return TopView(self._sink.address, notes=[f"no rows in the last {_HISTORY_MINUTES} minutes"])
        rows = await self._sink.query(
            _statement(flows, by, last - _HISTORY_MINUTES * _MINUTE + _MINUTE, last)
        )
        notes = [f"the {_TABLE_ROWS} largest of all"] if len(rows) == _TABLE_ROWS else []
        return TopView(
            self._sink.address,
            [
                TopRow(
                    str(namespace),
                    str(name),
                    str(path),
                    sent / _MINUTE,
                    received / _MINUTE,
                    _per_second(minutes),
                )
                for namespace, name, path, sent, received, minutes in rows
            ],
            last + _MINUTE,
            _MINUTE,
            _MINUTE,
            nodes,
            notes,
        )


def _per_second(minutes: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) / _MINUTE for value in minutes)


def _statement(flows: Flows, by: str, first: int, last: int) -> str:
    """Each workload of ours by path: bytes of the minute `last`, and of each minute from `first` to it."""

    def end(key: str) -> str:
        column = SIDE_COLUMNS[key]
        return f"if(sending, source{column}, destination{column})"

    name = end(by)
    if by == "node":
        name = f"if(sending, {name_of('node', 'source')}, {name_of('node', 'destination')})"
    space = end("namespace") if by in ("app", "pod") else "''"
    if by in ("app", "pod"):
        name = f"if({end(by)} != '', {end(by)}, {end('pod' if by == 'app' else 'app')})"
    minute = f"intDiv(toUnixTimestamp(intervalStartTime) - {first}, {_MINUTE})"
    count = (last - first) // _MINUTE + 1
    return flows.define(by) + (
        f"SELECT {space} AS space, {name} AS workload, "
        f"{PATH_OF_TRANSFER} AS path, "
        f"sumIf(bytes, sending AND intervalStartTime = toDateTime({last})) AS sent, "
        f"sumIf(bytes, NOT sending AND intervalStartTime = toDateTime({last})) AS received, "
        f"sumForEach(arrayMap(at -> if(at = {minute}, bytes, 0), range({count}))) AS minutes\n"
        "FROM (SELECT *, arrayJoin([true, false]) AS sending "
        f"FROM (\n{flows.transfers('region', 'cluster', *KEYS)}\n))\n"
        f"WHERE {end('node')} != '' AND intervalStartTime >= toDateTime({first})\n"
        "GROUP BY space, workload, path\n"
        f"ORDER BY sent + received DESC, arraySum(minutes) DESC, space, workload, path LIMIT {_TABLE_ROWS}"
    )


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and error.os_error.errno:
        return os.strerror(error.os_error.errno).lower()
    return (str(error) or type(error).__name__).splitlines()[0][:200]
