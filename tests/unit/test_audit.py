"""`nox -s audit` asks about every version that the image holds, and passes where all were answered for."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.beds.manifests import ROOT
from tests.beds.ports import free_port
from tests.beds.pypi import Pypi, Version, vulnerability

LOCK = ROOT / "deploy" / "locks" / "runtime.lock"


def pinned() -> set[Version]:
    """Name and version of each package that the lock has for this machine."""
    lines = [line.rstrip("\\ ") for line in LOCK.read_text().splitlines() if line[:1].isalnum()]
    wanted = [one for one in map(Requirement, lines) if one.marker is None or one.marker.evaluate()]
    return {(canonicalize_name(one.name), str(one.specifier).removeprefix("==")) for one in wanted}


def version_of(name: str) -> str:
    return dict(pinned())[name]


@pytest.fixture
def pypi(tmp_path: Path) -> Iterator[Pypi]:
    with Pypi(tmp_path) as serving:
        yield serving


def audit(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """The session itself; what it prints and its exit status."""
    nox = [sys.executable, "-m", "nox", "--noxfile", str(ROOT / "noxfile.py"), "--session", "audit"]
    return subprocess.run(
        [*nox, "--", *arguments],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def line(output: str, word: str) -> str:
    """The only line of the output that has the word."""
    (found,) = [one for one in output.splitlines() if word in one]
    return found


def test_it_passes_where_nothing_is_known_of_any_pinned_package(pypi: Pypi) -> None:
    done = audit(pypi.environment)
    assert done.returncode == 0, done.stdout
    assert len(pinned()) > 20
    assert sorted(pypi.asked) == sorted(pinned())
    assert f"{len(pinned())} packages asked about. No known vulnerabilities found" in done.stdout


def test_a_vulnerability_fails_and_is_named_with_the_version_that_mends_it(pypi: Pypi) -> None:
    version = version_of("aiohttp")
    pypi.known["aiohttp", version] = [
        vulnerability("GHSA-aaaa-bbbb-cccc", "CVE-2026-11111", "Requests are smuggled", "99.0.1", "98.7.6"),
        vulnerability("PYSEC-2026-22", "CVE-2026-22222", "Nobody has mended this"),
    ]
    done = audit(pypi.environment)
    assert done.returncode == 1, done.stdout
    said = line(done.stdout, "GHSA-aaaa-bbbb-cccc")
    assert said.startswith(
        f"aiohttp {version}: CVE-2026-11111, GHSA-aaaa-bbbb-cccc; mended in 98.7.6, 99.0.1:"
    )
    assert "Requests are smuggled" in said
    assert "not mended yet" in line(done.stdout, "PYSEC-2026-22")
    assert "No known vulnerabilities" not in done.stdout


def test_what_was_looked_into_is_left_out_by_its_id_or_another_name_of_it(pypi: Pypi) -> None:
    pypi.known["h11", version_of("h11")] = [vulnerability("GHSA-1", "CVE-2026-1", "A", "99")]
    pypi.known["lz4", version_of("lz4")] = [vulnerability("GHSA-2", "CVE-2026-2", "B", "99")]
    first = audit(pypi.environment, "--ignore-vuln", "GHSA-1")
    assert first.returncode == 1
    assert "GHSA-1" not in first.stdout.replace("--ignore-vuln GHSA-1", "")
    assert "lz4" in line(first.stdout, "GHSA-2")
    both = audit(pypi.environment, "--ignore-vuln", "GHSA-1", "--ignore-vuln", "CVE-2026-2")
    assert both.returncode == 0, both.stdout
    assert "No known vulnerabilities found, 2 ignored" in both.stdout


def test_a_mirror_without_the_answers_is_no_audit(pypi: Pypi) -> None:
    pypi.knows_nothing = True
    done = audit(pypi.environment)
    assert done.returncode == 1  # nox's own, for any failure
    said = line(done.stdout, "Nothing was audited")
    assert "has no such versions; run it again where https://pypi.org/pypi/pip/json answers" in said
    assert "No known vulnerabilities" not in done.stdout


def test_one_version_without_an_answer_is_named_and_no_pass(pypi: Pypi) -> None:
    pypi.missing.add(("numpy", version_of("numpy")))
    done = audit(pypi.environment)
    assert done.returncode == 1
    assert line(done.stdout, "Not all was audited (numpy): ").endswith("(HTTPS_PROXY names a proxy)")
    assert "No known vulnerabilities" not in done.stdout


def test_without_a_network_it_fails_and_says_in_a_line_that_nothing_was_audited(tmp_path: Path) -> None:
    with Pypi(tmp_path) as pypi:
        environment = dict(pypi.environment)
    environment["HTTPS_PROXY"] = f"http://127.0.0.1:{free_port()}"
    done = audit(environment)
    assert done.returncode == 1
    said = line(done.stdout, "Nothing was audited")
    assert said.endswith(
        "; run it again where https://pypi.org/pypi/pip/json answers (HTTPS_PROXY names a proxy)"
    )
    assert "Traceback" not in done.stdout
    assert "No known vulnerabilities" not in done.stdout


def test_a_certificate_of_an_unknown_authority_is_not_believed(pypi: Pypi) -> None:
    environment = {key: value for key, value in pypi.environment.items() if key != "REQUESTS_CA_BUNDLE"}
    done = audit(environment)
    assert done.returncode == 1
    assert "certificate verify failed" in line(done.stdout, "Nothing was audited").lower()
    assert pypi.asked == []
