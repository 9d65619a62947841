"""The C decoder of Observations, against two protobuf implementations.

google.protobuf is the judge of what proto3 is. betterproto2 is compared where it can be: it takes messages
that are cut short for whole ones and replaces submessages instead of merging them.
"""

from __future__ import annotations

import ipaddress
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from grpc_tools import protoc
from hypothesis import given, settings
from hypothesis import strategies as st

import kubenetmon.proto
from kubenetmon.errors import ProtocolError
from kubenetmon.model import FlowBatch, FlowRecords
from kubenetmon.proto import L4Endpoint, Observation, ObservedFlow, ObservedTuple
from kubenetmon.server.observations import (
    CompressedMessage,
    IdentitySource,
    ObservationDecoder,
    OversizeMessage,
    Slice,
)
from tests.beds.receiving import NOW, framed, observation

LIMIT = 1 << 20
U32, U64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """google.protobuf's class for Observation."""
    directory = kubenetmon.proto.__path__[0]
    output = tmp_path_factory.mktemp("proto") / "set.pb"
    assert (
        protoc.main(["", f"-I{directory}", f"--descriptor_set_out={output}", f"{directory}/grpc.proto"]) == 0
    )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(output.read_bytes()).file:
        pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("grpc.Observation"))


def decode(*messages: bytes, capacity: int = 1000, now: float = NOW) -> Slice:
    decoder = ObservationDecoder(capacity, LIMIT)
    assert decoder.feed(framed(*messages)) is False
    return decoder.take(IdentitySource(b"e" * 16), now)


Row = tuple[Any, ...]


def rows_of(batch: FlowBatch) -> list[Row]:
    """Each record as plain values: node, minute, protocol, addresses, ports, counters."""
    found: list[Row] = []
    for records in (batch.ipv4, batch.ipv6):
        for i in range(len(records)):
            addresses = tuple(_address(getattr(records, name)[i]) for name in ADDRESSES)
            ports = tuple(int(getattr(records, name)[i]) for name in PORTS)
            counters = tuple(int(getattr(records, name)[i]) for name in COUNTERS)
            protocol = int(records.protocol[i])
            found.append(
                (batch.identity.node_name, batch.interval_start, protocol, addresses, ports, counters)
            )
    return found


SIDES = ("original_source", "original_destination", "reply_source", "reply_destination")
ADDRESSES = tuple(f"{side}_address" for side in SIDES)
PORTS = tuple(f"{side}_port" for side in SIDES)
COUNTERS = ("original_packets", "original_bytes", "reply_packets", "reply_bytes")


def _address(value: Any) -> str:
    if value.ndim == 0:
        return str(ipaddress.IPv4Address(int(value)))
    return str(ipaddress.IPv6Address(int(value[0]) << 64 | int(value[1])))


def expected_row(message: Any, present: Any) -> Row | str:
    """What must become of a parsed message; `present` tells an endpoint's address or None."""
    flow = message.flow
    tuples = (flow.original, flow.reply)
    endpoints = [end for item in tuples for end in (item.source, item.destination)]
    if flow.proto not in (6, 17):
        return "protocol"
    addresses = [present(endpoint) for endpoint in endpoints]
    if None in addresses or len({len(address.packed) for address in addresses}) != 1:
        return "address"
    seconds = message.timestamp
    if not 1577836800 <= seconds < NOW + 86400:
        seconds = NOW
    return (
        message.node_name,
        seconds - seconds % 60,
        flow.proto,
        tuple(str(address) for address in addresses),
        tuple(endpoint.port & 0xFFFF for endpoint in endpoints),
        (flow.original.packets, flow.original.bytes, flow.reply.packets, flow.reply.bytes),
    )


def judged_address(endpoint: Any) -> Any:
    kind = endpoint.WhichOneof("ip_addr")
    if kind is None:
        return None
    if kind == "v4":
        return ipaddress.IPv4Address(endpoint.v4)
    if len(endpoint.v6) != 16:
        return None
    address = ipaddress.IPv6Address(endpoint.v6)
    return address.ipv4_mapped or address


