"""deploy/certificates: names that agents check, Secrets where the pods look, a CA that is kept."""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.beds.charts import environment
from tests.beds.manifests import DEPLOY, pick, render_chart
from tests.unit.test_documented_commands import commands, installs, merged, rendered

README_ARGUMENTS: list[str] = []
(MIGRATION_ARGUMENTS,) = [
    words[3:] for words in commands("docs/migration.md") if words[0] == "deploy/certificates"
]


def made(directory: Path, *arguments: str) -> dict[tuple[str, str], dict[str, Any]]:
    """The Secrets by namespace and name."""
    subprocess.run([DEPLOY / "certificates", "7", directory, *arguments], check=True, capture_output=True)
    secrets = yaml.safe_load_all((directory / "secrets.yaml").read_text())
    return {(one["metadata"]["namespace"], one["metadata"]["name"]): one for one in secrets}


def problem(secret: dict[str, Any], directory: Path, *checks: str) -> str:
    """What openssl has against a Secret's certificate; empty: nothing."""
    files = {}
    for name in ("ca.crt", "tls.crt"):
        files[name] = directory / f"checked-{name}"
        files[name].write_bytes(base64.b64decode(secret["data"][name]))
    done = subprocess.run(
        ["openssl", "verify", *checks, "-CAfile", files["ca.crt"], files["tls.crt"]],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize(
    ("page", "arguments"), [("README.md", README_ARGUMENTS), ("docs/migration.md", MIGRATION_ARGUMENTS)]
)
def test_they_fit_the_releases_of_the_page(page: str, arguments: list[str], tmp_path: Path) -> None:
    secrets = made(tmp_path, *arguments)
    host = ""
    for part, kind in (("server", "Deployment"), ("agent", "DaemonSet")):
        _, release, namespace, values, _ = next(one for one in installs(page) if one[0] == part)
        closed = render_chart(part, merged(values, {"secure": True}), name=release, namespace=namespace)
        pod = pick(closed, kind)["spec"]["template"]["spec"]
        (name,) = [one["secret"]["secretName"] for one in pod["volumes"] if one["name"] == "tls"]
        purpose = "sslserver" if part == "server" else "sslclient"
        assert problem(secrets[namespace, name], tmp_path, "-purpose", purpose) == ""
        if part == "agent":
            host = environment(pick(closed, kind))["KUBENETMON_SERVER_SERVICE_HOST"]
    assert len(secrets) == 2
    (of_server,) = [secret for (_, name), secret in secrets.items() if "server" in name]
    assert problem(of_server, tmp_path, "-verify_hostname", host) == ""
    service = pick(next(iter(server_objects(page))), "Service")["metadata"]
    assert host == f"{service['name']}.{service['namespace']}.svc.cluster.local"
    assert "hostname mismatch" in problem(of_server, tmp_path, "-verify_hostname", f"other.{host}")


def server_objects(page: str) -> list[list[dict[str, Any]]]:
    """The objects of the page's servers."""
    return [objects for name, objects in rendered(page).items() if "agent" not in name]


def test_the_next_time_the_same_ca_signs_others(tmp_path: Path) -> None:
    first = made(tmp_path)
    then = made(tmp_path, "there/here", "nodes")
    assert set(then) == {("there", "kubenetmon-server-tls"), ("nodes", "kubenetmon-agent-tls")}
    authorities = {one["data"]["ca.crt"] for one in (*first.values(), *then.values())}
    assert len(authorities) == 1
    assert len({one["data"]["tls.key"] for one in (*first.values(), *then.values())}) == 4
    name = ("-verify_hostname", "here.there.svc")
    assert problem(then["there", "kubenetmon-server-tls"], tmp_path, *name) == ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kubenetmon-next"], "NAMESPACE/SERVICE"),
        (["next/server", "Agents"], "'Agents' is no name of a namespace or service"),
        (["next/server,DNS:evil"], "'server,DNS:evil' is no name"),
        (["next/a/b"], "'a/b' is no name"),
        (["/server"], "'' is no name"),
    ],
)
def test_other_names_are_refused(arguments: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [DEPLOY / "certificates", "7", tmp_path / "made", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stdout + done.stderr
    assert not (tmp_path / "made").exists()
