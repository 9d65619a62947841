"""The real engine's Replicated tables, with a real ZooKeeper: what an embedded engine lacks for them, lent.

All of ReplicatedMergeTree is in the embedded engine, but its tables stay read-only: a replica tells the
others at which address they may fetch its parts, and only the server's own main sets that address; asked for
it, the engine throws. `tests.beds.engine_internals` lends it one (`INTERSERVER_PORT`). From there on inserts,
tokens in the Keeper, quorums and their errors are the engine's own.

Nobody listens at that address, so a replica never has another's parts, and to fetch one ends the engine: of
two replicas of a table each is told to leave its queue alone (SYSTEM STOP REPLICATION QUEUES), and neither is
restarted.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.beds.ports import free_port

_JAR = Path("/usr/share/java/zookeeper.jar")
_PATIENCE = 30.0
INTERSERVER_PORT = 9009
"""Of replicas in one process with the engine; nobody listens there."""


def missing() -> str | None:
    """Why none of this is possible on this machine; None when it is."""
    if shutil.which("java") is None or not _JAR.exists():
        return "needs ZooKeeper: apt-get install zookeeper"
    return None


class Keeper:
    """A ZooKeeper process that can be stopped in every way and comes back with what it knew."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        (directory / "zoo.cfg").write_text(
            f"tickTime=500\ndataDir={directory}/data\nclientPort={self.port}\nclientPortAddress=127.0.0.1\n"
            "admin.enableServer=false\n"
        )
        self._process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Return once it listens."""
        command = ["java", "-Xmx128m", "-cp", str(_JAR), "org.apache.zookeeper.server.quorum.QuorumPeerMain"]
        with (self._directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self._directory / "zoo.cfg")], stdout=log, stderr=log
            )
        deadline = time.monotonic() + _PATIENCE
        while f":{self.port:04X} " not in Path("/proc/net/tcp6").read_text():
            said = (self._directory / "log").read_text()
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.05)

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stand_still(self, still: bool) -> None:
        """Answer nobody, or go on."""
        self._process.send_signal(signal.SIGSTOP if still else signal.SIGCONT)

    def config(self, path: Path, replica: str) -> Path:
        """Write the engine's configuration for a replica of that name."""
        path.write_text(
            f"<clickhouse><zookeeper><node><host>127.0.0.1</host><port>{self.port}</port></node>"
            "<session_timeout_ms>2000</session_timeout_ms><operation_timeout_ms>2000</operation_timeout_ms>"
            f"</zookeeper><macros><shard>1</shard><replica>{replica}</replica></macros></clickhouse>"
        )
        return path


@contextlib.contextmanager
def keeper(directory: Path) -> Iterator[Keeper]:
    """A ZooKeeper at work, killed at the end."""
    made = Keeper(directory)
    made.start()
    try:
        yield made
    finally:
        made.kill()
