"""The asyncio face of the C shim: what the kernel's connection tracking counted, and what of it is reported.

Contract: a `Conntrack` meters the network namespace in which `open` is called, and is inert before. It owns
the shim's sockets, its event thread, its watchdog, its ledger and one worker thread of its own, in which
dumps run and reports are sealed: never two at once, and the event loop waits for none. `read` brings the
ledger up to date, `report` turns what is pending into batches and counts it as reported from that moment
on; what it returned is the caller's to keep. At shutdown `close` breaks a running dump off (nothing of it
is lost to a later reader: the kernel's counters are never reset), ends both threads and drops the ledger.

Identity: `Totals` says in bytes and packets, exactly and at any time, observed = reported +
ignored{protocol, loopback, baseline, overflow} + pending. csrc/ledger.h says what is booked when.
"""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import functools
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kubenetmon.agent.metered import AccountingState, ReadResult, Resumed, SealedRecords, StoredBatch, Totals
from kubenetmon.agent.state import EVENTS, LEDGER, SENT_OFFSET, Files, StateDirectory, batch_name
from kubenetmon.errors import KubenetmonError, MachineError
from kubenetmon.proto import EPOCH_BYTES, MAX_BATCH_BYTES, FlowArrays
from kubenetmon.waiting import retrieved

try:
    from kubenetmon import _conntrack
    from kubenetmon._conntrack import ffi, lib
except ImportError as error:
    raise MachineError(
        f"the C shim cannot be loaded ({error}): install libnetfilter-conntrack3 and libmnl0, "
        "or build it anew with pip install ."
    ) from error

_SYSCTLS = Path("/proc/sys/net/netfilter")
_COUNTER_WIDTHS = (8, 8, 8, 8)
_PORT_WIDTHS = (2, 2, 2, 2)
_TIME_WIDTH = 4
_IPV4_WIDTHS = (1, 4, 4, 4, 4, *_PORT_WIDTHS, *_COUNTER_WIDTHS, _TIME_WIDTH)
_IPV6_WIDTHS = (1, 16, 16, 16, 16, *_PORT_WIDTHS, *_COUNTER_WIDTHS, _TIME_WIDTH)
_COLUMNS = tuple(field.name for field in dataclasses.fields(FlowArrays) if field.name != "count")

