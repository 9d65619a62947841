"""A control plane that runs workloads: the API of `tests.beds.kubernetes`, controller manager and scheduler.

Contract: `ControlPlane` owns a bridge on this machine at which nodes (`tests.beds.node`) are plugged in, and
the processes; `stop` ends and removes them, and sets back the three of this machine's sysctls that kubelets
set. Pods reach the API at its service's address, with the token that kubelet mounts; names are answered by
`tests.beds.cluster_dns` at the bridge's address.
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
# https://github.com/kubernetes/kubernetes/blob/v1.20.2/pkg/util/sysctl/sysctl.go
_SYSCTLS = ("vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
_API_SERVICE = SERVICE_RANGE.replace(".0.0/16", ".0.1")


class Neighbour(Protocol):
    """What nodes must know of one another."""

    name: str
    address: str
    pods: str


class ControlPlane(Cluster):
    """All of a cluster but its nodes."""

    names = (ADDRESS, _API_SERVICE, "kubernetes.default.svc")

    def __init__(self, place: Path) -> None:
        super().__init__(place=place)
        self.nodes: list[Neighbour] = []
        """Those at work."""
        self._others: list[subprocess.Popen[bytes]] = []
        self._bridged = False
        self._sysctls = {one: Path("/proc/sys", one).read_text() for one in _SYSCTLS}

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
        subprocess.run(["ip", "link", "delete", BRIDGE], check=False, capture_output=True)  # of a killed run
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
        for name, value in self._sysctls.items():
            Path("/proc/sys", name).write_text(value)

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
