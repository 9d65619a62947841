"""The configuration as a page: what `kubenetmon config` prints and `docs/configuration.md` holds."""

from __future__ import annotations

from typing import Any

from kubenetmon.config import agent, server
from kubenetmon.config.duration import format_duration
from kubenetmon.config.values import duration

EXAMPLE = """\
private_cidrs: [100.64.0.0/10, 203.0.113.0/24]
networks:                          # asked before private_cidrs and the providers' ranges
  shared-services:                 # a peered network: goes into remoteCloudService
    cidrs: [10.70.0.0/16, 2001:db8:70::/48]
    region: us-east-1              # same cloud, other region: INTER_REGION
    zone: use1-az1
  headquarters:
    cidrs: [10.80.0.0/16]
    cloud: onprem
    class: DIRECT_CONNECT          # a class of your own
peer_clusters:                     # watched as well: pods and nodes there get their names
  green: /etc/kubenetmon-server/green.kubeconfig
  blue:
    kubeconfig: /etc/kubenetmon-server/blue.kubeconfig
    region: eu-west-1
connection_flags:                  # set where the remote address lies in the networks
  NAT_GATEWAY: [198.51.100.10, 198.51.100.11]
  LOAD_BALANCER: [10.0.8.0/24]
"""
"""The keys that take maps, as a file has them."""


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
            "## Networks, peers and flags\n\nWhat follows the money: who is near, who is billed as what.\n\n"
            f"```yaml\n{EXAMPLE}```",
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
