"""`FlowBatch` messages into arrays: what is right comes through unchanged, what is wrong is named."""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubenetmon.errors import ProtocolError
from kubenetmon.model import ARRAY_NAMES, BatchIdentity
from kubenetmon.proto import IPV4_RECORD_BYTES, IPV6_RECORD_BYTES, MAX_BATCH_BYTES, FlowArrays, FlowBatch
from kubenetmon.server.decode import InconsistentBatch, decode_batch
from tests.beds.receiving import NOW, batch_message, random_arrays


@settings(max_examples=40)
@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**31))
def test_a_batch_comes_through_unchanged(count: int, ipv6: int, seed: int) -> None:
    message = batch_message(count, ipv6=ipv6, sequence=seed + 1)
    batch = decode_batch(bytes(message), NOW)
    assert batch.identity == BatchIdentity("node-1", message.epoch, seed + 1)
    assert (batch.interval_start, batch.interval_end) == (NOW, NOW + 60)
    assert (len(batch.ipv4), len(batch.ipv6)) == (count, ipv6)
    parsed = FlowBatch.parse(bytes(message))
    if parsed.ipv4 is not None:
        for name in ARRAY_NAMES:
            assert getattr(batch.ipv4, name).tobytes() == getattr(parsed.ipv4, name)
        assert batch.ipv4.start_time is None or batch.ipv4.start_time.tobytes() == parsed.ipv4.start_time
    if parsed.ipv6 is not None:
        for name in ARRAY_NAMES:
            array = getattr(batch.ipv6, name)
            if name.endswith("_address"):
                array = array.astype(">u8")
            assert array.tobytes() == getattr(parsed.ipv6, name)


def test_ipv6_addresses_are_high_and_low_half() -> None:
    message = batch_message(0, ipv6=1)
    assert message.ipv6 is not None
    address = ipaddress.IPv6Address("2001:db8:1:2:3:4:5:6")
    message.ipv6.original_source_address = address.packed
    high, low = decode_batch(bytes(message), NOW).ipv6.original_source_address[0]
    assert int(high) << 64 | int(low) == int(address)


def test_arrays_are_aligned_and_read_only() -> None:
    batch = decode_batch(bytes(batch_message(3)), NOW)
    for name in ARRAY_NAMES:
        array = getattr(batch.ipv4, name)
        assert array.flags.aligned
        assert not array.flags.writeable


def test_the_largest_batch_is_accepted_and_one_more_record_is_not() -> None:
    most = MAX_BATCH_BYTES // IPV4_RECORD_BYTES
    assert len(decode_batch(bytes(batch_message(most)), NOW)) == most
    with pytest.raises(InconsistentBatch, match="arrays take"):
        decode_batch(bytes(batch_message(most + 1)), NOW)
    with pytest.raises(InconsistentBatch, match="arrays take"):
        decode_batch(bytes(batch_message(most // 2, ipv6=most * IPV4_RECORD_BYTES // IPV6_RECORD_BYTES)), NOW)


def change(**values: object) -> Callable[[FlowBatch], None]:
    def apply(message: FlowBatch) -> None:
        for name, value in values.items():
            setattr(message, name, value)

    return apply


def change_arrays(**values: object) -> Callable[[FlowBatch], None]:
    def apply(message: FlowBatch) -> None:
        for name, value in values.items():
            setattr(message.ipv4, name, value)

    return apply


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change(node_name=""), "node_name is empty"),
        (change(node_name="n" * 254), "node_name has 254 bytes"),
        (change(node_name="a\nb"), "node_name has control characters"),
        (change(epoch=b"short"), "epoch has 5 bytes"),
        (change(sequence=0), "sequence is 0"),
    ],
)
def test_without_identity_the_message_is_refused(damage: Callable[[FlowBatch], None], complaint: str) -> None:
    message = batch_message()
    damage(message)
    with pytest.raises(ProtocolError, match=complaint) as caught:
        decode_batch(bytes(message), NOW)
    assert not isinstance(caught.value, InconsistentBatch)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (change(interval_end=NOW), "is not later than interval_start"),
        (change(interval_start=1_500_000_000), "before 2020"),
        (change(interval_start=NOW + 90_000, interval_end=NOW + 90_060), "ahead of this server's clock"),
        (change(interval_start=NOW - 31 * 86400), "longer than"),
        (change(interval_end=2**63), "ahead of this server's clock"),
        (change_arrays(count=11), r"ipv4.protocol has 10 bytes, not 11 x 1"),
        (change_arrays(count=0xFFFF_FFFF), "ipv4.protocol has 10 bytes"),
        (change_arrays(reply_bytes=b"\0" * 79), r"ipv4.reply_bytes has 79 bytes, not 10 x 8"),
        (change_arrays(start_time=b"\0" * 39), r"ipv4.start_time has 39 bytes, not 10 x 4"),
        (change_arrays(original_source_address=b""), "ipv4.original_source_address has 0 bytes"),
        (change_arrays(protocol=b"\x06" * 9 + b"\x01"), "ipv4.protocol has numbers other than"),
        (change_arrays(original_bytes=b"\xff" * 80), "bytes add up to"),
        (change_arrays(reply_packets=b"\xff" * 80), "packets add up to"),
    ],
)
def test_with_identity_the_batch_is_rejected_by_name(
    damage: Callable[[FlowBatch], None], complaint: str
) -> None:
    message = batch_message(10, sequence=7)
    damage(message)
    with pytest.raises(InconsistentBatch, match=complaint) as caught:
        decode_batch(bytes(message), NOW)
    assert caught.value.identity == BatchIdentity("node-1", message.epoch, 7)


