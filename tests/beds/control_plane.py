"""A control plane that runs workloads: the API of `tests.beds.kubernetes`, controller manager and scheduler.

Contract: `ControlPlane` owns a bridge on this machine at which nodes (`tests.beds.node`) are plugged in, and
the processes; `stop` ends and removes them. Pods reach the API at its service's address, with the token that
kubelet mounts; names are answered by `tests.beds.cluster_dns` at the bridge's address.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.beds.kubernetes import SERVICE_RANGE, ApiRefusedError, Cluster
from tests.beds.ports import free_port

BRIDGE = "kubenetmon0"
ADDRESS = "172.31.255.1"
POD_RANGE = "10.244.0.0/16"
_API_SERVICE = SERVICE_RANGE.replace(".0.0/16", ".0.1")


class Neighbour(Protocol):
    """What nodes must know of one another."""

    name: str
    address: str
    pods: str


class ControlPlane(Cluster):
    """All of a cluster but its nodes."""

    names = (ADDRESS, _API_SERVICE, "kubernetes.default.svc")

    def __init__(self, *api_server_flags: str) -> None:
        super().__init__(*api_server_flags)
        self.nodes: list[Neighbour] = []
        """Those at work."""
        self._others: list[subprocess.Popen[bytes]] = []
        self._bridged = False

    @property
    def programs(self) -> Path:
        """Where kubelet and its like are."""
        return self._api_server.parent

    def _without_nodes(self) -> tuple[str, ...]:
        return (
            "--bind-address=0.0.0.0",
            f"--advertise-address={ADDRESS}",
            "--kubelet-preferred-address-types=InternalIP",
        )

    def start(self) -> None:
        """Return once workloads can be made."""
        ip("link", "add", BRIDGE, "type", "bridge")
        self._bridged = True
        ip("address", "add", f"{ADDRESS}/24", "dev", BRIDGE)
        ip("link", "set", BRIDGE, "up")
        super().start()
        programs = self.programs
        config = self.kubeconfig()
        self._run(
            programs / "kube-controller-manager",
            f"--kubeconfig={config}",
            "--leader-elect=false",
            "--port=0",
            f"--secure-port={free_port()}",
            f"--root-ca-file={self.certificate_authority}",
            f"--service-account-private-key-file={self.signing_key}",
            "--allocate-node-cidrs=true",
            f"--cluster-cidr={POD_RANGE}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
        )
        self._run(
            programs / "kube-scheduler",
            f"--kubeconfig={config}",
            "--leader-elect=false",
            "--port=0",
            f"--secure-port={free_port()}",
        )
        names = Path(__file__).with_name("cluster_dns.py")
        self._run(Path(sys.executable), str(names), ADDRESS, str(config))
        self.wait_for(lambda: self._has("/api/v1/namespaces/default/serviceaccounts/default"), "controllers")
        for process in self._others:
            assert process.poll() is None, f"see the logs in {self.directory}: {process.args!r} ended"

    def stop(self) -> None:
        """End everything and remove the bridge."""
        for process in self._others:
            self._end(process, signal.SIGKILL)
        super().stop()
        if self._bridged:
            ip("link", "delete", BRIDGE)

    def wait_for(self, happened: Callable[[], bool], what: str, patience: float = 60.0) -> None:
        """Until it has; raises `TimeoutError` that says what has not."""
        deadline = time.monotonic() + patience
        while not happened():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}: not within {patience:g} s")
            time.sleep(0.2)

    def _has(self, path: str) -> bool:
        try:
            self.request("GET", path)
        except ApiRefusedError:
            return False
        return True

    def _run(self, program: Path, *arguments: str) -> None:
        name = program.name if program.suffix or "python" not in program.name else "cluster-dns"
        self._others.append(self._spawn(name, str(program), *arguments))


def ip(*arguments: str) -> None:
    """ip(8)."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