_WATCHDOG = Path(_conntrack.__file__).with_name("_watchdog")
"""A program: csrc/programs/watchdog.c."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

assert ffi.offsetof("struct meter_batch_file", "sent") == SENT_OFFSET

_FAULTS = {
    lib.STATE_TRUNCATED: ("truncated", "the ledger is cut short"),
    lib.STATE_VERSION: ("version", "the ledger was written by another version"),
    lib.STATE_CORRUPT: ("corrupt", "the ledger's checksums do not agree"),
    lib.STATE_OTHER_BOOT: ("other_boot", "the ledger is from before the machine's last start"),
    lib.STATE_FOREIGN: ("foreign", "the ledger is of another node or network namespace"),
}

logger = logging.getLogger(__name__)

_FOR_EVER = (1 << 63) - 1

MANY_WAITING: int = lib.WAIT_WHOLE // 2
"""`Totals.waiting_flows` from which a report should not wait: at twice as many, ended flows are merged."""

T = TypeVar("T")


class ConntrackError(KubenetmonError):
    """One read of conntrack failed; the next one may work, and finds everything that this one did not."""


@dataclass(frozen=True, slots=True)
class ConntrackConfig:
    """`count_existing`: meter also what flows had counted before `open` (the original's behaviour).

    `event_buffer_bytes`: the kernel's queue for ended flows that we have yet to read. When it is full the
    kernel keeps ended flows in its table and tries again. `patience`: when for so many seconds nothing was
    read from it and it is half full, the shim's watchdog, a small process, stops listening in our stead.
    """

    count_existing: bool = False
    event_buffer_bytes: int = 8 << 20
    patience: float = 5.0


class _UnusableStateError(Exception):
    """A state file that is not ours or not whole."""

    def __init__(self, reason: str, explanation: str) -> None:
        super().__init__(explanation)
        self.reason, self.explanation = reason, explanation


class Conntrack:
    """The kernel's connection tracking of one network namespace, metered."""

    name = "conntrack"

    def __init__(
        self, config: ConntrackConfig, *, state: StateDirectory | None = None, node_name: str = ""
    ) -> None:
        """With `state`, whose lock is ours by the time of `open`, the ledger outlives the process."""
        self._config, self._state, self._node_name = config, state, node_name
        self._started = self._in_memory_said = False
        self._place = b""
        self.resumed = Resumed(b"", 1, 1, 0, 0.0, 0.0)
        """Where the ledger was left; true from `open` on."""
        self._meter: Any = None
        self._worker: ThreadPoolExecutor | None = None
        self._buffer: Any = None

    def listen(self) -> None:
        """Hear of flows that end from now on, in the network namespace of the calling thread.

        Before `open`, which else does it; `wait` takes in what is heard. Raises `MachineError`.
        """
        if self._meter is not None:
            return
        error, step = ffi.new("int *"), ffi.new("const char **")
        watchdog = ffi.new("char[]", os.fsencode(_WATCHDOG))
        patience = int(self._config.patience * 1000)
        listening = ffi.new("struct listening *", (watchdog, self._config.event_buffer_bytes, patience))
        meter = lib.meter_listen(listening, error, step)
        if meter == ffi.NULL and not os.access(_WATCHDOG, os.X_OK):
            raise MachineError(f"{_WATCHDOG} is missing or no program: install kubenetmon anew")
        if meter == ffi.NULL:
            raise _open_error(error[0], ffi.string(step[0]).decode())
        self._meter = meter

    def wait(self) -> None:
        """While another agent meters: remember the ends of flows that it has not heard of so far.

        To be called before the kernel's queue is full. Raises `ConntrackError` for want of memory.
        """
        listened_until = self._state.listened_until() if self._state is not None else _FOR_EVER
        error = lib.meter_wait(self._meter, listened_until)
        if error:
            raise _read_error(error)

    def open(self) -> None:
        """Meter the network namespace of the calling thread, from where the agent before ended if any did.

        Raises `MachineError` when the kernel lacks connection tracking or does not let us read it.
        """
        assert not self._started, "open is called once"
        self.listen()
        namespace = os.stat("/proc/thread-self/ns/net")
        self._place = f"{self._node_name} {namespace.st_dev}:{namespace.st_ino}".encode()
        if self._state is None:
            self._start_meter(None, 1)
        else:
            self._start_with_state(self._state)
        self._started = True
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="conntrack")
        self._worker.submit(int).result()  # its thread begins, and with it in the namespace of this one
        self._buffer = ffi.new("uint8_t[]", MAX_BATCH_BYTES)

    def _start_with_state(self, state: StateDirectory) -> None:
        sequences = state.sequences()
        first = sequences[-1] + 1 if sequences else 1
        for _ in range(2):
            try:
                self._start_meter(state.files(), first)
                return
            except _UnusableStateError as fault:
                state.set_aside((LEDGER, EVENTS), fault.reason, fault.explanation)
            except OSError as error:
                state.forget_ledger()
                state.set_aside((), "full", f"{error.strerror}; metering goes on in memory")
                break
        self._in_memory_said = True
        self._start_meter(None, first)

    def _start_meter(self, files: Files | None, first_sequence: int) -> None:
        """Make the meter run. Raises `MachineError`, `_UnusableStateError`, or `OSError` about the files."""
        settings = ffi.new("struct meter_config *")
        settings.count_existing = self._config.count_existing
        settings.directory, settings.ledger_file, settings.events_file = files or (-1, -1, -1)
        boot, place = ffi.new("char[]", _boot_id()), ffi.new("char[]", self._place)
        epoch = ffi.new("uint8_t[]", os.urandom(EPOCH_BYTES))
        settings.boot, settings.place, settings.epoch = boot, place, epoch
        settings.first_sequence = first_sequence
        step, fault = ffi.new("const char **"), ffi.new("enum meter_state_fault *")
        error = lib.meter_start(self._meter, settings, step, fault)
        if error:
            if fault[0] != lib.STATE_OK:
                raise _UnusableStateError(*_FAULTS[fault[0]])
            if files and -error in (errno.ENOSPC, errno.EDQUOT, errno.EOPNOTSUPP):
                raise OSError(-error, os.strerror(-error))
            raise _open_error(error, ffi.string(step[0]).decode())
        resumed = ffi.new("struct meter_resumed *")
        lib.meter_resumed_get(self._meter, resumed)
        self.resumed = Resumed(
            epoch=bytes(ffi.buffer(resumed.epoch)),
            next_sequence=resumed.next_sequence,
            next_report=resumed.next_report,
            unsealed_from=resumed.unsealed_from,
            unsealed_from_monotonic=resumed.unsealed_from_monotonic / 1e9,
            gap=max(0, resumed.gap_nanoseconds) / 1e9,
        )

    def stored_batches(self) -> list[StoredBatch]:
        """The sealed batches that an agent before left in the state directory, oldest first; after `open`.

        Files that are none, because their writer was killed before it sealed them, are removed.
        """
        found: list[StoredBatch] = []
        for sequence in self._state.sequences() if self._state is not None else ():
            assert self._state is not None
            try:
                contents = self._state.read(sequence)
            except OSError as error:
                logger.error("Batch %d cannot be read: %s", sequence, error.strerror)
                continue
            never_sealed = sequence >= self.resumed.next_sequence
            batch = _stored_batch(contents, self._place) if not never_sealed else None
            if batch is not None and batch.sequence == sequence:
                found.append(batch)
            elif never_sealed:
                self._state.remove(sequence)
            else:
                self._state.set_aside(
                    (batch_name(sequence),), "corrupt", "its checksum is wrong or it is another's"
                )
        return found

    async def read(self) -> ReadResult:
        """Book the ends of flows told so far, then one full dump of the table.

        Cancelling leaves the dump running in its thread; the next read begins after it. Raises
        `ConntrackError` when the kernel refuses, and `MachineError` when it does so for want of privilege.
        """
        return await self._in_worker(functools.partial(self._dump, lib.meter_read))

    async def receive_floor(self) -> ReadResult:
        """Receive one full dump and throw it away: what reading costs at least, for `nox -s bench`."""
        return await self._in_worker(functools.partial(self._dump, lib.meter_receive_floor))

    async def report(self, begin: int, end: int, end_monotonic: float) -> list[SealedRecords]:
        """`seal` in the worker thread, so that the event loop goes on.

        Cancelling leaves the sealing to its end and what it sealed to the state directory.
        """
        return await self._in_worker(lambda _: self.seal(begin, end, end_monotonic))

    def seal(self, begin: int = 0, end: int = 0, end_monotonic: float = 0.0) -> list[SealedRecords]:
        """All that is pending, as batches of at most `MAX_BATCH_BYTES` of arrays; it counts as reported now.

        In the state directory each is stored with the report's bounds (Unix seconds, and the end by the
        monotonic clock), its sequence following on `resumed.next_sequence` without holes.

        Not to be called while a read runs, whose lock it would wait for. Raises `ConntrackError` when there
        is no memory to book the ends of flows in; nothing is lost then.
        """
        meter = self._opened()
        sealed = ffi.new("struct meter_sealed *")
        interval = ffi.new("struct meter_interval *", (begin, end, int(end_monotonic * 1e9)))
        batches: list[SealedRecords] = []
        while True:
            error = lib.meter_seal(meter, interval, self._buffer, MAX_BATCH_BYTES, sealed)
            self._say_if_in_memory(meter)
            if sealed.buffer_bytes == 0:
                if error and not batches:
                    raise _read_error(error)
                return batches
            batches.append(self._records(sealed))

    def _say_if_in_memory(self, meter: Any) -> None:
        error = lib.meter_state_error(meter)
        if error and not self._in_memory_said:
            assert self._state is not None
            self._in_memory_said = True
            self._state.set_aside(
                (), "full", f"{os.strerror(-error)}; metering goes on in memory, nothing is lost"
            )

    def totals(self) -> Totals:
        """What the last read or seal left, in which the identity holds; never waits for one that runs."""
        totals = ffi.new("struct meter_totals *")
        lib.meter_totals_get(self._opened(), totals)
        return Totals(*(getattr(totals, name) for name in _TOTALS))

    def accounting_state(self) -> AccountingState:
        """What the network namespace of the calling thread is set to count, and what the last read showed."""
        totals = self.totals()
        return AccountingState(
            accounting=_sysctl("nf_conntrack_acct"),
            events=_sysctl("nf_conntrack_events"),
            timestamps=_sysctl("nf_conntrack_timestamp"),
            tracked=_sysctl("nf_conntrack_count"),
            limit=_sysctl("nf_conntrack_max"),
            with_counters=totals.with_counters,
            without_counters=totals.without_counters,
        )

    def close(self) -> None:
        """Break off a running read, end the threads and drop the ledger; what is pending goes with it."""
        if self._meter is None:
            return
        meter, self._meter = self._meter, None
        lib.meter_abort(meter)
        if self._worker is not None:
            self._worker.shutdown(wait=True)
        lib.meter_close(meter)

    def _opened(self) -> Any:
        if not self._started or self._meter is None:
            raise RuntimeError("conntrack is not open")
        return self._meter

    async def _in_worker(self, call: Callable[[Any], T]) -> T:
        meter = self._opened()
        assert self._worker is not None
        future: Future[T] = self._worker.submit(call, meter)
        # The thread goes on when the caller is cancelled: the pool of one thread is what keeps dumps apart.
        return await asyncio.shield(retrieved(asyncio.wrap_future(future)))

    @staticmethod
    def _dump(function: Callable[[Any, Any], int], meter: Any) -> ReadResult:
        result = ffi.new("struct meter_read_result *")
        error = function(meter, result)
        if error:
            raise _read_error(error)
        return ReadResult(
            flows=result.flows,
            changed=result.changed,
            ended=result.events,
            duration=result.wall_nanoseconds / 1e9,
            cpu=result.cpu_nanoseconds / 1e9,
            received_messages=result.messages,
            received_bytes=result.bytes,
        )

    def _records(self, sealed: Any) -> SealedRecords:
        arrays = ffi.buffer(self._buffer, sealed.buffer_bytes)
        ipv4, ipv6 = _arrays(arrays, sealed.ipv4_records, sealed.ipv6_records)
        return SealedRecords(
            ipv4=ipv4,
            ipv6=ipv6,
            records=sealed.ipv4_records + sealed.ipv6_records,
            bytes=sealed.metered_bytes,
            packets=sealed.metered_packets,
        )


