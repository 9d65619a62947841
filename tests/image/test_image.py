"""The image: every step of the Dockerfile is done, and what comes out runs as a cluster would run it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

import kubenetmon
from kubenetmon.demo.network import Namespace
from tests.beds.charts import release
from tests.beds.machine import COUNTERS, TALK, machine_and_peer
from tests.beds.manifests import ROOT, pick, render_chart
from tests.beds.pages import page
from tests.beds.server_process import RANGES

pytestmark = [pytest.mark.root, pytest.mark.image, pytest.mark.slow, pytest.mark.timeout(900)]

# A pod's container: own mounts, a root that cannot be written, what the manifests mount, and no more
# privileges than they give. $1: root, $2: mounts as host=target,…, the rest: setpriv's arguments, a command.
CONTAINER = r"""
root=$1 mounts=$2; shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev" -o size=64k
for name in null zero urandom; do touch "$root/dev/$name"; mount --bind "/dev/$name" "$root/dev/$name"; done
for one in $(echo "$mounts" | tr , ' '); do mount --bind "${one%%=*}" "$root${one#*=}"; done
mount -o remount,ro,bind "$root"
exec chroot "$root" /usr/bin/setpriv --no-new-privs --clear-groups "$@"
"""
SERVER = ["--reuid=65532", "--regid=65532", "--bounding-set=-all"]
AGENT = ["--bounding-set=-all,+net_admin", "--inh-caps=-all"]


def config(image: Path) -> dict[str, Any]:
    return dict(json.loads((image / "config.json").read_text())["OCIv1"])


def in_image(image: Path, mounts: dict[Path, str], privileges: list[str], command: list[str]) -> list[str]:
    """The command line that runs a command in the image."""
    listed = ",".join(f"{host}={target}" for host, target in mounts.items())
    return [
        "unshare",
        "--mount",
        "sh",
        "-ec",
        CONTAINER,
        "sh",
        str(image / "root"),
        listed,
        *privileges,
        *command,
    ]


def environment(image: Path) -> dict[str, str]:
    return dict(entry.partition("=")[::2] for entry in config(image)["config"]["Env"])


def shown(machine: Namespace, path: str) -> str:
    """A page of the process in a namespace, as soon as it answers with 200."""
    deadline = time.monotonic() + 60
    while True:
        with contextlib.suppress(OSError):
            status, body = machine.call(lambda: page(8883, path))
            if status == 200:
                return body.decode()
        assert time.monotonic() < deadline, path
        time.sleep(0.2)


def test_it_says_what_it_is_and_runs_as_nobody(image: Path) -> None:
    described = config(image)
    assert described["config"]["User"] == "65532:65532"
    assert described["config"]["Entrypoint"] == ["/opt/kubenetmon/bin/kubenetmon"]
    assert "Healthcheck" not in described["config"]
    labels = described["config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == kubenetmon.__version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    head = subprocess.run(
        ["git", "-C", ROOT, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    )
    assert labels["org.opencontainers.image.revision"] == head.stdout.strip()
    image_of = pick(release("server"), "Deployment")["spec"]["template"]["spec"]["containers"][0]["image"]
    assert image_of == f"kubenetmon:{kubenetmon.__version__}"


def test_it_holds_no_compiler_no_pip_and_nothing_unresolved(image: Path) -> None:
    root = image / "root"
    for directory in ("bin", "usr/bin", "usr/local/bin", "opt/kubenetmon/bin"):
        for program in ("gcc", "cc", "ld", "as", "make", "pip", "pip3", "git", "curl"):
            assert not (root / directory / program).exists(), program
    assert not list(root.glob("usr/include/*"))
    # The base has setuid programs of its own; no_new_privs makes nothing of them, and we add none.
    libraries = [str(path.relative_to(root)) for path in (root / "opt").rglob("*.so")]
    assert any("_conntrack" in name for name in libraries)
    check = in_image(image, {}, SERVER, ["/usr/bin/ldd", *[f"/{name}" for name in libraries]])
    done = subprocess.run(check, capture_output=True, text=True, check=False, env=environment(image))
    assert "libnetfilter_conntrack.so.3" in done.stdout
    missing = {line.split()[0] for line in done.stdout.splitlines() if "not found" in line}
    # What numpy ships beside itself is found by its own path once it is loaded.
    assert not {name for name in missing if "scipy_openblas" not in name and "gfortran" not in name}


def test_its_size_is_as_stated(image: Path) -> None:
    used = subprocess.run(["du", "-sm", image / "root"], capture_output=True, text=True, check=True)
    base = int((image / "base-size").read_text())
    stated = re.search(r"Adds about (\d+) MB", (ROOT / "Dockerfile").read_text())
    assert stated is not None
    assert int(used.stdout.split()[0]) - base <= int(stated[1]) * 1.05


def test_the_server_runs_in_it_as_the_deployment_runs_it(image: Path, tmp_path: Path) -> None:
    objects = release("server", {"inserter": {"enabled": False}})
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(pick(objects, "ConfigMap")["data"]["config.yaml"])))
    (tmp_path / "cluster.json").write_text('{"kind": "List", "items": []}')
    cache = tmp_path / "cache"
    cache.mkdir()
    tmp_path.chmod(0o755)
    os.chown(cache, 65532, 65532)
    container = pick(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    command = [
        *config(image)["config"]["Entrypoint"],
        *container["args"],
        "--config=/etc/kubenetmon-server/config.yaml",
        "--set=kubernetes_source=file:/etc/kubenetmon-server/cluster.json",
        "--set=cloud_ranges_dir=/etc/clickhouse",
    ]
    mounts = {tmp_path: "/etc/kubenetmon-server", RANGES: "/etc/clickhouse", cache: "/var/cache/kubenetmon"}
    with machine_and_peer() as (machine, _):
        process = machine.popen(
            in_image(image, mounts, SERVER, command), environment=environment(image), stderr=subprocess.PIPE
        )
        try:
            ready = json.loads(shown(machine, "/ready"))
            assert ready["ready"], ready
            status = next(
                Path(f"/proc/{number}/status").read_text()
                for number in machine.processes()
                if b"--role" in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
                and b"unshare" not in Path(f"/proc/{number}/cmdline").read_bytes()
            )
            assert re.search(r"^Uid:\t65532\t65532\t65532\t65532$", status, re.MULTILINE)
            assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\t1$", status, re.MULTILINE)
        finally:
            process.terminate()
            _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said
    assert b"Traceback" not in said


def test_the_agent_runs_in_it_with_net_admin_alone_and_meters(image: Path, tmp_path: Path) -> None:
    objects = render_chart("agent", {"configuration": {"collectionInterval": "1s", "reportInterval": "2s"}})
    daemon_set = pick(objects, "DaemonSet")["spec"]["template"]["spec"]
    variables = {entry["name"]: entry.get("value", "node-a") for entry in daemon_set["containers"][0]["env"]}
    state = tmp_path / "state"
    state.mkdir()
    command = [*config(image)["config"]["Entrypoint"], *daemon_set["containers"][0]["args"]]
    with machine_and_peer() as (machine, _):
        machine.nft(COUNTERS.replace("th sport", "ct state != invalid th sport"))
        machine.run(daemon_set["initContainers"][0]["command"])
        process = machine.popen(
            in_image(image, {state: "/run/kubenetmon"}, AGENT, command),
            environment={**environment(image), **variables},
            stderr=subprocess.PIPE,
        )
        try:
            shown(machine, "/live")
            _wait_reading(machine)
            machine.run(["python3", "-c", TALK])
            seen = machine.counters()["seen"].bytes
            deadline = time.monotonic() + 20
            while (observed := _observed(machine)) < seen:
                assert time.monotonic() < deadline, (observed, seen)
                time.sleep(0.5)
        finally:
            process.terminate()
            _, said = process.communicate(timeout=40)
    assert process.returncode == 0, said
    assert b"Traceback" not in said
    assert any(state.iterdir())


def _observed(machine: Namespace) -> float:
    text = shown(machine, "/metrics")
    return float(re.search(r'agent_observed_total\{unit="bytes"\} (\S+)', text)[1])  # type: ignore[index]


def _wait_reading(machine: Namespace) -> None:
    """Until the agent has read the table once: what is there before is its baseline."""
    deadline = time.monotonic() + 30
    pattern = r"last_successful_collection_timestamp_unix_seconds ([0-9.e+]+)"
    while float(re.search(pattern, shown(machine, "/metrics"))[1]) == 0:  # type: ignore[index]
        assert time.monotonic() < deadline
        time.sleep(0.2)


@pytest.mark.parametrize("lock", ["runtime.lock", "build.lock", "embedded.lock"])
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_every_pinned_package_has_a_wheel_for_both_platforms(machine: str, lock: str, tmp_path: Path) -> None:
    """The Dockerfile takes wheels, so that the image builds without more compilers on arm64 too."""
    command = [
        "uv",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--python-version=3.11",
        f"--python-platform={machine}-manylinux_2_36",
        "--only-binary=:all:",
        "--no-binary=quantile-python",
        "--no-deps",
        "--require-hashes",
        f"--target={tmp_path}",
        "-r",
        str(ROOT / "deploy" / "locks" / lock),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
