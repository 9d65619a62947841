"""A client and a server with a node between them whose connection tracking is metered.

The node's nft counters, by protocol and direction, are the truth: they stand behind connection tracking in
the same hook, which hands each skb's length to them and to its own entry alike.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import TracebackType

from kubenetmon.demo.network import Count, Namespace, create_namespace, veth_pair

CLIENT, SERVER = "192.0.2.2", "198.51.100.2"
CLIENT6, SERVER6 = "2001:db8:1::2", "2001:db8:2::2"
SERVICE = "203.0.113.80"
SERVICE_PORT = 80
BACKEND_PORT = 8080
FIRST_PORT = 10_000

RULES = f"""
table inet truth {{
    counter tcp_original {{}}
    counter tcp_reply {{}}
    counter udp_original {{}}
    counter udp_reply {{}}
    counter untracked {{}}
    chain seen {{
        type filter hook prerouting priority filter; policy accept;
        meta l4proto {{ tcp, udp }} ct state invalid,untracked counter name untracked accept
        meta l4proto tcp ct direction original counter name tcp_original
        meta l4proto tcp ct direction reply counter name tcp_reply
        meta l4proto udp ct direction original counter name udp_original
        meta l4proto udp ct direction reply counter name udp_reply
    }}
    chain service {{
        type nat hook prerouting priority dstnat; policy accept;
        ip daddr {SERVICE} tcp dport {SERVICE_PORT} dnat ip to {SERVER}:{BACKEND_PORT}
    }}
}}
"""


class RouterBed:
    """The three namespaces; a context manager that removes them and ends the servers in them."""

    def __init__(self, label: str = "router") -> None:
        with contextlib.ExitStack() as undo:
            self.client, self.node, self.server = (
                self._namespace(undo, f"{label}-{name}") for name in ("client", "node", "server")
            )
            veth_pair(self.client, "wire", self.node, "clients")
            veth_pair(self.server, "wire", self.node, "servers")
            for namespace, interface, addresses in (
                (self.client, "wire", (f"{CLIENT}/24", f"{CLIENT6}/64")),
                (self.node, "clients", ("192.0.2.1/24", "2001:db8:1::1/64")),
                (self.node, "servers", ("198.51.100.1/24", "2001:db8:2::1/64")),
                (self.server, "wire", (f"{SERVER}/24", f"{SERVER6}/64")),
            ):
                for address in addresses:
                    namespace.address(interface, address)
            self.client.route("default", "192.0.2.1")
            self.client.route("default", "2001:db8:1::1")
            self.server.route("default", "198.51.100.1")
            self.server.route("default", "2001:db8:2::1")
            for key in ("nf_conntrack_acct", "nf_conntrack_events", "nf_conntrack_timestamp"):
                self.node.sysctl(f"net.netfilter.{key}", 1)
            self.node.sysctl("net.ipv4.ip_forward", 1)
            self.node.sysctl("net.ipv6.conf.all.forwarding", 1)
            self.node.nft(RULES)
            self._undo = undo.pop_all()

    def __enter__(self) -> RouterBed:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._undo.close()

    def truth(self) -> dict[str, Count]:
        """What the node tracked since it was made, by `{tcp,udp}_{original,reply}`."""
        counters = self.node.counters("truth")
        assert counters.pop("untracked") == Count(0, 0)
        return counters

    def true_bytes(self) -> int:
        """Both protocols and directions together."""
        return sum(count.bytes for count in self.truth().values())

    def tcp(self, sent: int, answered: int, to: str = SERVER, port: int = BACKEND_PORT) -> None:
        """One connection: so many bytes there, then so many back, then closed by the client."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with self._listener(family) as listener:
            thread = threading.Thread(target=_serve_one, args=(listener, sent, answered))
            thread.start()
            with self.client.call(lambda: socket.create_connection((to, port), timeout=10)) as connection:
                connection.sendall(bytes(sent))
                _receive(connection, answered)
            thread.join()

    def udp(self, payloads: list[int], answers: int = 0, to: str = SERVER, source_port: int = 0) -> int:
        """Datagrams of one flow, `answers` of them answered with their own payload; the source port."""
        family = socket.AF_INET6 if ":" in to else socket.AF_INET
        with (
            self.server.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as service,
            self.client.call(lambda: socket.socket(family, socket.SOCK_DGRAM)) as client,
        ):
            service.bind((to, BACKEND_PORT))
            service.settimeout(10)
            client.bind(("", source_port))
            client.settimeout(10)
            for number, payload in enumerate(payloads):
                client.sendto(bytes(payload), (to, BACKEND_PORT))
                received, sender = service.recvfrom(65536)
                if number < answers:
                    service.sendto(received, sender)
                    client.recv(65536)
            return int(client.getsockname()[1])

    def udp_flows(self, count: int, to: str = SERVER) -> None:
        """So many flows of one datagram each, of mixed sizes."""
        with self.server.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service:
            service.bind((to, BACKEND_PORT))
            service.settimeout(10)

            def send_all() -> None:
                for number in range(count):
                    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                        client.bind(("", FIRST_PORT + number))
                        client.sendto(bytes(number * 7919 % 1200), (to, BACKEND_PORT))
                        service.recv(65536)

            self.client.call(send_all)

    @contextlib.contextmanager
    def one_tuple(self, source_port: int, to: str = SERVER) -> Iterator[Callable[[int], None]]:
        """Sends one datagram of so many bytes, always of the same five-tuple, and sees it arrive."""
        with (
            self.server.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as service,
            self.client.call(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client,
        ):
            service.bind((to, BACKEND_PORT))
            service.settimeout(10)
            client.bind(("", source_port))

            def send(size: int) -> None:
                client.sendto(bytes(size), (to, BACKEND_PORT))
                service.recv(65536)

            yield send

    @contextlib.contextmanager
    def _listener(self, family: int) -> Iterator[socket.socket]:
        with self.server.call(lambda: socket.socket(family, socket.SOCK_STREAM)) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.settimeout(10)
            listener.bind(("", BACKEND_PORT))
            listener.listen()
            yield listener

    @staticmethod
    def _namespace(undo: contextlib.ExitStack, label: str) -> Namespace:
        namespace = create_namespace(label)
        undo.callback(namespace.delete)
        return namespace


def _receive(connection: socket.socket, size: int) -> None:
    while size > 0:
        received = len(connection.recv(min(size, 1 << 16)))
        assert received > 0
        size -= received


def _serve_one(listener: socket.socket, expected: int, answer: int) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(10)
        _receive(connection, expected)
        connection.sendall(bytes(answer))
        connection.recv(1)
