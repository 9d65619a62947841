"""Reading connection tracking without our shim: an oracle, the original's way, a neighbour who stalls.

A dump parsed here (attributes of linux/netfilter/nfnetlink_conntrack.h) shares no code
with what it judges. `zeroing_dump` reads as the original does, by IPCTNL_MSG_CT_GET_CTRZERO.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kubenetmon.demo.network import Namespace

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _BROADCAST_ERROR, _NO_ENOBUFS = 1, 4, 5
_GROUP_DESTROY = 3
_GET, _DELETE, _GET_CTRZERO = 0x0101, 0x0102, 0x0103
_REQUEST_DUMP, _REQUEST_ACK = 0x0001 | 0x0300, 0x0001 | 0x0004
_DONE, _ERROR = 3, 2
_TUPLE_ORIGINAL, _COUNTERS_ORIGINAL, _COUNTERS_REPLY, _ID = 1, 9, 10, 12
_PACKETS, _BYTES = 1, 2


@dataclass(frozen=True, slots=True)
class Counted:
    """One flow of a dump: its original tuple and its id as raw bytes, and its counters."""

    original: bytes
    identifier: bytes
    original_packets: int
    original_bytes: int
    reply_packets: int
    reply_bytes: int

    @property
    def total_bytes(self) -> int:
        """Both directions."""
        return self.original_bytes + self.reply_bytes


def dump(namespace: Namespace) -> list[Counted]:
    """All flows; their counters stay as they are."""
    return _dump(namespace, _GET)


def zeroing_dump(namespace: Namespace) -> list[Counted]:
    """All flows; the kernel sets their counters to zero."""
    return _dump(namespace, _GET_CTRZERO)


class Flusher:
    """Removes all flows as `conntrack -F` does, and quicker; a context manager."""

    def __init__(self, namespace: Namespace) -> None:
        self._socket = namespace.call(
            lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        )
        self._socket.settimeout(10)
        self._socket.bind((0, 0))

    def __enter__(self) -> Flusher:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def flush(self) -> None:
        """Every flow has ended when this returns."""
        body = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        self._socket.send(struct.pack("=IHHII", 16 + len(body), _DELETE, _REQUEST_ACK, 1, 0) + body)
        answer = self._socket.recv(4096)
        length, kind, _, _, _, error = struct.unpack_from("=IHHIIi", answer)
        assert (kind, error) == (_ERROR, 0), (length, kind, error)


def lossy_listener(namespace: Namespace, buffer_bytes: int) -> socket.socket:
    """A listener as most are, which the kernel does not try again for when its queue is full."""
    listener = namespace.call(
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    )
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes // 2)  # the kernel doubles it
    listener.bind((0, 0))
    listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_DESTROY)
    return listener


def events_of(listener: socket.socket) -> int:
    """How many events its queue holds."""
    events = 0
    while True:
        try:
            listener.recv(1 << 16)
        except BlockingIOError:
            return events
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
        else:
            events += 1


def stalled_listener(namespace: Namespace) -> socket.socket:
    """A listener that must lose no DESTROY event and reads none: the kernel will try again and again."""
    listener = namespace.call(
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, _NETLINK_NETFILTER)
    )
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 0)  # the least that the kernel allows
    listener.setsockopt(_SOL_NETLINK, _BROADCAST_ERROR, 1)
    listener.setsockopt(_SOL_NETLINK, _NO_ENOBUFS, 1)
    listener.bind((0, 0))
    listener.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_DESTROY)
    return listener


def _dump(namespace: Namespace, message_type: int) -> list[Counted]:
    flows = []
    with namespace.call(
        lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
    ) as sock:
        sock.settimeout(10)
        sock.bind((0, 0))
        body = struct.pack("=BBH", 0, 0, 0)  # nfgenmsg: AF_UNSPEC
        sock.send(struct.pack("=IHHII", 16 + len(body), message_type, _REQUEST_DUMP, 1, 0) + body)
        while True:
            received = sock.recv(1 << 16)
            while received:
                length, kind = struct.unpack_from("=IH", received)
                if kind == _DONE:
                    return flows
                assert kind != _ERROR, received[16:20]
                flows.append(_flow(received[20:length]))
                received = received[(length + 3) & ~3 :]


def _flow(attributes: bytes) -> Counted:
    found = dict(_attributes(attributes))
    return Counted(
        found[_TUPLE_ORIGINAL],
        found[_ID],
        *_counters(found[_COUNTERS_ORIGINAL]),
        *_counters(found[_COUNTERS_REPLY]),
    )


def _counters(nest: bytes) -> tuple[int, int]:
    found = dict(_attributes(nest))
    return struct.unpack(">Q", found[_PACKETS])[0], struct.unpack(">Q", found[_BYTES])[0]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
