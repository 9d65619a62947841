"""What is kept of a pod, and what it owns.

Contract: frozen values, small and out of the garbage collector's sight: there are a hundred thousand of them
(docs/decisions/0038-memory-of-a-large-inventory.md). Pure data.
"""

from __future__ import annotations

import uuid

import msgspec

from kubenetmon.server.ownership import ADDRESS_WIDTH, PORT_WIDTH, Width, port_key
from kubenetmon.server.snapshot import Family

_UUID_LENGTH, _UUID_OCTETS = 36, 16

Uid = int | str
"""Of an object: the number that a UUID is, at half the memory of its text, else the text as it is."""


def compact_uid(uid: str) -> Uid:
    """The same for the same text only: what is not written as Kubernetes writes UUIDs stays text."""
    if len(uid) != _UUID_LENGTH or uid[8] + uid[13] + uid[18] + uid[23] != "----" or uid != uid.lower():
        return uid
    try:
        octets = bytes.fromhex(uid.replace("-", ""))
    except ValueError:
        return uid
    return int.from_bytes(octets) if len(octets) == _UUID_OCTETS else uid


def uid_text(uid: Uid) -> str:
    """As Kubernetes writes it."""
    return str(uuid.UUID(int=uid)) if isinstance(uid, int) else uid


class Pod(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a pod. Times are Unix seconds, 0 = unknown; addresses are numbers.

    `host_ports`: of a living pod on the host's network, each port it declares as protocol << 16 | port.
    """

    uid: Uid
    namespace: str
    name: str
    node: str
    app: str
    instance_id: str
    cell: str
    created: int
    started: int
    owns_addresses: bool
    ipv4: tuple[int, ...]
    ipv6: tuple[int, ...]
    host_ports: tuple[int, ...] = ()


def keys_of(pod: Pod) -> list[tuple[Width, int]]:
    """What the pod owns."""
    found: list[tuple[Width, int]] = []
    families: tuple[tuple[Family, tuple[int, ...]], ...] = ((4, pod.ipv4), (6, pod.ipv6))
    for family, addresses in families:
        if pod.owns_addresses:
            found += [(ADDRESS_WIDTH[family], address) for address in addresses]
        found += [
            (PORT_WIDTH[family], port_key(address, port >> 16, port & 0xFFFF))
            for address in addresses
            for port in pod.host_ports
        ]
    return found
