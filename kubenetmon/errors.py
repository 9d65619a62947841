"""The errors that reach an operator.

Contract: `str(error)` is one line that names the thing at fault and says what to do. `__main__` prints it,
`printable`, and exits with `exit_code`; a traceback is never part of a message. Errors that stay inside one
part of the program are defined in that part and derive from these.
"""

from __future__ import annotations

import errno


class KubenetmonError(Exception):
    """The program cannot go on; the message says why and what to do."""

    exit_code: int = 1


class ConfigurationError(KubenetmonError):
    """What the operator wrote (file, environment, flag, secret, ranges file) cannot be used."""

    exit_code = 2


class MachineError(KubenetmonError):
    """The machine lacks something: a kernel setting, a privilege, a package."""


class ProtocolError(KubenetmonError):
    """A peer sent something that cannot be read; the connection or batch is refused, nothing else happens."""


class SchemaError(ConfigurationError):
    """The table in ClickHouse lacks what the rows need."""


def printable(text: str) -> str:
    """The text with line ends and control characters as they are written in Python.

    Errors and notes quote what others wrote: no server, file or pod may move the cursor of who reads them.
    """
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def cannot_listen(what: str, host: str, port: int, error: OSError) -> str:
    """The line for a port that cannot be served on a host (empty: all addresses)."""
    if error.errno == errno.EADDRINUSE:
        advice = "free it or choose another"
    elif error.errno == errno.EADDRNOTAVAIL:
        advice = "give an address of this machine, or none for all"
    else:
        advice = "choose another port or address"
    where = f" on {host}" if host else ""
    return f"{what} port {port} cannot be served{where} ({error.strerror or error}): {advice}"
