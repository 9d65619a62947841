"""Stand-ins for docker, kind and a cluster's kubelets: deploy/kind/run runs where none of them is.

Contract: `StandIns` is a directory for PATH: programs named docker, kind, kubectl and sleep, and what else
the script may use of the machine. Each call is recorded, in order. What kubectl is asked of the API goes to a
real API server by the real kubectl; what only kubelets could answer (rollouts, logs, exec) is answered here
once the API has the object. docker and kind take the commands that the script uses, with flags that those
programs have, and keep nothing but names. `fault` is one of FAULTS.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ("docker", "kind", "kubectl")
_TOOLS = ("base64", "cat", "dirname", "git", "grep", "mkdir", "mktemp", "openssl", "rm", "sed", "tr")
FAULTS = ("", "docker is stopped", "a pod never gets ready", "no rows")

# Of `docker --help` and `kind --help`; kubectl's own are asked of the real one.
_FLAGS = {
    ("docker", "info"): set[str](),
    ("docker", "build"): {"--tag", "--build-arg"},
    ("kind", "get"): set[str](),
    ("kind", "create"): {"--name", "--config", "--wait"},
    ("kind", "load"): {"--name"},
    ("kind", "delete"): {"--name"},
}
_READY = "deployment/kubenetmon-server"
"""Whose rollout is the one that does not end."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a stand-in."""

    program: str
    arguments: tuple[str, ...]

    def flag(self, name: str) -> str:
        """A flag's value; empty without it."""
        for at, argument in enumerate(self.arguments):
            if argument == name:
                return self.arguments[at + 1]
            if argument.startswith(f"{name}="):
                return argument.removeprefix(f"{name}=")
        return ""


class StandIns:
    """A directory for PATH, and what was called."""

    def __init__(
        self, directory: Path, kubeconfig: Path | None, *, fault: str = "", nodes: bool = False
    ) -> None:
        assert fault in FAULTS
        self.programs = directory / "programs"
        self.programs.mkdir(parents=True)
        self.directory = directory
        surroundings = {
            "KUBENETMON_STAND_INS": str(directory),
            "KUBENETMON_STAND_INS_FAULT": fault,
            "KUBENETMON_STAND_INS_NODES": str(int(nodes)),
            "KUBECONFIG": str(kubeconfig or ""),
            "PYTHONPATH": str(ROOT),
        }
        exported = "".join(f"export {name}='{value}'\n" for name, value in surroundings.items())
        for name in PROGRAMS:
            program = self.programs / name
            program.write_text(f'#!/bin/sh\n{exported}exec "{sys.executable}" -m {__name__} {name} "$@"\n')
            program.chmod(0o755)
        if not nodes:
            sleep = self.programs / "sleep"
            sleep.write_text("#!/bin/sh\n")
            sleep.chmod(0o755)
        for name in (*_TOOLS, *(["sleep"] if nodes else [])):
            found = shutil.which(name)
            assert found is not None, name
            (self.programs / name).symlink_to(found)

    def calls(self) -> list[Call]:
        """What was called, in order."""
        record = self.directory / "calls"
        lines = record.read_text().splitlines() if record.exists() else []
        return [Call(program, tuple(arguments)) for program, *arguments in map(json.loads, lines)]

    def run(
        self, *arguments: str, without: str = "", patience: float = 100.0
    ) -> subprocess.CompletedProcess[str]:
        """deploy/kind/run with these programs; `without` is one that the machine lacks."""
        if without:
            (self.programs / without).unlink()
        return subprocess.run(
            [ROOT / "deploy" / "kind" / "run", *arguments],
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
            stdin=subprocess.DEVNULL,
            env={"PATH": str(self.programs), "HOME": str(self.directory)},
        )


def _kubectl(*arguments: str, given: str | None = None) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("kubectl")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False, input=given)


def _known_to_the_test_api(documents: str) -> str:
    """The test API server (1.20) knows no maxSurge of a DaemonSet, and then wants one that is unavailable."""
    objects: list[Any] = [one for one in yaml.safe_load_all(documents) if one is not None]
    for one in objects:
        if one["kind"] == "DaemonSet":
            one["spec"]["updateStrategy"]["rollingUpdate"] = {"maxUnavailable": "100%"}
    return yaml.safe_dump_all(objects)


def _say(done: subprocess.CompletedProcess[str]) -> int:
    sys.stdout.write(done.stdout)
    sys.stderr.write(done.stderr)
    return done.returncode


