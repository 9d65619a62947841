"""Images as archives that containerd loads, made where no registry is reached.

`Image` is a name, layers (directories whose content lies at `/`, lowest first; programs of
`tests/beds/images` are put in by `_layer`) and a configuration
(https://github.com/opencontainers/image-spec/blob/main/config.md). `write` makes one archive of several
images, in which a layer that two share is there once; the format is that of `docker save`
(https://github.com/moby/docker-image-spec/blob/main/spec.md, "Combined Image JSON + Filesystem Changeset").

`stand_ins` are the images that a cluster would fetch from elsewhere: podinfo, and ClickHouse's own server out
of the embedded engine, under the names that the kind overlay asks for. kubenetmon's image is the real one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import platform
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.beds.clickhouse_server import library

PROGRAMS = Path(__file__).with_name("images")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Image:
    """What an archive has of an image."""

    name: str
    layers: Sequence[Path]
    config: Mapping[str, Any] = field(default_factory=dict)


def write(archive: IO[bytes], images: Sequence[Image]) -> None:
    """One archive of them all, as a stream: a layer's files must stay as they are meanwhile."""
    layers: dict[Path, str] = {}
    with tarfile.open(fileobj=archive, mode="w|") as file:
        for layer in dict.fromkeys(layer for image in images for layer in image.layers):
            digest, size = hashlib.sha256(), 0
            with _packed(layer) as content:
                while part := content.read(1 << 20):
                    digest.update(part)
                    size += len(part)
            layers[layer] = digest.hexdigest()
            with _packed(layer) as content:
                _add(file, f"{layers[layer]}.tar", content, size)
        manifest = []
        for image in images:
            config = json.dumps(
                {
                    "architecture": _ARCHITECTURE[platform.machine()],
                    "os": "linux",
                    "config": dict(image.config),
                    "rootfs": {
                        "type": "layers",
                        "diff_ids": [f"sha256:{layers[layer]}" for layer in image.layers],
                    },
                }
            ).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(file, name, io.BytesIO(config), len(config))
            files = [f"{layers[layer]}.tar" for layer in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": files})
        listed = json.dumps(manifest).encode()
        _add(file, "manifest.json", io.BytesIO(listed), len(listed))


def load(images: Sequence[Image], directory: Path) -> None:
    """Lay there what containerd keeps of images, unpacked, in the namespace of Kubernetes."""
    with tempfile.TemporaryDirectory() as state:
        socket = Path(state) / "sock"
        command = [
            "containerd",
            "--root",
            str(directory),
            "--state",
            f"{state}/state",
            "--address",
            str(socket),
        ]
        with (Path(state) / "log").open("wb") as log:
            containerd = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 30
            while not socket.exists():
                assert time.monotonic() < deadline, (Path(state) / "log").read_text()
                time.sleep(0.05)
            ctr = ["ctr", "--address", str(socket), "--namespace", "k8s.io", "images", "import", "-"]
            with subprocess.Popen(ctr, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as loading:
                assert loading.stdin is not None
                write(loading.stdin, images)
                loading.stdin.close()
                assert loading.wait() == 0
        finally:
            containerd.terminate()
            containerd.wait(10)


def stand_ins(root: Path, directory: Path) -> list[Image]:
    """Images on the file system of kubenetmon's; their layers are laid below `directory`."""
    pause = _layer(directory / "pause")
    source = PROGRAMS / "pause.c"
    subprocess.run(["gcc", "-Os", "-static", "-o", str(pause / "pause"), str(source)], check=True)

    podinfo = _layer(directory / "podinfo", {"podinfo.py": "home/app/podinfo", "curl.py": "usr/bin/curl"})

    clickhouse = _layer(
        directory / "clickhouse",
        {
            "clickhouse_server.py": "usr/bin/clickhouse-server",
            "clickhouse_client.py": "usr/bin/clickhouse-client",
        },
    )
    chdb = library().parent
    engine = clickhouse / "opt" / "engine"
    (engine / "chdb").mkdir(parents=True)
    for part in chdb.glob("*.so"):
        shutil.copy(part, engine / "chdb")
    shutil.copytree(chdb.parent / "chdb_core.libs", engine / "chdb_core.libs")
    return [
        Image("localhost/pause:1", [pause], {"Entrypoint": ["/pause"]}),
        Image(
            "ghcr.io/stefanprodan/podinfo:6.9.0",
            [root, podinfo],
            {"Cmd": ["./podinfo"], "WorkingDir": "/home/app", "User": "65532:65532"},
        ),
        Image(
            "docker.io/clickhouse/clickhouse-server:25.8",
            [root, clickhouse],
            {"Entrypoint": ["/usr/bin/clickhouse-server"]},
        ),
    ]


def _layer(directory: Path, programs: Mapping[str, str] | None = None) -> Path:
    directory.mkdir()
    for source, target in (programs or {}).items():
        place = directory / target
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PROGRAMS / source, place)
        place.chmod(0o755)
    return directory


@contextlib.contextmanager
def _packed(layer: Path) -> Iterator[IO[bytes]]:
    # Owners by number: whose they are on this machine is of no concern. The order is the same each time.
    command = ["tar", "--numeric-owner", "--sort=name", "-C", str(layer), "-c", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        yield tar.stdout
        assert tar.wait() == 0


def _add(file: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    file.addfile(entry, content)
