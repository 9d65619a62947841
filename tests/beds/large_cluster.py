"""A cluster of any size as its API server would send it: pages of lists, and a watch full of changes.

Contract: what kube-apiserver writes for such objects (shape, size, order, continue tokens), made as it is
asked for, so that serving costs little and whoever reads it is what is measured: of a hundred thousand pods a
real API server on a small machine is itself the limit. `python -m tests.beds.large_cluster PODS NODES RATE`
serves on loopback, prints its port and ends with its standard input.

Changes begin when `/begin` is asked for, RATE a second, in lots; from `/begin?rate=N` on, N a second. They go
over the pods in order: one ends, its successor appears, runs at the same address, and reports its state again
(`STEPS`). So who owns an address after how many changes is arithmetic (`LargeCluster.owner`), and any reader
can be checked.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
import sys
import time
from typing import Any

from aiohttp import web

FIRST_VERSION = 1_000_000
STEPS = (
    ("MODIFIED", "running"),
    ("DELETED", "gone"),
    ("ADDED", "pending"),
    ("MODIFIED", "pending"),
    ("MODIFIED", "running"),
    ("MODIFIED", "running"),
)
"""What becomes of a pod, change by change; from the third on it is the next generation's."""
_NEXT_GENERATION = 2

_LOT_SECONDS = 0.05
_POD_ADDRESSES = int(ipaddress.IPv4Address("10.64.0.0"))
_NODE_ADDRESSES = int(ipaddress.IPv4Address("10.0.0.0"))
_APPS, _NAMESPACES = 400, 40
_SERVICES = 2000
_STARTED = "2026-01-01T00:00:00Z"


def _condition(name: str) -> dict[str, Any]:
    return {"type": name, "status": "True", "lastProbeTime": None, "lastTransitionTime": _STARTED}


def _fields(*names: str) -> dict[str, Any]:
    return {".": {}, **{f"f:{name}": {} for name in names}}


_SHA = "6f2c1e0b7a5d4c3b2a1908f7e6d5c4b3a2918070f6e5d4c3b2a190807f6e5d4c"
_PROBE = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3}
_ACCOUNT = "default-token-x7x2k"
_REPLICA_SET = "0c7ad9a2-9a0c-4ac1-9d6e-000000000001"

