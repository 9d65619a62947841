"""Before metering: is the kernel set to count at all?

Contract: `check_accounting` runs once, before the collector, with the table open, in the network namespace
that is metered. It returns when metering makes sense and raises `MachineError`, which says exactly what to
set, when it does not. Counters attach only to flows that begin after `nf_conntrack_acct=1` (kernel,
Documentation/networking/nf_conntrack-sysctl.rst), and something on a node may set it some time after boot:
so the look at the flows is repeated until the node has been up for a while. Cancelling it leaves nothing
behind.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kubenetmon.agent.metered import AccountingState, ReadResult
from kubenetmon.clock import Clock
from kubenetmon.config.duration import format_duration
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.readiness import Readiness

logger = logging.getLogger(__name__)

CHECK = "accounting"
"""The check's name in /ready."""

SETTINGS = {
    "nf_conntrack_acct": "flows carry no counters",
    "nf_conntrack_events": "flows that end between two reads may go unseen",
    "nf_conntrack_timestamp": "two lives of one connection may look like one",
}
"""What must be 1, and what is the matter otherwise."""

_DIRECTORY = Path("/proc/sys/net/netfilter")
_RECHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupConfig:
    """As in the agent's environment; `uptime_wait` in seconds. The paths are the kernel's."""

    skip: bool = False
    set_sysctls: bool = False
    uptime_wait: float = 300.0
    directory: Path = _DIRECTORY
    uptime: Path = Path("/proc/uptime")


class Table(Protocol):
    """What the check needs of `kubenetmon.agent.conntrack.Conntrack`."""

    async def read(self) -> ReadResult: ...

    def accounting_state(self) -> AccountingState: ...


async def check_accounting(
    config: StartupConfig, *, conntrack: Table, readiness: Readiness, clock: Clock
) -> None:
    """Set what may be set, warn of what is not, wait for counters. Raises `MachineError`."""
    if config.set_sysctls:
        _set_all(config.directory)
    wrong = _wrong(conntrack.accounting_state())
    for name in wrong:
        logger.warning("%s is not 1, so that %s: set it with `%s`", name, SETTINGS[name], _command([name]))
    if config.skip:
        return
    while problem := await _look(conntrack, clock):
        left = config.uptime_wait - _uptime(config.uptime)
        if left <= 0:
            wanted = _wrong(conntrack.accounting_state()) or ["nf_conntrack_acct"]
            raise MachineError(
                f"{problem}, so nothing can be metered: run `{_command(wanted)}` here, or let the agent "
                "do it with KUBENETMON_SET_SYSCTLS=true; SKIP_CONNTRACK_SANITY_CHECK=true starts anyway"
            )
        readiness.failed(CHECK, f"{problem}; looking again")
        logger.info(
            "%s: looking again until this node has been up for %s",
            problem,
            format_duration(config.uptime_wait),
        )
        await clock.sleep(min(_RECHECK_SECONDS, left))
    readiness.passed(CHECK)


async def _look(conntrack: Table, clock: Clock) -> str:
    """What speaks against metering now; empty: nothing."""
    while True:
        try:
            await conntrack.read()
        except MachineError:
            raise
        except KubenetmonError as error:
            logger.warning("%s", error)
            await clock.sleep(_RECHECK_SECONDS)
        else:
            break
    state = conntrack.accounting_state()
    if state.with_counters or state.accounting == 1:
        if state.without_counters:
            logger.info(
                "%d of %d tracked flows began before the kernel counted; they cannot be metered",
                state.without_counters,
                state.without_counters + state.with_counters,
            )
        return ""
    if state.without_counters:
        return f"none of the {state.without_counters} tracked flows carries counters"
    # An empty table decides nothing unless the kernel says that the flows to come will not be counted.
    return "" if state.accounting is None else "nf_conntrack_acct is 0 and no tracked flow carries counters"


def _wrong(state: AccountingState) -> list[str]:
    values = {
        "nf_conntrack_acct": state.accounting,
        "nf_conntrack_events": state.events,
        "nf_conntrack_timestamp": state.timestamps,
    }
    return [name for name in SETTINGS if values[name] not in (1, None)]


def _command(names: list[str]) -> str:
    return "sysctl -w " + " ".join(f"net.netfilter.{name}=1" for name in names)


def _set_all(directory: Path) -> None:
    for name in SETTINGS:
        try:
            if (directory / name).read_text().strip() == "1":
                continue
            (directory / name).write_text("1\n")
        except OSError as error:
            logger.warning("%s cannot be set to 1 here (%s): run the agent privileged", name, error.strerror)
        else:
            logger.info("Set %s to 1, as KUBENETMON_SET_SYSCTLS asks", name)


def _uptime(path: Path) -> float:
    """Seconds since boot (proc(5), /proc/uptime); counts as long ago where it cannot be read."""
    try:
        return float(path.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return float("inf")
