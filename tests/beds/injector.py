"""A hundred thousand flows at once: raw packets through a forwarding namespace.

Three namespaces in a row, source, node and sink. Packets written on the wire of the source (or, for
replies, of the sink) are forwarded by the node, whose connection tracking sees each as part of a flow:
`tcp_loose` takes a TCP flow up in its middle, `tcp_be_liberal` asks no window of it. Nobody answers: the
hardware address that the node sends to is nobody's, so what leaves it is dropped at once.

The node's own nft counters, not the number of packets written, are the truth: where the kernel's backlog
overflows, a packet dies before the node and neither the counters nor connection tracking have seen it.
"""

from __future__ import annotations

import contextlib
import socket
from types import TracebackType
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kubenetmon.demo.network import Count, Namespace, create_namespace, veth_pair

TCP = 6
UDP = 17
CLIENTS = 0x0A400000  # 10.64.0.0/10
SERVERS = 0x0A800000  # 10.128.0.0/10
SERVER_PORT = 443
MAX_PAYLOAD = 1400

_FIRST_CLIENT_PORT = 10_000
_CLIENT_PORTS = 50_000
_SERVER_ADDRESSES = 256
_IP_HEADER = 20
_HEADER = {TCP: _IP_HEADER + 20, UDP: _IP_HEADER + 8}
_ETHERNET = 14
_NODE_MAC = {"original": "02:00:00:00:00:01", "reply": "02:00:00:00:00:02"}
_NOBODY_MAC = "02:00:00:00:00:99"
_CHUNK = 2048
_SOL_PACKET = 263  # linux/socket.h
_PACKET_QDISC_BYPASS = 20  # linux/if_packet.h

RULES = """
table inet truth {
    counter tracked_tcp {}
    counter tracked_udp {}
    counter original {}
    counter reply {}
    counter untracked {}
    chain seen {
        # After connection tracking (-200), which hands each skb's length to this rule and to its entry alike.
        type filter hook prerouting priority filter; policy accept;
        iifname lo accept
        ct state invalid,untracked counter name untracked accept
        ct direction original counter name original
        ct direction reply counter name reply
        meta l4proto tcp counter name tracked_tcp
        meta l4proto udp counter name tracked_udp
    }
}
"""


