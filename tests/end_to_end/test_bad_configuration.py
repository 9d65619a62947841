"""What an operator gets wrong, as the processes meet it: one clear line and exit 2, or a reason in /ready."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kubenetmon.clickhouse.schema import SchemaOptions, ddl
from kubenetmon.clickhouse.sinks_tcp import TcpConfig, TcpSink
from tests.beds.clickhouse_server import clickhouse_server
from tests.beds.server_process import PATIENCE, Server


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "green"}, "unknown key 'colour'"),
        ({"grpc_port": "many"}, "grpc_port: 'many' is not a port"),
        ({"cluster": None}, "cluster is missing"),
        ({"region": "mars-1"}, "'mars-1' is none of the regions of aws"),
        ({"kubernetes_source": "file:/nonexistent.json"}, "/nonexistent.json"),
        ({"kubernetes_source": "kubeconfig"}, "there is no kubeconfig at"),
        ({"kubernetes_source": "auto"}, "no cluster to watch"),
        ({"cloud_ranges_dir": "/nonexistent"}, "/nonexistent"),
        ({"tls_cert": "/nonexistent", "tls_key": "/nonexistent"}, "tls_cert /nonexistent"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_2(
    tmp_path: Path, changes: dict[str, object], says: str
) -> None:
    status, said = Server(tmp_path, **changes).outcome()
    last = said.strip().splitlines()[-1]
    assert (status, last.startswith("kubenetmon: ")) == (2, True), said
    assert says in last
    assert "Traceback" not in said


_AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"prefixes": []}', "<html></html>"])
def test_a_ranges_file_without_ranges_is_refused(tmp_path: Path, content: str) -> None:
    ranges = tmp_path / "ranges"
    ranges.mkdir()
    (ranges / "aws.json").write_text(content)
    status, said = Server(tmp_path, cloud_ranges_dir=str(ranges)).outcome()
    assert status == 2, said
    assert "aws.json" in said.strip().splitlines()[-1]


def test_an_unreachable_clickhouse_is_a_reason_in_ready(tmp_path: Path) -> None:
    server = Server(tmp_path)
    with server.running():
        assert "Connection refused" in server.reason("clickhouse")


def test_a_secret_that_cannot_be_read_is_a_reason_in_ready(tmp_path: Path) -> None:
    (tmp_path / "password").mkdir()
    server = Server(tmp_path)
    with server.running():
        assert f"{tmp_path / 'password'} cannot be read" in server.reason("clickhouse")


@pytest.mark.chdb
@pytest.mark.parametrize(
    ("statements", "says"),
    [
        ([], "does not exist"),
        ([ddl(SchemaOptions()), "ALTER TABLE default.network_flows_0 DROP COLUMN bytes"], "bytes"),
    ],
    ids=["no table", "a table without a column"],
)
async def test_a_table_that_does_not_fit_is_a_reason_in_ready(
    tmp_path: Path, statements: list[str], says: str
) -> None:
    with clickhouse_server(tmp_path / "clickhouse") as clickhouse:
        endpoint = clickhouse.endpoint
        sink = TcpSink(TcpConfig(endpoints=(endpoint,), tls=None))
        if statements:
            create = (
                statements[0].strip().rstrip(";").replace("SummingMergeTree((bytes, packets))", "MergeTree")
            )
            for statement in (create, *statements[1:]):
                await sink.query(statement)
        await sink.close()
        server = Server(tmp_path, clickhouse_endpoint=endpoint)
        with server.running():
            reason = await asyncio.to_thread(server.reason, "clickhouse")
        assert says in reason
        assert "kubenetmon schema apply" in reason


@pytest.mark.parametrize(
    ("environment", "says"),
    [
        ({"COLLECTION_INTERVAL": "1"}, "COLLECTION_INTERVAL"),
        ({"METRICS_PORT": "-1"}, "METRICS_PORT"),
        ({"KUBENETMON_SERVER_SERVICE_PORT": "tcp://10.0.0.1:8884"}, "write 8884"),
        ({"KUBENETMON_TLS_CA": "/nonexistent"}, "KUBENETMON_TLS_CA"),
        ({"KUBENETMON_TOKEN_FILE": "/nonexistent"}, "KUBENETMON_TOKEN_FILE"),
    ],
)
def test_an_agent_says_which_variable_is_wrong(environment: dict[str, str], says: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kubenetmon", "--role", "agent"],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"], **environment},
    )
    assert result.returncode == 2, result.stderr
    assert says in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.root
@pytest.mark.parametrize("role", ["agent", "all"])
def test_without_root_one_line_says_why_not(role: str) -> None:
    result = subprocess.run(
        [*_AS_NOBODY, sys.executable, "-m", "kubenetmon", "--role", role],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "METRICS_PORT": "0"},
    )
    assert result.returncode == 1, result.stderr
    assert "root" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
