"""Images as archives that containerd loads, made where no registry is reached.

`Image` is a name, layers (directories whose content lies at `/`, lowest first; programs of
`tests/beds/images` are put in by `layer`) and a configuration
(https://github.com/opencontainers/image-spec/blob/main/config.md). `write` makes one archive of several
images, in which a layer that two share is there once; the format is that of `docker save`
(https://github.com/moby/docker-image-spec/blob/main/spec.md, "Combined Image JSON + Filesystem Changeset").

`stand_ins` are the images that a cluster would fetch from elsewhere: podinfo, and ClickHouse's own server out
of the embedded engine, under the names that the kind overlay asks for. kubenetmon's image is the real one.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).with_name("images")
_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Image:
    """What an archive has of an image."""

    name: str
    layers: Sequence[Path]
    config: Mapping[str, Any] = field(default_factory=dict)


def write(archive: Path, images: Sequence[Image], scratch: Path) -> None:
    """One archive of them all. `scratch` is an empty directory's path, gone afterwards."""
    scratch.mkdir()
    layers: dict[Path, str] = {}
    with tarfile.open(archive, "w") as file:
        for image in images:
            for layer in image.layers:
                if layer not in layers:
                    packed = scratch / "layer.tar"
                    # Owners by number: whose they are on this machine is of no concern.
                    command = ("tar", "--numeric-owner", "-C", str(layer), "-cf", str(packed), ".")
                    subprocess.run(command, check=True)
                    layers[layer] = _digest(packed)
                    file.add(packed, f"{layers[layer]}.tar")
        manifest = []
        for image in images:
            config = json.dumps(
                {
                    "architecture": _ARCHITECTURE[
                        subprocess.check_output(["uname", "-m"], text=True).strip()
                    ],
                    "os": "linux",
                    "config": dict(image.config),
                    "rootfs": {
                        "type": "layers",
                        "diff_ids": [f"sha256:{layers[one]}" for one in image.layers],
                    },
                }
            ).encode()
            name = f"{hashlib.sha256(config).hexdigest()}.json"
            _add(file, name, config)
            files = [f"{layers[one]}.tar" for one in image.layers]
            manifest.append({"Config": name, "RepoTags": [image.name], "Layers": files})
        _add(file, "manifest.json", json.dumps(manifest).encode())
    shutil.rmtree(scratch)


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
    found = importlib.util.find_spec("chdb")
    assert found is not None
    assert found.submodule_search_locations
    chdb = Path(found.submodule_search_locations[0])
    engine = clickhouse / "opt" / "engine"
    (engine / "chdb").mkdir(parents=True)
    for library in chdb.glob("*.so"):
        shutil.copy(library, engine / "chdb")
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


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _add(file: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    file.addfile(entry, io.BytesIO(content))