_POD: dict[str, Any] = {
    "metadata": {
        "name": "<name>",
        "generateName": "<app>-7c9d8f6b5-",
        "namespace": "<namespace>",
        "selfLink": "/api/v1/namespaces/<namespace>/pods/<name>",
        "uid": "<uid>",
        "resourceVersion": "<version>",
        "creationTimestamp": "<created>",
        "labels": {
            "app.kubernetes.io/name": "<app>",
            "app.kubernetes.io/instance": "<app>",
            "pod-template-hash": "7c9d8f6b5",
            "team": "<namespace>",
        },
        "annotations": {
            "prometheus.io/scrape": "true",
            "prometheus.io/port": "9090",
            "checksum/config": _SHA,
        },
        "ownerReferences": [
            {
                "apiVersion": "apps/v1",
                "kind": "ReplicaSet",
                "name": "<app>-7c9d8f6b5",
                "uid": _REPLICA_SET,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
        "managedFields": [
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": _STARTED,
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:metadata": {
                        "f:annotations": _fields("checksum/config", "prometheus.io/port"),
                        "f:generateName": {},
                        "f:labels": _fields("app.kubernetes.io/name", "pod-template-hash", "team"),
                        "f:ownerReferences": {".": {}, f'k:{{"uid":"{_REPLICA_SET}"}}': {}},
                    },
                    "f:spec": {
                        "f:containers": {
                            'k:{"name":"main"}': {
                                **_fields("image", "imagePullPolicy", "name", "ports", "resources"),
                                "f:env": {".": {}, 'k:{"name":"LOG_LEVEL"}': _fields("name", "value")},
                            }
                        },
                        **_fields("dnsPolicy", "restartPolicy", "schedulerName", "securityContext"),
                    },
                },
            },
            {
                "manager": "kubelet",
                "operation": "Update",
                "apiVersion": "v1",
                "time": _STARTED,
                "fieldsType": "FieldsV1",
                "fieldsV1": {
                    "f:status": {
                        "f:conditions": {
                            f'k:{{"type":"{name}"}}': _fields("lastProbeTime", "lastTransitionTime", "status")
                            for name in ("ContainersReady", "Initialized", "Ready")
                        },
                        **_fields("containerStatuses", "hostIP", "phase", "podIP", "podIPs", "startTime"),
                    }
                },
            },
        ],
    },
    "spec": {
        "volumes": [
            {"name": _ACCOUNT, "secret": {"secretName": _ACCOUNT, "defaultMode": 420}},
            {"name": "config", "configMap": {"name": "<app>-config", "defaultMode": 420}},
        ],
        "containers": [
            {
                "name": "main",
                "image": "registry.example.org/<namespace>/<app>:v1.42.0",
                "ports": [
                    {"name": "http", "containerPort": 8080, "protocol": "TCP"},
                    {"name": "metrics", "containerPort": 9090, "protocol": "TCP"},
                ],
                "env": [
                    {"name": "LOG_LEVEL", "value": "info"},
                    {
                        "name": "POD_NAME",
                        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
                    },
                ],
                "resources": {
                    "limits": {"cpu": "1", "memory": "1Gi"},
                    "requests": {"cpu": "100m", "memory": "256Mi"},
                },
                "volumeMounts": [
                    {"name": "config", "mountPath": "/etc/app"},
                    {
                        "name": _ACCOUNT,
                        "readOnly": True,
                        "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
                    },
                ],
                "livenessProbe": {"httpGet": {"path": "/live", "port": "http", "scheme": "HTTP"}, **_PROBE},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http", "scheme": "HTTP"}, **_PROBE},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
                "imagePullPolicy": "IfNotPresent",
            }
        ],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "dnsPolicy": "ClusterFirst",
        "serviceAccountName": "default",
        "serviceAccount": "default",
        "nodeName": "<node>",
        "securityContext": {},
        "schedulerName": "default-scheduler",
        "tolerations": [
            {
                "key": f"node.kubernetes.io/{reason}",
                "operator": "Exists",
                "effect": "NoExecute",
                "tolerationSeconds": 300,
            }
            for reason in ("not-ready", "unreachable")
        ],
        "priority": 0,
        "enableServiceLinks": True,
        "preemptionPolicy": "PreemptLowerPriority",
    },
    "status": {"phase": "Pending", "qosClass": "Burstable"},
}
_RUNNING: dict[str, Any] = {
    "phase": "Running",
    "conditions": [_condition(name) for name in ("Initialized", "Ready", "ContainersReady", "PodScheduled")],
    "hostIP": "<host>",
    "podIP": "<address>",
    "podIPs": [{"ip": "<address>"}],
    "startTime": "<created>",
    "containerStatuses": [
        {
            "name": "main",
            "state": {"running": {"startedAt": "<created>"}},
            "lastState": {},
            "ready": True,
            "restartCount": 0,
            "image": "registry.example.org/<namespace>/<app>:v1.42.0",
            "imageID": f"registry.example.org/<namespace>/<app>@sha256:{_SHA}",
            "containerID": f"containerd://{_SHA}",
            "started": True,
        }
    ],
    "qosClass": "Burstable",
}
_NODE: dict[str, Any] = {
    "metadata": {
        "name": "<node>",
        "uid": "<uid>",
        "resourceVersion": "<version>",
        "creationTimestamp": _STARTED,
        "labels": {
            "kubernetes.io/hostname": "<node>",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": "m5.4xlarge",
            "topology.kubernetes.io/region": "us-west-2",
            "topology.kubernetes.io/zone": "<zone>",
        },
    },
    "spec": {
        "podCIDR": "<network>",
        "podCIDRs": ["<network>"],
        "providerID": "aws:///<zone>/i-0123456789abcdef0",
    },
    "status": {
        "capacity": {"cpu": "16", "memory": "64Gi", "pods": "110"},
        "conditions": [
            _condition(name) for name in ("MemoryPressure", "DiskPressure", "PIDPressure", "Ready")
        ],
        "addresses": [
            {"type": "InternalIP", "address": "<host>"},
            {"type": "Hostname", "address": "<node>"},
        ],
        "images": [
            {
                "names": [
                    f"registry.example.org/team/image-{number}@sha256:{_SHA}",
                    f"registry.example.org/team/image-{number}:v1",
                ],
                "sizeBytes": 123_456_789,
            }
            for number in range(50)
        ],
    },
}
_SERVICE: dict[str, Any] = {
    "metadata": {
        "name": "<name>",
        "namespace": "<namespace>",
        "uid": "<uid>",
        "resourceVersion": "<version>",
        "creationTimestamp": _STARTED,
    },
    "spec": {"ports": [{"port": 80, "targetPort": 8080}], "clusterIP": "<address>", "type": "ClusterIP"},
    "status": {"loadBalancer": {}},
}


