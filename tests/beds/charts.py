"""What charts and overlays of deploy/ render, and the values that the original's users give its charts."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from kubenetmon.config import server as server_config
from tests.beds import manifests
from tests.beds.manifests import BASE_VALUES, Object, identity, render_chart

ORIGINAL_SERVER: dict[str, Any] = {
    # The values of the original's chart, whole, as its users have them.
    "image": {"repository": "registry.example/kubenetmon", "pullPolicy": "IfNotPresent", "tag": "latest"},
    "automountServiceAccountToken": True,
    "imagePullSecrets": [],
    "nameOverride": "",
    "fullnameOverride": "",
    "serviceMonitors": {"enabled": False, "interval": "30s"},
    "metrics": {"enabled": True, "port": 8883, "primaryAlerter": False},
    "service": {"type": "ClusterIP", "port": 8884},
    "serviceAccount": {"create": True, "annotations": {}, "name": ""},
    "podAnnotations": {},
    "podSecurityContext": {},
    "resources": {
        "limits": {"cpu": "2000m", "memory": "2512Mi"},
        "requests": {"cpu": "500m", "memory": "1Gi"},
    },
    "nodeSelector": {},
    "tolerations": [],
    "configuration": {},
    "secrets": {},
    "environment": "development",
    "cloud": "aws",
    "region": "us-west-2",
    "cluster": "cluster",
    "maxGRPCConnectionAge": "300s",
    "inserter": {
        "enabled": True,
        "database": "default",
        "endpoint": "clickhouse.example.org:9440",
        "username": "default",
        "password": "secret word",
        "dialTimeout": "30s",
        "maxIdleConnections": 50,
        "batchSize": 15000,
        "batchSendTimeout": "30s",
        "waitForAsyncInsert": False,
        "numInserterWorkers": 20,
        "ignoreUDP": True,
        "skipPing": False,
        "disableTLS": False,
        "insecureSkipVerify": False,
    },
    "deployment": {
        "replicaCount": 3,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}},
        "affinity": {},
    },
}
ORIGINAL_AGENT: dict[str, Any] = {
    "image": {"repository": "registry.example/kubenetmon", "pullPolicy": "IfNotPresent", "tag": ""},
    "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "50%"}},
    "imagePullSecrets": [],
    "nameOverride": "",
    "fullnameOverride": "",
    "environment": "development",
    "serviceMonitors": {"enabled": False, "interval": "30s"},
    "serviceAccount": {"create": True, "annotations": {}, "name": ""},
    "podAnnotations": {},
    "podSecurityContext": {},
    "priorityClass": {
        "name": "kubenetmon",
        "enabled": True,
        "preemptionPolicy": "PreemptLowerPriority",
        "value": 10001000,
    },
    "metrics": {"enabled": True, "port": 9883, "primaryAlerter": False},
    "securityContext": {
        "capabilities": {"add": ["NET_ADMIN"], "drop": ["ALL"]},
        "runAsUser": 0,
        "readOnlyRootFilesystem": True,
    },
    "resources": {
        "limits": {"cpu": "500m", "memory": "256Mi"},
        "requests": {"cpu": "0m", "memory": "0Mi"},
    },
    "nodeSelector": {},
    "tolerations": [],
    "configuration": {
        "collectionInterval": "5s",
        "skipConntrackSanityCheck": True,
        "kubenetmonServerServiceHost": "kubenetmon-server.kubenetmon-server.svc.cluster.local",
        "kubenetmonServerServicePort": 8884,
        "uptimeWaitDuration": "300s",
    },
    "secrets": {},
}
WATCHED = {
    "page": {"enabled": True},
    "alerts": {"enabled": True, "labels": {"release": "kube-prometheus-stack"}},
    "dashboards": {"enabled": True},
}
WITH_FILES = {
    "files": {"ca.crt": "-----BEGIN CERTIFICATE-----\n", "prices.yaml": "version: 1\n"},
    "filesFrom": [{"secret": {"name": "clickhouse-client"}}, {"configMap": {"name": "limits"}}],
    "extraVolumes": [{"name": "ranges", "persistentVolumeClaim": {"claimName": "ranges"}}],
    "extraVolumeMounts": [{"name": "ranges", "mountPath": "/ranges", "readOnly": True}],
    "inserter": {"createTable": True},
}
SECURE_WITH_CERTIFICATES = {"secure": True, "tls": {"certManager": {"enabled": True}}}


@cache
def overlay(name: str) -> list[Object]:
    return manifests.kustomize(manifests.DEPLOY / "overlays" / name)


def release(part: str, values: dict[str, Any] | None = None) -> list[Object]:
    return render_chart(part, {**BASE_VALUES[part], **(values or {})})


def everything() -> dict[str, list[Object]]:
    """Every overlay and chart, each with what it can be told to."""
    found = {f"overlay {name}": overlay(name) for name in manifests.OVERLAYS}
    for part, original in (("agent", ORIGINAL_AGENT), ("server", ORIGINAL_SERVER)):
        found[f"chart {part}"] = release(part)
        found[f"chart {part}, original's values"] = render_chart(part, original)
        found[f"chart {part}, production"] = render_chart(part, manifests.production_values(part))
    found["chart server, table"] = release("server", {"inserter": {"createTable": True}})
    found["chart server, files"] = release("server", WITH_FILES)
    found["chart server, watched"] = release("server", WATCHED)
    return found


def comparable(objects: list[Object]) -> dict[tuple[str, str, str], Any]:
    """By identity, without what Helm and kustomize each add for themselves."""
    found = {}
    for one in manifests.without_hashes([manifests.without_helm(one) for one in objects]):
        if one["kind"] == "Namespace":
            continue
        if identity(one)[::2] == ("ConfigMap", "config"):
            config, overrides = manifests.server_settings(objects_of_server(objects))
            found[identity(one)] = effective(config, overrides)
            continue
        if one["kind"] == "Deployment":
            container = one["spec"]["template"]["spec"]["containers"][0]
            assert container["args"][:2] == ["--role", "server"]
            container["args"] = container["args"][:2]
        found[identity(one)] = _in_order(one)
    return found


def _in_order(value: Any) -> Any:
    """The same with its lists of named things sorted: kustomize puts what it merges in first."""
    if isinstance(value, dict):
        return {name: _in_order(inner) for name, inner in value.items()}
    if isinstance(value, list):
        items = [_in_order(item) for item in value]
        named = all(isinstance(item, dict) and "name" in item for item in items)
        return sorted(items, key=lambda item: (item["name"], str(item))) if named else items
    return value


def objects_of_server(objects: list[Object]) -> list[Object]:
    return [one for one in manifests.without_hashes(objects) if "agent" not in one["metadata"]["name"]]


def effective(config: str, overrides: list[str]) -> server_config.ServerConfig:
    """The configuration that a server reads from the file and its overrides."""
    path = Path("/dev/shm") / f"kubenetmon-effective-{id(config)}.yaml"
    path.write_text(config)
    try:
        return server_config.load(path, overrides)
    finally:
        path.unlink()


def environment(daemon_set: Object) -> dict[str, str]:
    entries = daemon_set["spec"]["template"]["spec"]["containers"][0]["env"]
    of_the_node = {"spec.nodeName": "node-a", "status.hostIP": "192.0.2.10"}
    return {
        entry["name"]: entry["value"]
        if "value" in entry
        else of_the_node[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        for entry in entries
    }


def containers(objects: list[Object]) -> list[tuple[str, Object, Object]]:
    """Name, container and pod of all of ours."""
    found = []
    for one in objects:
        if one["kind"] in ("DaemonSet", "Deployment") and one["metadata"]["name"].startswith("kubenetmon"):
            pod = one["spec"]["template"]["spec"]
            every = [*pod.get("initContainers", []), *pod["containers"]]
            found += [(container["name"], container, pod) for container in every]
    return found


def quantity(text: str) -> float:
    """Bytes or cores of a Kubernetes quantity."""
    units = {"Mi": 2**20, "Gi": 2**30, "m": 0.001, "": 1}
    number, unit = re.fullmatch(r"([0-9]+)(\w*)", text).groups()  # type: ignore[union-attr]
    return int(number) * units[unit]
