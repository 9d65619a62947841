"""deploy/kind/run, step by step: its objects on a real API server, its queries on the real engine, and what
it says where something is missing. docker, kind and kubelets are stand-ins (tests/beds/kind_stand_ins.py)."""

from __future__ import annotations

import re
import subprocess
import time
from functools import cache
from pathlib import Path

import pytest
import yaml

from kubenetmon.clickhouse.schema import SchemaOptions, ddl
from kubenetmon.clickhouse.sinks_embedded import EmbeddedSink
from tests.beds.kind_stand_ins import Call, StandIns
from tests.beds.kubernetes import Cluster
from tests.beds.manifests import DEPLOY, kubectl, kustomize

pytestmark = pytest.mark.apiserver

# Fields of kind's v1alpha4 configuration (kind.sigs.k8s.io, "Configuration").
CLUSTER_FIELDS = {"kind", "apiVersion", "name", "nodes", "networking", "featureGates", "runtimeConfig"}
NODE_FIELDS = {"role", "image", "labels", "extraMounts", "extraPortMappings", "kubeadmConfigPatches"}


def queries(calls: list[Call]) -> list[str]:
    return [call.flag("--query") for call in calls if call.flag("--query")]


def forget(cluster: Cluster) -> None:
    """Leave nothing of another run."""
    for one in kustomize(DEPLOY / "overlays" / "kind-secure"):
        if one["kind"] != "Namespace":
            cluster.delete(one)


@pytest.mark.parametrize("kind", ["", "secure"])
def test_the_whole_journey_and_once_more(cluster: Cluster, tmp_path: Path, kind: str) -> None:
    forget(cluster)
    stand_ins = StandIns(tmp_path, cluster.kubeconfig())
    arguments = [kind] if kind else []
    done = stand_ins.run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "a table of who talks to whom" in done.stdout
    calls = stand_ins.calls()
    overlay = "deploy/overlays/kind-secure" if kind else "deploy/overlays/kind"
    assert [call.arguments[-2:] for call in calls if "apply" in call.arguments][-1] == ("-k", overlay)

    # The image that is built is the one that is loaded and the one that the pods ask for.
    (built,) = [call.flag("--tag") for call in calls if call.arguments[0] == "build"]
    pods = [
        one["spec"]["template"]["spec"]
        for one in kustomize(DEPLOY.parent / overlay)
        if "template" in one.get("spec", {})
    ]
    images = {part["image"] for pod in pods for part in [*pod.get("initContainers", []), *pod["containers"]]}
    assert {image for image in images if image.startswith("kubenetmon")} == {built}
    assert [call.arguments[2] for call in calls if call.arguments[0] == "load"] == [built]

    # Every workload of ours and ClickHouse is waited for, and the API has it.
    waited = {call.arguments[-2] for call in calls if "rollout" in call.arguments}
    assert waited >= {
        "deployment/clickhouse", "deployment/kubenetmon-server", "daemonset/kubenetmon-agent"
    }  # fmt: skip
    deployments = "/apis/apps/v1/namespaces/kubenetmon-server/deployments"
    server = cluster.request("GET", f"{deployments}/kubenetmon-server")["spec"]["template"]["spec"]
    mounted = {volume["name"] for volume in server["volumes"]}
    assert ("tls" in mounted) == bool(kind)
    if kind:
        for side in ("agent", "server"):
            secret = f"/api/v1/namespaces/kubenetmon-{side}/secrets/kubenetmon-{side}-tls"
            assert set(cluster.request("GET", secret)["data"]) == {"ca.crt", "tls.crt", "tls.key"}

    again = stand_ins.run(*arguments)
    assert again.returncode == 0, again.stderr
    second = stand_ins.calls()[len(calls) :]
    assert not [call for call in second if call.arguments[:2] == ("create", "cluster")]
    assert not [call for call in second if "secrets.yaml" in call.arguments[-1]], (
        "certificates stay as they are"
    )
    assert stand_ins.run("remove").returncode == 0
    assert stand_ins.calls()[-1] == Call("kind", ("delete", "cluster", "--name", "kubenetmon"))

    for call in calls:
        if call.program == "kubectl":
            assert call.flag("--context") == "kind-kubenetmon"
            _assert_flags_exist(call)


