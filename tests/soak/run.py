"""One run: traffic, faults at their moments, samples between them, and the judgement at the end."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from kubenetmon.demo.processes import Role
from tests.beds.identity import agent_imbalances, server_imbalances
from tests.beds.metered_world import MeteredWorld, Movement, expected
from tests.bench.accounting import memory_bytes
from tests.soak import traffic
from tests.soak.faults import Fault
from tests.soak.memory import WARM_UP, Memory

AGENT_GROWTH = 4_000_000
"""Bytes that an agent may gain after its warm-up."""
AGENT_WAITING = 12_000_000
"""Bytes more after an outage: what ended flows may take up to wait in stays the ledger's."""
AGENT_PEAK = 80_000_000
"""Bytes that an agent may ever hold."""
AGENT_WARM_UP = 30.0
"""Seconds; flows that have ended stay tracked for less, so that the ledger has its size by then."""
SERVER_GROWTH = 60_000_000
"""The same for the server, which holds a whole ClickHouse with its caches and merges."""
ENDED_FLOWS_STAY = 20
"""Seconds; as with the kernel's own settings more than a restart takes, else it would be a true gap."""
_SETTLE_SECONDS = 2.5
_DIFFERENCES_SHOWN = 20


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    figures: str
    problems: list[str] = field(default_factory=list)


