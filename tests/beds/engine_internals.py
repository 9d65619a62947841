"""What only the server's own main gives a ClickHouse, given to the one in this process by its own functions.

The library that chdb brings contains a server's parts without the few lines that assemble them: the worker
of `ON CLUSTER` statements (DDLWorker) is there with its constructor, since the Replicated database engine
derives from it; so is the handler by which replicas fetch each other's parts, under a name that is not asked
for; of the queue of asynchronous inserts everything is there but its constructor and the thread that calls
for a flush. This module calls the first, redirects to the second and writes down the third as its constructor
would; whoever has the queue has to flush it (`SYSTEM FLUSH ASYNC INSERT QUEUE` does).

Where these functions and members lie was read from the library's machine code and holds for one build of it:
with another, `Engine` raises `LookupError` before it touches anything. To find them again: functions by the
texts in them (each text's reference in the code, then the function that surrounds it in .eh_frame_hdr),
virtual ones by the type's name, members by the functions that read them. Objects are laid out as libc++ does:
a shared_ptr is two pointers and goes in two registers, for it is built as trivially relocatable; a string of
up to 22 bytes lies in place, with its length in the last of 24.

An `Engine` belongs to the process whose library it changes. `lend_interserver` and `lend_identity` come
before the engine is started, for tables are loaded with it; the rest while a statement runs, for only then
there is a context. Nothing it makes is ever freed.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import struct
import uuid
from pathlib import Path

_BUILD = "bdc4640446f9e58ef835635e38764a5992cd4b3c"  # chdb-core 26.9.0, x86-64
_KNOWN = 0x0EAD3C00  # PyInit__chdb, which the library exports: from it every other address is reckoned
_GLOBAL_CONTEXT = 0x21FD60F8  # a shared_ptr<Context>: that of the process
_SERVER_UUID = 0x21FCD228  # 16 bytes
_CATALOG = 0x21FD65E8  # a pointer to the DatabaseCatalog of the process
_OPERATOR_NEW = 0x0E6E5DC0
_GET_LOGGER = 0x0E79B600  # (const std::string &) -> shared_ptr<Logger>
_THREAD_POOL = 0x0E96E9C0  # ThreadPool(metric, metric, metric, size_t threads)
_DDL_WORKER = 0x14818BC0  # see lend_ddl_worker
_DDL_WORKER_STARTUP = 0x1481AB00
_INTERSERVER_ADDRESS = 0x147217C0  # of a Context: () -> std::pair<std::string, uint16_t>
_INTERSERVER_SCHEME = 0x147218C0  # () -> std::string
_INTERSERVER_CREDENTIALS = 0x14721740  # () -> shared_ptr<const InterserverCredentials>
# In the function that makes the HTTP listeners' handlers by their name: what follows "is it HTTPHandler?", a
# jump, and where it goes for "InterserverIOHTTPHandler".
_NAMED_HTTP, _IS_INTERSERVER = 0x190973C0, bytes.fromhex("0f8480000000")

# Members of the part that all contexts share; a context's first member points to it.
_WORKER, _QUEUE = 0x0DB8, 0x1238

_ALLOWS_ON_CLUSTER = 0x0910  # a byte of the catalog's, set by a server once its tables are loaded
_DDL_WORKER_SIZE = 0x2F0
_METRIC_OF_THREADS = 186  # DDLWorkerThreads: the queue's threads are counted among them
_QUEUE_SIZE, _SHARD_SIZE, _HISTORY_SIZE = 0x1D8, 0xB0, 0x30


class _Pair(ctypes.Structure):
    _fields_ = (("pointer", ctypes.c_uint64), ("control", ctypes.c_uint64))


def missing() -> str | None:
    """Why none of this is possible on this machine; None when it is."""
    if platform.machine() != "x86_64":
        return "needs x86-64: the server's parts are put together in that build of the engine only"
    return None


class Engine:
    """The library loaded in this process from that file."""

    def __init__(self, library: Path) -> None:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            # A note's header (4, 20, 3, "GNU"), and the build's 20 bytes.
            note = content.find(bytes.fromhex("040000001400000003000000") + b"GNU\0")
            build = content[note + 16 : note + 36].hex() if note >= 0 else "unknown"
        if build != _BUILD:
            raise LookupError(
                f"{library} is the build {build}, not {_BUILD}, in which the addresses of {__name__} hold: "
                "find them anew as it says there"
            )
        known = ctypes.cast(ctypes.CDLL(str(library)).PyInit__chdb, ctypes.c_void_p).value
        assert known is not None
        self._base = known - _KNOWN

    def lend_identity(self, identity: uuid.UUID) -> None:
        """Say this to the Keeper, which takes two servers of one identity for one that was restarted."""
        self._words(self._base + _SERVER_UUID, identity.int >> 64, identity.int & (1 << 64) - 1)

    def lend_interserver(self, port: int) -> None:
        """Say this port for other replicas to fetch parts from, and let HTTP listeners serve nothing else."""
        # What is no scalar is returned in memory that rdi points to (Itanium C++ ABI).
        to_port = b"\x66\xc7\x47\x18" + struct.pack("<H", port)  # mov word [rdi + 24], port
        result = b"\x48\x89\xf8\xc3"  # mov rax, rdi; ret
        self._patch(_INTERSERVER_ADDRESS, self._returned("127.0.0.1") + to_port + result)
        self._patch(_INTERSERVER_SCHEME, self._returned("http") + result)
        # A user's name and password to ask with, and a vector of such pairs that may ask. Here all are empty,
        # which are two strings of zeros, and one pair may ask.
        pair = self._new(0x30)
        credentials = self._new(0x48)
        self._words(credentials + 0x30, pair, pair + 0x30, pair + 0x30)
        # mov rax, credentials; xor edx, edx; ret
        self._patch(_INTERSERVER_CREDENTIALS, b"\x48\xb8" + struct.pack("<Q", credentials) + b"\x31\xd2\xc3")
        self._patch(_NAMED_HTTP, _IS_INTERSERVER)

    def lend_ddl_worker(self, queue: str, replicas: str) -> None:
        """Start what executes `ON CLUSTER`, with these two paths in the Keeper."""
        context, control = self._context()
        worker = self._new(_DDL_WORKER_SIZE)
        # (int threads, queue, replicas, context, configuration, its prefix, the Keeper's name, the logger's,
        # two metrics of which none is wanted); the context's reference is handed over.
        construct = self._function(_DDL_WORKER, None, ctypes.c_void_p, ctypes.c_int, *[ctypes.c_void_p] * 10)
        self._words(control + 8, self._read(control + 8, 1)[0] + 1)
        texts = [self._kept(text) for text in (queue, replicas, "distributed_ddl", "default", "DDLWorker")]
        construct(worker, 1, texts[0], texts[1], context, control, None, *texts[2:], None, None)
        self._function(_DDL_WORKER_STARTUP, None, ctypes.c_void_p)(worker)
        self._words(self._shared() + _WORKER, worker)
        (catalog,) = self._read(self._base + _CATALOG, 1)
        self._write(catalog + _ALLOWS_ON_CLUSTER, b"\1")

    def lend_queue(self, shards: int = 4) -> None:
        """Keep asynchronous inserts in a queue, which is flushed when somebody says so or it has grown."""
        queue = self._new(_QUEUE_SIZE)
        self._words(queue, *self._context(), shards, 1)  # a weak_ptr to it; flush at the end
        held = self._new(shards * _SHARD_SIZE)
        for shard in range(held, held + shards * _SHARD_SIZE, _SHARD_SIZE):
            self._words(shard + 0x58, shard + 0x60)  # an empty std::map begins at its end
            self._words(shard + 0x90, 0x3F800000)  # of a hash map: its greatest load, 1.0
            self._words(shard + 0xA8, 50)  # ms until a flush, were anybody to look
        histories = self._new(shards * _HISTORY_SIZE)
        for at, begin, size in ((0x20, held, _SHARD_SIZE), (0x38, histories, _HISTORY_SIZE)):
            self._words(queue + at, begin, begin + shards * size, begin + shards * size)
        self._function(_THREAD_POOL, None, ctypes.c_void_p, *[ctypes.c_size_t] * 4)(
            queue + 0x80, *(_METRIC_OF_THREADS + at for at in range(3)), shards
        )
        logger = self._function(_GET_LOGGER, _Pair, ctypes.c_void_p)(self._kept("AsynchronousInsertQueue"))
        self._words(queue + 0x1C8, logger.pointer, logger.control)
        self._words(self._shared() + _QUEUE, queue, 0)

    def take_queue_back(self) -> None:
        """The engine's end would wait for the queue's thread, which it has not."""
        self._words(self._shared() + _QUEUE, 0, 0)

    def _context(self) -> tuple[int, int]:
        """The process's own, and its counter of references."""
        context, control = self._read(self._base + _GLOBAL_CONTEXT, 2)
        assert context, "no statement runs"
        return context, control

    def _shared(self) -> int:
        """What all contexts share."""
        return self._read(self._context()[0], 1)[0]

    def _returned(self, text: str) -> bytes:
        """The code that writes a short std::string to where rdi points."""
        raw = self._string(text)
        stores = (b"\x48\x89\x07", b"\x48\x89\x47\x08", b"\x48\x89\x47\x10")  # mov [rdi + 0, 8, 16], rax
        return b"".join(b"\x48\xb8" + raw[8 * i : 8 * i + 8] + store for i, store in enumerate(stores))

    def _patch(self, address: int, code: bytes) -> None:
        page = self._base + address & -mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), 7):
            raise OSError(ctypes.get_errno(), "mprotect")
        self._write(self._base + address, code)

    def _function(self, address: int, result: type | None, *arguments: type) -> ctypes._CFunctionType:
        return ctypes.CFUNCTYPE(result, *arguments)(self._base + address)

    def _new(self, size: int) -> int:
        address = self._function(_OPERATOR_NEW, ctypes.c_uint64, ctypes.c_size_t)(size)
        ctypes.memset(address, 0, size)
        return int(address)

    def _string(self, text: str) -> bytes:
        """A std::string."""
        raw = text.encode()
        if len(raw) <= 22:
            return raw.ljust(23, b"\0") + bytes((len(raw),))
        held = self._new(len(raw) + 1)
        self._write(held, raw)
        parts = (held, len(raw), 1 << 63 | len(raw) + 1)
        return b"".join(part.to_bytes(8, "little") for part in parts)

    def _kept(self, text: str) -> int:
        """The address of a std::string that stays."""
        address = self._new(24)
        self._write(address, self._string(text))
        return address

    def _read(self, address: int, words: int) -> tuple[int, ...]:
        raw = ctypes.string_at(address, 8 * words)
        return tuple(int.from_bytes(raw[8 * at : 8 * at + 8], "little") for at in range(words))

    def _words(self, address: int, *words: int) -> None:
        self._write(address, b"".join(word.to_bytes(8, "little") for word in words))

    def _write(self, address: int, content: bytes) -> None:
        ctypes.memmove(address, content, len(content))