def _apply(arguments: Sequence[str]) -> int:
    flag, source = arguments
    if flag == "-k":
        rendered = _kubectl("kustomize", source)
        if rendered.returncode:
            return _say(rendered)
        documents = rendered.stdout
    else:
        assert flag == "-f"
        documents = sys.stdin.read() if source == "-" else Path(source).read_text()
    command = ("apply", "--server-side", "--force-conflicts", "--validate=false", "-f", "-")
    return _say(_kubectl(*command, given=_known_to_the_test_api(documents)))


def _exists(namespace: str, workload: str) -> bool:
    found = _kubectl("-n", namespace, "get", workload)
    sys.stderr.write(found.stderr)
    return found.returncode == 0


def _answer(asked: Path, query: str, fault: str) -> int:
    """Of the ClickHouse in the cluster: no table at first, then no rows, then some."""
    if "count()" not in query:
        sys.stdout.write("a table of who talks to whom\n")
        return 0
    with asked.open("a") as file:
        file.write(".")
    times = asked.stat().st_size
    if times == 1:
        sys.stderr.write("Code: 60. DB::Exception: Unknown table\n")
        return 60
    sys.stdout.write("0\n" if times == 2 or fault == "no rows" else "12\n")
    return 0


def kubectl(arguments: list[str], fault: str) -> int:
    """As the script calls it."""
    assert arguments[0] == "--context", "which cluster?"
    assert arguments[1].startswith("kind-")
    arguments = arguments[2:]
    if os.environ["KUBENETMON_STAND_INS_NODES"] == "1":
        if arguments[0] == "apply":
            return _apply(arguments[1:])
        given = sys.stdin.read() if "-" in arguments else None
        return _say(_kubectl(*arguments, given=given))
    namespace = "default"
    if arguments[0] == "-n":
        namespace, arguments = arguments[1], arguments[2:]
    match arguments:
        case ["apply", *rest]:
            return _apply(rest)
        case ["create", "namespace", _, "--dry-run=client", "-o", "yaml"] | ["get", *_]:
            return _say(_kubectl("-n", namespace, *arguments))
        case ["rollout", "status", workload, _]:
            if not _exists(namespace, workload):
                return 1
            if fault == "a pod never gets ready" and workload == _READY:
                sys.stderr.write("error: timed out waiting for the condition\n")
                return 1
            return 0
        case ["logs", workload, *_]:
            sys.stdout.write(f"the last words of {workload}\n")
            return 0 if _exists(namespace, workload) else 1
        case ["exec", workload, "--", "clickhouse-client", *rest]:
            asked = Path(os.environ["KUBENETMON_STAND_INS"]) / "asked"
            if not asked.exists() and not _exists(namespace, workload):
                return 1
            return _answer(asked, rest[-1], fault)
    sys.stderr.write(f"no stand-in for kubectl {' '.join(arguments)}\n")
    return 97


def docker_or_kind(program: str, arguments: list[str], fault: str) -> int:
    """As the script calls them; images and clusters are names in files."""
    flags = {argument.partition("=")[0] for argument in arguments if argument.startswith("--")}
    if not flags <= _FLAGS[program, arguments[0]]:
        sys.stderr.write(f"unknown flag in {program} {' '.join(arguments)}\n")
        return 97
    here = Path(os.environ["KUBENETMON_STAND_INS"])
    call = Call(program, tuple(arguments))
    if program == "docker":
        if fault == "docker is stopped":
            sys.stderr.write("Cannot connect to the Docker daemon at unix:///var/run/docker.sock.\n")
            return 1
        if arguments[0] == "build":
            assert arguments[-1] == "."
            assert Path("Dockerfile").exists()
            (here / "image").write_text(call.flag("--tag"))
        return 0
    clusters = here / "clusters"
    match arguments[:2]:
        case ["get", "clusters"]:
            sys.stdout.write(clusters.read_text() if clusters.exists() else "No kind clusters found.\n")
        case ["create", "cluster"]:
            assert yaml.safe_load(Path(call.flag("--config")).read_text())["kind"] == "Cluster"
            clusters.write_text(call.flag("--name") + "\n")
        case ["load", "docker-image"]:
            if clusters.read_text().strip() != call.flag("--name"):
                return 1
            return 0 if (here / "image").read_text() == arguments[2] else 1
        case ["delete", "cluster"]:
            clusters.unlink()
    return 0


def main(program: str, arguments: list[str]) -> int:
    """What a stand-in does."""
    with (Path(os.environ["KUBENETMON_STAND_INS"]) / "calls").open("a") as record:
        record.write(json.dumps([program, *arguments]) + "\n")
    fault = os.environ["KUBENETMON_STAND_INS_FAULT"]
    return kubectl(arguments, fault) if program == "kubectl" else docker_or_kind(program, arguments, fault)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