_TOTALS = tuple(field.name for field in dataclasses.fields(Totals))


def _arrays(arrays: Any, ipv4_records: int, ipv6_records: int) -> tuple[FlowArrays, FlowArrays]:
    """Both families' columns from all of the buffer."""
    ipv4, end = _columns(arrays, 0, ipv4_records, _IPV4_WIDTHS)
    ipv6, end = _columns(arrays, end, ipv6_records, _IPV6_WIDTHS)
    assert end == len(arrays)
    return ipv4, ipv6


def _stored_batch(contents: bytes, place: bytes) -> StoredBatch | None:
    """What a batch file holds; None when it is not whole or not of this place."""
    data = ffi.from_buffer("uint8_t[]", contents)
    if not lib.meter_batch_valid(data, len(contents)):
        return None
    header = ffi.new("struct meter_batch_file *")
    size = ffi.sizeof("struct meter_batch_file")
    ffi.memmove(header, data, size)
    if ffi.string(header.place) != place:
        return None
    ipv4, ipv6 = _arrays(memoryview(contents)[size:], header.ipv4_records, header.ipv6_records)
    records = SealedRecords(
        ipv4, ipv6, header.ipv4_records + header.ipv6_records, header.metered_bytes, header.metered_packets
    )
    return StoredBatch(
        epoch=bytes(ffi.buffer(header.epoch)),
        sequence=header.sequence,
        report=header.report,
        begin=header.interval_start,
        end=header.interval_end,
        records=records,
        sent=header.sent,
    )


