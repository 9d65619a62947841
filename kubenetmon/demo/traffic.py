"""Traffic with sockets and nothing else: one process per namespace serves and asks at the same time.

`python -m kubenetmon.demo.traffic` is told over standard input what to do, one line of JSON each: first a
`Script`; it answers `{"listening": true}` once its ports are open. `{"go": true}` starts the jobs,
`{"stop": true}` lets every exchange under way end and closes the connections, answered by
`{"done": …}` with the totals. At the end of the input, also when its owner dies, it exits. Once a second it
writes what it has done so far.

The protocol between these processes: a request names how many bytes the answer shall have. Over TCP many
exchanges follow one another in a connection, which the client closes; over UDP each is one datagram either
way, and an answer that does not come within a second is let go.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, cast

_HEADER = struct.Struct("!QQ")  # bytes that follow, bytes to answer with
_CHUNK = bytes(64 * 1024)
_MAX_DATAGRAM = 1400
_UDP_PATIENCE = 1.0
_STOP_PATIENCE = 10.0
_CONNECT_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Job:
    """Exchanges with one address for as long as the traffic runs.

    Sizes are (least, most) bytes of application data, drawn anew for each exchange. A connection (or UDP
    socket) carries `per_connection` exchanges, 0 for as many as there are; `pause` seconds lie between two
    exchanges; `lanes` of these run side by side. `source` is the address to speak from, "" for the usual.
    """

    protocol: Literal["tcp", "udp"]
    host: str
    port: int
    upload: tuple[int, int]
    download: tuple[int, int]
    pause: float
    per_connection: int = 0
    lanes: int = 1
    source: str = ""


@dataclass(frozen=True, slots=True)
class Script:
    """What one process does: ports to serve and jobs to run, drawing sizes from `seed`.

    `tcp_address` is whose ports are opened: all of IPv4 unless told. UDP is answered from `udp_address`: a
    machine of several addresses must name the one that it is asked at.
    """

    tcp_ports: tuple[int, ...] = ()
    udp_ports: tuple[int, ...] = ()
    tcp_address: str = "0.0.0.0"  # noqa: S104 - every address of a namespace of its own
    udp_address: str = "0.0.0.0"  # noqa: S104 - every address of a namespace of its own
    jobs: tuple[Job, ...] = ()
    seed: int = 0

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> Script:
        """The script of `to_json`."""
        document: dict[str, Any] = json.loads(line)
        jobs = tuple(
            Job(**{**job, "upload": tuple(job["upload"]), "download": tuple(job["download"])})
            for job in document["jobs"]
        )
        return Script(
            tcp_ports=tuple(document["tcp_ports"]),
            udp_ports=tuple(document["udp_ports"]),
            tcp_address=document["tcp_address"],
            udp_address=document["udp_address"],
            jobs=jobs,
            seed=int(document["seed"]),
        )


@dataclass(slots=True)
class Tally:
    """What the jobs of a process have done: application bytes, without any header."""

    connections: int = 0
    exchanges: int = 0
    sent: int = 0
    received: int = 0
    failures: int = 0


class Traffic:
    """One process's share."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._random = random.Random(script.seed)  # noqa: S311 - sizes, not secrets
        self._stopping = asyncio.Event()
        self.tally = Tally()

    async def listen(self, stack: contextlib.AsyncExitStack) -> None:
        """Open the ports; they close with the stack."""
        for port in self._script.tcp_ports:
            server = await asyncio.start_server(serve, self._script.tcp_address, port, backlog=4096)
            stack.callback(server.close)
        for port in self._script.udp_ports:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                _Responder, (self._script.udp_address, port)
            )
            stack.callback(transport.close)

    async def run(self) -> None:
        """Run the jobs until `stop`."""
        async with asyncio.TaskGroup() as group:
            for job in self._script.jobs:
                for _ in range(job.lanes):
                    group.create_task(self._lane(job))

    def stop(self) -> None:
        """Begin no further exchange."""
        self._stopping.set()

    async def _lane(self, job: Job) -> None:
        converse = self._tcp_connection if job.protocol == "tcp" else self._udp_socket
        while not self._stopping.is_set():
            self.tally.connections += 1
            try:
                await converse(job)
            except (OSError, EOFError, TimeoutError):
                self.tally.failures += 1
                await self._pause(max(job.pause, 0.1))

    async def _tcp_connection(self, job: Job) -> None:
        local = (job.source, 0) if job.source else None
        async with asyncio.timeout(_CONNECT_PATIENCE):
            reader, writer = await asyncio.open_connection(job.host, job.port, local_addr=local)
        try:
            done = 0
            while not self._stopping.is_set() and (not job.per_connection or done < job.per_connection):
                upload, download = self._sizes(job)
                writer.write(_HEADER.pack(upload, download))
                await _write(writer, upload)
                await _read(reader, download)
                self._count(_HEADER.size + upload, download)
                done += 1
                await self._pause(job.pause)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _udp_socket(self, job: Job) -> None:
        transport, asker = await asyncio.get_running_loop().create_datagram_endpoint(
            _Asker,
            local_addr=(job.source, 0) if job.source else None,
            remote_addr=(job.host, job.port),
        )
        try:
            done = 0
            while not self._stopping.is_set() and (not job.per_connection or done < job.per_connection):
                upload, download = (min(size, _MAX_DATAGRAM) for size in self._sizes(job))
                request = _HEADER.pack(upload, download) + _CHUNK[:upload]
                answer = asker.expect()
                transport.sendto(request)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_UDP_PATIENCE):
                        self._count(len(request), await answer)
                done += 1
                await self._pause(job.pause)
        finally:
            transport.close()

    def _sizes(self, job: Job) -> tuple[int, int]:
        return self._random.randint(*job.upload), self._random.randint(*job.download)

    def _count(self, sent: int, received: int) -> None:
        self.tally.exchanges += 1
        self.tally.sent += sent
        self.tally.received += received

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()


