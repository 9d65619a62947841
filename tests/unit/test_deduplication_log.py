"""The repair of deduplication logs on files made by hand: what counts as present, what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from kubenetmon.clickhouse.deduplication_log import forget_tokens_without_part

TABLE = "store/abc/abcdef"


def make_table(path: Path, parts: list[str], *logs: str) -> Path:
    table = path / TABLE
    for part in parts:
        (table / part).mkdir(parents=True)
    directory = table / "deduplication_logs"
    directory.mkdir(parents=True)
    for number, text in enumerate(logs, 1):
        (directory / f"deduplication_log_{number}.txt").write_text(text)
    return directory


def lines(*records: tuple[int, str, str]) -> str:
    return "".join(f"{operation}\t{part}\t{token}\n" for operation, part, token in records)


def test_a_token_without_part_is_taken_back_in_the_last_log(tmp_path: Path) -> None:
    first = lines((1, "20260101_1_1_0", "a"), (1, "20260101_2_2_0", "b"))
    last = lines((1, "20260101_3_3_0", "c"))
    directory = make_table(tmp_path, ["20260101_1_1_0"], first, last)
    assert forget_tokens_without_part(tmp_path) == 2
    assert (directory / "deduplication_log_1.txt").read_text() == first
    added = lines((2, "20260101_2_2_0", "b"), (2, "20260101_3_3_0", "c"))
    assert (directory / "deduplication_log_2.txt").read_text() == last + added
    assert forget_tokens_without_part(tmp_path) == 0


@pytest.mark.parametrize(
    "part", ["20260101_5_5_1", "20260101_1_9_2", "20260101_5_5_0_17", "20260101_4_6_3_20"]
)
def test_rows_are_present_in_any_part_that_contains_theirs(tmp_path: Path, part: str) -> None:
    make_table(tmp_path, [part], lines((1, "20260101_5_5_0", "a")))
    assert forget_tokens_without_part(tmp_path) == 0


@pytest.mark.parametrize(
    "part",
    [
        "20260102_5_5_0",
        "20260101_6_9_1",
        "tmp_insert_20260101_5_5_0",
        "detached",
        "delete_tmp_20260101_5_5_0",
    ],
)
def test_rows_elsewhere_are_not_these_rows(tmp_path: Path, part: str) -> None:
    make_table(tmp_path, [part], lines((1, "20260101_5_5_0", "a")))
    assert forget_tokens_without_part(tmp_path) == 1


def test_a_token_dropped_or_given_again_counts_by_its_last_line(tmp_path: Path) -> None:
    log = lines((1, "all_1_1_0", "a"), (2, "all_1_1_0", "a"), (1, "all_1_1_0", "b"), (1, "all_2_2_0", "b"))
    make_table(tmp_path, ["all_2_2_0"], log)
    assert forget_tokens_without_part(tmp_path) == 0


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    whole = lines((1, "all_1_1_0", "a"))
    directory = make_table(tmp_path, ["all_1_1_0"], whole + "1\tall_2_2")
    assert forget_tokens_without_part(tmp_path) == 0
    assert (directory / "deduplication_log_1.txt").read_text() == whole


def test_what_it_does_not_understand_it_leaves_alone(tmp_path: Path) -> None:
    text = "1\tall_1_1_0\ta\tmore\n"
    directory = make_table(tmp_path, [], text)
    (directory / "notes.txt").write_text("mine")
    assert forget_tokens_without_part(tmp_path) == 0
    assert (directory / "deduplication_log_1.txt").read_text() == text


def test_an_empty_directory_is_nothing_to_do(tmp_path: Path) -> None:
    assert forget_tokens_without_part(tmp_path) == 0
    make_table(tmp_path, [])
    assert forget_tokens_without_part(tmp_path) == 0
