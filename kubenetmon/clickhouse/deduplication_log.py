"""Repairs the deduplication logs of plain MergeTree tables before the engine opens them.

A plain MergeTree table appends `1 <tab> part <tab> block id` to its log and only then renames the part's
temporary directory into place. An engine killed in between answers a repeated token with "duplicate" though
the rows are not there. So, before the engine opens the directory: every token that the log still holds
without a part that contains its rows is taken back, with the `2 <tab> part <tab> block id` line that the
engine itself writes when a part is dropped.

Source: ClickHouse, src/Storages/MergeTree/MergeTreeDeduplicationLog.cpp and MergeTreeSink.cpp; kept honest by
the SIGKILL tests in tests/clickhouse.

Contract: call it with the directory locked and no engine on it. Files it does not understand it leaves alone.
"""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger(__name__)

_LOG_NAME = re.compile(r"deduplication_log_(\d+)\.txt")
_PART_NAME = re.compile(r"([^_]+)_(\d+)_(\d+)_(\d+)(?:_\d+)?")
_ADD, _DROP = "1", "2"


@dataclass(frozen=True, slots=True)
class _Part:
    partition: str
    first_block: int
    last_block: int

    def contains(self, other: _Part) -> bool:
        return self.first_block <= other.first_block and other.last_block <= self.last_block


def forget_tokens_without_part(path: Path) -> int:
    """Repair every table below an engine's directory; returns the number of tokens taken back."""
    tables = {
        log.parent.resolve()
        for pattern in ("store/*/*/deduplication_logs", "data/*/*/deduplication_logs")
        for log in path.glob(pattern)
    }
    return sum(_repair(table) for table in tables)


def _repair(table: Path) -> int:
    logs = _log_files(table / "deduplication_logs")
    if not logs:
        return 0
    remembered: dict[str, str] = {}
    torn = False
    for log in logs:
        content = log.read_text("utf-8", "replace")
        torn = bool(content) and not content.endswith("\n")
        lines = content.splitlines()
        if torn:
            lines.pop()
        for line in lines:
            fields = line.split("\t")
            if len(fields) != 3:
                logger.warning("The deduplication log %s has a line that cannot be read; left as it is", log)
                return 0
            operation, part_name, block_id = fields
            if operation == _ADD:
                remembered[block_id] = part_name
            else:
                remembered.pop(block_id, None)
    last = logs[-1]
    if torn:
        os.truncate(last, last.read_bytes().rfind(b"\n") + 1)
    present = _parts(table)
    lost = []
    for block_id, part_name in remembered.items():
        part = _parsed(part_name)
        if part is not None and not any(one.contains(part) for one in present.get(part.partition, ())):
            lost.append(f"{_DROP}\t{part_name}\t{block_id}\n")
    if lost:
        with last.open("a", encoding="utf-8") as stream:
            stream.write("".join(lost))
        logger.info("Took back %d deduplication tokens whose rows were never stored", len(lost))
    return len(lost)


def _log_files(directory: Path) -> list[Path]:
    numbered = [
        (int(found[1]), file) for file in directory.iterdir() if (found := _LOG_NAME.fullmatch(file.name))
    ]
    return [file for _, file in sorted(numbered)]


def _parts(table: Path) -> dict[str, list[_Part]]:
    present: dict[str, list[_Part]] = {}
    for entry in table.iterdir():
        part = _parsed(entry.name)
        if part is not None:
            present.setdefault(part.partition, []).append(part)
    return present


def _parsed(name: str) -> _Part | None:
    found = _PART_NAME.fullmatch(name)
    if found is None or found[1] in ("tmp", "delete", "detached"):
        return None
    return _Part(found[1], int(found[2]), int(found[3]))
