"""Every check and chore, by name; `nox -l` lists them.

Sessions use the environment that nox itself runs in (`deploy/local` makes it), so that nothing is installed
twice. `check` is what CI runs.
"""

from __future__ import annotations

import shlex
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "native", "tests"]
nox.options.error_on_external_run = False

ROOT = Path(__file__).parent
LOCKS = ROOT / "deploy" / "locks"


@nox.session
def lint(session: nox.Session) -> None:
    """Style, types and layers; shell scripts."""
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    if shutil.which("shellcheck") is None:
        session.error("shellcheck is missing: apt-get install shellcheck")
    scripts = ("deploy/kind/run", "deploy/local", "deploy/certificates", ".ci/run")
    beds = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "beds").glob("*.sh"))
    session.run("shellcheck", "--severity=warning", *scripts, *beds)


@nox.session
def tests(session: nox.Session) -> None:
    """All tests, two files at a time: many of them wait. Arguments go to pytest (`-- -n 0`: one by one)."""
    session.run("tests/beds/build-kubernetes.sh", "--wait")
    side_by_side = ("--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
    session.run("python", "-m", "pytest", *side_by_side, *session.posargs)


@nox.session
def proto(session: nox.Session) -> None:
    """Make kubenetmon/proto/generated anew from the .proto files."""
    session.run("python", "-m", "tests.beds.generate_proto", "--write")


@nox.session
def docs(session: nox.Session) -> None:
    """Make the generated pages of docs/ anew (configuration, metrics)."""
    for page, command in (("configuration.md", "config"), ("metrics.md", "metrics")):
        with (ROOT / "docs" / page).open("w") as file:
            session.run("kubenetmon", command, stdout=file)


@nox.session
def dashboards(session: nox.Session) -> None:
    """Make the dashboards of deploy/grafana anew, and the chart's copies of them."""
    session.run("python", "deploy/grafana/generate.py")
    session.notify("manifests")


@nox.session
def manifests(session: nox.Session) -> None:
    """Make anew what follows from others: deploy/base from deploy/helm, the chart's schema from the
    configuration's keys, its alert rules and dashboards from deploy/prometheus and deploy/grafana."""
    session.run("python", "-m", "tests.beds.manifests", "--write")


@nox.session
def lock(session: nox.Session) -> None:
    """Pin every dependency with hashes, for all platforms."""
    shared = (
        "uv",
        "pip",
        "compile",
        "--quiet",
        "--universal",
        "--python-version",
        "3.11",
        "--generate-hashes",
    )
    shared += ("--no-emit-index-url", "--no-header", *session.posargs, "pyproject.toml")
    session.run(*shared, "--output-file", str(LOCKS / "runtime.lock"))
    # Beside the former, to compile the shim with; the image leaves it behind.
    alone = tuple(word for word in shared if word != "pyproject.toml")
    session.run(*alone, "--group", "build", "--output-file", str(LOCKS / "build.lock"))
    checkout = ("--extra", "embedded", "--group", "build")
    session.run(*shared, *checkout, "--output-file", str(LOCKS / "embedded.lock"))
    session.run(*shared, *checkout, "--group", "dev", "--output-file", str(LOCKS / "development.lock"))


@nox.session
def sbom(session: nox.Session) -> None:
    """The bill of materials (CycloneDX) of the image's Python packages: build/sbom.cdx.json, or `-- FILE`.

    `-- FILE STATUS` lists Debian's packages too, as an image's /var/lib/dpkg/status has them.
    """
    bill = Path(session.posargs[0]) if session.posargs else ROOT / "build" / "sbom.cdx.json"
    bill.parent.mkdir(parents=True, exist_ok=True)
    lock = str(LOCKS / "runtime.lock")
    session.run(
        "cyclonedx-py", "requirements", "--pyproject", "pyproject.toml", "--output-file", str(bill), lock
    )
    for status in session.posargs[1:]:
        session.run("python", "deploy/debian_packages.py", str(bill), status)


@nox.session
def audit(session: nox.Session) -> None:
    """Known vulnerabilities of the image's Python packages; Debian's are its security tracker's to tell.

    Before a release, and by a schedule. Fails where PyPI cannot be asked: then nothing was audited.
    `-- --ignore-vuln ID` leaves out what was looked into and does not matter here.
    """
    session.run("python", "deploy/audit.py", str(LOCKS / "runtime.lock"), *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """The yardstick: work against floors measured in the same run, as ratios."""
    session.run("python", "-m", "tests.bench", *session.posargs)


@nox.session
def simulate(session: nox.Session) -> None:
    """Agents by the dozen before the real server and engine, and what it costs (`-- --help`)."""
    session.run("python", "-m", "tests.simulate", *session.posargs)


@nox.session
def outage(session: nox.Session) -> None:
    """ClickHouse away for half an hour before fifty agents: nothing lost, the server's memory bounded."""
    usual = ("--agents", "50", "--flows", "10000", "--interval", "10", "--seconds", "60", "--outage", "1800")
    session.run("python", "-m", "tests.simulate", *usual, "--pods-per-node", "100", *session.posargs)


@nox.session
def soak(session: nox.Session) -> None:
    """Mixed traffic, 100 agents killed in an hour unless told (`-- --help`); then sums are compared."""
    session.run("python", "-m", "tests.soak", *session.posargs)


@nox.session
def native(session: nox.Session) -> None:
    """Our C: strict warnings, unit tests under ASan and UBSan, fuzzers for a bounded time."""
    if shutil.which("clang") is None:
        session.error("clang is missing: apt-get install clang libclang-rt-14-dev")
    with tempfile.TemporaryDirectory() as scratch:
        session.run("make", "-C", "csrc", f"BUILD={scratch}", "check", *session.posargs)


@nox.session
def arm64(session: nox.Session) -> None:
    """Our C's tests, conntrack's and the demo on a whole arm64 machine, emulated.

    Arguments go to pytest in the place of tests/kernel, and then the demo is left out:
    `-- tests/kernel/test_conntrack_sums.py -k "by_protocol or dnat or zones"` is a small set. Timeouts are
    longer than elsewhere; nothing else differs. Not part of `check`: emulated, Python takes some twenty times
    as long, and the whole much of an hour (docs/decisions/0046).
    """
    patience = "LIMIT=timeout --verbose --signal=ABRT --kill-after=10 1200"
    native = ["env", "METER_LISTENER_MAY_LAG=1", "make", "--silent", "-C", "csrc", "BUILD=/root/native"]
    native += [patience, "test"]
    chosen = session.posargs or ["tests/kernel"]
    pytest = ["python3", "-m", "pytest", "-p", "no:cacheprovider", "-o", "timeout=1200", "-v", *chosen]
    steps = [native, pytest] + (
        []
        if session.posargs
        else [["env", "KUBENETMON_DEMO_PATIENCE=20", "kubenetmon", "demo", "--seconds", "5"]]
    )
    machine = "tests/beds/arm64-machine.sh"
    options = [] if session.posargs else ["--embedded"]
    # Debian's kernel has connection tracking as modules: nobody loads them but who needs them.
    fresh = "test ! -e /proc/sys/net/netfilter/nf_conntrack_acct"
    session.run(machine, *options, "sh", "-exc", "\n".join([fresh, *map(shlex.join, steps)]))


@nox.session
def check(session: nox.Session) -> None:
    """What CI runs: everything above that judges, the tests last."""
    for name in ("lint", "native"):
        session.notify(name)
    session.notify("soak", ["--minutes", "2"])
    session.notify("tests")
