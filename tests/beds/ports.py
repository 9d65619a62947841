"""Ports for what a test starts later, which nobody has taken by then."""

from __future__ import annotations

import os
import random
import socket
from pathlib import Path

_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_given: set[int] = set()


def free_port() -> int:
    """A TCP port that nobody has now, that this process was not given before, nor others that run tests.

    It lies below those that the kernel gives to whoever connects somewhere (ip(7), ip_local_port_range): of
    these one is easily taken before the test's own process binds it.
    """
    first = int(_EPHEMERAL.read_text().split()[0])
    while True:
        port = random.randrange(first // 2 + _WORKER, first, _WORKERS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        if port not in _given:
            _given.add(port)
            return port