def _assert_flags_exist(call: Call) -> None:
    """The real kubectl has them."""
    words = call.arguments[: call.arguments.index("--")] if "--" in call.arguments else call.arguments
    command = [
        word for word in words if word in ("apply", "create", "namespace", "rollout", "status", "exec")
    ]
    helped = _kubectl_says(*command, "--help") + _kubectl_says("options")
    for word in words:
        if word.startswith("-") and word != "-":
            assert re.search(rf"(^|\s){re.escape(word.partition('=')[0])}\b", helped), (word, command)


@cache
def _kubectl_says(*arguments: str) -> str:
    return subprocess.run([kubectl(), *arguments], capture_output=True, text=True, check=True).stdout


@pytest.mark.chdb
async def test_its_queries_are_answered_by_clickhouse(cluster: Cluster, tmp_path: Path) -> None:
    stand_ins = StandIns(tmp_path, cluster.kubeconfig())
    assert stand_ins.run().returncode == 0
    asked = sorted(set(queries(stand_ins.calls())))
    assert len(asked) == 2
    sink = EmbeddedSink(tmp_path / "engine")
    try:
        await sink.query(ddl(SchemaOptions()))
        now = int(time.time()) // 60 * 60
        await sink.query(
            "INSERT INTO default.network_flows_0 (date, intervalStartTime, direction, localPod, localApp, "
            f"remotePod, connectionClass, bytes) VALUES (toDate({now}), {now}, 'out', 'frontend-podinfo-1', "
            "'frontend-podinfo', 'backend-podinfo-1', 'INTRA_VPC', 2048)"
        )
        talks, count = [
            await sink.query(query.replace("FORMAT PrettyCompactMonoBlock", "")) for query in asked
        ]
    finally:
        await sink.close()
    assert count == [(1,)]
    assert talks == [("frontend-podinfo-1", "backend-podinfo-1", "INTRA_VPC", "2.00 KiB")]


@pytest.mark.parametrize("program", ["docker", "kind", "kubectl"])
def test_a_program_that_is_missing_is_named(tmp_path: Path, program: str) -> None:
    stand_ins = StandIns(tmp_path, None)
    done = stand_ins.run(without=program)
    assert done.returncode == 1
    assert done.stderr == f"deploy/kind/run: {program} is missing: install it and run me again\n"
    assert stand_ins.calls() == []


def test_a_docker_that_does_not_answer_is_said_before_anything_is_made(tmp_path: Path) -> None:
    stand_ins = StandIns(tmp_path, None, fault="docker is stopped")
    done = stand_ins.run()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "deploy/kind/run: docker does not answer: start it, or run me as a user who may use it\n"
    )
    assert len(stand_ins.calls()) == 1


@pytest.mark.parametrize(
    ("fault", "says", "shows"),
    [
        (
            "a pod never gets ready",
            "deployment/kubenetmon-server in namespace kubenetmon-server is not ready after five minutes",
            "the last words of deployment/kubenetmon-server",
        ),
        ("no rows", "no rows within three minutes", "the last words of daemonset/kubenetmon-agent"),
    ],
)
def test_a_cluster_that_does_not_come_up_ends_it_with_the_reason(
    cluster: Cluster, tmp_path: Path, fault: str, says: str, shows: str
) -> None:
    stand_ins = StandIns(tmp_path, cluster.kubeconfig(), fault=fault)
    done = stand_ins.run()
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"deploy/kind/run: {says}")
    assert shows in done.stderr
    assert "Illegal number" not in done.stderr
    assert "== who talks to whom" not in done.stdout


def test_help_is_shown_for_what_it_does_not_know(tmp_path: Path) -> None:
    done = StandIns(tmp_path, None).run("everything")
    assert done.returncode == 2
    assert "deploy/kind/run secure" in done.stdout


def test_the_clusters_configuration_has_fields_that_kind_knows_and_zones() -> None:
    described = yaml.safe_load((DEPLOY / "kind" / "cluster.yaml").read_text())
    assert (described["kind"], described["apiVersion"]) == ("Cluster", "kind.x-k8s.io/v1alpha4")
    assert described.keys() <= CLUSTER_FIELDS
    assert [node["role"] for node in described["nodes"]] == ["control-plane", "worker", "worker"]
    assert all(node.keys() <= NODE_FIELDS for node in described["nodes"])
    zones = {node.get("labels", {}).get("topology.kubernetes.io/zone") for node in described["nodes"]}
    assert len(zones - {None}) == 2
