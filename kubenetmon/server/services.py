"""The cluster's Services: how many there are, and which of them has an address.

Contract: as `kubenetmon.server.inventory`, of which this is a part. Attribution takes no notice of Services:
conntrack tells who answered behind one.
"""

from __future__ import annotations

import msgspec

from kubenetmon.server.pods import Uid
from kubenetmon.server.snapshot import Family


class Service(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a Service. Addresses are its own, external and of its load balancer, as numbers."""

    uid: Uid
    namespace: str = ""
    name: str = ""
    ipv4: tuple[int, ...] = ()
    ipv6: tuple[int, ...] = ()


class KnownServices:
    """Every Service there is."""

    def __init__(self) -> None:
        self._known: dict[Uid, tuple[int, Service]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def put(self, service: Service, generation: int) -> None:
        """A Service was created, listed or changed."""
        self._known[service.uid] = generation, service

    def remove(self, uid: Uid) -> None:
        """A Service was deleted; unknown ones are ignored."""
        self._known.pop(uid, None)

    def not_seen_in(self, generation: int) -> list[Uid]:
        """Those that the list of that generation did not show."""
        return [uid for uid, (seen, _) in self._known.items() if seen != generation]

    def holders(self, family: Family, address: int) -> list[Service]:
        """The Services with that address."""
        return [
            service
            for _, service in self._known.values()
            if address in (service.ipv4 if family == 4 else service.ipv6)
        ]
