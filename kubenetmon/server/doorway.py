"""TLS at the gRPC port: whoever fails the handshake costs little, and certificates change without a restart.

Contract: the receiver owns a `Doorway` and gives it to the server; `enter` makes the protocol of an accepted
connection, and the one for HTTP/2 follows once the handshake is done. `close` at the end cuts what is still
at it. `Certificates` re-reads its files when they change (kubelet and cert-manager replace them): a
connection made afterwards sees the new ones, and what cannot be read leaves the old ones in use.

Python's own way, an SSL context given to the listening socket, neither counts who fails nor limits how many
are at the handshake, each with an SSL object and its buffers; and its context is one for ever.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.refusals import Reason, Refusals

logger = logging.getLogger(__name__)

_LOOK_EVERY = 1.0
_PLAIN_TEXT = frozenset(
    {
        "HTTP_REQUEST",
        "HTTPS_PROXY_REQUEST",
        "WRONG_VERSION_NUMBER",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
        "BAD_RECORD_TYPE",
        "RECORD_LAYER_FAILURE",
    }
)


class Certificates:
    """A server's TLS context, made from files that may be replaced at any time."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        client_ca: Path | None,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read all files. Raises `ConfigurationError` that names the key and the file."""
        self._certificate, self._key, self._client_ca = certificate, key, client_ca
        self._now = now
        self._looked = now()
        self._signature = self._sign()
        self._context = self._read()

    def context(self) -> ssl.SSLContext:
        """For one new connection."""
        now = self._now()
        if now - self._looked >= _LOOK_EVERY:
            self._looked = now
            signature = self._sign()
            if signature != self._signature:
                self._signature = signature
                try:
                    self._context = self._read()
                    logger.info("Read the certificates for agents anew from %s", self._certificate)
                except ConfigurationError as error:
                    logger.warning("%s; the one before stays in use", error)
        return self._context

    def _sign(self) -> tuple[object, ...]:
        """Differs once a file was replaced or written to."""
        found: list[object] = []
        for path in (self._certificate, self._key, self._client_ca):
            try:
                state = path.stat() if path is not None else None
            except OSError:
                state = None
            found.append(state and (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(found)

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        try:
            context.load_cert_chain(self._certificate, self._key, password="")
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"tls_cert {self._certificate} and tls_key {self._key} cannot be used ({error}): give a "
                "certificate and its key in PEM, without a password"
            ) from error
        if self._client_ca is not None:
            try:
                context.load_verify_locations(self._client_ca)
            except (OSError, ValueError) as error:
                raise ConfigurationError(
                    f"tls_client_ca {self._client_ca} cannot be used ({error}): give a CA in PEM"
                ) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


@dataclass(frozen=True, slots=True)
class DoorwayLimits:
    """`handshake_timeout` in seconds; above `most_waiting` the one at it for longest makes room."""

    handshake_timeout: float = 10.0
    most_waiting: int = 512


class Doorway:
    """All connections that are not through the handshake yet."""

    def __init__(
        self, contexts: Callable[[], ssl.SSLContext], refusals: Refusals, limits: DoorwayLimits | None = None
    ) -> None:
        self._contexts = contexts
        self._refusals = refusals
        self._limits = limits or DoorwayLimits()
        self._waiting: OrderedDict[asyncio.Task[None], str] = OrderedDict()

    @property
    def waiting(self) -> int:
        """Connections at the handshake now."""
        return len(self._waiting)

    def enter(self, inside: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """The protocol of a connection just accepted; `inside` makes the one it shall have after TLS."""
        return _Guest(self, inside)

    def close(self) -> None:
        """Cut whoever is still at the handshake."""
        for task in list(self._waiting):
            task.cancel()

    def greet(self, connection: socket.socket, peer: str, inside: Callable[[], asyncio.Protocol]) -> None:
        """Begin the handshake on a connection that is ours."""
        if len(self._waiting) >= self._limits.most_waiting:
            oldest, its_peer = self._waiting.popitem(last=False)
            oldest.cancel()
            self._refusals.count("crowded", its_peer, "too many connections are at the TLS handshake")
        task = asyncio.get_running_loop().create_task(self._shake_hands(connection, peer, inside))
        self._waiting[task] = peer
        task.add_done_callback(lambda done: self._waiting.pop(done, None))

    async def _shake_hands(
        self, connection: socket.socket, peer: str, inside: Callable[[], asyncio.Protocol]
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                inside,
                connection,
                ssl=self._contexts(),
                ssl_handshake_timeout=self._limits.handshake_timeout,
            )
        except (OSError, ValueError) as error:  # SSLError is an OSError; ValueError: a hostile handshake
            connection.close()
            reason, text = _judge(error)
            self._refusals.count(reason, peer, text)
        except asyncio.CancelledError:
            connection.close()


class _Guest(asyncio.Protocol):
    """Takes an accepted connection from the event loop, which would read from it in plain text."""

    def __init__(self, doorway: Doorway, inside: Callable[[], asyncio.Protocol]) -> None:
        self._doorway = doorway
        self._inside = inside

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        address = transport.get_extra_info("peername")
        peer = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "local socket"
        try:
            connection = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        except OSError:
            transport.close()  # no file descriptor left: the peer tries again
            return
        connection.setblocking(False)
        # Nothing was read yet. The loop closes its own descriptor, the connection lives on with ours.
        transport.close()
        self._doorway.greet(connection, peer, self._inside)


def _judge(error: Exception) -> tuple[Reason, str]:
    """Why a handshake failed, as counted and as said."""
    reason = getattr(error, "reason", None) or ""
    if isinstance(error, ssl.SSLCertVerificationError) or "CERTIFICATE" in reason:
        why = getattr(error, "verify_message", "") or "it shows none"
        return "certificate", f"its certificate is not accepted ({why}); it must come from tls_client_ca"
    if reason in _PLAIN_TEXT:
        return "plain_text", "it speaks plain text to a port with TLS; set KUBENETMON_TLS_CA at the agent"
    if isinstance(error, ConnectionAbortedError | TimeoutError):
        return "slow_handshake", "its TLS handshake took too long"
    if "UNKNOWN_CA" in reason:
        return "handshake", "it does not trust our certificate; KUBENETMON_TLS_CA must be tls_cert's CA"
    return "handshake", f"the TLS handshake failed ({reason or error or type(error).__name__})"
