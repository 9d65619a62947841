"""A ClickHouse server with all that a cluster of them needs: a queue for asynchronous inserts, `ON CLUSTER`,
and replicas that fetch each other's parts.

It is `clickhouse_server`'s process, in which `engine_internals` puts together what clickhouse-local leaves
out. Its settings are in `whole.json` beside its configuration. Before it listens the process gets its parts;
where the standard input ends it flushes its queue and ends in order. A Keeper is needed for `ON CLUSTER` and
replicas, not for the queue alone.

A server's own thread flushes the queue 50 to 200 ms after the first insert of a batch; here a thread of the
process asks for it by SQL, each `flush` seconds. With `flush` 0 nobody does: then whoever started the server
says when (`SYSTEM FLUSH ASYNC INSERT QUEUE`), or an insert reaches a limit of the engine's own, of which the
settings async_insert_busy_timeout_* are two.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path

from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from tests.beds.clickhouse_server import ClickHouseServer, User, library, serve
from tests.beds.engine_internals import Engine
from tests.beds.ports import free_port
from tests.beds.replication import Keeper

CLUSTER = "main"
_DDL, _DDL_REPLICAS = "/clickhouse/task_queue/ddl", "/clickhouse/task_queue/replicas"
FLUSH = "SYSTEM FLUSH ASYNC INSERT QUEUE"


class WholeServer(ClickHouseServer):
    """One server of a cluster, or alone with its queue."""

    module = "tests.beds.clickhouse_whole"

    def __init__(
        self,
        directory: Path,
        *,
        users: Sequence[User] = (),
        config: str = "",
        keeper: Keeper | None = None,
        flush: float = 0.05,
    ) -> None:
        super().__init__(directory, users=users)
        self.interserver = free_port()
        self.flush = flush
        """Takes effect with the next start."""
        log = "asynchronous_insert_log"
        self.config = (
            f"<http_port>{self.interserver}</http_port>"
            f"<{log}><database>system</database><table>{log}</table>"
            f"<flush_interval_milliseconds>200</flush_interval_milliseconds></{log}>{config}"
        )
        if keeper is not None:
            self.config += (
                f"<zookeeper><node><host>127.0.0.1</host><port>{keeper.port}</port></node>"
                "<session_timeout_ms>4000</session_timeout_ms></zookeeper>"
                f"<distributed_ddl><path>{_DDL}</path></distributed_ddl>"
            )
        self._with_keeper = keeper is not None

    def start(self) -> None:
        """Return once the port answers."""
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / "whole.json").write_text(
            json.dumps(
                {
                    "port": self.port,
                    "interserver": self.interserver,
                    "keeper": self._with_keeper,
                    "flush": self.flush,
                }
            )
        )
        super().start()


def cluster(directory: Path, keeper: Keeper, shards: Sequence[int], flush: float = 0.05) -> list[WholeServer]:
    """Servers of the cluster `main`, none started: for each shard so many replicas."""
    servers = [
        WholeServer(directory / f"{shard}-{replica}", keeper=keeper, flush=flush)
        for shard, replicas in enumerate(shards, 1)
        for replica in range(1, replicas + 1)
    ]
    left = iter(servers)
    placed = [[next(left) for _ in range(replicas)] for replicas in shards]
    known = "".join(
        "<shard><internal_replication>true</internal_replication>"
        + "".join(f"<replica><host>127.0.0.1</host><port>{one.port}</port></replica>" for one in shard)
        + "</shard>"
        for shard in placed
    )
    for number, shard in enumerate(placed, 1):
        for one in shard:
            one.config += (
                f"<remote_servers><{CLUSTER}>{known}</{CLUSTER}></remote_servers>"
                f"<macros><shard>{number}</shard><replica>{one.directory.name}</replica></macros>"
            )
    return servers


class _Parts(threading.Thread):
    """Puts the server together when the engine's first statement runs, and takes it apart before its end."""

    def __init__(self, directory: Path) -> None:
        super().__init__(daemon=True)
        self._directory = directory
        self._wanted = json.loads((directory / "whole.json").read_text())
        self.before, self.after = directory / "before", directory / "after"
        self._engine = Engine(library())
        self._engine.lend_identity(uuid.uuid5(uuid.NAMESPACE_URL, directory.as_uri()))
        self._engine.lend_interserver(self._wanted["interserver"])
        for pipe in (self.before, self.after):
            pipe.unlink(missing_ok=True)
            os.mkfifo(pipe)

    def run(self) -> None:
        try:
            with self.before.open("wb"):  # the engine reads it: there is a context, and nothing listens yet
                self._engine.lend_queue()
                if self._wanted["keeper"]:
                    self._engine.lend_ddl_worker(_DDL, _DDL_REPLICAS)
            with self.after.open("wb"):
                asyncio.run(self._flush())
                self._engine.take_queue_back()
        except BaseException as error:  # noqa: BLE001 - half a server is none
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    async def _flush(self) -> None:
        """Until the standard input ends, and once more."""
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
        )
        sink = TcpSink(TcpConfig((f"127.0.0.1:{self._wanted['port']}",), tls=None))
        ended = asyncio.create_task(reader.read())
        while not ended.done():
            await asyncio.wait([ended], timeout=self._wanted["flush"] or None)
            await sink.query(FLUSH)
        await sink.close()


def main(directory: Path) -> None:
    """Be the server, until the standard input ends."""
    parts = _Parts(directory)
    parts.start()
    serve(
        directory,
        [
            f"SELECT count() FROM file('{parts.before}', 'LineAsString')",
            "SYSTEM START LISTEN TCP",
            "SYSTEM START LISTEN HTTP",
            f"SELECT count() FROM file('{parts.after}', 'LineAsString')",
        ],
    )
    parts.join()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
