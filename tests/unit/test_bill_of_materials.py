"""What the image holds is pinned by hash, and the bill of materials lists all of it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tests.beds.manifests import ROOT

LOCK = ROOT / "deploy" / "locks" / "runtime.lock"


def bill(path: Path, *arguments: str) -> dict[str, Any]:
    """What `nox -s sbom` writes."""
    nox = [sys.executable, "-m", "nox", "--noxfile", ROOT / "noxfile.py", "--session", "sbom", "--", path]
    subprocess.run([*nox, *arguments], check=True, capture_output=True)
    return dict(json.loads(path.read_text()))


def test_the_bill_lists_every_pinned_package_with_its_version(tmp_path: Path) -> None:
    content = bill(tmp_path / "bills" / "sbom.json")
    assert content["metadata"]["component"]["name"] == "kubenetmon"
    listed = {(one["name"], one["version"]) for one in content["components"]}
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE))
    assert len(pinned) > 20
    assert listed == pinned


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs dpkg-query, Debian's own")
def test_with_an_images_list_it_has_debians_packages_too(tmp_path: Path) -> None:
    """Here the list of this machine; the image's is of the same form."""
    content = bill(tmp_path / "sbom.json", "/var/lib/dpkg/status")
    wanted = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"
    lines = subprocess.run(["dpkg-query", "-W", "-f", wanted], capture_output=True, text=True, check=True)
    installed = {
        tuple(line.split()[1:]) for line in lines.stdout.splitlines() if line.startswith("installed ")
    }
    listed = set()
    for one in content["components"]:
        found = re.fullmatch(r"pkg:deb/debian/(.*)@(.*)\?arch=(\w+)&distro=bookworm", one["purl"])
        if found is not None:
            listed.add((unquote(found[1]), unquote(found[2]), found[3]))
            assert (one["name"], one["version"]) == (unquote(found[1]), unquote(found[2]))
    assert len(installed) > 50
    assert listed == installed
    version = SchemaVersion.from_version(content["specVersion"])
    assert JsonStrictValidator(version).validate_str(json.dumps(content)) is None


def test_what_is_no_list_of_packages_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sbom.json").write_text("{}")
    (tmp_path / "status").write_text("Package: tar\nStatus: deinstall ok config-files\nVersion: 1\n")
    command = [sys.executable, ROOT / "deploy" / "debian_packages.py", "sbom.json", "status"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "status lists no installed package" in done.stderr
    assert (tmp_path / "sbom.json").read_text() == "{}"


def test_every_package_is_pinned_by_hash() -> None:
    for name in ("runtime.lock", "build.lock", "embedded.lock", "development.lock"):
        text = (LOCK.parent / name).read_text()
        entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries), name
