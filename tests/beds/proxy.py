"""A TCP proxy on loopback that misbehaves on demand: delay, slow down, stall, cut, refuse.

Contract: `async with TcpProxy(host, port) as proxy` listens on `proxy.host:proxy.port` and forwards every
connection to the upstream. Faults are plain attributes, one set for each direction (`proxy.to_upstream`,
`proxy.to_client`); they may be changed at any time and hold for open connections and new ones alike. Bytes
in a stalled direction wait and go out when the stall ends; bytes in a dropped direction are read and
forgotten, so that to its sender the peer looks alive (a half-open connection). Leaving the context closes
all connections and the listener.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from types import TracebackType
from typing import Self

_CHUNK = 1 << 16


class Direction:
    """The faults of one direction and the number of bytes that it let through."""

    def __init__(self) -> None:
        self.delay = 0.0
        """Seconds that each chunk waits before it goes on."""
        self.bytes_per_second = 0.0
        """Speed limit; 0: none."""
        self.dropping = False
        """Read and forget: the sender notices nothing, the receiver hears nothing."""
        self.cut_after: int | None = None
        """Reset the connection once so many more bytes have passed (set by `cut_after_bytes`)."""
        self.forwarded = 0
        """Bytes passed on since the start, over all connections."""
        self._flowing = asyncio.Event()
        self._flowing.set()

    def stall(self) -> None:
        """Hold all bytes back, reading no more of them, until `resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """End a stall; what was held back goes out."""
        self._flowing.set()

    def cut_after_bytes(self, count: int) -> None:
        """Reset the connection after exactly `count` more bytes of this direction, once."""
        self.cut_after = count

    async def pass_on(self, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        """Give one chunk to `writer` under the faults set now; raises `ConnectionResetError` at a cut."""
        await self._flowing.wait()
        if self.delay:
            await asyncio.sleep(self.delay)
            await self._flowing.wait()
        if self.dropping:
            return
        cut = self.cut_after is not None and len(chunk) >= self.cut_after
        if self.cut_after is not None:
            chunk = chunk[: self.cut_after]
            self.cut_after = None if cut else self.cut_after - len(chunk)
        if self.bytes_per_second:
            step = max(1, int(self.bytes_per_second / 20))
            for start in range(0, len(chunk), step):
                piece = chunk[start : start + step]
                await self._flowing.wait()
                await self._write(piece, writer)
                if self.bytes_per_second:  # not healed meanwhile
                    await asyncio.sleep(len(piece) / self.bytes_per_second)
        else:
            await self._write(chunk, writer)
        if cut:
            raise ConnectionResetError("cut by the proxy")

    async def _write(self, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        writer.write(chunk)
        await writer.drain()
        self.forwarded += len(chunk)


class TcpProxy:
    """One listener in front of one upstream address."""

    def __init__(
        self, upstream_host: str, upstream_port: int, *, host: str = "127.0.0.1", port: int = 0
    ) -> None:
        self.upstream = (upstream_host, upstream_port)
        """Where new connections go; may be changed."""
        self.host = host
        self.port = port
        self.to_upstream = Direction()
        self.to_client = Direction()
        self.refusing = False
        """Reset new connections at once."""
        self.accepted = 0
        """Connections that were accepted and connected to the upstream."""
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def connections(self) -> int:
        """Connections open now."""
        return len(self._links)

    async def start(self) -> None:
        """Listen; `port` is true from here on, and stays the same over `stop` and `start`."""
        self._server = await asyncio.start_server(self._accept, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening (new connections are refused by the kernel) and reset what is open."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """Reset all open connections, both sides."""
        links = list(self._links)
        for writer in self._writers:
            _reset(writer)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def heal(self) -> None:
        """No faults any more; connections that were cut stay cut."""
        self.refusing = False
        for direction in (self.to_upstream, self.to_client):
            direction.delay = direction.bytes_per_second = 0.0
            direction.dropping = False
            direction.cut_after = None
            direction.resume()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        self._writers.add(writer)
        try:
            await self._link(reader, writer)
        except asyncio.CancelledError:
            pass  # `cut` or `stop`: the streams module would log it as an unhandled error
        finally:
            self._links.discard(link)
            self._writers.discard(writer)
            writer.close()

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            _reset(writer)
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        except OSError:
            _reset(writer)
            return
        self.accepted += 1
        self._writers.add(upstream_writer)
        pumps = (
            asyncio.ensure_future(_pump(reader, upstream_writer, self.to_upstream)),
            asyncio.ensure_future(_pump(upstream_reader, writer, self.to_client)),
        )
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_EXCEPTION)
            if any(pump.exception() is not None for pump in done):
                _reset(writer)
                _reset(upstream_writer)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            self._writers.discard(upstream_writer)
            upstream_writer.close()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: Direction) -> None:
    while chunk := await reader.read(_CHUNK):
        await direction.pass_on(chunk, writer)
    if not direction.dropping and writer.can_write_eof():
        with contextlib.suppress(OSError, RuntimeError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN (SO_LINGER with time 0, socket(7))."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
