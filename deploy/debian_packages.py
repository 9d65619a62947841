"""Debian's packages of an image, into a bill of materials (CycloneDX) that lists its Python packages.

    python deploy/debian_packages.py BILL STATUS

STATUS is dpkg's own list, a file in every image of Debian: /var/lib/dpkg/status. BILL is changed in place.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

_DOCKERFILE = Path(__file__).parents[1] / "Dockerfile"


def components(status: str, release: str) -> Iterator[dict[str, str]]:
    """A component for each package that is installed; `release` is Debian's name for itself (bookworm)."""
    for stanza in re.split(r"\n\n+", status.strip()):
        fields = dict(re.findall(r"^([A-Za-z-]+): (.*)$", stanza, re.MULTILINE))
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, version = fields["Package"], fields["Version"]
        where = f"arch={fields['Architecture']}&distro={release}"
        purl = f"pkg:deb/debian/{quote(name)}@{quote(version, safe='')}?{where}"
        yield {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def main(arguments: list[str]) -> int:
    """Exit status 2 where the arguments are no bill and list of packages."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    bill, status = map(Path, arguments)
    found = re.search(r"^ARG DEBIAN=\S*:(\w+)", _DOCKERFILE.read_text(), re.MULTILINE)
    assert found is not None, "the Dockerfile names its base"
    added = list(components(status.read_text(), found[1]))
    if not added:
        print(
            f"{status} lists no installed package: give it an image's /var/lib/dpkg/status", file=sys.stderr
        )
        return 2
    content = json.loads(bill.read_text())
    content.setdefault("components", []).extend(added)
    bill.write_text(json.dumps(content, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
