"""Server processes that can be killed a hundred times: forked from one that has imported everything already.

Contract: a `Replica` is what `kubenetmon --role server` runs, on a loopback address of its own, so that
several of them share one port as the pods behind a headless Service do. `start`, `stop` and `kill` may follow
one another for ever; leaving the context ends the process. Its log is `log`.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.beds.pages import page
from tests.beds.ports import free_port
from tests.beds.server_process import RANGES

PATIENCE = 60.0

Serve = Callable[[Path], None]
"""What the process does with its configuration."""


def serve(config: Path) -> None:
    """The server itself."""
    import uvloop

    from kubenetmon import logs
    from kubenetmon.app.server import run_server
    from kubenetmon.config import server

    logs.configure("json")
    uvloop.run(run_server(server.load(config)))


def serve_acking_before_commit(config: Path) -> None:
    """The negative control: every batch is acknowledged before ClickHouse has seen it."""
    from kubenetmon.clickhouse.inserter import CommitOutcome, Inserter

    commit = Inserter.commit
    under_way: set[asyncio.Task[CommitOutcome]] = set()

    async def commit_later(self: Inserter, *arguments: Any) -> CommitOutcome:
        under_way.add(asyncio.create_task(commit(self, *arguments)))
        return CommitOutcome.COMMITTED

    Inserter.commit = commit_later  # type: ignore[method-assign]
    serve(config)


def serve_with_random_tokens(config: Path) -> None:
    """The other negative control: each attempt to insert a batch has a token of its own."""
    from kubenetmon.clickhouse.sinks_tcp import TcpSink

    insert = TcpSink.insert

    async def insert_as_new(
        self: TcpSink, database: str, table: str, block: Any, token: str, settings: Any
    ) -> None:
        await insert(self, database, table, block, os.urandom(16).hex(), settings)

    TcpSink.insert = insert_as_new  # type: ignore[method-assign]
    serve(config)


class Replica:
    """One server; makes its configuration, starts nothing."""

    def __init__(
        self,
        directory: Path,
        *,
        clickhouse: str,
        cluster: dict[str, Any],
        host: str = "127.0.0.1",
        port: int = 0,
        work: Serve = serve,
        **settings: object,
    ) -> None:
        """`cluster`: what `kubectl get pods,nodes,services -A -o json` says; `settings`: more keys."""
        directory.mkdir(parents=True, exist_ok=True)
        self.host, self.port = host, port or free_port()
        self.metrics_port = free_port()
        self.log = directory / "server.log"
        self._directory, self._work = directory, work
        self._process: BaseProcess | None = None
        self._settings = {
            "environment": "development",
            "cloud": "aws",
            "region": "us-west-2",
            "cluster": "test",
            "metrics_port": self.metrics_port,
            "grpc_port": self.port,
            "grpc_host": self.host,
            "kubernetes_source": f"file:{directory / 'cluster.json'}",
            "cloud_ranges_dir": str(RANGES),
            "clickhouse_endpoint": clickhouse,
            "clickhouse_disable_tls": True,
            "clickhouse_credentials_dir": str(directory),
            **settings,
        }
        (directory / "cluster.json").write_text(json.dumps(cluster))

    @property
    def config(self) -> Path:
        """Its configuration file."""
        path = self._directory / "config.yaml"
        path.write_text(json.dumps(self._settings))
        return path

    @property
    def process_id(self) -> int:
        """Of the process that runs now."""
        assert self._process is not None
        assert self._process.pid is not None
        return self._process.pid

    def set(self, **settings: object) -> None:
        """Change keys for the next start."""
        self._settings.update(settings)

    def start(self) -> None:
        """Begin a process; `wait_ready` says when it serves."""
        assert self._process is None
        self._process = _forkserver().Process(
            target=_run, args=(self._work, self.config, self.log), name=f"server {self.host}"
        )
        self._process.start()

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
            process.close()

    async def stop(self, seconds: float = 30.0) -> float:
        """SIGTERM; returns how long the orderly end took. Fails when it takes longer or ends otherwise."""
        assert self._process is not None
        began = time.monotonic()
        os.kill(self.process_id, signal.SIGTERM)
        while self._process.is_alive():
            assert time.monotonic() - began < seconds, self.last_words()
            await asyncio.sleep(0.02)
        assert self._process.exitcode == 0, self.last_words()
        self.kill()
        return time.monotonic() - began

    async def wait_ready(self) -> None:
        """Return once /ready answers 200."""
        deadline = time.monotonic() + PATIENCE
        while not await asyncio.to_thread(self._is_ready):
            assert self._process is not None
            assert self._process.is_alive(), self.last_words()
            assert time.monotonic() < deadline, self.last_words()
            await asyncio.sleep(0.02)

    def ready(self) -> dict[str, Any]:
        """The checks of /ready by name."""
        _, body = page(self.metrics_port, "/ready")
        checks: dict[str, Any] = json.loads(body)["checks"]
        return checks

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        samples: dict[str, float] = {}
        for line in page(self.metrics_port, "/metrics")[1].decode().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                samples[name] = float(value)
        return samples

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-5:]) or "it wrote nothing"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def _is_ready(self) -> bool:
        try:
            return page(self.metrics_port, "/ready")[0] == 200
        except OSError:
            return False


def _forkserver() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kubenetmon.app.server", "uvloop", "tests.beds.replica"])
    return context


def _run(work: Serve, config: Path, log: Path) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    work(config)
