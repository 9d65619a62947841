"""Known vulnerabilities of a lock's packages: PyPI is asked for /pypi/NAME/VERSION/json of each pinned one.

    python deploy/audit.py LOCK [ARGUMENT...]

Arguments go to pip-audit; `--ignore-vuln ID` leaves one out. Exit status 0: all were asked about, and nothing
is known; 1: something is known; 2: not all could be asked about.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from kubenetmon.errors import printable

_ADVICE = "run it again where https://pypi.org/pypi/pip/json answers (HTTPS_PROXY names a proxy)"


def main(arguments: list[str]) -> int:
    """See above."""
    if not arguments:
        print(__doc__, file=sys.stderr)
        return 2
    lock, *more = arguments
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip_audit", "--require-hashes", "--disable-pip", *more]
        command += ["--requirement", lock, "--progress-spinner=off", "--format=json", f"--output={report}"]
        done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
        said = done.stderr.strip().splitlines() or ["nothing"]
        try:
            packages: list[dict[str, Any]] = json.loads(report.read_text())["dependencies"]
        except (OSError, ValueError):  # It ends without a report; for want of a network, with a traceback.
            print(f"Nothing was audited: pip-audit ended with {said[-1]!r}; {_ADVICE}", file=sys.stderr)
            return 2
    return _judge(packages, said[-1])


def _judge(packages: list[dict[str, Any]], summary: str) -> int:
    """A line for each vulnerability, and one for what was not asked about; `summary` where all is well."""
    missed = sorted(package["name"] for package in packages if "skip_reason" in package)
    found = [(package, one) for package in packages for one in package.get("vulns", [])]
    for package, one in found:
        names = ", ".join([one["id"], *sorted(one["aliases"])])
        mended = f"mended in {', '.join(one['fix_versions'])}" if one["fix_versions"] else "not mended yet"
        print(printable(f"{package['name']} {package['version']}: {names}; {mended}: {one['description']}"))
    if missed:
        what = (
            "Nothing was audited"
            if len(missed) == len(packages)
            else f"Not all was audited ({', '.join(missed)})"
        )
        reason = "PyPI, or what answers in its place, has no such versions"
        print(f"{what}: {reason}; {_ADVICE}", file=sys.stderr)
    elif not found:
        print(f"{len(packages)} packages asked about. {summary}")
    return 1 if found else 2 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
