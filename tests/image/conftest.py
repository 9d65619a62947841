"""The image, built once from the Dockerfile as it is, without a container engine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

BUILD = Path(__file__).parents[1] / "beds" / "build-image.sh"


@pytest.fixture(scope="session")
def image() -> Iterator[Path]:
    """A directory with the image's `root` and `config.json`; KUBENETMON_TEST_IMAGE names one made before."""
    if made := os.environ.get("KUBENETMON_TEST_IMAGE"):
        yield Path(made)
        return
    directory = Path(tempfile.mkdtemp(prefix="kubenetmon-image-", dir="/var/tmp"))
    try:
        done = subprocess.run([BUILD, directory], capture_output=True, text=True, timeout=900, check=False)
        assert done.returncode == 0, done.stderr
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