class InjectionBed:
    """The three namespaces; a context manager that removes them.

    Flow number i of a protocol always has the same five-tuple: client `CLIENTS + i // 50000` at port
    10000 + i % 50000, server `SERVERS + i % 256` at `SERVER_PORT`.
    """

    def __init__(self, label: str = "bed") -> None:
        with contextlib.ExitStack() as undo:
            self.source = self._namespace(undo, f"{label}-source")
            self.node = self._namespace(undo, f"{label}-node")
            self.sink = self._namespace(undo, f"{label}-sink")
            veth_pair(self.source, "wire", self.node, "original")
            veth_pair(self.sink, "wire", self.node, "reply")
            self._prepare_node()
            self._wires = {
                "original": undo.enter_context(self._open_wire(self.source)),
                "reply": undo.enter_context(self._open_wire(self.sink)),
            }
            self._undo = undo.pop_all()

    def __enter__(self) -> InjectionBed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the namespaces and everything in them."""
        self._undo.close()

    def send(
        self,
        protocol: int,
        first: int,
        count: int,
        *,
        payload: int | NDArray[np.integer] = 0,
        direction: Literal["original", "reply"] = "original",
    ) -> Count:
        """One packet for each of the flows first … first + count - 1; what was written, IP header included.

        `protocol` is TCP or UDP; `payload` is the bytes behind the transport header, one number for all or
        an array of shape (count,).
        """
        wire = self._wires[direction]
        header = _HEADER[protocol]
        written = 0
        for start in range(0, count, _CHUNK):
            size = min(_CHUNK, count - start)
            flows = np.arange(first + start, first + start + size, dtype=np.int64)
            lengths = np.broadcast_to(np.asarray(payload, np.int64), count)[start : start + size] + header
            frames = _frames(protocol, flows, lengths, direction)
            octets = memoryview(frames.reshape(-1).data)
            begins = range(0, octets.nbytes, frames.shape[1])
            for begin, size_on_wire in zip(begins, (lengths + _ETHERNET).tolist(), strict=True):
                wire.send(octets[begin : begin + size_on_wire])
            written += int(lengths.sum())
        return Count(count, written)

    def truth(self) -> dict[str, Count]:
        """What the node saw since the bed was made.

        `tracked_tcp` and `tracked_udp` belong to flows, as do `original` and `reply` by direction (other
        protocols included, of which the bed sends none); `untracked` do not.
        """
        return self.node.counters("truth")

    def tracked_bytes(self) -> int:
        """Bytes of both protocols that belong to flows."""
        truth = self.truth()
        return truth["tracked_tcp"].bytes + truth["tracked_udp"].bytes

    @staticmethod
    def _namespace(undo: contextlib.ExitStack, label: str) -> Namespace:
        namespace = create_namespace(label)
        undo.callback(namespace.delete)
        return namespace

    def _prepare_node(self) -> None:
        node = self.node
        for key, value in {
            "net.netfilter.nf_conntrack_acct": 1,
            "net.netfilter.nf_conntrack_events": 1,
            "net.netfilter.nf_conntrack_timestamp": 1,
            "net.netfilter.nf_conntrack_tcp_loose": 1,
            "net.netfilter.nf_conntrack_tcp_be_liberal": 1,
            "net.netfilter.nf_conntrack_checksum": 0,
            "net.netfilter.nf_conntrack_udp_timeout": 3600,
            "net.netfilter.nf_conntrack_udp_timeout_stream": 3600,
            "net.ipv4.ip_forward": 1,
            "net.ipv4.conf.all.rp_filter": 0,
            "net.ipv4.conf.default.rp_filter": 0,
        }.items():
            node.sysctl(key, value)
        for interface, prefix, destination in (
            ("original", "192.168.1", "10.64.0.0/10"),
            ("reply", "192.168.2", "10.128.0.0/10"),
        ):
            node.ip("link", "set", interface, "address", _NODE_MAC[interface])
            node.sysctl(f"net.ipv4.conf.{interface}.rp_filter", 0)
            node.address(interface, f"{prefix}.1/24")
            node.ip("neigh", "replace", f"{prefix}.2", "lladdr", _NOBODY_MAC, "dev", interface)
            node.route(destination, f"{prefix}.2")
        node.nft(RULES)

    @staticmethod
    def _open_wire(namespace: Namespace) -> socket.socket:
        def open_inside() -> socket.socket:
            wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            wire.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
            wire.bind(("wire", 0))
            return wire

        return namespace.call(open_inside)


def _frames(
    protocol: int,
    flows: NDArray[np.int64],
    lengths: NDArray[np.int64],
    direction: Literal["original", "reply"],
) -> NDArray[np.uint8]:
    """Ethernet frames, shape (n, longest), one row a packet.

    The IP header's checksum is right; the node is told not to check the transport's.
    """
    frames = np.zeros((len(flows), _ETHERNET + int(lengths.max())), np.uint8)
    mac = bytes.fromhex(_NODE_MAC[direction].replace(":", ""))
    frames[:, :6] = np.frombuffer(mac, np.uint8)
    frames[:, 6:12] = np.frombuffer(bytes.fromhex(_NOBODY_MAC.replace(":", "")), np.uint8)
    frames[:, 12] = 0x08
    client = (CLIENTS + flows // _CLIENT_PORTS).astype(">u4")
    server = (SERVERS + flows % _SERVER_ADDRESSES).astype(">u4")
    client_port = (_FIRST_CLIENT_PORT + flows % _CLIENT_PORTS).astype(">u2")
    server_port = np.full(len(flows), SERVER_PORT, ">u2")
    source, destination = (client, server) if direction == "original" else (server, client)
    source_port, destination_port = (
        (client_port, server_port) if direction == "original" else (server_port, client_port)
    )

    ip = frames[:, _ETHERNET : _ETHERNET + _IP_HEADER]
    ip[:, 0] = 0x45
    ip[:, 2:4] = _octets(lengths.astype(">u2"))
    ip[:, 8] = 64
    ip[:, 9] = protocol
    ip[:, 12:16] = _octets(source)
    ip[:, 16:20] = _octets(destination)
    words = ip.reshape(len(flows), 10, 2).astype(np.uint32)
    total = (words[:, :, 0] * 256 + words[:, :, 1]).sum(axis=1)
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    ip[:, 10:12] = _octets((~total & 0xFFFF).astype(">u2"))

    transport = frames[:, _ETHERNET + _IP_HEADER :]
    transport[:, 0:2] = _octets(source_port)
    transport[:, 2:4] = _octets(destination_port)
    if protocol == TCP:
        transport[:, 7] = 1  # sequence number
        transport[:, 11] = 1  # acknowledgement number
        transport[:, 12] = 5 << 4  # header length in words
        transport[:, 13] = 0x10  # ACK
        transport[:, 14] = 0xFF  # window
    else:
        transport[:, 4:6] = _octets((lengths - _IP_HEADER).astype(">u2"))
    return frames


def _octets(numbers: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Big-endian numbers of shape (n,) as octets of shape (n, width)."""
    return np.ascontiguousarray(numbers).view(np.uint8).reshape(len(numbers), -1)
