"""Files that the server's configuration names are in its pod, where the chart is told to bring them."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import pytest

from kubenetmon.config.server import KEYS
from tests.beds.charts import WITH_FILES, effective, release
from tests.beds.manifests import Object, pick, server_settings
from tests.unit.test_documented_commands import installs, merged

FILES = PurePosixPath("/etc/kubenetmon-server/files")
OF_THE_IMAGE = (PurePosixPath("/usr/share/kubenetmon"), PurePosixPath("/var/cache/kubenetmon"))


def containers(objects: list[Object]) -> list[Object]:
    pod = pick(objects, "Deployment")["spec"]["template"]["spec"]
    return [*pod.get("initContainers", []), *pod["containers"]]


def files(objects: list[Object]) -> dict[str, str]:
    """Where the pod's `files` come from: name of each source, by kind."""
    volumes = pick(objects, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (volume,) = [one for one in volumes if one["name"] == "files"]
    return {source[kind]["name"]: kind for source in volume["projected"]["sources"] for kind in source}


def test_files_are_mounted_in_every_container_at_the_place_that_is_said() -> None:
    objects = release("server", WITH_FILES)
    assert files(objects) == {
        "kubenetmon-server-files": "configMap",
        "clickhouse-client": "secret",
        "limits": "configMap",
    }
    assert pick(objects, "ConfigMap", "kubenetmon-server-files")["data"] == WITH_FILES["files"]
    assert len(containers(objects)) == 2  # one makes the table, over the same connection
    for container in containers(objects):
        places = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert places["files"] == str(FILES)
        assert places["ranges"] == "/ranges"
        assert all(one["readOnly"] for one in container["volumeMounts"] if one["name"] != "cache")


def test_without_files_there_is_nothing_of_them() -> None:
    objects = release("server")
    assert len([one for one in objects if one["kind"] == "ConfigMap"]) == 1
    assert "files" not in str(pick(objects, "Deployment"))


def test_a_change_of_files_rolls_the_pods() -> None:
    def checksum(values: dict[str, Any]) -> str:
        template = pick(release("server", values), "Deployment")["spec"]["template"]
        return str(template["metadata"]["annotations"]["checksum/files"])

    assert checksum({"files": {"a": "1"}}) != checksum({"files": {"a": "2"}})


PINNED = [one[3] for one in installs("SECURITY.md")]


@pytest.mark.parametrize("values", PINNED, ids=[" ".join(one["configuration"]) for one in PINNED])
def test_what_security_says_about_files_can_be_followed(values: dict[str, Any]) -> None:
    """Each path that the configuration names is where the same command brings a file, or in the image."""
    objects = release("server", values)
    config = effective(*server_settings(objects))
    given = values.get("files", {})
    for name in values["configuration"]:
        assert name in KEYS
        path = PurePosixPath(str(getattr(config, name)))
        if path.parent != FILES:
            assert any(path.is_relative_to(place) for place in OF_THE_IMAGE), path
        elif path.name not in given:
            assert files(objects)[values["filesFrom"][0]["secret"]["name"]] == "secret"
    for name in given:
        assert pick(objects, "ConfigMap", "kubenetmon-server-files")["data"][name] == "CONTENT"


def test_security_shows_a_ca_of_clickhouse_and_pinned_ranges() -> None:
    keys = set(merged(*(one["configuration"] for one in PINNED)))
    assert keys == {"clickhouse_ca", "clickhouse_cert", "clickhouse_key", "cloud_ranges_dir"}
