"""What the page knows of the nodes' instance types."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kubenetmon.app.page import NodeLimits
from kubenetmon.config.server import ServerConfig
from kubenetmon.errors import ConfigurationError

NODES = {
    "kind": "List",
    "items": [
        {
            "kind": "Node",
            "metadata": {"name": "node-a", "labels": {"node.kubernetes.io/instance-type": "m5.large"}},
        }
    ],
}


async def test_types_come_from_where_the_server_reads_its_cluster(tmp_path: Path) -> None:
    file = tmp_path / "cluster.json"
    file.write_text(json.dumps(NODES))
    limits = await NodeLimits(ServerConfig(kubernetes_source=f"file:{file}"))()
    name, bandwidth = limits.of_node("node-a")
    assert (name, bandwidth is not None) == ("m5.large", True)
    assert limits.of_node("node-b") == ("", None)


async def test_a_file_of_nodes_and_a_type_for_the_rest(tmp_path: Path) -> None:
    file = tmp_path / "nodes.json"
    file.write_text(json.dumps(NODES))
    limits = await NodeLimits(ServerConfig(page_nodes=str(file), page_instance_type="c5.xlarge"))()
    assert [limits.of_node(name)[0] for name in ("node-a", "node-b")] == ["m5.large", "c5.xlarge"]


async def test_without_an_api_it_goes_on_and_says_so_once_in_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    limits = NodeLimits(ServerConfig(kubernetes_source=f"kubeconfig:{tmp_path / 'missing'}"))
    for _ in range(3):
        assert (await limits()).of_node("node-a") == ("", None)
    assert len(caplog.records) == 1
    assert "instance types" in caplog.text


def test_a_type_that_nobody_knows_is_said_at_the_start() -> None:
    with pytest.raises(ConfigurationError, match=r"m5\.gigantic"):
        NodeLimits(ServerConfig(page_instance_type="m5.gigantic"))
