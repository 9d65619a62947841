"""The command line as a tired operator meets it: help that helps, and one line for every mistake."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest

from kubenetmon import logs
from kubenetmon.__main__ import main
from kubenetmon.config import server


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """`main` points all logging at the standard error of its time."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kubenetmon", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/nonexistent", **environment},
    )


def test_help_names_every_role_and_command() -> None:
    shown = run("--help").stdout
    for word in (
        "agent",
        "server",
        "all",
        "demo",
        "ask",
        "cost",
        "schema",
        "ranges",
        "config",
        "metrics",
        "--set",
    ):
        assert word in shown


@pytest.mark.parametrize(
    "command", ["demo", "ask", "cost", "schema", "schema apply", "ranges", "ranges download"]
)
def test_every_command_has_help(command: str) -> None:
    result = run(*command.split(), "--help")
    assert result.returncode == 0
    assert "usage: kubenetmon" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        ((), {}, "usage:"),
        (("--role", "cook"), {}, "invalid choice: 'cook'"),
        (("--role", "agent", "--config", "x"), {}, "configured by environment variables"),
        (
            ("--role", "agent"),
            {"COLLECTION_INTERVAL": "soon"},
            "COLLECTION_INTERVAL: 'soon' is not a duration",
        ),
        (("--role", "server", "--config", "/nonexistent.yaml"), {}, "/nonexistent.yaml cannot be read"),
        (("--role", "server"), {}, "config.yaml cannot be read"),
        (("--role", "server", "--set", "clowd=aws"), {}, "did you mean cloud?"),
        (("schema", "apply"), {}, "clickhouse_endpoint is missing"),
        (("schema", "print", "--set", "clickhouse_table=a b"), {}, "clickhouse_table: 'a b' is not"),
        (("schema", "print", "--table", "a b"), {}, "clickhouse_table: 'a b' is not"),
        (("schema", "print", "--nodes", "-1"), {}, "--nodes: "),
        (("schema", "print", "--report-interval", "soon"), {}, "--report-interval: 'soon' is not a duration"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: tuple[str, ...], environment: dict[str, str], says: str
) -> None:
    result = run(*arguments, **environment)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr


def test_schema_takes_names_and_a_size_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--database", "d", "--table", "t", "--nodes", "1000", "--report-interval", "2m", "--fsync"]
    assert main(["schema", "print", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "CREATE TABLE IF NOT EXISTS `d`.`t`" in printed
    # A week of 1,000 nodes each two minutes, and a quarter.
    assert "non_replicated_deduplication_window = 6300000" in printed
    assert "fsync_after_insert = 1" in printed


def test_schema_print_is_what_clickhouse_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "print", "--set", "clickhouse_table=flows", "--ttl-days", "30"]) == 0
    shown = capsys.readouterr().out
    assert "`default`.`flows`" in shown
    assert "toIntervalDay(30)" in shown


def test_config_and_metrics_print_their_pages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config"]) == 0
    assert main(["metrics"]) == 0
    shown = capsys.readouterr().out
    assert all(f"`{key}`" in shown for key in server.KEYS)
    assert "`kubenetmon_collector_errors_total`" in shown


def test_log_lines_are_json_objects_with_level_time_and_message() -> None:
    record = logging.LogRecord("x", logging.WARNING, "f", 1, "%d things", (3,), None)
    record.node = "n1"
    line = json.loads(logs.JsonFormatter().format(record))
    assert (line["level"], line["message"], line["node"]) == ("warn", "3 things", "n1")
    assert line["time"].endswith("Z")
