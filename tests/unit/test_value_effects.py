"""Each value of the original's charts has its effect here: an accepted one that does nothing is said to.

A row gives a value that is no default and where it shows: an object by kind, and in it a path of keys,
positions and, in lists, names; `config` is what the server reads from its file, `env` the environment of the
agent. The rows are held against the original's values, what has no meaning against docs/migration.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from kubenetmon.config.server import KEYS
from tests.beds import manifests
from tests.beds.charts import ORIGINAL_AGENT, ORIGINAL_SERVER, effective, environment, release
from tests.beds.manifests import BASE_VALUES, Object, render_chart
from tests.unit.test_documented_commands import merged

ABSENT = object()
POD = "spec template spec"
NAME = "app.kubernetes.io/name"
MONITORED = {"serviceMonitors": {"enabled": True}}

Row = tuple[dict[str, Any], str, str, Any]

SERVER: list[Row] = [
    (
        {"image": {"repository": "r.example/k"}},
        "Deployment",
        f"{POD} containers 0 image",
        "r.example/k:0.1.0",
    ),
    ({"image": {"tag": "1.10"}}, "Deployment", f"{POD} containers 0 image", "kubenetmon:1.10"),
    ({"image": {"pullPolicy": "Always"}}, "Deployment", f"{POD} containers 0 imagePullPolicy", "Always"),
    ({"automountServiceAccountToken": False}, "Deployment", f"{POD} automountServiceAccountToken", False),
    ({"imagePullSecrets": [{"name": "r"}]}, "Deployment", f"{POD} imagePullSecrets", [{"name": "r"}]),
    ({"nameOverride": "q"}, "Deployment", f"spec selector matchLabels {NAME}", "q"),
    ({"nameOverride": "q"}, "Deployment", f"spec template metadata labels {NAME}", "q"),
    ({"nameOverride": "q"}, "Service", f"spec selector {NAME}", "q"),
    ({"nameOverride": "q"}, "Service", "metadata name", "kubenetmon-server-q"),
    ({"fullnameOverride": "full"}, "Deployment", "metadata name", "full"),
    ({"fullnameOverride": "full"}, "Service", "metadata name", "full"),
    ({"fullnameOverride": "full"}, "ClusterRoleBinding", "roleRef name", "full"),
    (MONITORED, "PodMonitor", "spec podMetricsEndpoints 0 port", "metrics"),
    (
        {"serviceMonitors": {"enabled": True, "interval": "7s"}},
        "PodMonitor",
        "spec podMetricsEndpoints 0 interval",
        "7s",
    ),
    ({**MONITORED, "metrics": {"enabled": False}}, "PodMonitor", "", ABSENT),
    ({"metrics": {"port": 9883}}, "config", "metrics_port", 9883),
    ({"metrics": {"port": 9883}}, "Service", "spec ports metrics port", 9883),
    ({"metrics": {"port": 9883}}, "Deployment", f"{POD} containers 0 ports metrics containerPort", 9883),
    ({"service": {"type": "NodePort"}}, "Service", "spec type", "NodePort"),
    ({"service": {"port": 9884}}, "Service", "spec ports grpc port", 9884),
    ({"service": {"port": 9884}}, "config", "grpc_port", 9884),
    ({"service": {"port": 9884}}, "Deployment", f"{POD} containers 0 ports grpc containerPort", 9884),
    ({"serviceAccount": {"name": "me"}}, "ServiceAccount", "metadata name", "me"),
    ({"serviceAccount": {"name": "me"}}, "Deployment", f"{POD} serviceAccountName", "me"),
    ({"serviceAccount": {"name": "me"}}, "ClusterRoleBinding", "subjects 0 name", "me"),
    ({"serviceAccount": {"annotations": {"a": "b"}}}, "ServiceAccount", "metadata annotations", {"a": "b"}),
    ({"serviceAccount": {"create": False}}, "ServiceAccount", "", ABSENT),
    ({"serviceAccount": {"create": False}}, "Deployment", f"{POD} serviceAccountName", "default"),
    ({"serviceAccount": {"create": False, "name": "me"}}, "ClusterRoleBinding", "subjects 0 name", "me"),
    ({"podAnnotations": {"a": "b"}}, "Deployment", "spec template metadata annotations a", "b"),
    ({"podSecurityContext": {"fsGroup": 7}}, "Deployment", f"{POD} securityContext fsGroup", 7),
    (
        {"resources": {"limits": {"cpu": "3"}}},
        "Deployment",
        f"{POD} containers 0 resources limits cpu",
        "3",
    ),
    (
        {"resources": {"limits": {"memory": "3Gi"}}},
        "Deployment",
        f"{POD} containers 0 resources limits memory",
        "3Gi",
    ),
    (
        {"resources": {"requests": {"cpu": "1", "memory": "2Gi"}}},
        "Deployment",
        f"{POD} containers 0 resources requests",
        {"cpu": "1", "memory": "2Gi"},
    ),
    ({"nodeSelector": {"disk": "ssd"}}, "Deployment", f"{POD} nodeSelector", {"disk": "ssd"}),
    ({"tolerations": [{"key": "a"}]}, "Deployment", f"{POD} tolerations", [{"key": "a"}]),
    ({"environment": "staging"}, "config", "environment", "staging"),
    ({"cloud": "gcp"}, "config", "cloud", "gcp"),
    ({"region": "EU-west-1"}, "config", "region", "eu-west-1"),
    ({"cluster": "blue"}, "config", "cluster", "blue"),
    ({"maxGRPCConnectionAge": "7s"}, "config", "max_grpc_connection_age", 7.0),
    ({"inserter": {"enabled": False}}, "config", "clickhouse_enabled", False),
    ({"inserter": {"database": "net"}}, "config", "clickhouse_database", "net"),
    ({"inserter": {"endpoint": "c:9440"}}, "config", "clickhouse_endpoint", "c:9440"),
    ({"inserter": {"username": "u"}}, "Secret", "data username", "dQ=="),
    ({"inserter": {"password": "p"}}, "Secret", "data password", "cA=="),
    ({"inserter": {"dialTimeout": "7s"}}, "config", "clickhouse_dial_timeout", 7.0),
    ({"inserter": {"maxIdleConnections": 7}}, "config", "clickhouse_max_idle_connections", 7),
    ({"inserter": {"numInserterWorkers": 7}}, "config", "num_inserter_workers", 7),
    ({"inserter": {"ignoreUDP": False}}, "config", "ignore_udp", False),
    ({"inserter": {"disableTLS": True}}, "config", "clickhouse_disable_tls", True),
    ({"inserter": {"insecureSkipVerify": True}}, "config", "clickhouse_insecure_skip_verify", True),
    ({"deployment": {"replicaCount": 7}}, "Deployment", "spec replicas", 7),
    (
        {"deployment": {"strategy": {"type": "Recreate", "rollingUpdate": None}}},
        "Deployment",
        "spec strategy type",
        "Recreate",
    ),
    (
        {"deployment": {"strategy": {"rollingUpdate": {"maxUnavailable": 2}}}},
        "Deployment",
        "spec strategy rollingUpdate maxUnavailable",
        2,
    ),
    (
        {"deployment": {"affinity": {"nodeAffinity": {"a": 1}}}},
        "Deployment",
        f"{POD} affinity nodeAffinity a",
        1,
    ),
    # Ours, of which others depend.
    ({"inserter": {"existingSecret": "mine"}}, "Secret", "", ABSENT),
    (
        {"inserter": {"existingSecret": "mine"}},
        "Deployment",
        f"{POD} volumes clickhouse-credentials secret secretName",
        "mine",
    ),
]
AGENT: list[Row] = [
    ({"image": {"repository": "r.example/k"}}, "DaemonSet", f"{POD} containers 0 image", "r.example/k:0.1.0"),
    (
        {"image": {"repository": "r.example/k"}},
        "DaemonSet",
        f"{POD} initContainers 0 image",
        "r.example/k:0.1.0",
    ),
    ({"image": {"tag": "1.10"}}, "DaemonSet", f"{POD} containers 0 image", "kubenetmon:1.10"),
    ({"image": {"pullPolicy": "Always"}}, "DaemonSet", f"{POD} containers 0 imagePullPolicy", "Always"),
    ({"updateStrategy": {"type": "OnDelete"}}, "DaemonSet", "spec updateStrategy type", "OnDelete"),
    (
        {"updateStrategy": {"rollingUpdate": {"maxUnavailable": "7%"}}},
        "DaemonSet",
        "spec updateStrategy rollingUpdate",
        {"maxUnavailable": "7%"},
    ),
    ({"imagePullSecrets": [{"name": "r"}]}, "DaemonSet", f"{POD} imagePullSecrets", [{"name": "r"}]),
    ({"nameOverride": "q"}, "DaemonSet", f"spec selector matchLabels {NAME}", "q"),
    ({"nameOverride": "q"}, "DaemonSet", f"spec template metadata labels {NAME}", "q"),
    ({"nameOverride": "q"}, "DaemonSet", "metadata name", "kubenetmon-agent-q"),
    ({"fullnameOverride": "full"}, "DaemonSet", "metadata name", "full"),
    (MONITORED, "PodMonitor", "spec podMetricsEndpoints 0 path", "/metrics"),
    (
        {"serviceMonitors": {"enabled": True, "interval": "7s"}},
        "PodMonitor",
        "spec podMetricsEndpoints 0 interval",
        "7s",
    ),
    ({**MONITORED, "metrics": {"enabled": False}}, "PodMonitor", "", ABSENT),
    ({"metrics": {"port": 9883}}, "env", "METRICS_PORT", "9883"),
    ({"metrics": {"port": 9883}}, "DaemonSet", f"{POD} containers 0 livenessProbe httpGet port", 9883),
    ({"metrics": {"port": 9883}}, "DaemonSet", f"{POD} containers 0 readinessProbe httpGet port", 9883),
    (
        {**MONITORED, "metrics": {"port": 9883}},
        "PodMonitor",
        "spec podMetricsEndpoints 0 relabelings 1 replacement",
        "${1}:9883",
    ),
    ({"serviceAccount": {"name": "me"}}, "ServiceAccount", "metadata name", "me"),
    ({"serviceAccount": {"name": "me"}}, "DaemonSet", f"{POD} serviceAccountName", "me"),
    ({"serviceAccount": {"annotations": {"a": "b"}}}, "ServiceAccount", "metadata annotations", {"a": "b"}),
    ({"serviceAccount": {"create": False}}, "ServiceAccount", "", ABSENT),
    ({"serviceAccount": {"create": False}}, "DaemonSet", f"{POD} serviceAccountName", "default"),
    ({"podAnnotations": {"a": "b"}}, "DaemonSet", "spec template metadata annotations a", "b"),
    ({"podSecurityContext": {"fsGroup": 7}}, "DaemonSet", f"{POD} securityContext fsGroup", 7),
    ({"priorityClass": {"name": "high"}}, "PriorityClass", "metadata name", "high"),
    ({"priorityClass": {"name": "high"}}, "DaemonSet", f"{POD} priorityClassName", "high"),
    ({"priorityClass": {"enabled": False}}, "PriorityClass", "", ABSENT),
    ({"priorityClass": {"enabled": False}}, "DaemonSet", f"{POD} priorityClassName", ABSENT),
    ({"priorityClass": {"preemptionPolicy": "Never"}}, "PriorityClass", "preemptionPolicy", "Never"),
    ({"priorityClass": {"value": 7}}, "PriorityClass", "value", 7),
    (
        {"securityContext": {"capabilities": {"add": ["BPF"], "drop": ["KILL"]}}},
        "DaemonSet",
        f"{POD} containers 0 securityContext capabilities",
        {"add": ["BPF"], "drop": ["KILL"]},
    ),
    ({"securityContext": {"runAsUser": 7}}, "DaemonSet", f"{POD} containers 0 securityContext runAsUser", 7),
    (
        {"securityContext": {"readOnlyRootFilesystem": False}},
        "DaemonSet",
        f"{POD} containers 0 securityContext readOnlyRootFilesystem",
        False,
    ),
    (
        {"resources": {"limits": {"cpu": "3", "memory": "3Gi"}}},
        "DaemonSet",
        f"{POD} containers 0 resources limits",
        {"cpu": "3", "memory": "3Gi"},
    ),
    (
        {"resources": {"requests": {"cpu": "1", "memory": "2Gi"}}},
        "DaemonSet",
        f"{POD} containers 0 resources requests",
        {"cpu": "1", "memory": "2Gi"},
    ),
    ({"nodeSelector": {"disk": "ssd"}}, "DaemonSet", f"{POD} nodeSelector", {"disk": "ssd"}),
    ({"tolerations": [{"key": "a"}]}, "DaemonSet", f"{POD} tolerations", [{"key": "a"}]),
    ({"configuration": {"collectionInterval": "7s"}}, "env", "COLLECTION_INTERVAL", "7s"),
    ({"configuration": {"skipConntrackSanityCheck": True}}, "env", "SKIP_CONNTRACK_SANITY_CHECK", "true"),
    ({"configuration": {"kubenetmonServerServiceHost": "h"}}, "env", "KUBENETMON_SERVER_SERVICE_HOST", "h"),
    ({"configuration": {"kubenetmonServerServicePort": 7}}, "env", "KUBENETMON_SERVER_SERVICE_PORT", "7"),
    ({"configuration": {"uptimeWaitDuration": "7s"}}, "env", "UPTIME_WAIT_DURATION", "7s"),
]
NO_MEANING: dict[str, dict[str, Any]] = {
    "server": {"secrets": {"a": "b"}, "metrics": {"primaryAlerter": True}},
    "agent": {"secrets": {"a": "b"}, "metrics": {"primaryAlerter": True}, "environment": "production"},
}
UNUSED = {
    # In the file as the original wrote them, for nothing to read.
    "inserter": {"batchSize": 7, "batchSendTimeout": "7s", "waitForAsyncInsert": True, "skipPing": True},
}
ROWS = [("server", *row) for row in SERVER] + [("agent", *row) for row in AGENT]


def leaves(values: Mapping[str, Any], before: str = "") -> Iterator[str]:
    """The dotted names of values that hold no further ones."""
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{before}{name}.")
        else:
            yield f"{before}{name}"


def shown(objects: list[Object], kind: str, path: str) -> Any:
    """What is at that place; `ABSENT`: nothing, or no such object."""
    if kind == "config":
        return getattr(effective(*manifests.server_settings(objects)), path)
    found: Any = [one for one in objects if one["kind"] == ("DaemonSet" if kind == "env" else kind)]
    if not found:
        return ABSENT
    (found,) = found
    if kind == "env":
        return environment(found)[path]
    for word in path.split():
        if isinstance(found, list):
            named = {one["name"]: one for one in found if "name" in one}
            found = found[int(word)] if word.isdigit() else named.get(word, ABSENT)
        else:
            found = found.get(word, ABSENT)
        if found is ABSENT:
            break
    return found


@pytest.mark.parametrize(
    ("part", "values", "kind", "path", "expected"),
    ROWS,
    ids=[
        f"{part} {','.join(leaves(values))} {kind} {path.rpartition(' ')[2]}"
        for part, values, kind, path, _ in ROWS
    ],
)
def test_a_value_has_its_effect(
    part: str, values: dict[str, Any], kind: str, path: str, expected: Any
) -> None:
    objects = render_chart(part, merged(dict(BASE_VALUES[part]), values))
    assert shown(objects, kind, path) == expected
    switched_on = MONITORED if values.keys() > MONITORED.keys() else {}
    before = render_chart(part, merged(dict(BASE_VALUES[part]), switched_on))
    assert shown(before, kind, path) != expected, "it is so without the value too"


@pytest.mark.parametrize(
    ("part", "rows", "original"), [("server", SERVER, ORIGINAL_SERVER), ("agent", AGENT, ORIGINAL_AGENT)]
)
def test_every_value_of_the_original_has_a_row(part: str, rows: list[Row], original: dict[str, Any]) -> None:
    covered = {leaf for values, *_ in rows for leaf in leaves(values)} | set(leaves(NO_MEANING[part]))
    if part == "server":
        covered |= set(leaves(UNUSED)) | {
            "configuration"
        }  # ours: any key of the file, tested with the charts
    missing = [
        leaf
        for leaf in leaves(original)
        if not any(one == leaf or one.startswith(f"{leaf}.") or leaf.startswith(f"{one}.") for one in covered)
    ]
    assert missing == []


@pytest.mark.parametrize("part", manifests.PARTS)
def test_what_has_no_meaning_changes_nothing_and_is_said(part: str) -> None:
    assert render_chart(part, merged(dict(BASE_VALUES[part]), NO_MEANING[part])) == release(part)
    table = (manifests.ROOT / "docs" / "migration.md").read_text().split("## What is different")[1]
    said = set(re.findall(r"`([\w.]+)`", table))
    for leaf in (*leaves(NO_MEANING[part]), *leaves(UNUSED)):
        assert {leaf, leaf.partition(".")[0], leaf.rpartition(".")[2]} & said, leaf


def test_what_is_unused_is_marked_so_in_the_configuration() -> None:
    def config(values: dict[str, Any]) -> Any:
        return effective(*manifests.server_settings(release("server", values)))

    plain, given = config({}), config(UNUSED)
    changed = {name for name in KEYS if getattr(plain, name) != getattr(given, name)}
    assert len(changed) == len(UNUSED["inserter"])
    assert all(KEYS[name].metadata["unused"] for name in changed)


def test_without_sysctls_nothing_is_privileged() -> None:
    (daemon_set,) = [
        one for one in release("agent", {"sysctls": {"enabled": False}}) if one["kind"] == "DaemonSet"
    ]
    pod = daemon_set["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    assert "privileged" not in str(daemon_set)
    (with_them,) = [one for one in release("agent") if one["kind"] == "DaemonSet"]
    assert "privileged" in str(with_them)