class Soak:
    """One run over a world whose server and agents are started."""

    def __init__(
        self, metered: MeteredWorld, faults: Sequence[Fault], *, seed: int, short_rate: float, sample: float
    ) -> None:
        self._metered = metered
        self._faults = list(faults)
        self._with_outage = any(fault.kind == "goes" for fault in faults)
        self._seed, self._short_rate, self._sample_seconds = seed, short_rate, sample
        self._memory: dict[str, Memory] = {}
        self._problems: list[str] = []
        self._kills = 0
        self._checks = 0
        self._begin = 0.0

    def run(self, seconds: float) -> Outcome:
        """Traffic, faults and samples until the time is up; then traffic ends, and the sums are compared."""
        metered = self._metered
        scripts = traffic.scripts(metered.world, self._seed, self._short_rate)
        if metered.dual_stack is not None:
            scripts |= metered.dual_stack.scripts(self._seed)
        metered.actors.begin(scripts)
        metered.actors.go()
        self._begin = time.monotonic()
        next_sample = 0.0
        while (elapsed := self._elapsed()) < seconds:
            if elapsed >= next_sample:
                self._sample()
                next_sample += self._sample_seconds
            while self._faults and self._faults[0].moment <= self._elapsed():
                self._do(self._faults.pop(0))
            moments = [next_sample, seconds, *(fault.moment for fault in self._faults[:1])]
            metered.run_for(max(0.0, min(moments) - self._elapsed()))
        self._sample()
        rate = metered.actors.tally().connections / self._elapsed()
        for role in self._roles():
            role.wait_ready()
        metered.end_traffic()
        return self._judge(rate)

    def _judge(self, rate: float) -> Outcome:
        metered = self._metered
        time.sleep(_SETTLE_SECONDS)
        # What these had moved is read, unless it was after the last read: then the sums differ.
        vanished = sum(
            agent.metrics()["kubenetmon_agent_vanished_flows_total"] for agent in metered.agents.values()
        )
        for role in self._roles():
            self._check_identity(role)
        repeated = metered.world.retransmitted_handshakes()
        flows = metered.finish()
        wanted, stored = expected(flows), metered.stored()
        problems = [*self._problems, *self._growing()]
        for unit, seen, found in zip(("bytes", "packets"), wanted, stored, strict=True):
            problems += _differences(unit, seen, found)
        if repeated and problems:
            problems.append(
                f"{repeated} handshakes were sent twice, which the counters see and conntrack may not"
            )
        ipv6 = sum(size for key, size in wanted[0].items() if ":" in key[1])
        if metered.dual_stack is not None and not ipv6:
            problems.append("nothing went over IPv6")
        tally = metered.actors.tally()
        return Outcome(
            f"{tally.connections:,} connections ({rate:,.0f}/s), {tally.exchanges:,} requests, "
            f"{tally.failures} failed; {self._kills} agents killed; "
            f"bytes seen {wanted[0].total()} stored {stored[0].total()}, {ipv6} of them over IPv6; "
            f"packets seen {wanted[1].total()} stored {stored[1].total()}; "
            f"{vanished:.0f} flows ended unheard while an agent was down; "
            f"identity held in {self._checks} scrapes; {self._memory_figures()}",
            problems,
        )

    def _elapsed(self) -> float:
        return time.monotonic() - self._begin

    def _do(self, fault: Fault) -> None:
        metered = self._metered
        match fault.kind:
            case "kill":
                metered.agents[fault.target].kill()
                metered.begin_agent(fault.target)
                self._kills += 1
                self._say(f"killed the agent of {fault.target}, number {self._kills}")
            case "goes":
                assert metered.server is not None
                metered.server.kill()
                metered.server = None
                self._say("killed the server, it stays away")
            case "returns":
                # An agent keeps for the whole outage what ended in it.
                for name, memory in self._memory.items():
                    if name in {agent.name for agent in metered.agents.values()}:
                        memory.excuse()
                metered.start_server()
                self._say("the server is back")

    def _sample(self) -> None:
        elapsed = self._elapsed()
        for role in self._roles():
            warm_up = AGENT_WARM_UP if self._is_agent(role.name) else WARM_UP
            memory = self._memory.setdefault(role.name, Memory(role.name, warm_up))
            memory.add(elapsed, memory_bytes(role.process_id), role.process_id)
            if self._is_agent(role.name) and self._metered.server is None:
                memory.excuse()
            self._check_identity(role)
        tally = self._metered.actors.tally()
        sizes = ", ".join(f"{memory.name} {memory.now / 1e6:.0f} MB" for memory in self._memory.values())
        self._say(
            f"{tally.connections:,} connections, {tally.exchanges:,} requests, {tally.failures} failed, "
            f"{self._kills} kills  {sizes}"
        )

    def _check_identity(self, role: Role) -> None:
        """Of a process that is up; one that has just begun has no /metrics yet."""
        try:
            metrics = role.metrics()
        except OSError:
            return
        agent = self._is_agent(role.name)
        if agent and not metrics.get('kubenetmon_agent_observed_total{unit="bytes"}'):
            return  # the ledger is not read yet
        self._checks += 1
        for line in agent_imbalances(metrics) if agent else server_imbalances(metrics):
            self._problems.append(f"{role.name}, {self._elapsed():.0f} s: {line}")

    def _growing(self) -> list[str]:
        """A line for each process that has grown more than it may."""
        lines = []
        for memory in self._memory.values():
            limit = SERVER_GROWTH
            if self._is_agent(memory.name):
                limit = AGENT_GROWTH + (AGENT_WAITING if self._with_outage else 0)
            if (growth := memory.growth()) > limit:
                lines.append(
                    f"{memory.name} grew by {growth / 1e6:.1f} MB after its warm-up, "
                    f"{limit / 1e6:.0f} MB are allowed"
                )
            if self._is_agent(memory.name) and memory.peak > AGENT_PEAK:
                lines.append(
                    f"{memory.name} took {memory.peak / 1e6:.0f} MB, {AGENT_PEAK / 1e6:.0f} MB are allowed"
                )
        return lines

    def _memory_figures(self) -> str:
        """Peak and growth of each process."""
        return ", ".join(
            f"{memory.name} {memory.peak / 1e6:.0f} MB peak {memory.growth() / 1e6:+.1f} MB "
            f"in {len(memory.lives)} {'life' if len(memory.lives) == 1 else 'lives'}"
            for memory in self._memory.values()
        )

    def _roles(self) -> list[Role]:
        server = self._metered.server
        return [*([server] if server is not None else []), *self._metered.agents.values()]

    def _say(self, text: str) -> None:
        print(f"{self._elapsed():6.0f} s  {text}", flush=True)

    @staticmethod
    def _is_agent(name: str) -> bool:
        return "agent" in name


def _differences(unit: str, seen: Counter[Movement], found: Counter[Movement]) -> list[str]:
    wrong = [key for key in seen.keys() | found.keys() if seen[key] != found[key]]
    return [
        f"{' '.join(key)}: the counters saw {seen[key]} {unit}, ClickHouse has {found[key]}"
        for key in sorted(wrong)[:_DIFFERENCES_SHOWN]
    ]
