"""The commands of README.md and docs/migration.md: charts render with them, files that they name exist."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from helm_python import parse_set_string

from tests.beds.charts import ORIGINAL_AGENT, ORIGINAL_SERVER, environment
from tests.beds.manifests import ROOT, Object, pick, render_chart

PAGES = ("README.md", "docs/migration.md")
GIVEN_VALUES = {"server-values.yaml": ORIGINAL_SERVER, "agent-values.yaml": ORIGINAL_AGENT}


def commands(page: str, *, section: str = "") -> list[list[str]]:
    """Every command of the page's shell blocks (of one section), as words; && separates."""
    text = (ROOT / page).read_text()
    if section:
        text = text.split(f"\n## {section}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(part, comments=True) for line in lines for part in line.split("&&") if part.strip()]


def installs(page: str) -> list[tuple[str, str, str, dict[str, Any], bool]]:
    """Part, release, namespace, values and whether they are all given, of each use of our charts."""
    found = []
    for words in commands(page):
        charts = [word for word in words if word.startswith("deploy/helm/")]
        if words[0] != "helm" or not charts:
            continue
        part = charts[0].rpartition("-")[2]
        values: dict[str, Any] = {}
        for before, word in pairwise(words):
            if before == "-f":
                values = merged(values, GIVEN_VALUES[word])
            if before == "--set":
                values = merged(values, parse_set_string(word))
            if before == "--set-file":
                values = merged(values, parse_set_string(f"{word.partition('=')[0]}=CONTENT"))
        release = words[words.index(charts[0]) - 1]
        namespace = words[words.index("--namespace") + 1]
        found.append((part, release, namespace, values, "--reuse-values" not in words))
    return found


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The second over the first, as Helm merges values."""
    both = dict(first)
    for name, value in second.items():
        old = both.get(name)
        both[name] = merged(old, value) if isinstance(value, dict) and isinstance(old, dict) else value
    return both


def rendered(page: str, *, last: bool = False) -> dict[str, list[Object]]:
    """Each release as it is installed, or as the last command leaves it that gives all values."""
    found: dict[str, list[Object]] = {}
    for part, release, namespace, values, complete in installs(page):
        if complete and (last or release not in found):
            found[release] = render_chart(part, values, name=release, namespace=namespace)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_charts_render_with_what_the_page_says(page: str) -> None:
    assert len(rendered(page)) == 2
    for part, release, namespace, values, complete in installs(page):
        if not complete:
            values = merged({"agent": ORIGINAL_AGENT, "server": ORIGINAL_SERVER}[part], values)
        assert render_chart(part, values, name=release, namespace=namespace)


@pytest.mark.parametrize("page", PAGES)
def test_agents_find_the_server_that_the_page_installs(page: str) -> None:
    (server,) = [objects for objects in rendered(page).values() if objects_of(objects, "Deployment")]
    (agent,) = [objects for objects in rendered(page).values() if objects_of(objects, "DaemonSet")]
    service = pick(server, "Service")["metadata"]
    host = environment(pick(agent, "DaemonSet"))["KUBENETMON_SERVER_SERVICE_HOST"]
    assert host == f"{service['name']}.{service['namespace']}.svc.cluster.local"
    image = "registry.example.org/kubenetmon:0.1.0"
    for objects, kind in ((server, "Deployment"), (agent, "DaemonSet")):
        assert pick(objects, kind)["spec"]["template"]["spec"]["containers"][0]["image"] == image


def objects_of(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def test_the_servers_beside_each_other_share_no_object() -> None:
    """Nor do the agents: neither release can take an object of the original's."""
    original = {(one["kind"], one["metadata"]["name"]) for one in render_chart("server", ORIGINAL_SERVER)}
    original |= {(one["kind"], one["metadata"]["name"]) for one in render_chart("agent", ORIGINAL_AGENT)}
    of_namespaces = ("ConfigMap", "Secret")  # whose namespaces differ
    for objects in rendered("docs/migration.md").values():
        for one in objects:
            if one["kind"] not in of_namespaces:
                assert (one["kind"], one["metadata"]["name"]) not in original


def test_agents_move_by_the_label_that_nodes_get() -> None:
    (agent,) = [objects for name, objects in rendered("docs/migration.md").items() if "agent" in name]
    spec = pick(agent, "DaemonSet")["spec"]["template"]["spec"]
    assert spec["nodeSelector"] == {"kubenetmon-agent": "next"}
    labels = [words[-1] for words in commands("docs/migration.md") if words[:2] == ["kubectl", "label"]]
    assert "kubenetmon-agent=next" in {word for words in commands("docs/migration.md") for word in words}
    assert labels
    assert environment(pick(agent, "DaemonSet"))["KUBENETMON_COUNT_EXISTING"] == "true"


def test_the_migration_ends_with_agents_on_every_node() -> None:
    """The last command differs from the first in what only the move needs."""
    (first,) = [objects for name, objects in rendered("docs/migration.md").items() if "agent" in name]
    (last,) = [
        objects for name, objects in rendered("docs/migration.md", last=True).items() if "agent" in name
    ]
    assert "nodeSelector" not in pick(last, "DaemonSet")["spec"]["template"]["spec"]
    before = pick(first, "DaemonSet")
    del before["spec"]["template"]["spec"]["nodeSelector"]
    for entry in before["spec"]["template"]["spec"]["containers"][0]["env"]:
        if entry["name"] == "KUBENETMON_COUNT_EXISTING":
            entry["value"] = "false"
    assert last == first


def test_a_cluster_takes_five_commands_at_most() -> None:
    assert 1 <= len(commands("README.md", section="Install on a cluster")) <= 5


@pytest.mark.parametrize("page", [*PAGES, "SECURITY.md", "CONTRIBUTING.md"])
def test_files_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"`?\b((?:deploy|docs|tests/beds)/[\w./-]*\w)", text))
    named |= {str(Path(page).parent / link) for link in re.findall(r"\]\(([\w./-]+)\)", text)}
    in_cluster = "deploy/kubenetmon-"  # kubectl's short name for a Deployment
    missing = [name for name in named if not (ROOT / name).exists() and not name.startswith(in_cluster)]
    assert not missing