def check(data: bytes, judge: Any) -> None:
    """The decoder and the judge agree on these bytes, but for names that no node can have."""
    try:
        message = judge.FromString(data)
    except DecodeError:
        with pytest.raises(ProtocolError):
            decode(data)
        return
    if len(message.node_name.encode()) > 253 or any(c < " " or c == "\x7f" for c in message.node_name):
        with pytest.raises(ProtocolError, match="node_name"):
            decode(data)
        return
    expected = expected_row(message, judged_address)
    counters = (message.flow.original, message.flow.reply)
    if not isinstance(expected, str) and any(
        sum(getattr(item, unit) for item in counters) > 2**61 for unit in ("bytes", "packets")
    ):
        return  # see test_counters_no_node_can_reach
    taken = decode(data)
    assert taken.observations == 1
    if expected == "protocol":
        assert (taken.bad_protocol.observations, taken.batches) == (1, ())
    elif expected == "address":
        assert (taken.bad_address.observations, taken.batches) == (1, ())
    else:
        assert rows_of(taken.batches[0]) == [expected]


endpoints = st.builds(
    lambda address, port: L4Endpoint(**address, port=port),
    st.one_of(
        st.just({}),
        U32.map(lambda value: {"v4": value}),
        st.binary(min_size=16, max_size=16).map(lambda value: {"v6": value}),
        U32.map(lambda value: {"v6": bytes(10) + b"\xff\xff" + value.to_bytes(4, "big")}),
        st.binary(max_size=20).map(lambda value: {"v6": value}),
    ),
    U32,
)
ipv6_endpoints = st.builds(L4Endpoint, v6=st.binary(min_size=16, max_size=16), port=st.integers(0, 65535))
SMALL = st.integers(0, 2**60)


def tuples_of(ends: Any) -> Any:
    return st.one_of(
        st.none(),
        st.builds(
            ObservedTuple,
            source=st.one_of(st.none(), ends),
            destination=st.one_of(st.none(), ends),
            packets=SMALL,
            bytes=SMALL,
        ),
    )


flows = st.one_of(
    [
        st.builds(
            ObservedFlow, proto=st.sampled_from([6, 17]), original=tuples_of(ends), reply=tuples_of(ends)
        )
        for ends in (endpoints, ipv6_endpoints)
    ]
)
observations = st.builds(
    Observation,
    flow=st.one_of(st.none(), flows, st.builds(ObservedFlow, proto=U32)),
    node_name=st.text(max_size=300),
    timestamp=st.one_of(U64, st.integers(NOW - 10**6, NOW + 10**5)),
)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


numbers = st.one_of(st.integers(1, 5), st.integers(0, 2**30))
leaf_fields = st.one_of(
    st.builds(lambda n, v: varint(n << 3) + varint(v), numbers, U64),
    st.builds(lambda n, v: varint(n << 3 | 1) + v, numbers, st.binary(min_size=8, max_size=8)),
    st.builds(lambda n, v: varint(n << 3 | 5) + v, numbers, st.binary(min_size=4, max_size=4)),
    st.builds(lambda n, v: varint(n << 3 | 2) + varint(len(v)) + v, numbers, st.binary(max_size=20)),
)


def nested(inner: Any) -> Any:
    parts = st.lists(inner, max_size=5).map(b"".join)
    return st.one_of(
        st.builds(lambda n, v: varint(n << 3 | 2) + varint(len(v)) + v, numbers, parts),
        st.builds(lambda n, v: varint(n << 3 | 3) + v + varint(n << 3 | 4), numbers, parts),
    )


protobuf_soup = st.lists(st.recursive(leaf_fields, nested, max_leaves=12), max_size=6).map(b"".join)


@given(observations)
def test_what_betterproto2_encodes_is_read_as_google_reads_it(judge: Any, message: Observation) -> None:
    check(bytes(message), judge)


@given(observations)
def test_what_betterproto2_encodes_is_read_as_betterproto2_reads_it(message: Observation) -> None:
    parsed = Observation.parse(bytes(message))
    flow = parsed.flow
    ends = [
        end for item in (flow and flow.original, flow and flow.reply) if item
        for end in (item.source, item.destination) if end
    ]  # fmt: skip
    name = parsed.node_name
    if flow is None or len(ends) != 4 or len(name.encode()) > 253:
        return
    if any(c < " " or c == "\x7f" for c in name):
        return

    def present(end: L4Endpoint) -> Any:
        if end.v4 is not None:
            return ipaddress.IPv4Address(end.v4)
        if end.v6 is None or len(end.v6) != 16:
            return None
        address = ipaddress.IPv6Address(end.v6)
        return address.ipv4_mapped or address

    expected = expected_row(parsed, present)
    taken = decode(bytes(message))
    assert [row for batch in taken.batches for row in rows_of(batch)] == (
        [] if isinstance(expected, str) else [expected]
    )


