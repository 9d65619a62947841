"""How answers look: tables for people, JSON and CSV for programs; and limits of instance types."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import pytest

from kubenetmon.app.report import _show
from kubenetmon.errors import ConfigurationError
from kubenetmon.report.answers import Answer, Column, render
from kubenetmon.report.arguments import FILTERS_HELP
from kubenetmon.report.limits import BUILT_IN, read_limits, read_nodes
from kubenetmon.report.questions import QUESTIONS

COLUMNS = (
    Column("who", title="from app"),
    Column("volume", "bytes"),
    Column("share", "share"),
    Column("peak", "rate"),
    Column("at", "time"),
    Column("spent", "money"),
    Column("secret", wide=True),
)
ROWS = [
    ("web", 1536, 0.25, 2_500_000.0, 1_764_000_060, "0.8", "source"),
    ("=cmd|' /C calc'!A0", 2**60, 0.75, 12.0, 0, None, "-"),
    ("\x1b[2J名前", 0, 0.0, 0.0, 0, "0.000004", "\n"),
]
ANSWER = Answer("q", "Title", COLUMNS, ROWS, 1_764_000_000, 1_764_003_600, ("A note.",))


def test_a_table_reads_well_and_moves_no_cursor() -> None:
    lines = render(ANSWER, "table").splitlines()
    assert lines[0] == "Title, 2025-11-24 16:00 to 2025-11-24 17:00 UTC"
    assert lines[2].split("  ")[0] == "from app"
    assert "secret" not in lines[2]
    assert " ".join(lines[4].split()) == "web 1.50 KiB 25.0 % 2.50 Mbit/s 2025-11-24 16:01 $0.80"
    assert lines[5].endswith(" -  -") or lines[5].split()[-1] == "-"
    assert "\x1b" not in "".join(lines)
    assert "\\x1b[2J名前" in lines[6]
    assert "$0.000004" in lines[6]
    assert lines[-1] == "A note."


@pytest.mark.parametrize("form", ["table", "csv"])
def test_names_in_notes_move_no_cursor(capsys: pytest.CaptureFixture[str], form: str) -> None:
    hostile = "No agent reports from \x1b]0;owned\x07\x1b[2J\r\x9b2J: their bytes are what others saw."
    _show(replace(ANSWER, notes=(hostile,), rows=()), form)
    captured = capsys.readouterr()
    shown = captured.out + captured.err
    assert "No agent reports from \\x1b]0;owned\\x07\\x1b[2J\\r\\x9b2J" in shown
    assert all(one.isprintable() for one in shown if one != "\n")


def test_json_and_csv_are_exact_and_run_nothing() -> None:
    document = json.loads(render(ANSWER, "json"))
    assert document["rows"][1]["volume"] == 2**60
    assert document["rows"][0]["secret"] == "source"
    rows = list(csv.DictReader(io.StringIO(render(ANSWER, "csv"))))
    assert rows[1]["who"] == "'=cmd|' /C calc'!A0"
    assert rows[1]["volume"] == str(2**60)
    assert rows[2]["secret"] == "\n"


def test_help_says_of_every_question_what_its_filters_hold_for() -> None:
    named = [name for _, names in FILTERS_HELP for name in names]
    assert sorted(named) == sorted(QUESTIONS)


def judged(tmp_path: Path, peak: float, high: float, kind: str) -> tuple[str, float | None, str]:
    nodes = tmp_path / "nodes.json"
    labels = {"node.kubernetes.io/instance-type": kind} if kind else {}
    nodes.write_text(json.dumps({"items": [{"metadata": {"name": "n", "labels": labels}}]}))
    rows = [("n", 0, peak, 1.0, high, 1.0), ("other", 0, 1.0, 1.0, 1.0, 1.0)]
    columns, found, notes = read_limits(read_nodes(nodes), "", None).judge(COLUMNS, rows, "node")
    assert len(columns) == len(COLUMNS) + 4
    assert any("no limit is known" in note for note in notes)
    assert found[1][-3:] == (None, None, "")
    return found[0][6], found[0][8], found[0][9]


@pytest.mark.parametrize(
    ("peak", "high", "kind", "wanted"),
    [
        (8e9, 1e8, "m5.large", ("m5.large", 0.8, "near the limit")),
        (7.9e9, 7e8, "m5.large", ("m5.large", 0.79, "near the baseline")),
        (1e9, 5e8, "m5.large", ("m5.large", 0.1, "")),
        (9e9, 9e9, "mystery", ("mystery", None, "")),
        (9e9, 9e9, "", ("", None, "")),
    ],
)
def test_a_warning_comes_near_the_limit(
    tmp_path: Path, peak: float, high: float, kind: str, wanted: tuple[str, float | None, str]
) -> None:
    assert judged(tmp_path, peak, high, kind) == wanted


def test_where_only_sending_is_limited_receiving_warns_of_nothing() -> None:
    rows = [("n", 0, 1.0, 31e9, 1.0, 31e9)]
    _, found, _ = read_limits({}, "n2-standard-16", None).judge(COLUMNS, rows, "node")
    assert found[0][9] == ""
    _, found, _ = read_limits({}, "m5.large", None).judge(COLUMNS, rows, "node")
    assert found[0][9] == "near the limit"


def test_limits_of_ones_own_add_and_override(tmp_path: Path) -> None:
    document = json.loads(BUILT_IN.read_text())
    assert all(cloud["source"].startswith("https://") and cloud["date"] for cloud in document["clouds"])
    types = {
        "m5.large": {"baseline_gbps": 1, "burst_gbps": 2},
        "ours": {"baseline_gbps": "0.5", "burst_gbps": 1},
    }
    document["clouds"] = [{"cloud": "own", "limits": "each way", "types": types}]
    own = tmp_path / "own.json"
    own.write_text(json.dumps(document))
    limits = read_limits({}, "ours", own)
    assert limits.of_node("any") == ("ours", limits.bandwidths["ours"])
    assert limits.bandwidths["m5.large"].burst == 2e9
    own.write_text(own.read_text().replace('"0.5"', "3"))
    with pytest.raises(ConfigurationError, match="baseline_gbps <= burst_gbps"):
        read_limits({}, "", own)
    own.write_text('{"format": 1}')
    with pytest.raises(ConfigurationError, match="is no file of limits"):
        read_limits({}, "", own)
    own.write_text("[]")
    with pytest.raises(ConfigurationError, match="is not what `kubectl get nodes -o json` prints"):
        read_nodes(own)
