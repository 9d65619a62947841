"""Three processes as a user starts them, real traffic, and what the nodes' own packet counters saw of it."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.demo import plan
from kubenetmon.demo.world import FlowCount
from kubenetmon.report.flows import Source
from kubenetmon.report.questions import QUESTIONS, statement
from kubenetmon.report.scope import Scope
from tests.beds.metered_world import MeteredWorld, Movement, expected

pytestmark = [pytest.mark.root, pytest.mark.chdb, pytest.mark.timeout(300)]

SECONDS = 6.0


@dataclass(frozen=True, slots=True)
class Run:
    """What a finished run left to look at."""

    flows: list[FlowCount]
    sizes: Counter[Movement]
    packets: Counter[Movement]
    agents: dict[str, dict[str, float]]
    server: dict[str, float]
    ask: Callable[[str], list[tuple[Any, ...]]]


@pytest.fixture(scope="module", params=[True, False], ids=["offloads", "no-offloads"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Traffic of every kind, metered to its end; once with segmentation offloads and once without."""
    with MeteredWorld(tmp_path_factory.mktemp("sums"), offloads=request.param) as metered:
        metered.start()
        metered.begin_traffic(seed=1)
        metered.run_for(SECONDS)
        metered.end_traffic()
        agents = {name: agent.metrics() for name, agent in metered.agents.items()}
        assert metered.server is not None
        server = metered.server.metrics()
        flows = metered.finish()
        sizes, packets = metered.stored()
        yield Run(flows, sizes, packets, agents, server, metered.ask)


def test_bytes_are_those_of_the_counters_by_workload_protocol_and_direction(run: Run) -> None:
    assert run.sizes == expected(run.flows)[0]


def test_packets_are_those_of_the_counters_by_workload_protocol_and_direction(run: Run) -> None:
    assert run.packets == expected(run.flows)[1]


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("direction", ["out", "in"])
def test_both_protocols_move_both_ways(run: Run, protocol: str, direction: str) -> None:
    assert any(key[3:] == (protocol, direction) and size for key, size in run.sizes.items())


def test_a_service_resolves_to_the_pods_behind_it_on_both_nodes(run: Run) -> None:
    service = next(service for service in plan.SERVICES if service.name == "catalog")
    remotes = {key[2] for key in run.sizes}
    assert service.address not in remotes
    assert {pod.address for pod in plan.PODS if pod.app == "catalog"} <= remotes


def test_connections_that_ended_within_the_run_came_by_events(run: Run) -> None:
    for metrics in run.agents.values():
        assert metrics["kubenetmon_agent_destroy_events_total"] > 0


def test_agents_account_for_every_byte_they_observed(run: Run) -> None:
    for metrics in run.agents.values():
        for unit in ("bytes", "packets"):
            ignored = sum(
                value
                for name, value in metrics.items()
                if name.startswith("kubenetmon_agent_ignored_total") and f'unit="{unit}"' in name
            )
            assert metrics[f'kubenetmon_agent_observed_total{{unit="{unit}"}}'] == (
                metrics[f'kubenetmon_agent_reported_total{{unit="{unit}"}}']
                + metrics[f'kubenetmon_agent_pending{{unit="{unit}"}}']
                + ignored
            )


def test_the_server_accounts_for_every_byte_it_received(run: Run) -> None:
    for unit in ("bytes", "packets"):
        parts = {
            name: value
            for name, value in run.server.items()
            if name.startswith(
                (
                    "kubenetmon_server_committed_total",
                    "kubenetmon_server_ignored_total",
                    "kubenetmon_server_handed_back_total",
                    "kubenetmon_server_pending",
                )
            )
            and f'unit="{unit}"' in name
        }
        assert run.server[f'kubenetmon_server_received_total{{unit="{unit}"}}'] == sum(parts.values())


def test_paths_have_the_class_they_are_billed_by(run: Run) -> None:
    classes = dict(
        run.ask(
            "SELECT toString(remoteIPv4), any(connectionClass) FROM default.network_flows_0 "
            "WHERE remotePod = '' GROUP BY remoteIPv4"
        )
    )
    assert classes == {
        plan.S3_ADDRESS: "INTRA_REGION",
        plan.OTHER_REGION_ADDRESS: "INTER_REGION",
        plan.PUBLIC_ADDRESS: "PUBLIC_INTERNET",
        plan.VISITOR_ADDRESS: "PUBLIC_INTERNET",
    }


