"""A meter that reads when it is told to, to be stopped by a test.

`python -m tests.kernel.stalling BUFFER PATIENCE` takes bytes and seconds. Each line of standard input is one
read of conntrack, answered by one line of JSON: what was sealed so far.
"""

from __future__ import annotations

import asyncio
import json
import sys

from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from tests.kernel.metered import check_identity


async def main(event_buffer_bytes: int, patience: float) -> None:
    conntrack = Conntrack(ConntrackConfig(event_buffer_bytes=event_buffer_bytes, patience=patience))
    conntrack.open()
    metered = 0
    while await asyncio.to_thread(sys.stdin.readline):
        await conntrack.read()
        metered += sum(batch.bytes for batch in conntrack.seal())
        totals = conntrack.totals()
        check_identity(totals)
        said = {"bytes": metered, "events": totals.destroy_events, "gap": totals.gap_nanoseconds / 1e9}
        print(json.dumps(said), flush=True)
    conntrack.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), float(sys.argv[2])))
