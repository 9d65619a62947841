"""What the agent shows to the server and asks of it: TLS and a token, both from files that may rotate.

Contract: `check` reads everything once at start and raises `ConfigurationError` that names the file. Later
each new connection takes what the files hold then; a file that cannot be read at that moment costs a
warning, and what it held before stays in use.
"""

from __future__ import annotations

import logging
import ssl
from pathlib import Path

from kubenetmon.errors import ConfigurationError

logger = logging.getLogger(__name__)

_MAX_TOKEN_BYTES = 16 * 1024


class Credentials:
    """No files at all: plain text and no token."""

    def __init__(
        self,
        *,
        ca: Path | None = None,
        certificate: Path | None = None,
        key: Path | None = None,
        token: Path | None = None,
    ) -> None:
        self._ca, self._certificate, self._key, self._token = ca, certificate, key, token
        self._context: ssl.SSLContext | None = None
        self._metadata: dict[str, str] = {}
        self._checked: tuple[object, ...] = ()

    def check(self) -> None:
        """Read all files. Raises `ConfigurationError`."""
        signature = self._signature()
        self._context = self._read_context()
        self._metadata = self._read_metadata()
        self._checked = signature

    def current(self) -> tuple[ssl.SSLContext | None, dict[str, str]]:
        """For one new connection: the TLS context (None: plain text) and the request's metadata."""
        if self._signature() == self._checked:
            return self._context, self._metadata
        try:
            self.check()
        except ConfigurationError as error:
            logger.warning("%s; what it held before stays in use", error)
        return self._context, self._metadata

    def _signature(self) -> tuple[object, ...]:
        """Differs once a file was replaced or written to: a context takes tens of milliseconds to make."""
        found: list[object] = ["checked"]
        for path in (self._ca, self._certificate, self._key, self._token):
            try:
                state = path.stat() if path is not None else None
            except OSError:
                state = None
            found.append(state and (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(found)

    def _read_context(self) -> ssl.SSLContext | None:
        if self._ca is None and self._certificate is None:
            return None
        try:
            context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=self._ca)
        except (OSError, ValueError) as error:
            raise _refusal("KUBENETMON_TLS_CA", self._ca, error, "a CA bundle in PEM") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["h2"])
        if self._certificate is not None:
            try:
                context.load_cert_chain(self._certificate, self._key, password=_no_password)
            except (OSError, ValueError) as error:
                raise _refusal(
                    "KUBENETMON_TLS_CERT and _KEY",
                    self._certificate,
                    error,
                    "a certificate and its key in PEM",
                ) from error
        return context

    def _read_metadata(self) -> dict[str, str]:
        if self._token is None:
            return {}
        try:
            with self._token.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 1).decode("ascii").strip()
        except (OSError, ValueError) as error:
            raise _refusal("KUBENETMON_TOKEN_FILE", self._token, error, "a file with a token") from error
        if not token or not token.isprintable() or " " in token or len(token) > _MAX_TOKEN_BYTES:
            raise ConfigurationError(
                f"KUBENETMON_TOKEN_FILE: {self._token} holds no token: one line of at most 16 KiB"
            )
        return {"authorization": f"Bearer {token}"}


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # else OpenSSL would ask on the terminal


def _refusal(name: str, path: Path | None, error: Exception, wanted: str) -> ConfigurationError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or "cannot be read"
    return ConfigurationError(f"{name}: {path} is not {wanted} ({why})")
