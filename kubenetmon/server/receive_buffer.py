"""Bytes of one gRPC stream on their way in.

Contract: the HTTP/2 side adds what arrives, one reader takes it; both on the event loop. HTTP/2's windows are
opened from here, so that what can arrive is bounded by what memory was reserved for. Ends with its stream.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from grpclib.protocol import Buffer
from grpclib.protocol import Stream as HttpStream

if TYPE_CHECKING:
    from kubenetmon.server.transport import AgentConnection


class StreamStopped(Exception):
    """Reading was ended from our side (age or shutdown)."""


class StreamCut(Exception):
    """The stream ended within a message."""


class ReceiveBuffer(Buffer):
    """Bytes of one stream, in bulk.

    The peer may send `window` bytes unasked; more only while `exactly` waits for a longer message, which its
    caller has reserved memory for.
    """

    def __init__(self, connection: AgentConnection, stream: HttpStream, window: int) -> None:
        super().__init__(lambda size: None)
        self.connection = connection
        self._stream = stream
        self._window = window
        self._credit = window
        self._received = 0
        self._opened = 0
        self._chunks: deque[bytes] = deque()
        self.unread = 0
        """Bytes that have arrived and were not taken."""
        self._ended = False
        self._stopped = asyncio.Event()
        self._arrived = asyncio.Event()

    def add(self, data: bytes, ack_size: int) -> None:
        """Called by the HTTP/2 side for every DATA frame; `ack_size` includes padding."""
        self._credit -= ack_size
        self._received += ack_size
        if data:
            self._chunks.append(data)
            self.unread += len(data)
            self._arrived.set()

    def eof(self) -> None:
        """Called by the HTTP/2 side when the peer has ended the stream."""
        self._ended = True
        self._arrived.set()

    def unacked_size(self) -> int:
        """Called when the stream is released, for what is to be acknowledged: nothing, the connection's
        window is put right here."""
        self.connection.balance_window(self._opened - self._received)
        self._opened = self._received = self.unread = 0
        self._chunks.clear()
        return 0

    def stop(self) -> None:
        """End reading: whoever waits for bytes, now or later, gets `StreamStopped`."""
        self._stopped.set()
        self._arrived.set()

    async def stopped(self) -> None:
        """Return once reading was ended from our side."""
        await self._stopped.wait()

    async def arrival(self) -> None:
        """Return when there are bytes or the peer has ended the stream."""
        while not (self.unread or self._ended or self._stopped.is_set()):
            self._arrived.clear()
            await self._arrived.wait()
        if self._stopped.is_set():
            raise StreamStopped

    async def take(self, limit: int) -> bytes:
        """Between 1 and `limit` bytes as soon as there are any; b"" when the peer has ended the stream."""
        await self.arrival()
        if not self.unread:
            return b""
        taken: list[bytes] = []
        size = 0
        while self._chunks and size < limit:
            chunk = self._chunks.popleft()
            if size + len(chunk) > limit:
                self._chunks.appendleft(chunk[limit - size :])
                chunk = chunk[: limit - size]
            taken.append(chunk)
            size += len(chunk)
        self.unread -= size
        if self._window - self.unread - self._credit >= self._window // 2:
            self._let_come(self._window)
        return taken[0] if len(taken) == 1 else b"".join(taken)

    def rest(self) -> bytes:
        """What has arrived and was not taken: for who must not lose it when reading ended early."""
        arrived = b"".join(self._chunks)
        self.unread = 0
        self._chunks.clear()
        return arrived

    async def exactly(self, size: int) -> bytes:
        """That many bytes; b"" if the stream ended before the first, else `StreamCut`."""
        parts: list[bytes] = []
        missing = size
        self._let_come(size)
        while missing:
            part = await self.take(missing)
            if not part:
                if missing == size:
                    return b""
                raise StreamCut
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def _let_come(self, size: int) -> None:
        """See to it that the peer may send until `size` bytes are unread."""
        more = size - self.unread - self._credit
        if more > 0 and not self._ended:
            self._credit += more
            self._opened += more
            self.connection.open_window(self._stream, more)