def test_rows_say_who_where_and_how(run: Run) -> None:
    [row] = run.ask(
        "SELECT DISTINCT environment, localCloud, localRegion, localCluster, localAvailabilityZone, "
        "localNamespace, localPod, localApp, remoteCloud, remoteRegion, remoteCloudService "
        f"FROM default.network_flows_0 WHERE remoteIPv4 = toIPv4('{plan.S3_ADDRESS}')"
    )
    backup = plan.pod_of_app("backup")
    assert row == (
        "development", "aws", plan.REGION, plan.CLUSTER, "us-west-2b",
        backup.namespace, backup.name, backup.app, "aws", plan.REGION, "s3",
    )  # fmt: skip


def test_answers_count_each_byte_as_the_sender_s_node_s_counters_did(run: Run) -> None:
    pods = {pod.address: pod for pod in plan.PODS}
    zones = {node.name: node.zone for node in plan.NODES}
    wanted: Counter[tuple[str, str]] = Counter()
    crossing: Counter[tuple[str, str]] = Counter()
    for flow in run.flows:
        source, destination = flow.original_source, flow.reply_source
        if flow.direction != "original":
            source, destination = destination, source
        seen_from = pods.get(source) or pods[destination]
        if seen_from.node != flow.node:
            continue
        ends = (pods.get(source), pods.get(destination))
        names = [f"{end.namespace}/{end.name}" if end else "" for end in ends]
        wanted[names[0], names[1]] += flow.count.bytes
        if ends[0] and ends[1] and ends[0].node != ends[1].node:
            crossing[zones[ends[0].node], zones[ends[1].node]] += flow.count.bytes
    scope = Scope(since=int(time.time()) - 86_400, until=int(time.time()) + 3600, by="pod", limit=0)
    found: Counter[tuple[str, str]] = Counter()
    for source, destination, *_, total, _ in run.ask(statement(QUESTIONS["top"], scope, Source())):
        found[source, destination] += total
    assert found == wanted
    between: Counter[tuple[str, str]] = Counter()
    for _, zone, _, other, total, _ in run.ask(statement(QUESTIONS["cross-zone"], scope, Source())):
        between[zone, other] += total
    assert between == crossing


def test_a_server_that_restarts_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    with MeteredWorld(tmp_path) as metered:
        metered.start()
        metered.begin_traffic(seed=2)
        metered.run_for(3)
        assert metered.server is not None
        metered.server.stop()
        metered.server = None
        metered.run_for(6)
        metered.start_server()
        metered.run_for(3)
        metered.end_traffic()
        flows = metered.finish()
        assert metered.stored() == expected(flows)


def test_a_server_that_is_killed_again_and_again_loses_and_doubles_nothing(tmp_path: Path) -> None:
    moments = random.Random(4)
    with MeteredWorld(tmp_path) as metered:
        metered.start()
        metered.begin_traffic(seed=4)
        for _ in range(5):
            # Reports come every second or so: the kills hit receipt, insert and acknowledgement alike.
            metered.run_for(1 + moments.random())
            assert metered.server is not None
            metered.server.kill()
            metered.server = None
            metered.start_server()
        metered.run_for(2)
        metered.end_traffic()
        flows = metered.finish()
        assert metered.stored() == expected(flows)


def test_agents_that_are_killed_again_and_again_lose_and_double_nothing(tmp_path: Path) -> None:
    moments = random.Random(5)
    with MeteredWorld(tmp_path, state=True) as metered:
        metered.keep_ended_flows(600)
        metered.start()
        metered.begin_traffic(seed=5)
        for kill in range(7):
            metered.run_for(0.5 + moments.random())
            name = plan.NODES[kill % len(plan.NODES)].name
            metered.agents[name].kill()
            metered.start_agent(name)
        metered.run_for(1)
        metered.end_traffic()
        flows = metered.finish()
        assert metered.stored() == expected(flows)


def test_an_agent_that_starts_late_meters_from_then_on(tmp_path: Path) -> None:
    late = plan.NODES[1].name
    with MeteredWorld(tmp_path) as metered:
        metered.start_server()
        metered.start_agent(plan.NODES[0].name)
        metered.begin_traffic(seed=3)
        metered.run_for(2)
        metered.start_agent(late)
        metered.run_for(2)
        metered.end_traffic()
        flows = metered.finish()
        wanted, stored = expected(flows)[0], metered.stored()[0]
        early = {key: size for key, size in wanted.items() if key[0] != late}
        assert {key: size for key, size in stored.items() if key[0] != late} == early
        late_wanted = sum(size for key, size in wanted.items() if key[0] == late)
        late_stored = sum(size for key, size in stored.items() if key[0] == late)
        assert 0 < late_stored < late_wanted
