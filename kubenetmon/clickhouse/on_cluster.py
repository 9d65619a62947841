"""A statement `ON CLUSTER` that some servers have not executed in time: which, and what to do.

Contract: `not_finished` says so in one line, and raises nothing where the servers cannot be named.
"""

from __future__ import annotations

import contextlib
import re

from kubenetmon.clickhouse.sinks import ClickHouseError, Sink
from kubenetmon.clickhouse.table import literal
from kubenetmon.errors import KubenetmonError

TIMEOUT_EXCEEDED = 159
_ENTRY = re.compile(r"/(query-\d+) is not finished on (\d+ of \d+ hosts)")


async def not_finished(sink: Sink, cluster: str, statement: str, error: ClickHouseError) -> str:
    """What to tell an operator after that error of a statement."""
    found = _ENTRY.search(str(error))
    where = found[2] if found else "some hosts"
    if found is not None:
        with contextlib.suppress(KubenetmonError):  # who may not see the queue is told how many
            rows = await sink.query(
                "SELECT host, port FROM system.distributed_ddl_queue "  # noqa: S608 - quoted
                f"WHERE cluster = {literal(cluster)} AND entry = {literal(found[1])} "
                "AND status NOT IN ('Finished', 'Removing') ORDER BY host, port"
            )
            if rows:
                where += f" ({', '.join(f'{host}:{port}' for host, port in rows)})"
    what = statement.partition(" ON CLUSTER ")[0]
    return (
        f"{what}: not done in time on {where} of the cluster {cluster}, which will do it once they are back; "
        "see that they run and reach the Keeper, then run `kubenetmon schema apply` again to go on there"
    )
