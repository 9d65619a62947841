"""The outbox: identities and bytes are fixed, nothing leaves unanswered, the bound holds."""

from __future__ import annotations

import logging
from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kubenetmon.agent.batch import serialise
from kubenetmon.agent.metered import SealedRecords
from kubenetmon.agent.outbox import MAX_REPORTS, MAX_WAITING_BYTES, Outbox, SealedBatch
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import (
    AGENT_BATCH_BYTES,
    AGENT_BATCHES,
    AGENT_METRICS,
    AGENT_UNACKNOWLEDGED,
)
from kubenetmon.proto import (
    EPOCH_BYTES,
    IPV4_RECORD_BYTES,
    MAX_BATCH_BYTES,
    MAX_MESSAGE_BYTES,
    FlowArrays,
    FlowBatch,
    Outcome,
)
from tests.beds.virtual_clock import VirtualClock


def records(metered: int = 1000) -> SealedRecords:
    return SealedRecords(FlowArrays(count=2, protocol=b"\x06\x11"), FlowArrays(), 2, metered, 5)


def make(node_name: str = "node-a") -> tuple[Outbox, Metrics]:
    metrics = Metrics(AGENT_METRICS)
    return Outbox(node_name, metrics=metrics, clock=VirtualClock()), metrics


def test_sequences_count_from_one_without_holes_in_one_epoch() -> None:
    outbox, _ = make()
    outbox.put([records(), records()], 60, 120)
    outbox.put([], 120, 180)
    outbox.put([records()], 180, 240)
    parsed = [FlowBatch().parse(batch.message) for batch in outbox.waiting()]
    assert [batch.sequence for batch in parsed] == [1, 2, 3]
    assert {batch.epoch for batch in parsed} == {outbox.epoch}
    assert [(batch.interval_start, batch.interval_end) for batch in parsed] == [(60, 120)] * 2 + [(180, 240)]
    assert parsed[0].ipv4 is not None
    assert (parsed[0].node_name, parsed[0].ipv4.count, parsed[0].ipv4.protocol) == ("node-a", 2, b"\x06\x11")


def test_every_outbox_has_an_epoch_of_its_own() -> None:
    epochs = {make()[0].epoch for _ in range(20)}
    assert len(epochs) == 20
    assert {len(epoch) for epoch in epochs} == {EPOCH_BYTES}


def test_it_is_full_at_a_number_of_reports_not_of_batches() -> None:
    outbox, _ = make()
    for number in range(MAX_REPORTS):
        assert not outbox.full
        outbox.put([records()] * 5, number, number + 1)
    assert outbox.full
    for sequence in range(1, 5):
        outbox.settle(outbox.epoch, sequence, Outcome.COMMITTED, "")
        assert outbox.full
    outbox.settle(outbox.epoch, 5, Outcome.COMMITTED, "")
    assert not outbox.full


