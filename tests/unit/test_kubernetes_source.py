"""Where the watcher finds the cluster: a file, a kubeconfig, its own pod; and the lines that an API sends."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from kubenetmon.errors import ConfigurationError
from kubenetmon.server.kubernetes import KubernetesClient, LineSplitter
from kubenetmon.server.kubernetes_source import DumpFile, InCluster, Kubeconfig, choose_source
from tests.kubernetes.conftest import IMPATIENT, Follower, eventually
from tests.unit.watching import pod


@asynccontextmanager
async def following_file(path: Path) -> AsyncIterator[Follower]:
    follower = Follower(replace(IMPATIENT, kubernetes_source=f"file:{path}"))
    task = asyncio.create_task(follower.watcher.run())
    try:
        yield follower
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write_dump(path: Path, *items: object) -> None:
    path.write_text(json.dumps({"kind": "List", "items": items}))


async def test_file_is_read_and_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    write_dump(path, pod("a", "10.1.0.1"))
    async with following_file(path) as follower:
        await eventually(lambda: follower.readiness.ready)
        assert follower.owner("10.1.0.1") == "a"
        path.write_text('{"kind": "Li')
        await eventually(lambda: not follower.check()["ok"])
        assert str(path) in follower.check()["detail"]
        assert follower.owner("10.1.0.1") == "a"
        write_dump(path, pod("b", "10.1.0.2"))
        await eventually(lambda: follower.owner("10.1.0.2") == "b")
        assert follower.check()["ok"]
        assert follower.inventory.counts()["pods"] == 1


@pytest.mark.parametrize(
    "content", [None, "", "{}", "kind: List", '{"kind": "Pod"}', '{"kind":"Status","items":[]}']
)
async def test_wrong_file_is_named_at_start(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "cluster.json"
    if content is not None:
        path.write_text(content)
    follower = Follower(replace(IMPATIENT, kubernetes_source=f"file:{path}"))
    with pytest.raises(ConfigurationError, match=f"^kubernetes_source: .*{path}") as caught:
        await follower.watcher.run()
    assert "\n" not in str(caught.value)


def test_source_is_found_where_none_is_set(tmp_path: Path) -> None:
    config = tmp_path / ".kube" / "config"
    home = {"HOME": str(tmp_path)}
    with pytest.raises(
        ConfigurationError, match=r"inside Kubernetes.* kubeconfig .*kubernetes_source: file:PATH"
    ):
        choose_source("", home)
    config.parent.mkdir()
    config.touch()
    assert choose_source("", home) == Kubeconfig(str(config))
    other = tmp_path / "other"
    other.touch()
    named = {**home, "KUBECONFIG": f"/nonexistent{os.pathsep}{other}"}
    assert choose_source("", named) == Kubeconfig(named["KUBECONFIG"])
    assert choose_source("", {**home, "KUBERNETES_SERVICE_HOST": "198.18.0.1"}) == InCluster()


def test_source_that_is_set_is_taken(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()
    assert choose_source("in-cluster", {}) == InCluster()
    assert choose_source(f"file:{config}", {}) == DumpFile(config)
    assert choose_source(f"kubeconfig:{config}", {}) == Kubeconfig(str(config))
    assert choose_source("kubeconfig", {"KUBECONFIG": str(config)}) == Kubeconfig(str(config))
    for wrong in ("kubeconfig:/nonexistent", "file:", "kubectl", "in-cluster:x"):
        with pytest.raises(ConfigurationError, match=r"^kubernetes_source: "):
            choose_source(wrong, {})


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "7",
        "current-context: x",
        "current-context: x\ncontexts: 7\nclusters: []",
        yaml.safe_dump(
            {
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c"}}],
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {"server": "https://127.0.0.1:1", "certificate-authority": "/nonexistent"},
                    }
                ],
            }
        ),
    ],
)
async def test_kubeconfig_that_cannot_be_used_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    client = KubernetesClient(Kubeconfig(str(path)), connect_timeout=1, read_timeout=1)
    with pytest.raises(
        ConfigurationError, match=f"cannot use the Kubernetes source kubeconfig {path}: "
    ) as caught:
        await client.open()
    assert "\n" not in str(caught.value)


async def test_missing_service_account_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    client = KubernetesClient(InCluster(tmp_path), connect_timeout=1, read_timeout=1)
    with pytest.raises(ConfigurationError, match=r"in-cluster: .*token"):
        await client.open()


def test_lines_are_cut_wherever_the_chunks_end() -> None:
    text = b"one\n\ntwo three\nfour"
    for size in range(1, len(text) + 1):
        splitter = LineSplitter(100)
        lines = [
            line for start in range(0, len(text), size) for line in splitter.feed(text[start : start + size])
        ]
        assert lines == [b"one", b"", b"two three"]
        assert splitter.feed(b"\n") == [b"four"]


def test_line_that_is_too_long_becomes_an_empty_one() -> None:
    splitter = LineSplitter(4)
    assert splitter.feed(b"12345\n1234\n123") == [b"", b"1234"]
    assert splitter.feed(b"45") == []
    assert splitter.feed(b"678") == []
    assert splitter.feed(b"9\nok\n") == [b"", b"ok"]


def test_library_is_loaded_without_its_models() -> None:
    program = (
        "import sys; from kubenetmon.server.kubernetes import _library; library = _library();"
        "print(library.config.load_kube_config, 'kubernetes_asyncio.client.models' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert shown.split()[-1] == "False"
