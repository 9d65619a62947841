"""The demo's traffic and more: connections that live as long as the run, and many that hardly live at all."""

from __future__ import annotations

from dataclasses import replace

from kubenetmon.demo import plan, scenario
from kubenetmon.demo.network import Namespace
from kubenetmon.demo.traffic import Job, Script
from kubenetmon.demo.world import World

_SHORT_LANES = 25
_CLIENTS = ("frontend", "checkout", "backup", "coredns")


def scripts(world: World, seed: int, short_rate: float = 0.0) -> dict[str, tuple[Namespace, Script]]:
    """What each namespace does, `short_rate` being short connections a second on top of the usual."""
    written = scenario.scripts(world, seed)
    catalog = next(service for service in plan.SERVICES if service.name == "catalog")
    dns = next(service for service in plan.SERVICES if service.name == "kube-dns")
    idle = Job("tcp", catalog.address, catalog.port, (1, 400), (1, 400), pause=7, lanes=5)
    brief = Job("tcp", catalog.address, catalog.port, (1, 2_000), (0, 3_000), 0.02, per_connection=1, lanes=2)
    names = Job("udp", dns.address, dns.port, (20, 60), (60, 400), 0.02, per_connection=1, lanes=2)
    large = Job("udp", dns.address, dns.port, (0, 1_300), (0, 1_300), 0.01, per_connection=500)
    bulk = Job("tcp", plan.S3_ADDRESS, 443, (5_000_000, 20_000_000), (0, 100), pause=8, per_connection=2)
    more = {"frontend": (idle, brief, names), "checkout": (idle, brief, large), "backup": (bulk,)}
    return {
        name: (
            namespace,
            replace(script, jobs=(*script.jobs, *more.get(_app(name), ()), *_short(_app(name), short_rate))),
        )
        for name, (namespace, script) in written.items()
    }


def _short(app: str, rate: float) -> tuple[Job, ...]:
    """An app's share of `rate` connections a second of one exchange each: three of TCP to one of UDP.

    Each client asks two addresses, so that no client port comes around again while its last flow is tracked.
    """
    if not rate or app not in _CLIENTS:
        return ()
    catalog = next(service for service in plan.SERVICES if service.name == "catalog")
    dns = next(service for service in plan.SERVICES if service.name == "kube-dns")
    targets = (
        ("tcp", catalog.address, catalog.port, 0.5),
        ("tcp", plan.PUBLIC_ADDRESS, 443, 0.25),
        ("udp", dns.address, dns.port, 0.25),
    )
    return tuple(
        Job(
            protocol,  # type: ignore[arg-type]
            host,
            port,
            upload=(1, 600),
            download=(0, 900),
            pause=_SHORT_LANES / (rate / len(_CLIENTS) * share),
            per_connection=1,
            lanes=_SHORT_LANES,
        )
        for protocol, host, port, share in targets
    )


def _app(name: str) -> str:
    return next((pod.app for pod in plan.PODS if pod.name == name), "")
