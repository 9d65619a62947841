"""Which of the server's addresses to connect to.

Contract: `candidates` resolves the name anew each time, so that replicas that came or went are seen, and
returns all its addresses in random order, the one that failed last at the end: so agents spread over the
addresses of a headless Service without talking to each other. No task, nothing to stop.
"""

from __future__ import annotations

import asyncio
import random
import socket

from kubenetmon.clock import Clock
from kubenetmon.waiting import within

_RESOLVE_SECONDS = 10.0


class Addresses:
    """The addresses of one host name and port."""

    def __init__(self, host: str, port: int, *, clock: Clock, chance: random.Random) -> None:
        self._host, self._port = host, port
        self._clock, self._chance = clock, chance
        self._failed: str | None = None

    def failed(self, address: str) -> None:
        """Try others first the next time."""
        self._failed = address

    async def candidates(self) -> list[str]:
        """At least one address, best first. Raises `OSError` where the name does not resolve."""
        lookup = asyncio.get_running_loop().getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        try:
            found = await within(self._clock, _RESOLVE_SECONDS, lookup)
        except TimeoutError:
            raise OSError(f"looking the name up took longer than {_RESOLVE_SECONDS:g}s") from None
        addresses = sorted({str(entry[4][0]) for entry in found})
        self._chance.shuffle(addresses)
        addresses.sort(key=lambda address: address == self._failed)
        return addresses
