"""A node of a real cluster: kubelet, kube-proxy, containerd and runc in namespaces of their own.

Contract: `Node` owns a network namespace plugged into the control plane's bridge, a mount namespace with a
/run and a /var of its own, and a process namespace whose end is the node's: `kill` ends everything on it at
once, as pulling the plug does, `stop` removes what is left besides. Pods get addresses of the node's own
range by CNI's ptp plugin; other nodes' ranges are routes. There is no registry: `images` is what containerd
has of them (`tests.beds.image_archives.load`), of which each node gets the files that change, and links to
the rest.

Needs root, Debian's containerd, runc, containernetworking-plugins, iptables and conntrack, and the programs
that tests/beds/build-kubernetes.sh builds.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.beds.control_plane import ADDRESS, BRIDGE, POD_RANGE, ControlPlane, ip
from tests.beds.kubernetes import find_binaries

_PLUGINS = "/usr/lib/cni"
NODE_PROGRAMS = ("kubelet", "kube-proxy", "kube-controller-manager", "kube-scheduler")
# In the node's mount namespace. What the machine has below /run and /var is the machine's.
_INIT = """
set -eu
directory=$1
shift
mount --make-rprivate /
mount --bind "$directory/var" /var
mount -t tmpfs tmpfs /run
mount -t proc proc /proc
mount --make-rshared /
ln -s /run /var/run
containerd --config "$directory/containerd.toml" >"$directory/containerd.log" 2>&1 &
while ! ctr --address /run/containerd/containerd.sock version >/dev/null 2>&1; do sleep 0.1; done
"$directory/kube-proxy" --config "$directory/proxy.yaml" >"$directory/kube-proxy.log" 2>&1 &
"$directory/kubelet" "$@" >"$directory/kubelet.log" 2>&1 &
wait
"""


def missing() -> str | None:
    """Why there can be no nodes on this machine; None when there can."""
    for program in ("containerd", "ctr", "runc", "iptables", "conntrack", "nsenter"):
        if shutil.which(program) is None:
            return f"needs the program {program}: apt-get install containerd runc iptables conntrack"
    if not Path(_PLUGINS, "ptp").exists():
        return "needs CNI's plugins: apt-get install containernetworking-plugins"
    try:
        programs = find_binaries()[0].parent
    except FileNotFoundError as error:
        return str(error)
    lacking = [name for name in NODE_PROGRAMS if not (programs / name).exists()]
    return f"needs {lacking[0]}: run tests/beds/build-kubernetes.sh" if lacking else None


class Node:
    """One node; `number` (1 to 200) tells it from others. `place` is where its directory is made, on the file
    system of `images`, which is neither /run nor /var. Taints as kubelet's --register-with-taints."""

    def __init__(
        self,
        plane: ControlPlane,
        name: str,
        number: int,
        place: Path,
        *,
        images: Path,
        labels: Mapping[str, str],
        taints: str = "",
    ) -> None:
        self.name = name
        self.address = f"{ADDRESS.rpartition('.')[0]}.{10 + number}"
        self.pods = ""
        """The range of its pods' addresses, once it is started."""
        self._plane = plane
        self._labels, self._taints = labels, taints
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = place / name
        self.directory.mkdir()
        self._wire = f"{BRIDGE}.{number}"
        self._images = images

    def start(self) -> None:
        """Let it boot."""
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)
        ip("netns", "add", self.name)
        ip("link", "add", self._wire, "type", "veth", "peer", "name", "eth0", "netns", self.name)
        ip("link", "set", self._wire, "master", BRIDGE, "up")
        for command in (
            ("address", "add", f"{self.address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("link", "set", "lo", "up"),
            ("route", "add", "default", "via", ADDRESS),
        ):
            ip("-n", self.name, *command)
        self.inside("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        self._write_configuration()
        self._boot()

    def join(self) -> None:
        """Return once the API has the node, ready for pods that reach those of the nodes that joined."""
        self._plane.wait_for(lambda: self._pod_range() is not None, f"node {self.name} registered")
        self._configure_network()
        self._plane.wait_for(self._ready, f"node {self.name} ready")

    def kill(self) -> None:
        """Pull the plug."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def stop(self) -> None:
        """Kill it and leave nothing of it; its object in the API stays."""
        self.kill()
        if self in self._plane.nodes:
            self._plane.nodes.remove(self)
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True)
        subprocess.run(["ip", "link", "delete", self._wire], check=False, capture_output=True)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _boot(self) -> None:
        kubelet = (
            f"--config={self.directory}/kubelet.yaml",
            f"--kubeconfig={self._kubeconfig}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            "--container-runtime=remote",
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            f"--node-labels={','.join(f'{key}={value}' for key, value in self._labels.items())}",
            f"--cert-dir={self.directory}/certificates",
            *([f"--register-with-taints={self._taints}"] if self._taints else []),
        )
        own = ("--mount", "--pid", "--fork", "--kill-child")
        # Whatever ends the tests ends the node.
        command = ["setpriv", "--pdeathsig", "KILL", "nsenter", f"--net=/run/netns/{self.name}"]
        command += ["unshare", *own, "sh", "-c", _INIT, "node"]
        with (self.directory / "node.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*command, str(self.directory), *kubelet],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            )

    def _write_configuration(self) -> None:
        programs = self._plane.programs
        for name in ("kubelet", "kube-proxy"):
            (self.directory / name).symlink_to(programs / name)
        for name in ("lib/kubelet", "lib/cni", "log/pods", "log/containers", "tmp", "cache"):
            (self.directory / "var" / name).mkdir(parents=True)
        kept = self.directory / "var" / "lib" / "containerd"
        subprocess.run(["cp", "-a", "--link", str(self._images), str(kept)], check=True)
        for database in list(kept.glob("io.containerd.*/*.db")):
            content = database.read_bytes()
            database.unlink()
            database.write_bytes(content)
        (self.directory / "cni").mkdir()
        config = yaml.safe_load(self._plane.kubeconfig().read_text())
        config["clusters"][0]["cluster"]["server"] = f"https://{ADDRESS}:{self._plane.port}"
        authority = self._plane.certificate_authority.read_bytes()
        (self.directory / "ca.crt").write_bytes(authority)
        config["clusters"][0]["cluster"]["certificate-authority"] = str(self.directory / "ca.crt")
        self._kubeconfig = self.directory / "kubeconfig"
        self._kubeconfig.write_text(yaml.safe_dump(config))
        (self.directory / "containerd.toml").write_text(
            f"""
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
restrict_oom_score_adj = true  # to lower it takes CAP_SYS_RESOURCE, which not every machine grants to root
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{_PLUGINS}"
conf_dir = "{self.directory}/cni"
"""
        )
        (self.directory / "kubelet.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubelet.config.k8s.io/v1beta1",
                    "kind": "KubeletConfiguration",
                    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
                    "authorization": {"mode": "AlwaysAllow"},
                    "cgroupDriver": "cgroupfs",
                    "cgroupsPerQOS": False,
                    "enforceNodeAllocatable": [],
                    "failSwapOn": False,
                    "clusterDNS": [ADDRESS],
                    "clusterDomain": "cluster.local",
                    "evictionHard": {"memory.available": "100Mi"},
                    "imageGCHighThresholdPercent": 100,
                    "nodeStatusUpdateFrequency": "2s",
                }
            )
        )
        (self.directory / "proxy.yaml").write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
                    "kind": "KubeProxyConfiguration",
                    "mode": "iptables",
                    "hostnameOverride": self.name,
                    "clusterCIDR": POD_RANGE,
                    "clientConnection": {"kubeconfig": str(self._kubeconfig)},
                    # The machine's, not a namespace's, to set.
                    "conntrack": {
                        "maxPerCore": 0,
                        "min": 0,
                        "tcpEstablishedTimeout": "0s",
                        "tcpCloseWaitTimeout": "0s",
                    },
                }
            )
        )

    def _configure_network(self) -> None:
        own = self._pod_range()
        assert own is not None
        plugins = [
            {
                "type": "ptp",
                "mtu": 1500,
                "ipam": {
                    "type": "host-local",
                    "ranges": [[{"subnet": own}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ]
        described = {"cniVersion": "0.3.1", "name": "pods", "plugins": plugins}
        (self.directory / "cni" / "10-pods.conflist").write_text(json.dumps(described))
        # All are neighbours on the bridge, the control plane among them.
        ip("route", "add", own, "via", self.address)
        for other in self._plane.nodes:
            ip("-n", self.name, "route", "add", other.pods, "via", other.address)
            ip("-n", other.name, "route", "add", own, "via", self.address)
        self.pods = own
        self._plane.nodes.append(self)

    def _node(self) -> dict[str, object]:
        nodes = self._plane.request("GET", "/api/v1/nodes")["items"]
        return next((one for one in nodes if one["metadata"]["name"] == self.name), {})

    def _pod_range(self) -> str | None:
        spec = self._node().get("spec", {})
        assert isinstance(spec, dict)
        return spec.get("podCIDR")

    def _ready(self) -> bool:
        status = self._node().get("status", {})
        assert isinstance(status, dict)
        return {"Ready": "True"}.items() <= {
            one["type"]: one["status"] for one in status.get("conditions", [])
        }.items()

    def inside(self, *command: str, given: str = "") -> str:
        """What a command says in the node's network namespace."""
        command = ("nsenter", f"--net=/run/netns/{self.name}", *command)
        return subprocess.run(command, check=True, capture_output=True, text=True, input=given).stdout
