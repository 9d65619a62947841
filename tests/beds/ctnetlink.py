"""Reading connection tracking without our shim: an oracle, the original's way, a neighbour who stalls.

A dump parsed here (attributes of linux/netfilter/nfnetlink_conntrack.h) shares no code
with what it judges. `zeroing_dump` reads as the original does, by IPCTNL_MSG_CT_GET_CTRZERO.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from kubenetmon.demo.network import Namespace

_NETLINK_NETFILTER = 12
_SOL_NETLINK = 270
_ADD_MEMBERSHIP, _BROADCAST_ERROR, _NO_ENOBUFS = 1, 4, 5
_GROUP_DESTROY = 3
_GET, _GET_CTRZERO = 0x0101, 0x0103
_REQUEST_DUMP = 0x0001 | 0x0300
_DONE, _ERROR = 3, 2
_TUPLE_ORIGINAL, _COUNTERS_ORIGINAL, _COUNTERS_REPLY = 1, 9, 10
_PACKETS, _BYTES = 1, 2


@dataclass(frozen=True, slots=True)
class Counted:
    """One flow of a dump: its original tuple as raw bytes, and its counters."""

    original: bytes
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
        found[_TUPLE_ORIGINAL], *_counters(found[_COUNTERS_ORIGINAL]), *_counters(found[_COUNTERS_REPLY])
    )


def _counters(nest: bytes) -> tuple[int, int]:
    found = dict(_attributes(nest))
    return struct.unpack(">Q", found[_PACKETS])[0], struct.unpack(">Q", found[_BYTES])[0]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[(length + 3) & ~3 :]
