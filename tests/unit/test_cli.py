"""The command line as a tired operator meets it: help that helps, and one line for every mistake."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

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


HOSTILE = "\x1b[2J\r\nkubenetmon: all is well\x07\x9b1A\x7f\u202e\u2028 caf\u00e9"
SAFE = "\\x1b[2J\\r\\nkubenetmon: all is well\\x07\\x9b1A\\x7f\\u202e\\u2028 café"
"""Clears the screen, moves the cursor, writes from right to left; and as it is shown."""


def test_what_a_server_says_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    """`top` quotes the body of an answer that is none."""

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(503)
            self.end_headers()
            self.wfile.write(HOSTILE.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        assert main(["top", "--server", f"127.0.0.1:{server.server_port}"]) == 1
        server.shutdown()
    said = capsys.readouterr()
    assert SAFE in said.err
    assert all(line.isprintable() for line in (said.out + said.err).split("\n"))


@pytest.mark.parametrize(
    "arguments",
    [
        ("--role", HOSTILE),
        (HOSTILE,),
        ("ask", "top", HOSTILE),
        ("--config", f"/{HOSTILE}", "--role", "server"),
    ],
)
def test_no_mistake_is_quoted_unescaped(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "x1b[2J" in result.stderr
    assert all(line.isprintable() for line in result.stderr.split("\n"))


def test_plain_log_lines_are_safe_on_a_terminal_and_tracebacks_keep_their_lines() -> None:
    try:
        raise ValueError(HOSTILE.replace("\n", ""))
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "said %s", (HOSTILE,), sys.exc_info())
    record.body = HOSTILE
    lines = logs.PlainFormatter().format(record).split("\n")
    assert lines[0].endswith(f" error   said {SAFE} body={SAFE}")
    assert lines[1] == "Traceback (most recent call last):"
    assert all(line.isprintable() for line in lines)


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
