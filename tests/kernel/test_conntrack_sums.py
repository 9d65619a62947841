"""Bytes metered against the packet counters of nft on the same traffic: equal, whatever the flows do."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from kubenetmon.agent.conntrack import ConntrackConfig
from tests.beds import ctnetlink
from tests.beds.original_rules import metered_by_agent
from tests.beds.router import (
    BACKEND_PORT,
    SERVER,
    SERVER6,
    SERVICE,
    SERVICE_PORT,
    RouterBed,
)
from tests.kernel.metered import metering, records_of, sums_of

pytestmark = pytest.mark.root

ZONES = """
table inet zones {
    chain early {
        type filter hook prerouting priority raw; policy accept;
        iifname "clients" udp sport 5555 ct zone set 7
        iifname "servers" udp dport 5555 ct zone set 7
    }
}
"""


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed() as made:
        yield made


async def test_sums_equal_packet_counters_by_protocol_and_direction(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        batches = []
        for size in (0, 1, 1000, 300_000):
            for address in (SERVER, SERVER6):
                await asyncio.to_thread(bed.tcp, size, size // 2, address)
                await asyncio.to_thread(bed.udp, [size % 1400, 20, 1200], 2, address)
            await conntrack.read()
            batches += conntrack.seal()
        assert sums_of(records_of(batches)) == bed.truth()
        assert conntrack.totals().reported_bytes == bed.true_bytes()


async def test_sums_equal_with_segmentation_off(bed: RouterBed) -> None:
    for namespace, interfaces in (
        (bed.client, ["wire"]),
        (bed.node, ["clients", "servers"]),
        (bed.server, ["wire"]),
    ):
        for interface in interfaces:
            namespace.disable_offloads(interface)
    with metering(bed.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(bed.tcp, 500_000, 200_000)
        await conntrack.read()
        records = records_of(conntrack.seal())
        assert sums_of(records) == bed.truth()
        assert records[0].original.packets > 500_000 // 1460


async def test_a_service_behind_dnat_shows_both_addresses(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(bed.tcp, 5000, 70_000, SERVICE, SERVICE_PORT)
        await conntrack.read()
        (record,) = records_of(conntrack.seal())
        assert record.original_destination == (ipaddress.ip_address(SERVICE), SERVICE_PORT)
        assert record.reply_source == (ipaddress.ip_address(SERVER), BACKEND_PORT)
        assert record.original_source == record.reply_destination
        assert record.original == bed.truth()["tcp_original"]
        assert record.reply == bed.truth()["tcp_reply"]


async def test_flows_from_before_are_the_baseline(bed: RouterBed) -> None:
    port = await asyncio.to_thread(bed.udp, [1000, 1000])
    before = bed.true_bytes()
    with (
        metering(bed.node) as conntrack,
        metering(bed.node, ConntrackConfig(count_existing=True)) as counting,
    ):
        await conntrack.read()
        await counting.read()
        assert conntrack.seal() == []
        assert conntrack.totals().ignored_baseline_bytes == before
        assert sums_of(records_of(counting.seal())) == bed.truth()
        await asyncio.to_thread(bed.udp, [500], source_port=port)
        await conntrack.read()
        assert sum(batch.bytes for batch in conntrack.seal()) == bed.true_bytes() - before == 528


async def test_flows_that_begin_and_end_between_dumps_are_metered(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        for _ in range(5):
            await asyncio.to_thread(bed.tcp, 3000, 5000)
            await asyncio.to_thread(bed.udp, [700], 1)
        bed.node.run(["conntrack", "-F"])
        read = await conntrack.read()
        assert (read.flows, read.ended) == (0, 10)
        assert sums_of(records_of(conntrack.seal())) == bed.truth()


async def test_what_a_flow_moved_after_its_last_dump_is_metered(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        port = await asyncio.to_thread(bed.udp, [100])
        await conntrack.read()
        batches = conntrack.seal()
        await asyncio.to_thread(bed.udp, [900], 1, source_port=port)
        bed.node.run(["conntrack", "-D", "-p", "udp"])
        await conntrack.read()
        batches += conntrack.seal()
        assert sums_of(records_of(batches)) == bed.truth()


async def test_natural_expiry_loses_nothing(bed: RouterBed) -> None:
    for key in ("udp_timeout", "udp_timeout_stream", "tcp_timeout_time_wait", "tcp_timeout_close"):
        bed.node.sysctl(f"net.netfilter.nf_conntrack_{key}", 1)
    with metering(bed.node) as conntrack:
        await conntrack.read()
        batches = []
        await asyncio.to_thread(bed.tcp, 2000, 100)
        await asyncio.to_thread(bed.udp, [300, 400], 2)
        deadline = asyncio.get_running_loop().time() + 20
        while conntrack.totals().destroy_events < 2:
            assert asyncio.get_running_loop().time() < deadline
            await conntrack.read()
            batches += conntrack.seal()
            await asyncio.sleep(0.2)
        assert sums_of(records_of(batches)) == bed.truth()
        assert conntrack.totals().vanished == 0
        for _ in range(3):
            await conntrack.read()
        assert conntrack.totals().entries == 0


async def test_one_tuple_in_two_zones_is_two_flows(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        await asyncio.to_thread(bed.udp, [100], source_port=5555)
        bed.node.nft(ZONES)
        await asyncio.to_thread(bed.udp, [300, 40], 1, source_port=5555)
        await conntrack.read()
        records = records_of(conntrack.seal())
        assert len(records) == 2
        assert sums_of(records) == bed.truth()
        bed.node.run(["conntrack", "-F"])
        await conntrack.read()
        assert conntrack.seal() == []
        assert conntrack.totals().flows == 0


async def test_other_protocols_and_loopback_are_ignored_and_counted(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        with bed.client.call(
            lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        ) as raw:
            raw.settimeout(10)
            raw.sendto(struct.pack("!BBHHH", 8, 0, 0xF7F6, 1, 8), (SERVER, 0))  # an echo request
            raw.recv(100)
        for family, address in ((socket.AF_INET, "127.0.0.9"), (socket.AF_INET6, "::1")):
            with bed.node.call(partial(socket.socket, family, socket.SOCK_DGRAM)) as sender:
                sender.bind((address, 0))
                sender.sendto(bytes(100), sender.getsockname())
                sender.recv(100)
        await conntrack.read()
        totals = conntrack.totals()
        assert totals.ignored_protocol_bytes == 2 * 28
        assert totals.ignored_loopback_bytes == 128 + 148
        assert totals.pending_bytes == 0
        assert conntrack.seal() == []


async def test_all_of_loopback_is_ignored_where_the_original_ignores_one_address(bed: RouterBed) -> None:
    pairs = [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.9", "127.0.0.9"),
        ("127.0.0.1", "127.1.2.3"),
        ("::1", "::1"),
    ]
    with metering(bed.node) as conntrack:
        await conntrack.read()
        for source, destination in pairs:
            family = socket.AF_INET6 if ":" in source else socket.AF_INET
            with (
                bed.node.call(partial(socket.socket, family, socket.SOCK_DGRAM)) as sender,
                bed.node.call(partial(socket.socket, family, socket.SOCK_DGRAM)) as receiver,
            ):
                receiver.bind((destination, 0))
                receiver.settimeout(10)
                sender.bind((source, 0))
                sender.sendto(bytes(100), receiver.getsockname())
                receiver.recv(100)
        await conntrack.read()
        totals = conntrack.totals()
        assert conntrack.seal() == []
    kernel = [
        tuple(re.findall(r"(?:src|dst)=(\S+)", line))
        for family in ("ipv4", "ipv6")
        for line in bed.node.run(["conntrack", "-L", "-p", "udp", "-f", family]).stdout.splitlines()
    ]
    assert sorted(flow[:2] for flow in kernel) == sorted(pairs)
    by_original = [flow[:2] for flow in kernel if metered_by_agent(17, flow)]
    assert sorted(by_original) == [("127.0.0.9", "127.0.0.9"), ("::1", "::1")]
    assert totals.ignored_loopback_packets == totals.ignored_flows == len(pairs)
    page = Path(__file__).parents[2] / "docs" / "differences.md"
    assert "| Loopback | 127.0.0.1 ignored | 127.0.0.0/8 and ::1 ignored |" in page.read_text()


async def test_reads_what_the_conntrack_command_reads(bed: RouterBed) -> None:
    await asyncio.to_thread(bed.tcp, 5000, 70_000, SERVICE, SERVICE_PORT)
    await asyncio.to_thread(bed.tcp, 100, 200, SERVER6)
    await asyncio.to_thread(bed.udp, [10, 20], 1)
    with metering(bed.node, ConntrackConfig(count_existing=True)) as conntrack:
        await conntrack.read()
        ours = {
            (
                *(str(end) for end in (*record.original_source, *record.original_destination)),
                *(str(end) for end in (*record.reply_source, *record.reply_destination)),
                *(str(number) for number in (record.original.packets, record.original.bytes)),
                *(str(number) for number in (record.reply.packets, record.reply.bytes)),
            )
            for record in records_of(conntrack.seal())
        }
    theirs = set()
    for family in ("ipv4", "ipv6"):
        listing = bed.node.run(["conntrack", "-L", "-f", family]).stdout
        for line in listing.splitlines():
            found = re.findall(r"(src|dst|sport|dport|packets|bytes)=(\S+)", line)
            (
                (source, destination, sport, dport, packets, size),
                (back, to, bsport, bdport, bpackets, bsize),
            ) = (
                [value for _, value in found[:6]],
                [value for _, value in found[6:]],
            )
            theirs.add(
                (source, sport, destination, dport, back, bsport, to, bdport, packets, size, bpackets, bsize)
            )
    assert ours == theirs
    assert len(ours) == 3


async def test_a_neighbour_that_resets_counters_is_reported(bed: RouterBed) -> None:
    with metering(bed.node) as conntrack:
        await conntrack.read()
        port = await asyncio.to_thread(bed.udp, [1000])
        await conntrack.read()
        ctnetlink.zeroing_dump(bed.node)
        await asyncio.to_thread(bed.udp, [10], source_port=port)
        await conntrack.read()
        assert conntrack.totals().foreign_resets == 1
        assert sums_of(records_of(conntrack.seal())) == bed.truth()
