"""Files of batches: marked before they leave, removed when they were answered for, kept when refused."""

from __future__ import annotations

import logging
import struct
from pathlib import Path

import pytest

from kubenetmon.agent.metered import SealedRecords
from kubenetmon.agent.outbox import Outbox
from kubenetmon.agent.state import SENT_BY_PUSH, SENT_BY_SUBMIT, SENT_OFFSET, StateDirectory, batch_name
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_METRICS
from kubenetmon.proto import FlowArrays, Outcome
from tests.beds.virtual_clock import VirtualClock

CONTENTS = bytes(range(256)) * 2


def make(path: Path, batches: int) -> tuple[Outbox, StateDirectory]:
    """An outbox with so many batches, and their files, as the ledger leaves them."""
    metrics = Metrics(AGENT_METRICS)
    state = StateDirectory(path, metrics=metrics)
    outbox = Outbox("node-a", metrics=metrics, clock=VirtualClock(), store=state)
    outbox.put([SealedRecords(FlowArrays(count=1), FlowArrays(), 1, 100, 1)] * batches, 0, 60)
    for sequence in range(1, batches + 1):
        (path / batch_name(sequence)).write_bytes(CONTENTS)
    return outbox, state


def mark_of(path: Path, sequence: int) -> int:
    contents = (path / batch_name(sequence)).read_bytes()
    assert contents[:SENT_OFFSET] == CONTENTS[:SENT_OFFSET]
    assert contents[SENT_OFFSET + 8 :] == CONTENTS[SENT_OFFSET + 8 :]
    return int(struct.unpack_from("=Q", contents, SENT_OFFSET)[0])


def test_a_batch_is_marked_by_the_way_it_leaves_and_nothing_else_changes(tmp_path: Path) -> None:
    outbox, _ = make(tmp_path, 3)
    pushed, submitted, _ = outbox.waiting()
    outbox.leaves_by_push(pushed)
    outbox.leaves_by_submit(submitted)
    assert mark_of(tmp_path, 1) == SENT_BY_PUSH
    assert mark_of(tmp_path, 2) == SENT_BY_SUBMIT
    assert (tmp_path / batch_name(3)).read_bytes() == CONTENTS


def test_a_batch_that_was_answered_for_is_removed(tmp_path: Path) -> None:
    outbox, state = make(tmp_path, 4)
    for outcome in (Outcome.COMMITTED, Outcome.RETRY_LATER):
        outbox.settle(outbox.epoch, 1, outcome, "")
    outbox.settle(outbox.epoch, 2, Outcome.RETRY_LATER, "")
    _, third, fourth = outbox.waiting()
    outbox.submitted(third)
    outbox.submit_unknown(fourth)
    assert state.sequences() == [2]


def test_a_rejected_batch_is_kept_with_the_reason(tmp_path: Path) -> None:
    outbox, state = make(tmp_path, 2)
    outbox.settle(outbox.epoch, 1, Outcome.REJECTED, "too old")
    name = f"rejected-{outbox.epoch.hex()}-{1:020d}"
    assert (tmp_path / name).read_bytes() == CONTENTS
    assert (tmp_path / f"{name}.reason").read_text() == "too old\n"
    assert state.sequences() == [2]
    assert [batch.sequence for batch in outbox.waiting()] == [2]


def test_the_newest_eight_rejected_batches_are_kept(tmp_path: Path) -> None:
    outbox, _ = make(tmp_path, 11)
    for sequence in range(1, 12):
        outbox.settle(outbox.epoch, sequence, Outcome.REJECTED, f"reason {sequence}")
    kept = sorted(path.name for path in tmp_path.glob("rejected-*"))
    wanted = [f"rejected-{outbox.epoch.hex()}-{sequence:020d}" for sequence in range(4, 12)]
    assert kept == sorted(name for base in wanted for name in (base, f"{base}.reason"))


def test_batches_without_files_go_their_way_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outbox, _ = make(tmp_path, 3)
    for path in tmp_path.iterdir():
        path.unlink()
    first, second, third = outbox.waiting()
    outbox.leaves_by_push(first)
    outbox.leaves_by_submit(second)
    outbox.settle(outbox.epoch, 1, Outcome.COMMITTED, "")
    outbox.submitted(second)
    outbox.settle(outbox.epoch, 3, Outcome.REJECTED, "too old")
    assert outbox.empty
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1, "that of the rejection"
    assert third.sequence == 3


def test_a_file_that_cannot_be_removed_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    outbox, _ = make(tmp_path, 1)
    (tmp_path / batch_name(1)).unlink()
    (tmp_path / batch_name(1)).mkdir()
    outbox.settle(outbox.epoch, 1, Outcome.COMMITTED, "")
    assert outbox.empty
    [record] = caplog.records
    assert "Batch 1" in record.getMessage()
    assert str(tmp_path) in record.getMessage()
