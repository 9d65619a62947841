"""The real engine's Replicated tables, with a real ZooKeeper: what an embedded engine lacks for them, lent.

All of ReplicatedMergeTree is in the embedded engine, but its tables stay read-only: a replica tells the
others at which address they may fetch its parts, and only the server's own main sets that address
(`Context::setInterserverIOAddress`); asked for it, the engine throws. `lend_address` replaces the answer of
`Context::getInterserverIOAddress` in the memory of the process. From there on inserts, tokens in the Keeper,
quorums and their errors are the engine's own.

Nobody listens at that address, so a replica never has another's parts, and to fetch one ends the engine: of
two replicas of a table each is told to leave its queue alone (SYSTEM STOP REPLICATION QUEUES), and neither is
restarted.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import platform
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tests.beds.ports import free_port

_JAR = Path("/usr/share/java/zookeeper.jar")
_PATIENCE = 30.0
# push r14; push rbx; sub rsp, 0x48; mov r14, [rsi]; movsx rcx, byte [r14 + 0x167]: of the shared context the
# host's last byte, which says how libc++ keeps it. Once in the whole library that is pinned.
_FUNCTION = bytes.fromhex("4156534883ec484c8b36490fbe8e67010000")
_HOST, _PORT = b"127.0.0.1", 9009


def missing() -> str | None:
    """Why none of this is possible on this machine; None when it is."""
    if platform.machine() != "x86_64":
        return "needs x86-64: the address is lent in machine code"
    if shutil.which("java") is None or not _JAR.exists():
        return "needs ZooKeeper: apt-get install zookeeper"
    return None


def lend_address(library: Path) -> None:
    """Let the engine, loaded from that file by this process, say an address of its own.

    Raises `LookupError` when the function is not found: the engine's build is another than the one pinned.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        offset = content.find(_FUNCTION)
        if offset < 0 or content.find(_FUNCTION, offset + 1) >= 0:
            raise LookupError(
                f"{library}: Context::getInterserverIOAddress is not where it was; find it by its text "
                "'required for replication is not specified' and put its first bytes here"
            )
    address = _loaded_at(library, offset)
    # A pair of std::string and uint16_t is returned in memory that rdi points to (Itanium C++ ABI); the last
    # of a short string's 24 bytes is its length (libc++'s alternate layout).
    text = _HOST.ljust(23, b"\0") + bytes((len(_HOST),))
    stores = (b"\x48\x89\x07", b"\x48\x89\x47\x08", b"\x48\x89\x47\x10")  # mov [rdi + 0, 8, 16], rax
    code = b"".join(b"\x48\xb8" + text[8 * i : 8 * i + 8] + store for i, store in enumerate(stores))
    code += b"\x66\xc7\x47\x18" + struct.pack("<H", _PORT)  # mov word [rdi + 24], port
    code += b"\x48\x89\xf8\xc3"  # mov rax, rdi; ret
    page = address & -mmap.PAGESIZE
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), 7):
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.memmove(address, code, len(code))


def _loaded_at(library: Path, offset: int) -> int:
    """Where the code at that offset of the file lies in this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        fields = line.split()
        if len(fields) < 6 or Path(fields[5]) != library.resolve() or "x" not in fields[1]:
            continue
        first, last = (int(bound, 16) for bound in fields[0].split("-"))
        within = offset - int(fields[2], 16)
        if 0 <= within < last - first:
            return first + within
    raise LookupError(f"{library} is not loaded")


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
