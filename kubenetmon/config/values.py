"""Parsers for configuration values: each takes the key's name and what YAML gave, returns what the program
uses, and raises `ConfigurationError` that names the key, the value and the accepted form."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from kubenetmon.config.duration import parse_duration
from kubenetmon.errors import ConfigurationError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Parser = Callable[[str, Any], Any]

_MAX_TEXT = 1024


def _refuse(name: str, value: object, form: str) -> NoReturn:
    shown = repr(value)
    if len(shown) > 60:
        shown = shown[:57] + "…"
    raise ConfigurationError(f"{name}: {shown} is not {form}")


def optional_text(name: str, value: Any) -> str:
    """Text without control characters; a bare number is taken as its digits."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or len(value) > _MAX_TEXT or re.search(r"[\x00-\x1f\x7f]", value):
        _refuse(name, value, "text of at most 1,024 characters")
    return value


def text(name: str, value: Any) -> str:
    """Text that is not empty."""
    checked = optional_text(name, value).strip()
    if not checked:
        raise ConfigurationError(f"{name} is empty: give it a value")
    return checked


def lower_text(name: str, value: Any) -> str:
    """Text, lower-cased as the original does with the region."""
    return text(name, value).lower()


def texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts, or one text."""
    items = value if isinstance(value, list) else [value]
    return tuple(text(name, item) for item in items)


def accounts(name: str, value: Any) -> tuple[str, ...]:
    """Service accounts as namespace/name."""
    items = texts(name, value)
    for item in items:
        if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?/[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?", item):
            _refuse(name, item, "a service account as namespace/name")
    return items


def one_of(*allowed: str) -> Parser:
    """One of these words, in any case."""

    def parse(name: str, value: Any) -> str:
        # YAML reads `none` as text but `null`, `~` and nothing as None, which never comes here.
        if not isinstance(value, str) or value.lower() not in allowed:
            _refuse(name, value, "one of " + ", ".join(allowed))
        return value.lower()

    return parse


def boolean(name: str, value: Any) -> bool:
    """true or false, quoted or not."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        value = value.lower() == "true"
    if not isinstance(value, bool):
        _refuse(name, value, "true or false")
    return value


def _integer(name: str, value: Any, low: int, high: int, form: str) -> int:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        _refuse(name, value, form)
    return value


def port(name: str, value: Any) -> int:
    """A TCP port; 0 lets the kernel choose (for tests)."""
    return _integer(name, value, 0, 65535, "a port (1 to 65535)")


def listen_address(name: str, value: Any) -> str:
    """An address of this machine to listen on, or `localhost`; empty: all addresses, IPv4 and IPv6."""
    given = optional_text(name, value).strip()
    bare = given[1:-1] if given.startswith("[") and given.endswith("]") else given
    if bare not in ("", "localhost"):
        try:
            return str(ipaddress.ip_address(bare))
        except ValueError:
            _refuse(name, given, "an address to listen on, such as 127.0.0.1, 10.0.0.7 or ::1")
    return bare


def positive(name: str, value: Any) -> int:
    """A whole number from 1 on."""
    return _integer(name, value, 1, 10_000_000, "a whole number from 1 on")


def duration(name: str, value: Any) -> float:
    """A duration in Go's form, in seconds, more than zero."""
    if isinstance(value, str):
        try:
            seconds = parse_duration(value)
        except ValueError:
            seconds = 0.0
        if seconds > 0:
            return seconds
    _refuse(name, value, "a duration such as 30s, 5m or 1h30m")


def path(name: str, value: Any) -> Path:
    """A path; whether it exists is for its user to say."""
    return Path(text(name, value))


def paths(name: str, value: Any) -> tuple[Path, ...]:
    """A list of paths, or one path."""
    return tuple(Path(one) for one in texts(name, value))


def identifier(name: str, value: Any) -> str:
    """A name that ClickHouse takes unquoted, so that nothing can be smuggled into SQL."""
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,126}", value):
        _refuse(name, value, "a ClickHouse name (letters, digits and underscores)")
    return value


def endpoint(name: str, value: Any) -> str:
    """`host:port`, `[v6]:port`, several of them separated by commas, or `chdb:PATH`."""
    if isinstance(value, str):
        if re.fullmatch(r"chdb:.+", value):
            return value
        one = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+):([0-9]{1,5})"
        parts = [re.fullmatch(one, part.strip()) for part in value.split(",")]
        if all(part is not None and 0 < int(part[2]) < 65536 for part in parts):
            return value
    _refuse(name, value, "host:port or chdb:PATH")


def kubernetes_source(name: str, value: Any) -> str:
    """Where the state of the cluster comes from."""
    if not isinstance(value, str) or not re.fullmatch(
        r"auto|in-cluster|kubeconfig|kubeconfig:.+|file:.+|machine", value
    ):
        _refuse(name, value, "one of auto, in-cluster, kubeconfig, kubeconfig:PATH, file:PATH, machine")
    return value


def networks(name: str, value: Any) -> tuple[Network, ...]:
    """A list of networks in CIDR form; a bare address is a network of one."""
    items = value if isinstance(value, list) else [value]
    parsed = []
    for item in items:
        try:
            parsed.append(ipaddress.ip_network(item if isinstance(item, str) else ""))
        except ValueError as error:
            hint = " (host bits are set)" if "host bits" in str(error) else ""
            _refuse(name, item, f"a network such as 10.0.0.0/8{hint}")
    return tuple(parsed)


def query_settings(name: str, value: Any) -> tuple[tuple[str, str | int], ...]:
    """Names of query settings to values, as pairs; true and false become 1 and 0."""
    if not isinstance(value, dict) or len(value) > 100:
        _refuse(name, value, "a map of at most 100 query settings to values")
    pairs = []
    for setting, item in value.items():
        if not isinstance(setting, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]{0,126}", setting):
            _refuse(name, setting, "the name of a query setting")
        if isinstance(item, float):
            item = repr(item)
        pairs.append((setting, int(item) if isinstance(item, int) else text(f"{name}.{setting}", item)))
    return tuple(pairs)


def flags(name: str, value: Any) -> tuple[tuple[str, tuple[Network, ...]], ...]:
    """Flag names to networks, as pairs."""
    if not isinstance(value, dict) or len(value) > 32:
        _refuse(name, value, "a map of at most 32 flag names to networks")
    return tuple((text(name, flag), networks(f"{name}.{flag}", item)) for flag, item in value.items())
