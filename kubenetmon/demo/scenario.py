"""Who talks to whom in the demo: a shop whose connections take every path that is billed differently."""

from __future__ import annotations

from kubenetmon.demo import plan
from kubenetmon.demo.network import Namespace
from kubenetmon.demo.traffic import Job, Script
from kubenetmon.demo.world import World

_HTTPS = 443
_NTP = 123


def scripts(world: World, seed: int = 0) -> dict[str, tuple[Namespace, Script]]:
    """A script for each pod and for the internet, by name."""
    written = {"internet": (world.internet, _internet(seed))}
    for number, pod in enumerate(plan.PODS, 1):
        written[pod.name] = (world.pods[pod.name], _SCRIPTS[pod.app](seed + number))
    return written


def _service(name: str) -> tuple[str, int]:
    service = next(service for service in plan.SERVICES if service.name == name)
    return service.address, service.port


def _ask_dns() -> Job:
    host, port = _service("kube-dns")
    return Job("udp", host, port, upload=(20, 60), download=(60, 400), pause=0.1, per_connection=1)


def _frontend(seed: int) -> Script:
    """Serves visitors; asks the catalog by many short connections and checkout by one long one."""
    host, port = _service("catalog")
    return Script(
        tcp_ports=(8080,),
        jobs=(
            _ask_dns(),
            Job("tcp", host, port, (200, 900), (2_000, 60_000), pause=0.05, per_connection=1, lanes=2),
            Job("tcp", plan.pod_of_app("checkout").address, 8080, (500, 40_000), (500, 20_000), pause=0.1),
        ),
        seed=seed,
    )


def _catalog(seed: int) -> Script:
    """Serves its Service and keeps nothing itself."""
    return Script(tcp_ports=(8080,), seed=seed)


def _coredns(seed: int) -> Script:
    """Answers names, and asks the internet for some."""
    return Script(
        udp_ports=(5353,),
        jobs=(Job("udp", plan.PUBLIC_ADDRESS, _NTP, (48, 48), (48, 48), pause=0.5, per_connection=4),),
        seed=seed,
    )


def _checkout(seed: int) -> Script:
    """Long connections to the catalog's Service, short ones to a payment provider."""
    host, port = _service("catalog")
    return Script(
        tcp_ports=(8080,),
        jobs=(
            _ask_dns(),
            Job("tcp", host, port, (300, 3_000), (10_000, 90_000), pause=0.1, lanes=2),
            Job("tcp", host, port, (300, 3_000), (1_000, 9_000), pause=0.1, per_connection=7),
            Job("tcp", plan.PUBLIC_ADDRESS, _HTTPS, (800, 2_500), (1_500, 6_000), 0.2, per_connection=1),
        ),
        seed=seed,
    )


def _backup(seed: int) -> Script:
    """Uploads to object storage and to a machine in another region, and reads a little back."""
    return Script(
        jobs=(
            Job("tcp", plan.S3_ADDRESS, _HTTPS, (200_000, 1_000_000), (100, 2_000), 0.2, per_connection=10),
            Job("tcp", plan.S3_ADDRESS, _HTTPS, (200, 600), (50_000, 400_000), 0.5, per_connection=1),
            Job("tcp", plan.OTHER_REGION_ADDRESS, _HTTPS, (50_000, 300_000), (100, 500), pause=0.3),
        ),
        seed=seed,
    )


def _internet(seed: int) -> Script:
    """Serves every address, and visits the shop through a node's port."""
    door = plan.NODE_PORTS[0]
    node = next(node for node in plan.NODES if node.name == door.node)
    return Script(
        tcp_ports=(_HTTPS,),
        udp_ports=(_NTP,),
        udp_address=plan.PUBLIC_ADDRESS,
        jobs=(
            Job(
                "tcp",
                node.address,
                door.port,
                upload=(400, 1_500),
                download=(5_000, 120_000),
                pause=0.15,
                per_connection=2,
                source=plan.VISITOR_ADDRESS,
            ),
        ),
        seed=seed,
    )


_SCRIPTS = {
    "frontend": _frontend,
    "catalog": _catalog,
    "coredns": _coredns,
    "checkout": _checkout,
    "backup": _backup,
}
