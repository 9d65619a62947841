"""The demo's parts that touch no machine."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json

import pytest

from kubenetmon.demo import arguments, plan, traffic
from kubenetmon.demo.progress import Progress
from kubenetmon.demo.traffic import Job, Script, Traffic
from kubenetmon.report import text
from tests.soak.faults import schedule
from tests.soak.memory import Memory


def test_a_script_survives_its_line() -> None:
    script = Script(
        tcp_ports=(80, 443),
        udp_ports=(53,),
        tcp_address="::",
        udp_address="192.0.2.1",
        jobs=(
            Job("tcp", "192.0.2.2", 80, (1, 2), (3, 4), 0.5, per_connection=6, lanes=7, source="192.0.2.3"),
        ),
        seed=8,
    )
    line = script.to_json()
    assert "\n" not in line
    assert Script.from_json(line) == script


def test_pods_are_on_nodes_inside_of_their_subnets() -> None:
    networks = {node.name: ipaddress.ip_network(node.pod_cidr) for node in plan.NODES}
    for pod in plan.PODS:
        assert ipaddress.ip_address(pod.address) in networks[pod.node]
    assert len({pod.address for pod in plan.PODS}) == len(plan.PODS)
    assert len({node.zone for node in plan.NODES}) == 2


def test_the_cluster_is_in_the_form_of_kubectl() -> None:
    document = json.loads(json.dumps(plan.cluster_document()))
    assert document["kind"] == "List"
    kinds = [item["kind"] for item in document["items"]]
    assert (kinds.count("Node"), kinds.count("Pod"), kinds.count("Service")) == (2, 6, 2)
    assert len({item["metadata"]["uid"] for item in document["items"]}) == len(kinds)


def test_ranges_are_in_the_form_of_each_provider_and_for_documentation_only() -> None:
    reserved = [
        ipaddress.ip_network(text)
        for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32")
    ]
    for provider in ("aws", "gcp", "google", "azure"):
        document = json.loads((plan.RANGES_DIRECTORY / f"{provider}.json").read_text())
        for prefix in _strings(document):
            if "/" in prefix:
                network = ipaddress.ip_network(prefix)
                assert any(
                    network.network_address in each and network.prefixlen >= each.prefixlen
                    for each in reserved
                )


def _strings(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in _strings(part)]


def test_tables_line_up() -> None:
    assert text.table(("pod", "bytes"), [("frontend", "1.00 MiB"), ("", "17.25 KiB")]) == (
        "pod           bytes\n-------------------\nfrontend   1.00 MiB\n-         17.25 KiB"
    )


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0.00 B"), (1023, "1023.00 B"), (1536, "1.50 KiB"), (5 << 20, "5.00 MiB"), (1 << 45, "32.00 TiB")],
)
def test_sizes_read_as_in_clickhouse(count: int, shown: str) -> None:
    assert text.size(count) == shown


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    line = Progress("Traffic", 0.0001)
    while line.elapsed() < 0.001:
        pass
    line.show("1 connection")
    line.end()
    assert capsys.readouterr().out == "Traffic 100% 1 connection\n"


def test_seconds_are_bounded() -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    arguments.add_arguments(parser)
    assert parser.parse_args([]).seconds == 20
    assert parser.parse_args(["--seconds", "5"]).seconds == 5
    for number in ("4", "3601", "x", "5.5", "-5", "٣٠"):
        with pytest.raises(argparse.ArgumentError):
            parser.parse_args(["--seconds", number])


def test_growth_is_that_of_the_steady_part() -> None:
    flat, leak = Memory("flat"), Memory("leak")
    for step in range(100):
        seconds = step * 15.0
        flat.add(seconds, 50_000_000 if step > 10 else step * 5_000_000)
        leak.add(seconds, 50_000_000 + int(seconds * 1000))
    assert abs(flat.growth()) < 1
    assert leak.growth() == pytest.approx(1000 * 99 * 15 * 0.75, rel=0.02)
    assert leak.peak == 50_000_000 + 99 * 15_000


def test_growth_is_seen_within_a_life_and_from_life_to_life() -> None:
    steady, within, between = Memory("steady", 30), Memory("within", 30), Memory("between", 30)
    for life in range(5):
        for step in range(20):
            seconds = (life * 20 + step) * 15.0
            steady.add(seconds, 50_000_000, life)
            within.add(seconds, 50_000_000 + step * 1_000_000, life)
            between.add(seconds, 50_000_000 + life * 1_000_000, life)
    assert steady.growth() == 0
    assert within.growth() == pytest.approx(14_000_000, rel=0.1)
    assert between.growth() == pytest.approx(4_000_000, rel=0.3)
    for memory in (steady, within, between):
        assert len(memory.lives) == 5
    for process in list(within.lives):
        within.excused.add(process)
    assert within.growth() == 0


def test_the_faults_of_a_soak_are_those_of_its_seed() -> None:
    nodes = ("a", "b")
    planned = schedule(3600, kills=100, outage=600, nodes=nodes, seed=1)
    assert planned == schedule(3600, kills=100, outage=600, nodes=nodes, seed=1)
    assert planned != schedule(3600, kills=100, outage=600, nodes=nodes, seed=2)
    kills = [fault for fault in planned if fault.kind == "kill"]
    assert len(kills) == 100
    assert {fault.target for fault in kills} == set(nodes)
    assert all(10 <= fault.moment <= 3590 for fault in kills)
    assert [(fault.kind, fault.moment) for fault in planned if fault.kind != "kill"] == [
        ("goes", 1500),
        ("returns", 2100),
    ]
    with pytest.raises(ValueError, match="does not fit"):
        schedule(60, kills=0, outage=60, nodes=nodes, seed=1)


async def test_traffic_counts_what_it_moved_and_stops_when_told() -> None:
    server = await asyncio.start_server(traffic.serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        asking = Traffic(
            Script(jobs=(Job("tcp", "127.0.0.1", port, (10, 10), (1_000, 1_000), 0.0, per_connection=3),))
        )
        task = asyncio.create_task(asking.run())
        await asyncio.sleep(0.2)
        asking.stop()
        await asyncio.wait_for(task, 5)
    tally = asking.tally
    assert tally.failures == 0
    assert tally.exchanges > 3
    assert tally.sent == tally.exchanges * 26
    assert tally.received == tally.exchanges * 1_000
    assert 0 <= tally.connections * 3 - tally.exchanges <= 3
