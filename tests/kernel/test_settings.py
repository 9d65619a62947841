"""Kernel settings that metering needs: set where that is asked, else named."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubenetmon.demo.network import Namespace, create_namespace
from kubenetmon.demo.processes import METRICS_PORT, Role
from kubenetmon.errors import MachineError

pytestmark = pytest.mark.root

SETTINGS = ("nf_conntrack_acct", "nf_conntrack_events", "nf_conntrack_timestamp")


@pytest.fixture
def node() -> Iterator[Namespace]:
    made = create_namespace("settings")
    for name in SETTINGS:
        made.sysctl(f"net.netfilter.{name}", 0)
    # A rule that looks at connections switches tracking on.
    made.nft("table inet t {\n chain c {\n type filter hook input priority 0;\n ct state new\n }\n}")
    try:
        yield made
    finally:
        made.delete()


def settings_of(node: Namespace) -> dict[str, str]:
    folder = Path("/proc/sys/net/netfilter")
    return node.call(lambda: {name: (folder / name).read_text().strip() for name in SETTINGS})


def agent(node: Namespace, log: Path, **environment: str) -> Role:
    return Role(
        "the agent",
        node,
        ["--role", "agent"],
        log=log,
        environment={
            "NODE_NAME": "node-a",
            "COLLECTION_INTERVAL": "1s",
            "KUBENETMON_SERVER_SERVICE_HOST": "127.0.0.1",
            "METRICS_PORT": str(METRICS_PORT),
            "UPTIME_WAIT_DURATION": "0s",
            **environment,
        },
    )


def test_an_agent_that_may_sets_what_it_needs(node: Namespace, tmp_path: Path) -> None:
    role = agent(node, tmp_path / "log", KUBENETMON_SET_SYSCTLS="true")
    try:
        deadline = time.monotonic() + 20
        while settings_of(node) != dict.fromkeys(SETTINGS, "1"):
            role.check()
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        role.kill()


def test_an_agent_that_may_not_ends_and_says_what_to_set(node: Namespace, tmp_path: Path) -> None:
    role = agent(node, tmp_path / "log")
    with pytest.raises(MachineError, match="exit code 1"):
        role.wait_ready()
    said = (tmp_path / "log").read_text()
    assert "sysctl -w " + " ".join(f"net.netfilter.{name}=1" for name in SETTINGS) in said
    assert "KUBENETMON_SET_SYSCTLS=true" in said
    assert settings_of(node) == dict.fromkeys(SETTINGS, "0")