def test_the_time_of_a_flows_start_may_be_missing() -> None:
    message = batch_message(3)
    assert message.ipv4 is not None
    message.ipv4.start_time = b""
    assert decode_batch(bytes(message), NOW).ipv4.start_time is None
    message.ipv4.start_time = np.array([0, 1, 2**32 - 1], "<u4").tobytes()
    decoded = decode_batch(bytes(message), NOW).ipv4.start_time
    assert decoded is not None
    assert decoded.tolist() == [0, 1, 2**32 - 1]


def test_every_truncation_is_refused() -> None:
    data = bytes(batch_message(1, ipv6=1))
    for length in range(len(data)):
        shorter = data[:length]
        try:
            batch = decode_batch(shorter, NOW)
        except ProtocolError:
            continue
        # Cut between two fields it is a shorter message: here the one without IPv6.
        assert bytes(FlowBatch.parse(shorter)) == shorter
        assert len(batch) < 2


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode_batch(data, NOW)


@given(st.data())
def test_changed_bytes_give_a_consistent_batch_or_an_error(data: st.DataObject) -> None:
    message = bytearray(bytes(batch_message(2, ipv6=1, epoch=b"e" * 16)))
    for _ in range(data.draw(st.integers(1, 4))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    try:
        batch = decode_batch(bytes(message), NOW)
    except ProtocolError:
        return
    for records in (batch.ipv4, batch.ipv6):
        assert {len(getattr(records, name)) for name in ARRAY_NAMES} == {len(records)}
        assert set(np.unique(records.protocol)) <= {6, 17}


def test_unknown_fields_are_skipped() -> None:
    message = (
        bytes(batch_message(3)) + b"\xa2\x06\x03abc" + b"\xa8\x06\x01" + b"\xad\x06abcd" + b"\xa9\x06abcdefgh"
    )
    assert len(decode_batch(message, NOW)) == 3


def test_a_batch_without_records_is_one() -> None:
    assert len(decode_batch(bytes(batch_message(0)), NOW)) == 0
    message = batch_message(0)
    message.ipv4, message.ipv6 = FlowArrays(), random_arrays(0, 6)
    assert len(decode_batch(bytes(message), NOW)) == 0


def test_a_message_of_many_small_fields_costs_nothing() -> None:
    started = time.process_time()
    with pytest.raises(ProtocolError, match="more than 256 fields"):
        decode_batch(b"\xa8\x06\x01" * 300_000, NOW)
    assert time.process_time() - started < 0.5
