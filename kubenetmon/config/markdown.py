"""The configuration as a page: what `kubenetmon config` prints and `docs/configuration.md` holds."""

from __future__ import annotations

from typing import Any

from kubenetmon.config import agent, server
from kubenetmon.config.duration import format_duration
from kubenetmon.config.values import duration


def configuration() -> str:
    """Variables and keys as Markdown tables."""
    agent_rows = [f"| `{item.name}` | {item.default} | {item.meaning} |" for item in agent.SETTINGS]
    server_rows = [
        f"| `{name}` | {_default(field)} | {field.metadata['meaning']} |"
        for name, field in server.KEYS.items()
        if not field.metadata["unused"]
    ]
    unused_rows = [
        f"| `{name}` | {field.metadata['meaning']} |"
        for name, field in server.KEYS.items()
        if field.metadata["unused"]
    ]
    return "\n\n".join(
        [
            "# Configuration",
            "Printed by `kubenetmon config`. Durations are written as `300s`, `5m` or `1h30m`. A name that "
            "is not listed, a wrong type or a missing value is one line that names it, and exit status 2.",
            "## Agent: environment variables\n\n" + _table(("variable", "default", "meaning"), agent_rows),
            "## Server: keys of the YAML file\n\nThe file is given by `--config FILE` (default "
            f"`{server.DEFAULT_PATH}`); every key can be overridden with `--set key=value`.\n\n"
            + _table(("key", "default", "meaning"), server_rows),
            "## Keys of the original that are accepted and have no meaning here\n\n"
            + _table(("key", "instead"), unused_rows),
        ]
    )


def _table(head: tuple[str, ...], rows: list[str]) -> str:
    return "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *rows])


def _default(field: Any) -> str:
    value = field.default
    if field.metadata["required"]:
        return "required"
    if value in (None, "", ()):
        return ""
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if field.metadata["parse"] is duration:
        return f"`{format_duration(value)}`"
    if isinstance(value, tuple):
        return "`[" + ", ".join(map(str, value)) + "]`"
    return f"`{value}`"
