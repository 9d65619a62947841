"""A machine without any rules, and a peer to talk to: two namespaces joined by one cable."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kubenetmon.demo.network import Namespace, create_namespace, veth_pair

MACHINE, PEER = "198.51.100.1", "198.51.100.2"
COUNTERS = """
table inet truth {
  counter seen { }
  chain in {
    type filter hook prerouting priority -150;
    iifname "wire" meta l4proto { tcp, udp } th sport { 7000, 7001 } counter name "seen";
  }
  chain out {
    type filter hook postrouting priority 150;
    oifname "wire" meta l4proto { tcp, udp } th dport { 7000, 7001 } counter name "seen";
  }
}
"""
SERVE = """
import socket, threading
def tcp():
    with socket.create_server(("", 7000)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(65536):
                    connection.sendall(data[: len(data) // 2])
def udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind(("", 7001))
        while True:
            data, peer = endpoint.recvfrom(2048)
            endpoint.sendto(data[:100], peer)
threading.Thread(target=tcp, daemon=True).start()
print("ready", flush=True)
udp()
"""
TALK = f"""
import socket
for number in range(20):
    with socket.create_connection(("{PEER}", 7000)) as connection:
        for _ in range(5):
            connection.sendall(bytes(10_000 + number))
            connection.recv(1)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):
            pass
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
    endpoint.settimeout(5)
    for number in range(50):
        endpoint.sendto(bytes(500 + number), ("{PEER}", 7001))
        endpoint.recv(2048)
"""


@contextmanager
def machine_and_peer() -> Iterator[tuple[Namespace, Namespace]]:
    """Both namespaces; the peer answers on TCP port 7000 and UDP port 7001, to whom `TALK` talks."""
    made, peer = create_namespace("machine"), create_namespace("peer")
    server = None
    try:
        veth_pair(made, "wire", peer, "wire")
        made.address("wire", f"{MACHINE}/24")
        peer.address("wire", f"{PEER}/24")
        server = peer.popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE)
        assert server.stdout is not None
        with server.stdout:
            assert server.stdout.readline() == b"ready\n"
        yield made, peer
    finally:
        made.delete()
        peer.delete()
        if server is not None:
            server.wait(10)
