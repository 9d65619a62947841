"""Make the code under kubenetmon/proto/generated; `--write` puts it there, a test compares it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parents[2] / "kubenetmon" / "proto"
GENERATED = PROTO / "generated"


def generate(out: Path) -> None:
    """Run protoc with betterproto2's plugin: client and server stubs, both async."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    options = ("client_generation=async", "server_generation=async")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_betterproto2_out={out}"]
        + [f"--python_betterproto2_opt={option}" for option in options]
        + [str(PROTO / "kubenetmon.proto"), str(PROTO / "grpc.proto")],
        check=True,
        env=environment,
        cwd=PROTO.parents[1],  # the formatter that the plugin calls reads pyproject.toml from here
        stderr=subprocess.DEVNULL,
    )


def modules(root: Path) -> dict[str, str]:
    """The generated modules by their path below `root`."""
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*.py"))}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = modules(Path(scratch))
        if "--write" in sys.argv:
            shutil.rmtree(GENERATED, ignore_errors=True)
            for name, text in fresh.items():
                path = GENERATED / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        elif fresh != modules(GENERATED):
            sys.exit("kubenetmon/proto/generated is out of date: run nox -s proto")