class _Template:
    """JSON with holes."""

    def __init__(self, document: dict[str, Any]) -> None:
        pieces = json.dumps(document, separators=(",", ":")).replace("<", ">").split(">")
        self._pieces = [piece.encode() for piece in pieces]
        self._names = pieces[1::2]

    def fill(self, values: dict[str, str]) -> bytes:
        pieces = self._pieces.copy()
        pieces[1::2] = [values[name].encode() for name in self._names]
        return b"".join(pieces)


class LargeCluster:
    """The objects after any number of changes. Pods are numbered from 0, each has an address of its own."""

    def __init__(self, pods: int, nodes: int) -> None:
        self.pods, self.nodes = pods, nodes
        self._pending, self._running = _Template(_POD), _Template({**_POD, "status": _RUNNING})
        self._node, self._service = _Template(_NODE), _Template(_SERVICE)

    @staticmethod
    def address(number: int) -> int:
        """Of a pod, for as long as the cluster lasts."""
        return _POD_ADDRESSES + number

    @staticmethod
    def pod_name(number: int, generation: int) -> str:
        """Of the pod that is number `number` in its `generation`-th life."""
        return f"app-{number % _APPS}-7c9d8f6b5-{number:06d}-{generation}"

    @staticmethod
    def node_name(number: int) -> str:
        """Of a node."""
        return f"ip-10-0-{number >> 8}-{number & 255}.us-west-2.compute.internal"

    def life(self, number: int, changes: int) -> tuple[int, str]:
        """A pod's generation and state ("running", "pending" or "gone") after so many changes."""
        visits, step = divmod(changes, len(STEPS))
        generation = max(0, -((number - visits) // self.pods))
        if step == 0 or visits % self.pods != number:
            return generation, "running"
        return generation + (step > _NEXT_GENERATION), STEPS[step - 1][1]

    def owner(self, number: int, changes: int) -> str:
        """The name of the pod that has that pod's address after so many changes; the last one that had it."""
        generation, state = self.life(number, changes)
        return self.pod_name(number, generation - (state == "pending"))

    def pod(self, number: int, generation: int, state: str, version: int) -> bytes:
        """One pod as JSON."""
        node = number % self.nodes
        created = time.time() if generation else 1_767_225_600
        template = self._pending if state == "pending" else self._running
        return template.fill(
            {
                "name": self.pod_name(number, generation),
                "app": f"app-{number % _APPS}",
                "namespace": f"team-{number % _NAMESPACES}",
                "uid": f"{number:08x}-0000-4000-8000-{generation:012x}",
                "version": str(version),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created)),
                "node": self.node_name(node),
                "host": str(ipaddress.IPv4Address(_NODE_ADDRESSES + node)),
                "address": str(ipaddress.IPv4Address(self.address(number))),
            }
        )

    def node(self, number: int) -> bytes:
        """One node as JSON."""
        network = f"100.{64 + (number >> 8)}.{number & 255}.0/24"
        return self._node.fill(
            {
                "node": self.node_name(number),
                "uid": f"node-{number}",
                "version": str(number + 1),
                "zone": f"us-west-2{'abc'[number % 3]}",
                "host": str(ipaddress.IPv4Address(_NODE_ADDRESSES + number)),
                "network": network,
            }
        )

    def service(self, number: int) -> bytes:
        """One service as JSON."""
        return self._service.fill(
            {
                "name": f"service-{number}",
                "namespace": f"team-{number % _NAMESPACES}",
                "uid": f"service-{number}",
                "version": str(number + 1),
                "address": f"198.18.{number >> 8}.{number & 255}",
            }
        )

    def items(self, kind: str, first: int, end: int, changes: int) -> list[bytes]:
        """The objects of a kind from one number to another that there are after so many changes."""
        if kind == "nodes":
            return [self.node(number) for number in range(first, min(end, self.nodes))]
        if kind == "services":
            return [self.service(number) for number in range(first, min(end, _SERVICES))]
        found = []
        for number in range(first, min(end, self.pods)):
            generation, state = self.life(number, changes)
            if state != "gone":
                found.append(self.pod(number, generation, state, number + 1))
        return found

    def count(self, kind: str) -> int:
        """How many numbers there are of a kind."""
        return {"pods": self.pods, "nodes": self.nodes, "services": _SERVICES}[kind]

    def change(self, changes: int) -> bytes:
        """The line of a watch for the change that follows after so many."""
        visits, step = divmod(changes, len(STEPS))
        generation, number = divmod(visits, self.pods)
        kind, state = STEPS[step]
        generation += step >= _NEXT_GENERATION
        known = self.pod(number, generation, state, FIRST_VERSION + changes + 1)
        return b'{"type":"%s","object":{"kind":"Pod","apiVersion":"v1",%s}\n' % (kind.encode(), known[1:])

    def stored(self, kind: str) -> dict[str, bytes | None]:
        """All nodes or pods before any change, as etcd keeps them: JSON by key below /registry."""
        if kind == "nodes":
            numbers = range(self.nodes)
            return {f"minions/{self.node_name(each)}": _stored("Node", self.node(each)) for each in numbers}
        return {
            self._pod_key(each, 0): _stored("Pod", self.pod(each, 0, "running", 0))
            for each in range(self.pods)
        }

    def stored_change(self, changes: int) -> tuple[str, bytes | None]:
        """What the change that follows after so many writes to etcd; None deletes."""
        visits, step = divmod(changes, len(STEPS))
        generation, number = divmod(visits, self.pods)
        state = STEPS[step][1]
        generation += step >= _NEXT_GENERATION
        content = None if state == "gone" else _stored("Pod", self.pod(number, generation, state, 0))
        return self._pod_key(number, generation), content

    def _pod_key(self, number: int, generation: int) -> str:
        return f"pods/team-{number % _NAMESPACES}/{self.pod_name(number, generation)}"


