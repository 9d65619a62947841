"""The demo's traffic and more: connections that live as long as the run, and many that hardly live at all."""

from __future__ import annotations

from dataclasses import replace

from kubenetmon.demo import plan, scenario
from kubenetmon.demo.network import Namespace
from kubenetmon.demo.traffic import Job, Script
from kubenetmon.demo.world import World


def scripts(world: World, seed: int) -> dict[str, tuple[Namespace, Script]]:
    """What each namespace does."""
    written = scenario.scripts(world, seed)
    catalog = next(service for service in plan.SERVICES if service.name == "catalog")
    dns = next(service for service in plan.SERVICES if service.name == "kube-dns")
    idle = Job("tcp", catalog.address, catalog.port, (1, 400), (1, 400), pause=7, lanes=5)
    brief = Job("tcp", catalog.address, catalog.port, (1, 2_000), (0, 3_000), 0.02, per_connection=1, lanes=2)
    names = Job("udp", dns.address, dns.port, (20, 60), (60, 400), 0.02, per_connection=1, lanes=2)
    large = Job("udp", dns.address, dns.port, (0, 1_300), (0, 1_300), 0.01, per_connection=500)
    more = {"frontend": (idle, brief, names), "checkout": (idle, brief, large)}
    return {
        name: (namespace, replace(script, jobs=(*script.jobs, *more.get(_app(name), ()))))
        for name, (namespace, script) in written.items()
    }


def _app(name: str) -> str:
    return next((pod.app for pod in plan.PODS if pod.name == name), "")
