"""The agent's configuration: the original's environment variables and ours.

Contract: `from_environment` returns a checked, frozen `AgentConfig` or raises `ConfigurationError`, one line
that names the variable, the value and the accepted form. A variable that is set to nothing counts as not
set, as Kubernetes manifests produce such. Files that variables point to are looked at by the parts that use
them. `SETTINGS` is the table that `--help` and `docs/configuration.md` are made from.
"""

from __future__ import annotations

import difflib
import ipaddress
import logging
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kubenetmon.config.duration import format_duration, parse_duration
from kubenetmon.config.values import listen_address
from kubenetmon.errors import ConfigurationError

logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")

_SHORTEST_COLLECTION = 0.1
_LONGEST_INTERVAL = 3600.0
_DEFAULT_REPORT_INTERVAL = 60.0
_SMALLEST_EVENT_BUFFER, _LARGEST_EVENT_BUFFER = 64 << 10, 256 << 20
_MAX_NODE_NAME = 253  # a Kubernetes node's name is a DNS subdomain (RFC 1123)

# What Kubernetes puts into every pod for each Service of its namespace (kubernetes.io: "Accessing the
# Service", environment variables), and so for kubenetmon's own.
_SERVICE_VARIABLE = re.compile(
    r"KUBENETMON_\w+_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)


@dataclass(frozen=True, slots=True)
class Setting:
    """One variable, for people."""

    name: str
    default: str
    meaning: str


SETTINGS: tuple[Setting, ...] = (
    Setting("NODE_NAME", "the host's name", "This node's name in Kubernetes"),
    Setting("COLLECTION_INTERVAL", "5s", "How often the connection tracking table is read"),
    Setting("KUBENETMON_SERVER_SERVICE_HOST", "localhost", "Name or address of the server"),
    Setting("KUBENETMON_SERVER_SERVICE_PORT", "8884", "Port of the server"),
    Setting(
        "SKIP_CONNTRACK_SANITY_CHECK",
        "false",
        "Start even where the kernel does not count bytes (true, false)",
    ),
    Setting(
        "UPTIME_WAIT_DURATION",
        "300s",
        "How long after boot the node may be without any flow that counts bytes before the agent gives up",
    ),
    Setting("METRICS_PORT", "8883", "Port of /metrics, /live and /ready; 0: any free one"),
    Setting(
        "KUBENETMON_METRICS_HOST",
        "",
        "Address that METRICS_PORT is served on, such as 127.0.0.1; not set: all, IPv4 and IPv6",
    ),
    Setting(
        "KUBENETMON_REPORT_INTERVAL",
        "60s, or COLLECTION_INTERVAL where that is longer",
        "How often what was read is reported to the server; whole seconds",
    ),
    Setting(
        "KUBENETMON_SET_SYSCTLS",
        "false",
        "Set nf_conntrack_acct, nf_conntrack_events and nf_conntrack_timestamp to 1 at start (true, false)",
    ),
    Setting(
        "KUBENETMON_COUNT_EXISTING",
        "false",
        "Report what flows had counted before the first start too, as the original does (true, false)",
    ),
    Setting(
        "KUBENETMON_STATE_DIR",
        "",
        "Directory, best on a tmpfs such as /run/kubenetmon, where ledger and unsent reports survive the "
        "agent's end, so that the next one goes on from the exact byte; not set: they are in memory",
    ),
    Setting(
        "KUBENETMON_EVENT_BUFFER",
        "8388608",
        "Bytes of the kernel's queue for ended flows that the agent has yet to read; when it is full they "
        "stay in the connection tracking table for a while, and none is lost",
    ),
    Setting(
        "KUBENETMON_TLS_CA", "", "CA bundle (PEM) that the server's certificate must come from; turns TLS on"
    ),
    Setting("KUBENETMON_TLS_CERT", "", "The agent's own certificate (PEM), with KUBENETMON_TLS_KEY"),
    Setting("KUBENETMON_TLS_KEY", "", "Key of KUBENETMON_TLS_CERT (PEM)"),
    Setting(
        "KUBENETMON_TOKEN_FILE", "", "File with a token to show to the server; read again when it changes"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """Durations are seconds; `report_interval` is a whole number of them."""

    node_name: str
    collection_interval: float = 5.0
    report_interval: int = 60
    server_host: str = "localhost"
    server_port: int = 8884
    metrics_port: int = 8883
    metrics_host: str = ""
    """Empty: all addresses."""
    skip_conntrack_sanity_check: bool = False
    uptime_wait_duration: float = 300.0
    set_sysctls: bool = False
    count_existing: bool = False
    state_dir: Path | None = None
    event_buffer: int = 8 << 20
    """Bytes."""
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None


def from_environment(environ: Mapping[str, str]) -> AgentConfig:
    """The configuration that `environ` describes. Raises `ConfigurationError`; warns of unknown variables."""
    collection = _read(environ, "COLLECTION_INTERVAL", _collection_interval, 5.0)
    default_report = (
        _DEFAULT_REPORT_INTERVAL if collection <= _DEFAULT_REPORT_INTERVAL else -(-collection // 1)
    )
    config = AgentConfig(
        node_name=_read(environ, "NODE_NAME", _node_name, "")
        or _node_name("NODE_NAME", socket.gethostname()),
        collection_interval=collection,
        report_interval=_read(environ, "KUBENETMON_REPORT_INTERVAL", _report_interval, int(default_report)),
        server_host=_read(environ, "KUBENETMON_SERVER_SERVICE_HOST", _host, "localhost"),
        server_port=_read(environ, "KUBENETMON_SERVER_SERVICE_PORT", _port, 8884),
        metrics_port=_read(environ, "METRICS_PORT", _port_or_any, 8883),
        metrics_host=_read(environ, "KUBENETMON_METRICS_HOST", listen_address, ""),
        skip_conntrack_sanity_check=_read(environ, "SKIP_CONNTRACK_SANITY_CHECK", _boolean, False),
        uptime_wait_duration=_read(environ, "UPTIME_WAIT_DURATION", _duration, 300.0),
        set_sysctls=_read(environ, "KUBENETMON_SET_SYSCTLS", _boolean, False),
        count_existing=_read(environ, "KUBENETMON_COUNT_EXISTING", _boolean, False),
        state_dir=_read(environ, "KUBENETMON_STATE_DIR", _path, None),
        event_buffer=_read(environ, "KUBENETMON_EVENT_BUFFER", _event_buffer, 8 << 20),
        tls_ca=_read(environ, "KUBENETMON_TLS_CA", _path, None),
        tls_cert=_read(environ, "KUBENETMON_TLS_CERT", _path, None),
        tls_key=_read(environ, "KUBENETMON_TLS_KEY", _path, None),
        token_file=_read(environ, "KUBENETMON_TOKEN_FILE", _path, None),
    )
    _check_together(config)
    _warn_of_unknown(environ)
    return config


def _check_together(config: AgentConfig) -> None:
    if config.report_interval < config.collection_interval:
        raise ConfigurationError(
            f"KUBENETMON_REPORT_INTERVAL: {format_duration(config.report_interval)} is shorter than "
            f"COLLECTION_INTERVAL ({format_duration(config.collection_interval)}): make it at least as long"
        )
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigurationError(
            "KUBENETMON_TLS_CERT and KUBENETMON_TLS_KEY go together: set both or neither"
        )
    if config.token_file is not None and config.tls_ca is None and config.tls_cert is None:
        logger.warning(
            "KUBENETMON_TOKEN_FILE is set without TLS, so that anyone on the way can read the token: "
            "set KUBENETMON_TLS_CA"
        )


def _warn_of_unknown(environ: Mapping[str, str]) -> None:
    known = [setting.name for setting in SETTINGS]
    for name in sorted(environ):
        if not name.startswith("KUBENETMON_") or name in known or _SERVICE_VARIABLE.fullmatch(name):
            continue
        nearest = max(known, key=lambda candidate: _likeness(name, candidate))
        logger.warning(
            "the environment variable %s is unknown and has no effect; did you mean %s?", name, nearest
        )


def _likeness(given: str, known: str) -> float:
    """Between 0 and 1, without what all names share; a beginning alone will do."""
    given, known = given.removeprefix("KUBENETMON_"), known.removeprefix("KUBENETMON_")
    return max(difflib.SequenceMatcher(None, given, form).ratio() for form in (known, known[: len(given)]))


def _read(
    environ: Mapping[str, str], name: str, parse: Callable[[str, str], _Value], default: _Value
) -> _Value:
    value = environ.get(name, "").strip()
    return parse(name, value) if value else default


def _refusal(name: str, value: str, form: str) -> ConfigurationError:
    shown = repr(value if len(value) <= 60 else value[:60] + "…")
    return ConfigurationError(f"{name}: {shown} is not {form}")


def _node_name(name: str, value: str) -> str:
    if len(value) > _MAX_NODE_NAME or not value.isprintable() or " " in value:
        raise _refusal(
            name, value, "the name of a node (at most 253 characters, as `kubectl get nodes` shows)"
        )
    return value


def _boolean(name: str, value: str) -> bool:
    """The forms of Go's strconv.ParseBool."""
    if value in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if value in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise _refusal(name, value, "true or false (1, t, T, TRUE, True and their opposites will do)")


def _duration(name: str, value: str) -> float:
    try:
        return parse_duration(value)
    except ValueError:
        raise _refusal(name, value, "a duration such as 300s, 5m or 1h30m") from None


def _collection_interval(name: str, value: str) -> float:
    seconds = _duration(name, value)
    if not _SHORTEST_COLLECTION <= seconds <= _LONGEST_INTERVAL:
        raise _refusal(name, value, "a duration between 100ms and 1h")
    return seconds


def _report_interval(name: str, value: str) -> int:
    seconds = _duration(name, value)
    if not 1 <= seconds <= _LONGEST_INTERVAL or seconds != int(seconds):
        raise _refusal(name, value, "a duration of whole seconds between 1s and 1h")
    return int(seconds)


def _event_buffer(name: str, value: str) -> int:
    lowest, highest = _SMALLEST_EVENT_BUFFER, _LARGEST_EVENT_BUFFER
    if not re.fullmatch(r"[0-9]{1,9}", value) or not lowest <= int(value) <= highest:
        raise _refusal(name, value, f"a number of bytes from {lowest} to {highest}")
    return int(value)


def _port(name: str, value: str) -> int:
    return _port_from(1, name, value)


def _port_or_any(name: str, value: str) -> int:
    return _port_from(0, name, value)


def _port_from(lowest: int, name: str, value: str) -> int:
    address = re.fullmatch(r"[a-z]+://.*:([0-9]{1,5})", value)
    if address:
        # Kubernetes' own variable NAME_PORT looks like this where a Service is called NAME.
        raise _refusal(name, value, f"a port but an address: write {address[1]}")
    if not re.fullmatch(r"[0-9]{1,5}", value) or not lowest <= int(value) <= 65535:
        raise _refusal(name, value, f"a port, a number from {lowest} to 65535")
    return int(value)


def _host(name: str, value: str) -> str:
    bare = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    try:
        return str(ipaddress.IPv6Address(bare))
    except ValueError:
        pass
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,253}", value):
        raise _refusal(
            name, value, "a host name or an address (the port goes into KUBENETMON_SERVER_SERVICE_PORT)"
        )
    return value


def _path(name: str, value: str) -> Path:
    if not value.isprintable() or len(value) > 4096:
        raise _refusal(name, value, "a path")
    return Path(value)