def _stored(kind: str, content: bytes) -> bytes:
    return b'{"kind":"%s","apiVersion":"v1",%s' % (kind.encode(), content[1:])


class _Server:
    def __init__(self, cluster: LargeCluster, rate: int) -> None:
        self._cluster, self._rate = cluster, rate
        self._began: float | None = None
        self._earlier = 0

    @property
    def changes(self) -> int:
        """Until now."""
        new = 0 if self._began is None else int((time.monotonic() - self._began) * self._rate)
        return self._earlier + new

    async def begin(self, request: web.Request) -> web.Response:
        self._earlier = self.changes
        self._began = time.monotonic()
        self._rate = int(request.query.get("rate", self._rate))
        return web.Response()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        kind, query = request.match_info["kind"], request.query
        if "sendInitialEvents" in query:
            return web.Response(status=422)
        if "watch" in query:
            return await self._watch(request, kind)
        first, changes = (int(part) for part in query.get("continue", f"0.{self.changes}").split("."))
        limit = int(query.get("limit", 0)) or self._cluster.count(kind)
        items = self._cluster.items(kind, first, first + limit, changes)
        more = first + limit < self._cluster.count(kind)
        metadata = {"resourceVersion": str(FIRST_VERSION + changes)}
        if more:
            metadata["continue"] = f"{first + limit}.{changes}"
        head = f'{{"kind":"List","apiVersion":"v1","metadata":{json.dumps(metadata)},"items":['
        return web.Response(
            body=b"".join((head.encode(), b",".join(items), b"]}")), content_type="application/json"
        )

    async def _watch(self, request: web.Request, kind: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        ends = time.monotonic() + int(request.query["timeoutSeconds"])
        changes = int(request.query["resourceVersion"]) - FIRST_VERSION
        with contextlib.suppress(ConnectionError):
            while time.monotonic() < ends:
                await asyncio.sleep(_LOT_SECONDS)
                if kind == "pods" and self.changes > changes:
                    lot = range(changes, self.changes)
                    await response.write(b"".join(map(self._cluster.change, lot)))
                    changes = lot.stop
        return response


async def main(pods: int, nodes: int, rate: int) -> None:
    """Serve until standard input ends."""
    server = _Server(LargeCluster(pods, nodes), rate)
    application = web.Application()
    application.router.add_get("/begin", server.begin)
    application.router.add_get("/api/v1/{kind}", server.answer)
    runner = web.AppRunner(application, shutdown_timeout=0.1, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(runner.addresses[0][1], flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await lines.read()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:])))
