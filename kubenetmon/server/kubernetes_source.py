"""Where the objects of a cluster come from: `choose_source` says so, or why from nowhere.

Contract: nothing is read here, and only looked at whether it is there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kubenetmon.errors import ConfigurationError

_THREE_WAYS = (
    "no cluster to watch: run inside Kubernetes, or have a kubeconfig (KUBECONFIG or ~/.kube/config), "
    "or set kubernetes_source: file:PATH"
)


@dataclass(frozen=True, slots=True)
class InCluster:
    """The cluster that this process runs in, with the service account whose files are in `directory`."""

    directory: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")

    def __str__(self) -> str:
        return "in-cluster"


@dataclass(frozen=True, slots=True)
class Kubeconfig:
    """The current context of a kubeconfig; `path` may be several, separated by colons."""

    path: str

    def __str__(self) -> str:
        return f"kubeconfig {self.path}"


@dataclass(frozen=True, slots=True)
class DumpFile:
    """A file with the JSON of `kubectl get pods,nodes,services -A -o json`."""

    path: Path

    def __str__(self) -> str:
        return f"file {self.path}"


Source = InCluster | Kubeconfig | DumpFile


def choose_source(setting: str, environment: Mapping[str, str]) -> Source:
    """Where to read the cluster from: "" (find out), "in-cluster", "kubeconfig[:PATH]" or "file:PATH".

    Raises `ConfigurationError` when the setting is none of these or names nothing that exists.
    """
    word, _, path = setting.partition(":")
    if word == "file" and path:
        return DumpFile(Path(path))
    if word == "kubeconfig":
        path = path or environment.get("KUBECONFIG", "") or _home_kubeconfig(environment)
        if not any(Path(part).expanduser().is_file() for part in path.split(os.pathsep) if part):
            raise ConfigurationError(f"kubernetes_source: there is no kubeconfig at {path}")
        return Kubeconfig(path)
    if setting == "in-cluster":
        return InCluster()
    if setting:
        raise ConfigurationError(
            f"kubernetes_source: {setting!r} is none of in-cluster, kubeconfig, kubeconfig:PATH, file:PATH"
        )
    if environment.get("KUBERNETES_SERVICE_HOST"):
        return InCluster()
    path = environment.get("KUBECONFIG", "") or _home_kubeconfig(environment)
    if any(Path(part).expanduser().is_file() for part in path.split(os.pathsep) if part):
        return Kubeconfig(path)
    raise ConfigurationError(_THREE_WAYS)


def _home_kubeconfig(environment: Mapping[str, str]) -> str:
    return str(Path(environment.get("HOME") or Path.home()) / ".kube" / "config")