def test_large_reports_fill_it_earlier() -> None:
    outbox, _ = make()
    large = SealedRecords(FlowArrays(count=1, protocol=bytes(MAX_WAITING_BYTES // 4)), FlowArrays(), 1, 1, 1)
    outbox.put([large] * 2, 0, 1)
    assert not outbox.full
    outbox.put([large] * 2, 1, 2)
    assert outbox.full


def test_an_interval_needs_a_length() -> None:
    outbox, _ = make()
    with pytest.raises(ValueError, match="no length"):
        outbox.put([records()], 60, 60)


def test_the_largest_batch_fits_one_message_with_the_longest_name() -> None:
    outbox, _ = make("n" * 253)
    full = MAX_BATCH_BYTES // IPV4_RECORD_BYTES * IPV4_RECORD_BYTES
    part = SealedRecords(FlowArrays(count=1, protocol=b"\x06" * full), FlowArrays(), 1, 1, 1)
    outbox.put([part], 2**40, 2**40 + 1)
    assert len(outbox.waiting()[0].message) <= MAX_MESSAGE_BYTES


def test_a_rejected_batch_is_named_with_its_bytes_and_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    outbox, metrics = make()
    outbox.put([records(4321)], 0, 60)
    outbox.settle(outbox.epoch, 1, Outcome.REJECTED, "too old")
    assert outbox.empty
    record = caplog.records[-1]
    assert record.levelno == logging.ERROR
    assert "4321 bytes" in record.getMessage()
    assert "too old" in record.getMessage()
    assert metrics.value(AGENT_BATCH_BYTES, outcome="rejected") == 4321


def test_an_answer_for_another_epoch_or_an_unknown_sequence_changes_nothing() -> None:
    outbox, metrics = make()
    outbox.put([records()], 0, 60)
    assert outbox.settle(b"x" * 16, 1, Outcome.COMMITTED, "") is None
    assert outbox.settle(outbox.epoch, 2, Outcome.COMMITTED, "") is None
    assert len(outbox.waiting()) == 1
    assert metrics.value(AGENT_BATCHES, outcome="committed") == 0


steps = st.one_of(
    st.tuples(st.just("put"), st.integers(0, 3)),
    st.tuples(st.sampled_from(["COMMITTED", "REJECTED", "RETRY_LATER", "UNSPECIFIED"]), st.integers(1, 12)),
    st.tuples(st.sampled_from(["submitted", "submit_unknown"]), st.integers(0, 5)),
)


@given(st.lists(steps, max_size=40))
def test_sealed_is_always_settled_plus_waiting_and_bytes_never_change(history: list[tuple[str, int]]) -> None:
    outbox, metrics = make()
    first_seen: dict[int, bytes] = {}
    for number, (step, argument) in enumerate(history):
        if step == "put":
            outbox.put([records(number + 1)] * argument, number, number + 1)
        elif step in ("submitted", "submit_unknown"):
            if argument < len(outbox.waiting()):
                getattr(outbox, step)(outbox.waiting()[argument])
        else:
            outbox.settle(outbox.epoch, argument, Outcome[step], "")
        for batch in outbox.waiting():
            assert first_seen.setdefault(batch.sequence, batch.message) == batch.message
        sequences = [batch.sequence for batch in outbox.waiting()]
        assert sequences == sorted(sequences)
        for spec, waiting in (
            (AGENT_BATCHES, len(sequences)),
            (AGENT_BATCH_BYTES, outbox.unsettled_bytes),
        ):
            settled = sum(
                metrics.value(spec, outcome=outcome)
                for outcome in ("committed", "rejected", "submitted", "submit_unknown")
            )
            assert metrics.value(spec, outcome="sealed") == settled + waiting
        metrics.render()
        assert metrics.value(AGENT_UNACKNOWLEDGED) == len(sequences)


columns = st.builds(
    FlowArrays, st.integers(0, 2**32 - 1), *[st.binary(max_size=300)] * len(fields(FlowArrays)[1:])
)


@given(
    st.text(max_size=253),
    st.binary(max_size=16),
    *[st.integers(0, 2**64 - 1)] * 3,
    columns,
    columns,
)
def test_the_message_is_what_a_protobuf_library_reads(
    name: str, epoch: bytes, sequence: int, begin: int, end: int, ipv4: FlowArrays, ipv6: FlowArrays
) -> None:
    message = serialise(
        node_name=name,
        epoch=epoch,
        sequence=sequence,
        interval_start=begin,
        interval_end=end,
        ipv4=ipv4,
        ipv6=ipv6,
    )
    assert FlowBatch().parse(message) == FlowBatch(name, epoch, sequence, begin, end, ipv4, ipv6)


def left_behind(sequence: int, report: int, epoch: bytes, *, pushed: bool = False) -> SealedBatch:
    return SealedBatch(
        sequence=sequence,
        report=report,
        message=b"as it was",
        records=2,
        metered_bytes=100,
        sealed_at=0.0,
        epoch=epoch,
        went_by_push=pushed,
    )


def test_what_an_agent_before_left_goes_on_under_its_own_identity() -> None:
    outbox, metrics = make()
    older, old = b"a" * EPOCH_BYTES, b"b" * EPOCH_BYTES
    adopted = [left_behind(7, 3, older, pushed=True), left_behind(8, 4, old), left_behind(9, 4, old)]
    outbox.adopt(old, 10, 5, adopted)
    assert outbox.changed.is_set()
    assert outbox.waiting() == adopted
    assert metrics.value(AGENT_BATCHES, outcome="sealed") == 3
    assert not outbox.full
    outbox.put([records()], 60, 120)
    assert outbox.full, "three reports, in four batches"
    fresh = FlowBatch().parse(outbox.waiting()[-1].message)
    assert (fresh.epoch, fresh.sequence) == (old, 10)
    assert [batch.message for batch in outbox.waiting()[:3]] == [b"as it was"] * 3
    assert outbox.settle(old, 7, Outcome.COMMITTED, "") is None, "an answer to the ledger before is no answer"
    assert outbox.settle(older, 7, Outcome.COMMITTED, "") is adopted[0]
    assert outbox.settle(old, 8, Outcome.COMMITTED, "") is adopted[1]
    assert not outbox.empty
    assert metrics.value(AGENT_BATCH_BYTES, outcome="committed") == 200


def test_adopting_nothing_only_sets_the_numbers() -> None:
    outbox, _ = make()
    outbox.adopt(b"c" * EPOCH_BYTES, 5, 2, [])
    assert outbox.empty
    assert not outbox.changed.is_set()
    outbox.put([records()], 60, 120)
    [batch] = outbox.waiting()
    assert (batch.epoch, batch.sequence, batch.report) == (b"c" * EPOCH_BYTES, 5, 2)


def test_batches_cannot_be_adopted_behind_others() -> None:
    outbox, _ = make()
    outbox.put([records()], 60, 120)
    with pytest.raises(AssertionError):
        outbox.adopt(b"c" * EPOCH_BYTES, 5, 2, [])
