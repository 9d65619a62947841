"""What the image holds is pinned by hash, and the bill of materials lists all of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.beds.manifests import ROOT

LOCK = ROOT / "deploy" / "locks" / "runtime.lock"


def test_the_bill_lists_every_pinned_package_with_its_version(tmp_path: Path) -> None:
    bill = tmp_path / "bills" / "sbom.json"
    nox = [sys.executable, "-m", "nox", "--noxfile", ROOT / "noxfile.py", "--session", "sbom", "--", bill]
    subprocess.run(nox, check=True, capture_output=True)
    content = json.loads(bill.read_text())
    assert content["metadata"]["component"]["name"] == "kubenetmon"
    listed = {(one["name"], one["version"]) for one in content["components"]}
    pinned = set(re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK.read_text(), re.MULTILINE))
    assert len(pinned) > 20
    assert listed == pinned


def test_every_package_is_pinned_by_hash() -> None:
    for name in ("runtime.lock", "build.lock", "embedded.lock", "development.lock"):
        text = (LOCK.parent / name).read_text()
        entries = re.split(r"\n(?=[A-Za-z0-9])", text.strip())
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries), name