def _boot_id() -> bytes:
    return _BOOT_ID.read_bytes().strip()


def _columns(arrays: Any, start: int, count: int, widths: tuple[int, ...]) -> tuple[FlowArrays, int]:
    """`count` records' columns from the buffer, and where they end."""
    columns: dict[str, bytes] = {}
    for name, width in zip(_COLUMNS, widths, strict=True):
        end = start + width * count
        columns[name] = bytes(arrays[start:end])
        start = end
    return FlowArrays(count=count, **columns), start


def _sysctl(name: str) -> int | None:
    try:
        return int((_SYSCTLS / name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


_NOT_PERMITTED = (
    "reading connection tracking is not permitted: run as root, or grant the capability CAP_NET_ADMIN"
)


def _open_error(error: int, step: str) -> MachineError:
    if -error in (errno.EPERM, errno.EACCES):
        return MachineError(_NOT_PERMITTED)
    if -error in (errno.EPROTONOSUPPORT, errno.ENOENT, errno.EAFNOSUPPORT):
        return MachineError(
            "this kernel offers no connection tracking over netlink: load the module nf_conntrack_netlink "
            "(modprobe nf_conntrack_netlink)"
        )
    return MachineError(f"connection tracking cannot be read: failed to {step}: {os.strerror(-error)}")


def _read_error(error: int) -> KubenetmonError:
    if -error in (errno.EPERM, errno.EACCES):
        return MachineError(_NOT_PERMITTED)
    if -error in (errno.EINVAL, errno.EOPNOTSUPP):
        return MachineError(
            "this kernel does not answer requests for connection tracking: load the module "
            "nf_conntrack_netlink (modprobe nf_conntrack_netlink)"
        )
    if -error == errno.ENOMEM:
        return ConntrackError("there is no memory to keep another flow in: raise the memory limit")
    return ConntrackError(f"conntrack could not be read: {os.strerror(-error)}; the next read finds it all")