@given(observations, protobuf_soup, protobuf_soup)
def test_unknown_fields_and_wrong_wire_types_are_skipped(
    judge: Any, message: Observation, before: bytes, after: bytes
) -> None:
    check(before + bytes(message) + after, judge)


@given(observations, observations)
def test_a_message_given_in_two_parts_is_merged(judge: Any, first: Observation, second: Observation) -> None:
    check(bytes(first) + bytes(second), judge)


@given(observations, st.data())
def test_changed_bytes_get_the_judges_verdict(judge: Any, message: Observation, data: st.DataObject) -> None:
    changed = bytearray(bytes(message) or b"\0")
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(changed), judge)


@given(st.one_of(st.binary(max_size=200), protobuf_soup))
def test_garbage_gets_the_judges_verdict(judge: Any, data: bytes) -> None:
    check(data, judge)


def test_every_truncation_gets_the_judges_verdict(judge: Any) -> None:
    whole = bytes(observation(5)) + b"\x22\x03abc" + b"\x2b\x08\x01\x2c"
    for length in range(len(whole) + 1):
        check(whole[:length], judge)


@pytest.mark.parametrize(
    ("data", "right"),
    [
        (b"\x18" + b"\x80" * 9 + b"\x01", True),  # ten bytes
        (b"\x18" + b"\x80" * 10 + b"\x01", False),  # eleven
        (b"\x18" + b"\xff" * 9 + b"\x7f", True),  # upper bits of the tenth are dropped
        (b"\x98\x80\x80\x80\x00\x01", True),  # a tag longer than need be
        (b"\x98\x80\x80\x80\x80\x00\x01", False),  # a tag of more than five bytes
        (b"\x00\x01", False),  # field number 0
        (b"\x1c", False),  # the end of a group that never began
        (b"\x0b\x14", False),  # a group closed by another's end
        (b"\x1e", False),  # wire type 6
        (b"\x12\x01\xff", False),  # not UTF-8
        (b"\x12\x03\xed\xa0\x80", False),  # a surrogate
        (b"\x12\x04\xf0\x9f\x98\x80", True),
        (b"\x12\xff\xff\xff\xff\x0f", False),  # longer than the message
        (b"\x2b" * 50 + b"\x2c" * 50, True),
    ],
)
def test_edges_of_protobuf(judge: Any, data: bytes, right: bool) -> None:
    check(data, judge)
    if right:
        assert decode(data).observations == 1
    else:
        with pytest.raises(ProtocolError):
            decode(data)


@settings(max_examples=50)
@given(st.lists(observations, max_size=20), st.lists(st.integers(1, 60), min_size=1, max_size=50))
def test_the_stream_may_come_in_pieces_of_any_size(messages: list[Observation], sizes: list[int]) -> None:
    usable = [m for m in messages if all(c >= " " and c != "\x7f" for c in m.node_name)]
    usable = [m for m in usable if len(m.node_name.encode()) <= 253]
    data = framed(*(bytes(m) for m in usable))
    decoder = ObservationDecoder(1000, LIMIT)
    at = 0
    while at < len(data):
        for size in sizes:
            assert decoder.feed(data[at : at + size]) is False
            at += size
    assert not decoder.has_rest
    in_pieces = decoder.take(IdentitySource(b"e" * 16), NOW)
    whole = decode(*(bytes(m) for m in usable))
    assert [rows_of(b) for b in in_pieces.batches] == [rows_of(b) for b in whole.batches]
    assert (in_pieces.bad_address, in_pieces.bad_protocol) == (whole.bad_address, whole.bad_protocol)


def test_a_full_slice_is_taken_and_the_stream_goes_on() -> None:
    decoder, identities = ObservationDecoder(4, LIMIT), IdentitySource(b"e" * 16)
    data = framed(*(bytes(observation(i)) for i in range(10)))
    slices = []
    while decoder.feed(data):
        slices.append(decoder.take(identities, NOW))
        data = b""
    slices.append(decoder.take(identities, NOW))
    assert [taken.observations for taken in slices] == [4, 4, 2]
    counters = [row[-1][1] for taken in slices for batch in taken.batches for row in rows_of(batch)]
    assert counters == [100 + i for i in range(10)]
    assert [batch.identity.sequence for taken in slices for batch in taken.batches] == [1, 2, 3]


