"""A process to be killed: meters its network namespace into a state directory as fast as it can.

`python -m tests.kernel.state_victim STATE_DIR DELIVERIES push|submit`. It becomes the node's agent as the
program does, then reads, seals, delivers and forgets over and over. A delivery is what a server would commit:
the whole batch in a file named by its identity, put there by a rename, however often; by Submit, which has no
identity, every delivery is a file of its own. `finish` on standard input makes it drain and end, saying the
bytes of batches whose outcome it does not know.
"""

from __future__ import annotations

import asyncio
import os
import select
import sys
from pathlib import Path

from kubenetmon.agent.collector import Collector, CollectorConfig
from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from kubenetmon.agent.guard import NodeGuard
from kubenetmon.agent.outbox import Outbox, SealedBatch
from kubenetmon.agent.state import StateDirectory
from kubenetmon.agent.takeover import Takeover
from kubenetmon.clock import SYSTEM_CLOCK
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_BATCH_BYTES, AGENT_METRICS
from kubenetmon.proto import Outcome
from kubenetmon.readiness import Readiness
from tests.kernel.metered import check_identity


async def main(state_path: Path, deliveries: Path, *, push: bool) -> None:
    metrics, readiness = Metrics(AGENT_METRICS), Readiness()
    state = StateDirectory(state_path, metrics=metrics)
    conntrack = Conntrack(ConntrackConfig(), state=state, node_name="victim")
    outbox = Outbox("victim", metrics=metrics, clock=SYSTEM_CLOCK, store=state)
    collector = Collector(
        CollectorConfig(),
        conntrack=conntrack,
        outbox=outbox,
        metrics=metrics,
        readiness=readiness,
        clock=SYSTEM_CLOCK,
    )
    takeover = Takeover(
        conntrack=conntrack,
        guard=NodeGuard(state, readiness=readiness, clock=SYSTEM_CLOCK),
        outbox=outbox,
        collector=collector,
    )
    await takeover.run()
    print("metering", flush=True)
    os.set_blocking(0, False)
    begin = 1
    while True:
        finishing = bool(os.read(0, 100)) if _readable() else False
        for _ in range(5 if finishing else 1):
            await conntrack.read()
            outbox.put(conntrack.seal(begin, begin + 1, 1.0), begin, begin + 1)
            check_identity(conntrack.totals())
            begin += 1
        for batch in outbox.waiting():
            if push:
                outbox.leaves_by_push(batch)
                deliver(deliveries, batch, "")
                outbox.settle(batch.epoch, batch.sequence, Outcome.COMMITTED, "")
            else:
                outbox.leaves_by_submit(batch)
                deliver(deliveries, batch, f"-{os.getpid()}")
                outbox.submitted(batch)
        if finishing:
            assert conntrack.totals().pending_bytes == 0
            takeover.close()
            unknown = metrics.value(AGENT_BATCH_BYTES, outcome="submit_unknown")
            print(f"finished {unknown:.0f}", flush=True)
            return


def deliver(deliveries: Path, batch: SealedBatch, suffix: str) -> None:
    name = f"{batch.epoch.hex()}-{batch.sequence}{suffix}"
    (deliveries / f".{name}").write_bytes(batch.message)
    (deliveries / f".{name}").rename(deliveries / name)


def _readable() -> bool:
    return bool(select.select([0], [], [], 0)[0])


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), push=sys.argv[3] == "push"))
