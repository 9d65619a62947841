"""At most one agent meters a node.

Contract: `take` returns once this process has both an abstract unix socket in its network namespace (unix(7):
the name exists while the socket does, and only there) and the lock of its state directory. Until then it
looks again and again and says once why it waits, so that in a rolling update the new agent takes over where
the old one lets go, however that ends. The kernel takes both back when the process dies; `release` does it
before, last of all.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from kubenetmon.agent.state import StateDirectory
from kubenetmon.clock import Clock
from kubenetmon.errors import MachineError
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

CHECK = "guard"
"""The guard's name in /ready."""

_NAME = "\0kubenetmon/agent"
_LOOK_AGAIN = 0.05


class NodeGuard:
    """Owns the socket and, while it holds it, the lock of the state directory."""

    def __init__(self, state: StateDirectory | None, *, readiness: Readiness, clock: Clock) -> None:
        self._state, self._readiness, self._clock = state, readiness, clock
        self._socket: socket.socket | None = None
        self._locked = False

    @property
    def held(self) -> bool:
        """Whether this process is the node's agent."""
        return self._locked

    async def take(self, meanwhile: Callable[[], None]) -> None:
        """Wait until this process is the node's agent; `meanwhile` is called at each vain look.

        Raises `KubenetmonError` when that cannot ever be.
        """
        self._readiness.expect(CHECK, "waiting to be this node's only agent")
        said = False
        while not self._try():
            if not said:
                said = True
                logger.info("Another agent meters this node: I listen, and take over when it ends")
                self._readiness.failed(CHECK, "another agent meters this node; waiting for it to end")
            meanwhile()
            await self._clock.sleep(_LOOK_AGAIN)
        self._readiness.passed(CHECK)

    def release(self) -> None:
        """Let the next agent meter; safe to call twice."""
        if self._state is not None:
            self._state.close()
        self._locked = False
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _try(self) -> bool:
        if self._socket is None:
            self._socket = _bind()
        if self._socket is None:
            return False
        if not self._locked:
            self._locked = self._state is None or self._state.lock()
        return self._locked


def _bind() -> socket.socket | None:
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        bound.bind(_NAME)
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            return None
        raise MachineError(f"this node cannot be guarded against a second agent: {error.strerror}") from None
    return bound