def test_more_names_than_a_slice_can_hold_end_the_slice() -> None:
    decoder, identities = ObservationDecoder(5000, LIMIT), IdentitySource(b"e" * 16)
    data = framed(*(bytes(observation(i, node=f"node-{i:04}-" + "x" * 200)) for i in range(1000)))
    names = []
    while True:
        full = decoder.feed(data)
        data = b""
        names += [batch.identity.node_name for batch in decoder.take(identities, NOW).batches]
        if not full:
            break
    assert sorted(names) == [f"node-{i:04}-" + "x" * 200 for i in range(1000)]


def test_batches_are_one_a_node_and_minute() -> None:
    messages = [observation(i, node=f"node-{i % 3}", timestamp=NOW + 60 * (i % 2)) for i in range(60)]
    taken = decode(*(bytes(m) for m in messages))
    found = {(b.identity.node_name, b.interval_start): len(b) for b in taken.batches}
    assert found == {(f"node-{n}", NOW + 60 * m): 10 for n in range(3) for m in range(2)}
    assert all(b.interval_end == b.interval_start + 60 for b in taken.batches)
    assert sorted(row for b in taken.batches for row in rows_of(b)) == sorted(
        row for m in messages for b in decode(bytes(m)).batches for row in rows_of(b)
    )


def test_batches_keep_their_records_when_the_decoder_goes_on() -> None:
    decoder, identities = ObservationDecoder(10, LIMIT), IdentitySource(b"e" * 16)
    decoder.feed(framed(*(bytes(observation(i)) for i in range(10))))
    first = decoder.take(identities, NOW).batches[0]
    before = rows_of(first)
    decoder.feed(framed(*(bytes(observation(i + 500)) for i in range(10))))
    assert rows_of(first) == before


def test_both_families_of_one_node_are_one_batch() -> None:
    ipv6 = observation(1)
    assert ipv6.flow is not None
    for item in (ipv6.flow.original, ipv6.flow.reply):
        assert item is not None
        for end in (item.source, item.destination):
            assert end is not None
            end.v4, end.v6 = None, ipaddress.IPv6Address("2001:db8::7").packed
    (batch,) = decode(bytes(observation(0)), bytes(ipv6)).batches
    assert (len(batch.ipv4), len(batch.ipv6)) == (1, 1)


def test_what_makes_no_row_is_counted_with_its_bytes() -> None:
    icmp, nameless = observation(1, proto=1), observation(2)
    assert nameless.flow is not None
    assert nameless.flow.reply is not None
    nameless.flow.reply.source = None
    taken = decode(bytes(icmp), bytes(nameless), bytes(observation(3)))
    assert (taken.bad_protocol.observations, taken.bad_protocol.bytes, taken.bad_protocol.packets) == (
        1,
        302,
        5,
    )
    assert (taken.bad_address.observations, taken.bad_address.bytes) == (1, 304)
    assert sum(len(batch) for batch in taken.batches) == 1


def test_a_clock_that_is_off_books_into_the_minute_of_receipt() -> None:
    taken = decode(bytes(observation(timestamp=0)), bytes(observation(timestamp=2**63)), now=NOW + 59.9)
    assert [(b.interval_start, len(b)) for b in taken.batches] == [(NOW, 2)]


def test_counters_no_node_can_reach_are_refused() -> None:
    message = observation()
    assert message.flow is not None
    assert message.flow.original is not None
    message.flow.original.bytes = 2**63
    with pytest.raises(ProtocolError, match="bytes add up"):
        decode(bytes(message))


def test_what_came_before_a_bad_message_can_be_taken() -> None:
    decoder = ObservationDecoder(10, LIMIT)
    with pytest.raises(ProtocolError):
        decoder.feed(framed(bytes(observation()), b"\xff"))
    assert decoder.take(IdentitySource(b"e" * 16), NOW).observations == 1


def test_compressed_and_oversize_messages_are_told_apart() -> None:
    with pytest.raises(CompressedMessage):
        ObservationDecoder(10, LIMIT).feed(b"\1\0\0\0\1x")
    with pytest.raises(OversizeMessage):
        ObservationDecoder(10, LIMIT).feed(b"\0\x00\x10\x00\x01")


def test_records_are_views_when_one_node_reports_one_minute() -> None:
    decoder = ObservationDecoder(100, LIMIT)
    decoder.feed(framed(*(bytes(observation(i)) for i in range(50))))
    records: FlowRecords = decoder.take(IdentitySource(b"e" * 16), NOW).batches[0].ipv4
    assert records.protocol.base is not None
