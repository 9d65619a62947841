"""A ClickHouse server as a process of its own, speaking the native protocol itself.

The library that chdb brings contains clickhouse-local, whose `SYSTEM START LISTEN TCP` opens a server's own
listener: handshake, settings, packets, users, quotas and error codes are ClickHouse's. Run as `python -m
tests.beds.clickhouse_server DIRECTORY` it reads `config.xml` there as a server does, keeps its data in
`data`, writes `server.log`, and serves until its standard input ends: so it ends with whoever started it.

A `ClickHouseServer` owns a directory, a port and at most one process; it starts none when made. `start`
returns once it listens; `stop` ends the process in order, `kill` as SIGKILL does; each may follow the
other for ever, on the same data and port. Calls block for up to a second: coroutines use `asyncio.to_thread`
where that matters.

What it lacks of a server (clickhouse-local says so when asked): TLS, users made by SQL, `SYSTEM RELOAD
CONFIG`. Its own statements run as the user `default`, which therefore exists and has no password.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from tests.beds.ports import free_port

_ROOT = Path(__file__).resolve().parents[2]
_PATIENCE = 60.0
_SERVE = (
    "SYSTEM START LISTEN TCP",
    "SELECT count() FROM file('/dev/stdin', 'LineAsString')",  # which ends as the standard input does
)


@dataclass(frozen=True, slots=True)
class User:
    """A user of the server's, with a profile and a quota of its own.

    `grants`: what follows GRANT, such as `INSERT ON flows.*`; `profile`: settings; `quota`: intervals in XML.
    """

    name: str = "default"
    password: str = ""
    grants: Sequence[str] = ("ALL ON *.* WITH GRANT OPTION",)
    profile: Mapping[str, object] = field(default_factory=dict)
    quota: str = ""


class ClickHouseServer:
    """One server on a directory; `config` is what else its configuration has, in XML.

    `within` makes the command line that runs another in a network namespace.
    """

    module = "tests.beds.clickhouse_server"
    """What is run as the process."""

    def __init__(
        self,
        directory: Path,
        *,
        users: Sequence[User] = (),
        config: str = "",
        within: Callable[[Sequence[str]], list[str]] = list,
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.users = list(users)
        """Beside `default`; take effect with the next start."""
        self.config = config
        """Takes effect with the next start."""
        self._within = within
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        """As `clickhouse_endpoint` wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """Where the tables lie."""
        return self.directory / "data"

    @property
    def pid(self) -> int:
        """Of the process at work."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What the server has said since it was first started."""
        return (self.directory / "server.log").read_text("utf-8", "replace")

    def start(self) -> None:
        """Return once it listens."""
        assert self._process is None, "it runs already"
        self._write_configuration()
        with (self.directory / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._within([sys.executable, "-m", self.module, str(self.directory)]),
                stdin=subprocess.PIPE, stdout=output, stderr=output, cwd=_ROOT,
            )  # fmt: skip
        deadline = time.monotonic() + _PATIENCE
        while not self._listens():
            said = (self.directory / "output").read_text("utf-8", "replace")
            assert self._process.poll() is None, said
            assert time.monotonic() < deadline, said
            time.sleep(0.02)

    def _listens(self) -> bool:
        """By the table of the process's own network namespace."""
        try:
            sockets = Path(f"/proc/{self.pid}/net/tcp").read_text()
        except OSError:
            return False
        return f" 0100007F:{self.port:04X} 00000000:0000 0A " in sockets

    def stop(self) -> None:
        """End in order, if it runs."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._ended()

    def kill(self) -> None:
        """SIGKILL, if it runs."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.kill()
            self._process.stdin.close()
            self._ended()

    def stand_still(self, still: bool) -> None:
        """Answer nobody, or go on (SIGSTOP, SIGCONT)."""
        os.kill(self.pid, signal.SIGSTOP if still else signal.SIGCONT)

    def _ended(self) -> None:
        process, self._process = self._process, None
        assert process is not None
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise

    def _write_configuration(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        directory = escape(str(self.directory))
        (self.directory / "config.xml").write_text(
            f"<clickhouse><listen_host>127.0.0.1</listen_host><tcp_port>{self.port}</tcp_port>"
            f"<logger><level>debug</level><log>{directory}/server.log</log></logger>"
            f"<users_config>{directory}/users.xml</users_config>{self.config}</clickhouse>"
        )
        parts: dict[str, list[str]] = {"profiles": [], "quotas": [], "users": []}
        others = [user for user in self.users if user.name != "default"]
        for user in (*([user for user in self.users if user.name == "default"] or [User()]), *others):
            name = escape(user.name)
            settings = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in user.profile.items())
            grants = "".join(f"<query>GRANT {escape(grant)}</query>" for grant in user.grants)
            parts["profiles"].append(f"<{name}>{settings}</{name}>")
            parts["quotas"].append(f"<{name}>{user.quota}</{name}>")
            parts["users"].append(
                f"<{name}><password>{escape(user.password)}</password><networks><ip>::/0</ip></networks>"
                f"<profile>{name}</profile><quota>{name}</quota><grants>{grants}</grants></{name}>"
            )
        content = "".join(f"<{part}>{''.join(lines)}</{part}>" for part, lines in parts.items())
        (self.directory / "users.xml").write_text(f"<clickhouse>{content}</clickhouse>")


@contextlib.contextmanager
def clickhouse_server(
    directory: Path, *, users: Sequence[User] = (), config: str = ""
) -> Iterator[ClickHouseServer]:
    """A server at work; killed at the end, whatever happens."""
    server = ClickHouseServer(directory, users=users, config=config)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def library() -> Path:
    """The engine's, found without `import chdb`, which starts a server in /tmp to ask for its version."""
    found = importlib.util.find_spec("chdb")
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0]) / "_chdb.abi3.so"


def serve(directory: Path, statements: Sequence[str] = _SERVE) -> None:
    """Be the server, until the standard input ends."""
    spec = importlib.util.spec_from_file_location("_chdb", library())
    assert spec is not None
    assert spec.loader is not None
    engine = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engine)
    os.chdir(directory)
    result = engine.query(";".join(statements), "CSV", path=str(directory / "data"))
    if result.has_error():
        raise SystemExit(result.error_message())


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
