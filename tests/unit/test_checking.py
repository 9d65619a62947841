"""What the server holds of an address beside what the API says: every verdict, and that asking is bounded."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from kubenetmon.report.explain import render
from kubenetmon.server import kubernetes
from kubenetmon.server.checking import BUSY, NOTHING, CheckedCluster, Checker, CheckerConfig
from kubenetmon.server.inventory import Inventory, InventoryConfig, Kind
from kubenetmon.server.kubernetes import ApiError, KubernetesClient, MissingError, RefusedError
from kubenetmon.server.kubernetes_objects import Current, ObjectDecoder
from kubenetmon.server.kubernetes_source import Kubeconfig

DECODER = ObjectDecoder(InventoryConfig())
UID = "0b7c1a52-8a0e-4a6b-9b52-5f6f5a1d2c11"
OTHER_UID = "0b7c1a52-8a0e-4a6b-9b52-5f6f5a1d2c12"
POD, NODE, SERVICE, EXPORTER = "10.1.0.5", "192.0.2.10", "198.18.0.7", 9100


def pod(name: str = "client", address: str = POD, **changes: Any) -> dict[str, Any]:
    """Changes: uid, phase, node, app, host_port."""
    port = changes.get("host_port", 0)
    containers = [{"ports": [{"containerPort": port}]}] if port else []
    spec = {"nodeName": changes.get("node", "node-a"), "hostNetwork": bool(port), "containers": containers}
    return {
        "metadata": {
            "name": name, "namespace": "default", "uid": changes.get("uid", UID), "resourceVersion": "7",
            "labels": {"k8s-app": changes.get("app", "shop")},
        },
        "spec": spec,
        "status": {"phase": changes.get("phase", "Running"), "podIP": address},
    }  # fmt: skip


def node(address: str = NODE, uid: str = UID, zone: str = "zone-a") -> dict[str, Any]:
    return {
        "metadata": {"name": "node-a", "uid": uid, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {"addresses": [{"type": "InternalIP", "address": address}]},
    }


def service(address: str = SERVICE) -> dict[str, Any]:
    return {
        "metadata": {"name": "catalog", "namespace": "default", "uid": UID},
        "spec": {"clusterIP": address, "clusterIPs": [address], "externalIPs": ["203.0.113.1"]},
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.2"}, {"hostname": "lb.example.org"}]}},
    }


def current(kind: Kind, known: dict[str, Any]) -> Current:
    return DECODER.one(kind, json.dumps(known).encode())


def put(inventory: Inventory, kind: Kind, known: dict[str, Any]) -> None:
    made: Any = current(kind, known).object
    if kind == "pods":
        inventory.put_pod(made, 100)
    elif kind == "nodes":
        inventory.put_node(made)
    else:
        inventory.put_service(made)


Answer = Callable[[Kind, str, str], Awaitable[Current]]


class Api:
    """Answers as a test wants, and remembers what it was asked."""

    def __init__(self, answer: Answer | Current | Exception) -> None:
        self._answer = answer
        self.asked: list[tuple[Kind, str, str]] = []
        self.at_once = self.most_at_once = 0

    async def current(self, kind: Kind, namespace: str, name: str) -> Current:
        self.asked.append((kind, namespace, name))
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if isinstance(self._answer, Exception):
                raise self._answer
            if isinstance(self._answer, Current):
                return self._answer
            return await self._answer(kind, namespace, name)
        finally:
            self.at_once -= 1


def holding(*known: tuple[Kind, dict[str, Any]]) -> Inventory:
    inventory = Inventory(InventoryConfig())
    for kind, one in known:
        put(inventory, kind, one)
    return inventory


async def asked(
    inventory: Inventory, api: Api | None, address: str, port: int = 0, seconds: float = 2.0, source: str = ""
) -> dict[str, Any]:
    checker = Checker(CheckerConfig(seconds), [CheckedCluster("blue", inventory, api, source)])
    return await checker.check(4, int(ipaddress.ip_address(address)), port)


async def judged(kind: Kind, held: dict[str, Any], said: dict[str, Any], address: str, port: int = 0) -> Any:
    found = await asked(holding((kind, held)), Api(current(kind, said)), address, port)
    [one] = found["objects"]
    return one


async def test_what_the_api_says_as_well_is_the_same() -> None:
    api = Api(current("pods", pod()))
    found = await asked(holding(("pods", pod())), api, POD)
    assert found == {
        "objects": [
            {"cluster": "blue", "kind": "pod", "namespace": "default", "name": "client", "verdict": "same",
             "because": "the API says the same: 10.1.0.5, Running on node-a", "uid": UID,
             "resource_version": "7", "phase": "Running"}
        ],
        "left_out": 0,
    }  # fmt: skip
    assert api.asked == [("pods", "default", "client")]


@pytest.mark.parametrize(
    ("said", "difference"),
    [
        (pod(uid=OTHER_UID), f"another one has that name: uid {OTHER_UID}, here {UID}"),
        (pod(address="10.1.0.6"), "10.1.0.5 is not among its addresses (10.1.0.6)"),
        (pod(address=""), "10.1.0.5 is not among its addresses (none)"),
        (pod(phase="Succeeded"), "phase Succeeded: a pod that has ended owns no address"),
        (pod(phase="Failed"), "phase Failed: a pod that has ended owns no address"),
        (pod(node="node-b"), "node node-b, here node-a"),
        (pod(app=""), "app none, here shop"),
    ],
)
async def test_what_differs_of_a_pod_is_named(said: dict[str, Any], difference: str) -> None:
    one = await judged("pods", pod(), said, POD)
    assert (one["verdict"], one["differences"], one["resource_version"]) == ("differs", [difference], "7")
    assert one["because"] == f"the API says otherwise, a watch event is late or lost: {difference}"


@pytest.mark.parametrize(
    ("kind", "held", "said", "address", "difference"),
    [
        ("nodes", node(), node("192.0.2.11"), NODE, "192.0.2.10 is not among its addresses (192.0.2.11)"),
        ("nodes", node(), node(zone="zone-b"), NODE, "zone zone-b, here zone-a"),
        ("nodes", node(), node(uid=OTHER_UID), NODE,
         f"another one has that name: uid {OTHER_UID}, here {UID}"),
        ("services", service(), service("198.18.0.8"), SERVICE,
         "198.18.0.7 is not among its addresses (198.18.0.8 and 203.0.113.1 and 203.0.113.2)"),
        ("services", service(), service("198.18.0.8"), "203.0.113.1",
         "addresses 198.18.0.8 and 203.0.113.1 and 203.0.113.2, "
         "here 198.18.0.7 and 203.0.113.1 and 203.0.113.2"),
    ],
)  # fmt: skip
async def test_what_differs_of_a_node_and_a_service_is_named(
    kind: Kind, held: dict[str, Any], said: dict[str, Any], address: str, difference: str
) -> None:
    assert (await judged(kind, held, said, address))["differences"] == [difference]


@pytest.mark.parametrize("address", [SERVICE, "203.0.113.1", "203.0.113.2"])
async def test_a_service_is_found_by_each_of_its_addresses(address: str) -> None:
    assert (await judged("services", service(), service(), address))["verdict"] == "same"


async def test_a_headless_service_has_no_address() -> None:
    [one] = DECODER.page("services", json.dumps({"items": [service("None")]}).encode()).objects
    assert [str(ipaddress.IPv4Address(number)) for number in one.ipv4] == ["203.0.113.1", "203.0.113.2"]


async def test_the_port_of_a_host_network_pod_is_checked_beside_its_node() -> None:
    exporter = pod("exporter", NODE, host_port=EXPORTER)
    inventory = holding(("nodes", node()), ("pods", exporter))

    async def answer(kind: Kind, namespace: str, name: str) -> Current:
        return current(kind, pod("exporter", NODE, host_port=9101) if kind == "pods" else node())

    objects = (await asked(inventory, Api(answer), NODE, EXPORTER))["objects"]
    assert [(one["kind"], one["verdict"]) for one in objects] == [("pod", "differs"), ("node", "same")]
    assert objects[0]["differences"] == ["ports tcp 9101, here tcp 9100"]
    [alone] = (await asked(inventory, Api(answer), NODE))["objects"]
    assert alone["kind"] == "node"


async def test_what_goes_wrong_is_said_of_the_object() -> None:
    for error, verdict, words in (
        (MissingError("no"), "gone", "gone: the API has no such object (404), a watch event is late or lost"),
        (RefusedError("no"), "not permitted", "`get` on pods is missing in the ClusterRole"),
        (
            ApiError("cannot reach the Kubernetes API"),
            "no answer",
            "no answer: cannot reach the Kubernetes API",
        ),
    ):
        [one] = (await asked(holding(("pods", pod())), Api(error), POD))["objects"]
        assert (one["verdict"], words in one["because"]) == (verdict, True), one


@pytest.mark.alone
async def test_an_api_that_does_not_answer_is_waited_for_no_longer_than_said() -> None:
    async def never(kind: Kind, namespace: str, name: str) -> Current:
        await asyncio.sleep(60)
        raise AssertionError

    began = time.monotonic()
    inventory = holding(("nodes", node()), ("pods", pod("exporter", NODE, host_port=EXPORTER)))
    found = await asked(inventory, Api(never), NODE, EXPORTER, seconds=0.2)
    assert 0.2 <= time.monotonic() - began < 1
    assert [one["because"] for one in found["objects"]] == ["no answer within 0.2 s"] * 2


async def test_where_there_is_no_api_it_is_said_and_nothing_asked() -> None:
    [one] = (await asked(holding(("nodes", node())), None, NODE, source="machine"))["objects"]
    assert (one["verdict"], one["because"]) == (
        "not asked",
        "kubernetes_source is machine: there is no API to ask",
    )


async def test_an_address_that_nobody_has_now_is_not_asked_about() -> None:
    api = Api(current("pods", pod()))
    inventory = holding(("pods", pod()))
    inventory.remove_pod(current("pods", pod()).object.uid, 200)
    for address in (POD, "203.0.113.99"):
        found = await asked(inventory, api, address)
        assert found == {"objects": [], "left_out": 0, "note": NOTHING}
    assert api.asked == []


async def test_what_the_watch_brings_while_it_is_asked_counts() -> None:
    inventory = holding(("pods", pod()))

    async def moved(kind: Kind, namespace: str, name: str) -> Current:
        put(inventory, "pods", pod(node="node-b"))
        return current("pods", pod(node="node-b"))

    async def removed(kind: Kind, namespace: str, name: str) -> Current:
        inventory.remove_pod(current("pods", pod()).object.uid, 200)
        raise MissingError("gone")

    assert (await asked(inventory, Api(moved), POD))["objects"][0]["verdict"] == "same"
    [one] = (await asked(inventory, Api(removed), POD))["objects"]
    assert (one["verdict"], one["because"]) == (
        "changed", "gone: the server has learned it while it asked"
    )  # fmt: skip


async def test_no_more_than_a_handful_is_asked_for() -> None:
    api = Api(MissingError("gone"))
    crowd = [("pods", pod(f"pod-{number}", uid=f"uid-{number}")) for number in range(8)]
    found = await asked(holding(*crowd), api, POD)  # type: ignore[arg-type]
    assert (len(found["objects"]), found["left_out"], len(api.asked)) == (5, 3, 5)
    assert "3 more have the address and are not checked" in shown(found)


async def test_one_question_is_asked_at_a_time_and_others_wait_no_longer_than_said() -> None:
    async def slow(kind: Kind, namespace: str, name: str) -> Current:
        await asyncio.sleep(0.15)
        return current("pods", pod())

    api = Api(slow)
    checker = Checker(CheckerConfig(0.4), [CheckedCluster("blue", holding(("pods", pod())), api)])
    found = await asyncio.gather(*[checker.check(4, int(ipaddress.ip_address(POD)), 0) for _ in range(12)])
    assert api.most_at_once == 1
    answered = [one for one in found if one["objects"]]
    busy = [one for one in found if one.get("note") == BUSY]
    assert len(answered) >= 2
    assert len(busy) >= 8
    assert len(answered) + len(busy) == 12
    assert (await checker.check(4, int(ipaddress.ip_address(POD)), 0))["objects"], "turns are given back"


async def test_a_peers_api_is_asked_about_what_the_peer_has() -> None:
    ours, theirs = Api(MissingError("gone")), Api(current("pods", pod()))
    clusters = [
        CheckedCluster("blue", holding(), ours),
        CheckedCluster("green", holding(("pods", pod())), theirs),
    ]
    found = await Checker(CheckerConfig(), clusters).check(4, int(ipaddress.ip_address(POD)), 0)
    assert [(one["cluster"], one["verdict"]) for one in found["objects"]] == [("green", "same")]
    assert ours.asked == []


def shown(check: dict[str, Any]) -> str:
    answer: dict[str, Any] = {
        "address": POD, "port": None, "at": "now", "cluster": "blue", "history": [], "host_ports": {},
        "peers": {}, "pod_network_of": [], "prefixes": [],
        "as_remote": {"ignored": "", "node": "", "because": ""},
    }  # fmt: skip
    return render({**answer, "check": check})


async def test_people_read_a_line_for_each_object() -> None:
    text = shown(await asked(holding(("pods", pod())), Api(current("pods", pod())), POD))
    assert text.endswith(
        "check        pod default/client of blue: the API says the same: 10.1.0.5, Running on node-a, "
        f"uid {UID}, resourceVersion 7"
    )
    text = shown(await asked(holding(("nodes", node())), Api(MissingError("gone")), NODE))
    assert "check        node node-a of blue: gone: the API has no such object (404)" in text
    assert shown(await asked(holding(), None, NODE)).endswith(f"check        {NOTHING}")


class Answering:
    """A client before a server that answers every GET in one way."""

    def __init__(self, directory: Path, answer: Callable[[web.Request], web.StreamResponse]) -> None:
        self._directory, self._answer = directory, answer
        self.paths: list[str] = []

    async def __aenter__(self) -> KubernetesClient:
        async def handler(request: web.Request) -> web.StreamResponse:
            self.paths.append(request.raw_path)
            return self._answer(request)

        application = web.Application()
        application.router.add_get("/{path:.*}", handler)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        content = {
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{self._runner.addresses[0][1]}"}}],
        }  # fmt: skip
        config = self._directory / "kubeconfig"
        config.write_text(yaml.safe_dump(content))
        self._client = KubernetesClient(Kubeconfig(str(config)), connect_timeout=3, read_timeout=3)
        return self._client

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._runner.cleanup()


async def test_an_object_is_asked_for_by_its_name_alone(tmp_path: Path) -> None:
    server = Answering(tmp_path, lambda _: web.json_response(pod()))
    async with server as client:
        await client.get("pods", "default", "client")
        await client.get("nodes", "", "node/../x?y")
    assert server.paths == ["/api/v1/namespaces/default/pods/client", "/api/v1/nodes/node%2F..%2Fx%3Fy"]


async def test_an_object_without_end_is_read_no_further_than_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "LARGEST_LINE", 1 << 20)
    flood = web.Response(body=b"x" * (3 << 20))
    async with Answering(tmp_path, lambda _: flood) as client:
        with pytest.raises(ApiError, match="the answer to pods is larger than 1 MiB"):
            await client.get("pods", "default", "client")


async def test_only_the_apis_own_404_means_that_an_object_is_gone(tmp_path: Path) -> None:
    name = "x" * 253
    status = {"kind": "Status", "message": f'pods "{name}" not found', "reason": "NotFound", "code": 404}
    body = json.dumps(status, separators=(",", ":"))
    for text, expected in ((body, MissingError), ("<html>404 no such backend</html>", ApiError)):
        async with Answering(tmp_path, lambda _, text=text: web.Response(status=404, text=text)) as client:  # type: ignore[misc]
            with pytest.raises(ApiError) as caught:
                await client.get("pods", "default", name)
        assert type(caught.value) is expected
