"""The conservation identity, read off /metrics: what came in is accounted for to the byte and the packet.

At the agent observed = reported + ignored + pending, and what was sealed is committed, rejected, submitted or
still unacknowledged. At the server received = committed + ignored + handed back + pending. A scrape shows one
moment, so both hold in every scrape, whatever runs meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from kubenetmon.demo.processes import Role

_AGENT_PARTS = (
    "kubenetmon_agent_reported_total",
    "kubenetmon_agent_ignored_total",
    "kubenetmon_agent_pending",
)
_SERVER_PARTS = (
    "kubenetmon_server_committed_total",
    "kubenetmon_server_ignored_total",
    "kubenetmon_server_handed_back_total",
    "kubenetmon_server_pending",
)


def agent_imbalances(metrics: Mapping[str, float]) -> list[str]:
    """A line for each unit in which an agent's metrics do not add up."""
    return _imbalances(metrics, "kubenetmon_agent_observed_total", _AGENT_PARTS)


def server_imbalances(metrics: Mapping[str, float]) -> list[str]:
    """The same for a server."""
    return _imbalances(metrics, "kubenetmon_server_received_total", _SERVER_PARTS)


def assert_balanced(agents: Iterable[Role], server: Role | None) -> None:
    """What every process shows of itself adds up."""
    for agent in agents:
        assert agent_imbalances(agent.metrics()) == [], agent.name
    if server is not None:
        assert server_imbalances(server.metrics()) == []


def _imbalances(metrics: Mapping[str, float], whole: str, parts: tuple[str, ...]) -> list[str]:
    lines = []
    for unit in ("bytes", "packets"):
        label = f'unit="{unit}"'
        found = {
            name: value
            for name, value in metrics.items()
            if label in name and name.partition("{")[0] in parts
        }
        missing = set(parts) - {name.partition("{")[0] for name in found}
        total = metrics.get(f"{whole}{{{label}}}")
        if missing or total is None:
            lines.append(f"/metrics lacks {unit} of {', '.join(sorted(missing)) or whole}")
        elif total != sum(found.values()):
            lines.append(f"{whole} is {total:.0f} {unit}, its parts are {sum(found.values()):.0f}: {found}")
    return lines