class _Asker(asyncio.DatagramProtocol):
    """Hands each answer's length to who waits for it."""

    def __init__(self) -> None:
        self._answer: asyncio.Future[int] | None = None

    def expect(self) -> asyncio.Future[int]:
        """The length of the next datagram to come."""
        self._answer = asyncio.get_running_loop().create_future()
        return self._answer

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(len(data))

    def error_received(self, exc: Exception) -> None:
        """A port that is not served answers by ICMP; the wait for the answer ends by its own limit."""


class _Responder(asyncio.DatagramProtocol):
    """Answers each datagram with as many bytes as it asks for."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        if len(data) >= _HEADER.size:
            wanted = _HEADER.unpack_from(data)[1]
            self._transport.sendto(_CHUNK[: min(wanted, _MAX_DATAGRAM)], addr)

    def error_received(self, exc: Exception) -> None:
        """The asker has closed its socket already; nothing to do."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer every exchange of one TCP connection until the client closes it."""
    try:
        while True:
            upload, download = _HEADER.unpack(await reader.readexactly(_HEADER.size))
            await _read(reader, upload)
            await _write(writer, download)
    except (OSError, EOFError, asyncio.CancelledError):
        pass  # the client has closed or is gone, or the process ends: asyncio would report the cancelling
    finally:
        writer.close()


async def _write(writer: asyncio.StreamWriter, size: int) -> None:
    while size:
        part = min(size, len(_CHUNK))
        writer.write(_CHUNK[:part])
        await writer.drain()
        size -= part


async def _read(reader: asyncio.StreamReader, size: int) -> None:
    while size:
        data = await reader.read(min(size, len(_CHUNK)))
        if not data:
            raise EOFError("the connection ended within an exchange")
        size -= len(data)


async def _say(answer: Mapping[str, object]) -> None:
    print(json.dumps(answer), flush=True)


async def _report(traffic: Traffic) -> None:
    while True:
        await asyncio.sleep(1)
        await _say({"so_far": asdict(traffic.tally)})


async def main() -> None:
    """Follow the instructions on standard input."""
    instructions = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(instructions), sys.stdin
    )
    traffic = Traffic(Script.from_json((await instructions.readline()).decode()))
    tasks: list[asyncio.Task[None]] = []
    async with contextlib.AsyncExitStack() as stack:
        await traffic.listen(stack)
        await _say({"listening": True})
        while line := await instructions.readline():
            instruction = json.loads(line)
            if "go" in instruction:
                tasks = [asyncio.create_task(traffic.run()), asyncio.create_task(_report(traffic))]
            if "stop" in instruction:
                traffic.stop()
                if tasks:
                    await asyncio.wait(tasks[:1], timeout=_STOP_PATIENCE)
                await _say({"done": asdict(traffic.tally)})
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main())
