"""What decides whether a test can run here, in one place.

A marker names what a test needs; where that is missing the test skips with the reason, and in CI (CI=true)
it fails instead: a check that CI skips is no check. The one exception is `shared`, the development data
beside the checkout, which a clone does without.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.beds import side_by_side
from tests.beds.shipped import hide_test_packages

hide_test_packages()

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
BUILD_IMAGE = Path(__file__).parent / "beds" / "build-image.sh"


def pytest_configure(config: pytest.Config) -> None:
    """In the process that a run begins with."""
    if not hasattr(config, "workerinput"):
        side_by_side.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Once all tests have ended."""
    if not hasattr(config, "workerinput"):
        side_by_side.end()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Whoever measures is alone; nobody's time runs while it waits for that."""
    with side_by_side.turn(alone=item.get_closest_marker("alone") is not None):
        return (yield)


@pytest.fixture(autouse=True)
def logging_stays() -> Iterator[None]:
    """Commands that run within a test set logging up for their process, which is everyone's here."""
    root = logging.getLogger()
    handlers, level = root.handlers.copy(), root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def _missing_root() -> str | None:
    if os.geteuid() != 0:
        return "needs root: network namespaces are made"
    for program in ("ip", "nft"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    return None


def _missing_apiserver() -> str | None:
    from tests.beds.kubernetes import find_binaries

    try:
        find_binaries()
    except FileNotFoundError as error:
        return str(error)
    return None


def _missing_chdb() -> str | None:
    return None if importlib.util.find_spec("chdb") else "needs chdb: pip install 'kubenetmon[embedded]'"


def _missing_promtool() -> str | None:
    return None if shutil.which("promtool") else "needs promtool: apt-get install prometheus"


def _missing_chromium() -> str | None:
    return None if shutil.which("chromium") else "needs the program chromium: apt-get install chromium"


def _missing_shared() -> str | None:
    return None if SHARED_DATA.is_dir() else "needs the development data beside the checkout"


def _missing_image() -> str | None:
    for program in ("buildah", "debootstrap"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    return None


def _missing_nodes() -> str | None:
    from tests.beds.node import missing

    return missing()


def _missing_whole() -> str | None:
    from tests.beds.engine_internals import missing

    return missing()


def _missing_keeper() -> str | None:
    from tests.beds.replication import missing

    return _missing_whole() or missing()


NEEDS: dict[str, Callable[[], str | None]] = {
    "root": _missing_root,
    "apiserver": _missing_apiserver,
    "image": _missing_image,
    "nodes": _missing_nodes,
    "chdb": _missing_chdb,
    "whole": _missing_whole,
    "keeper": _missing_keeper,
    "promtool": _missing_promtool,
    "chromium": _missing_chromium,
    "shared": _missing_shared,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, or in CI leave to fail, what lacks its needs."""
    found: dict[str, str | None] = {}
    for item in items:
        for marker, probe in NEEDS.items():
            if item.get_closest_marker(marker) is None:
                continue
            if marker not in found:
                found[marker] = probe()
            reason = found[marker]
            if reason is not None and (marker == "shared" or os.environ.get("CI") != "true"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The development data; use with the marker `shared`."""
    return SHARED_DATA


@pytest.fixture(scope="session")
def image() -> Path:
    """The image, built once from the Dockerfile without a container engine; with the marker `image`.

    A directory with its `root` and `config.json`; KUBENETMON_TEST_IMAGE names one made before.
    """
    if made := os.environ.get("KUBENETMON_TEST_IMAGE"):
        return Path(made)
    directory = side_by_side.directory() / "image"
    with side_by_side.locked("image"):
        if not directory.exists():
            command = (BUILD_IMAGE, directory)
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
            if done.returncode != 0:
                shutil.rmtree(directory, ignore_errors=True)
            assert done.returncode == 0, done.stderr
    return directory
