"""Last good copies of the providers' files on disk, so that a start needs no network.

Contract: a copy is written whole or not at all, body first, so that a note never speaks of a body that is not
there. Nothing here stops the service: what cannot be read is as if it were not there, what cannot be written
is logged. One process writes a directory at a time; who else does, does no harm. Blocking: call it off the
event loop.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

import msgspec

logger = logging.getLogger(__name__)

MOST_BYTES = 64 << 20
"""No provider's file is larger; Azure's, the largest, is 4 MB."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a copy came from; `fetched_at` in Unix seconds: when it was last known to be current."""

    url: str
    etag: str
    fetched_at: float


class _Note(msgspec.Struct):
    url: str
    etag: str
    fetched_at: float
    sha256: str


class RangeCache:
    """A directory with `<provider>.json` and `<provider>.note` for each provider."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, provider: str) -> tuple[Origin, bytes] | None:
        """The last good copy, or None where there is none that is whole."""
        path = self._directory / f"{provider}.json"
        try:
            body = read_bounded(path)
            note = msgspec.json.decode(read_bounded(path.with_suffix(".note")), type=_Note)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            logger.warning("The cached ranges in %s cannot be used: %s", path, error)
            return None
        if hashlib.sha256(body).hexdigest() != note.sha256:
            logger.warning("The cached ranges in %s cannot be used: they are not what was stored", path)
            return None
        return Origin(note.url, note.etag, note.fetched_at), body

    def store(self, provider: str, origin: Origin, body: bytes) -> None:
        """Keep this copy in place of the one before."""
        note = _Note(origin.url, origin.etag, origin.fetched_at, hashlib.sha256(body).hexdigest())
        path = self._directory / f"{provider}.json"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_whole(path, body)
            write_whole(path.with_suffix(".note"), msgspec.json.encode(note))
        except OSError as error:
            logger.warning("The ranges of %s could not be kept in %s: %s", provider, path, error)

    def renew(self, provider: str, origin: Origin) -> None:
        """The copy that is here is still current."""
        path = self._directory / f"{provider}.note"
        try:
            note = msgspec.json.decode(read_bounded(path), type=_Note)
            note.fetched_at = origin.fetched_at
            write_whole(path, msgspec.json.encode(note))
        except (OSError, ValueError) as error:
            logger.warning("The ranges of %s could not be kept in %s: %s", provider, path, error)


def read_bounded(path: Path) -> bytes:
    """A file's content. Raises `OSError`, and `ValueError` when it is none, or larger than any provider's."""
    # A pipe that nobody writes to is not waited for.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is no regular file")
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"larger than {MOST_BYTES} bytes")
    return content


def write_whole(path: Path, content: bytes) -> None:
    """Write a file such that a reader sees the old content or the new, never a part. Raises `OSError`."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.fchmod(file.fileno(), 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
