"""From the JSON of the Kubernetes API to what the inventory keeps: some ten fields of each object.

Contract: pure. An object that cannot be understood (wrong types, no name, an address that is none) costs only
itself: it is left out and counted in `skipped`. A body that is no list, or a line that is no event, raises
`UnreadableError`. Fields follow the Kubernetes API v1 (Pod, Node, Service, ListMeta, WatchEvent, Status).
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

import msgspec

from kubenetmon.errors import ProtocolError
from kubenetmon.model import TCP, UDP
from kubenetmon.server.inventory import InventoryConfig, Kind
from kubenetmon.server.node_prefixes import Network
from kubenetmon.server.nodes import Node
from kubenetmon.server.pods import Pod, compact_uid
from kubenetmon.server.services import Service
from kubenetmon.server.snapshot import Family

KubernetesObject = Pod | Node | Service

_OVER = frozenset({"Succeeded", "Failed"})
_KIND_NAMES: Mapping[str, Kind] = {"Pod": "pods", "Node": "nodes", "Service": "services"}
_HEADLESS = "None"
"""As the address of a Service: it has none."""

_IPV4_MAPPED = 0xFFFF
_PROTOCOLS = {"TCP": TCP, "UDP": UDP}
_TIMES_SHARED = 4096

LabelsT = TypeVar("LabelsT")
ObjectT = TypeVar("ObjectT")


class UnreadableError(ProtocolError):
    """What came from the Kubernetes API is not what it should be."""


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `continue_token` is empty on the last one."""

    objects: list[KubernetesObject]
    skipped: int
    continue_token: str
    resource_version: str


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a watch. `object` is None for BOOKMARK and ERROR, and for an object that was skipped.

    `ends_list`: a bookmark that says that all objects there were have been sent.
    """

    type: str
    object: KubernetesObject | None
    resource_version: str
    error_code: int
    error_message: str
    ends_list: bool = False


@dataclass(frozen=True, slots=True)
class Current:
    """One object as the API has it now; `phase` is a pod's, and `over` says that it has ended."""

    object: KubernetesObject
    resource_version: str
    phase: str
    over: bool


class _Annotations(msgspec.Struct):
    initial_events_end: str | None = msgspec.field(name="k8s.io/initial-events-end", default=None)


class _Metadata(msgspec.Struct, Generic[LabelsT], rename="camel"):
    name: str | None = None
    namespace: str | None = None
    uid: str | None = None
    creation_timestamp: datetime | None = None
    resource_version: str | None = None
    labels: LabelsT | None = None
    annotations: _Annotations | None = None


class _PodAddress(msgspec.Struct):
    ip: str | None = None


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None
    # Read only of pods on the host's network.
    containers: msgspec.Raw = msgspec.Raw()
    init_containers: msgspec.Raw = msgspec.Raw()


class _Port(msgspec.Struct, rename="camel"):
    container_port: int = 0
    host_port: int = 0
    protocol: str = "TCP"


class _Container(msgspec.Struct, rename="camel"):
    ports: list[_Port] | None = None
    restart_policy: str | None = None


class _PodStatus(msgspec.Struct):
    phase: str | None = None
    start_time: datetime | None = msgspec.field(name="startTime", default=None)
    pod_ip: str | None = msgspec.field(name="podIP", default=None)
    pod_ips: list[_PodAddress] | None = msgspec.field(name="podIPs", default=None)


class _Pod(msgspec.Struct, Generic[LabelsT]):
    metadata: _Metadata[LabelsT]
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


_CONTAINERS = msgspec.json.Decoder(list[_Container] | None)


class _NodeAddress(msgspec.Struct):
    type: str | None = None
    address: str | None = None


class _NodeSpec(msgspec.Struct):
    pod_cidr: str | None = msgspec.field(name="podCIDR", default=None)
    pod_cidrs: list[str] | None = msgspec.field(name="podCIDRs", default=None)


class _NodeStatus(msgspec.Struct):
    addresses: list[_NodeAddress] | None = None


class _Node(msgspec.Struct, Generic[LabelsT]):
    metadata: _Metadata[LabelsT]
    spec: _NodeSpec | None = None
    status: _NodeStatus | None = None


class _ServiceSpec(msgspec.Struct):
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: list[str] | None = msgspec.field(name="externalIPs", default=None)


class _LoadBalancer(msgspec.Struct):
    ingress: list[_PodAddress] | None = None


class _ServiceStatus(msgspec.Struct, rename="camel"):
    load_balancer: _LoadBalancer | None = None


class _Service(msgspec.Struct, Generic[LabelsT]):
    metadata: _Metadata[LabelsT]
    spec: _ServiceSpec | None = None
    status: _ServiceStatus | None = None


class _ListMetadata(msgspec.Struct):
    continue_token: str | None = msgspec.field(name="continue", default=None)
    resource_version: str | None = msgspec.field(name="resourceVersion", default=None)


class _List(msgspec.Struct, Generic[ObjectT]):
    metadata: _ListMetadata | None = None
    items: list[ObjectT] | None = None


class _Event(msgspec.Struct, Generic[ObjectT]):
    type: str
    object: ObjectT


class _Status(msgspec.Struct):
    code: int | None = None
    message: str | None = None
    reason: str | None = None


class _AnyObject(msgspec.Struct):
    kind: str | None = None
    metadata: _ListMetadata | None = None
    items: list[msgspec.Raw] | None = None


class ObjectDecoder:
    """Decodes objects of the three kinds for one set of label names. Stateless once made."""

    def __init__(self, config: InventoryConfig) -> None:
        self._app_fields: list[str] = []
        fields: dict[str, str] = {}

        def field_for(label: str) -> str:
            return fields.setdefault(label, f"label_{len(fields)}") if label else ""

        self._app_fields = [field_for(label) for label in config.app_labels if label]
        self._instance_id_field = field_for(config.instance_id_label)
        self._cell_field = field_for(config.cell_label)
        self._zone_field = field_for(config.zone_label)
        # Only the labels asked for become objects; the decoder skips all others unseen.
        labels: Any = msgspec.defstruct(
            "Labels",
            [(name, str | None, None) for name in fields.values()],
            rename={name: label for label, name in fields.items()},
        )
        self._types: dict[Kind, Any] = {
            "pods": _Pod[labels],
            "nodes": _Node[labels],
            "services": _Service[labels],
        }
        self._convert: dict[Kind, Callable[[Any], KubernetesObject]] = {
            "pods": self._pod,
            "nodes": self._node,
            "services": self._service,
        }
        self._object: dict[Kind, msgspec.json.Decoder[Any]] = {}
        self._list: dict[Kind, msgspec.json.Decoder[Any]] = {}
        self._event: dict[Kind, msgspec.json.Decoder[Any]] = {}
        object_type: Any
        for kind, object_type in self._types.items():
            self._object[kind] = msgspec.json.Decoder(object_type)
            self._list[kind] = msgspec.json.Decoder(_List[object_type])
            self._event[kind] = msgspec.json.Decoder(_Event[object_type])
        self._raw_list = msgspec.json.Decoder(_List[msgspec.Raw])
        self._raw_event = msgspec.json.Decoder(_Event[msgspec.Raw])
        self._any_object = msgspec.json.Decoder(_AnyObject)
        self._times: dict[int, int] = {}

    def page(self, kind: Kind, body: bytes | bytearray) -> Page:
        """One page of a list of that kind. Raises `UnreadableError`."""
        try:
            listed = self._list[kind].decode(body)
            items: list[Any] = listed.items or []
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            listed, items = self._page_item_by_item(kind, body)
        objects: list[KubernetesObject] = []
        skipped = 0
        convert = self._convert[kind]
        for item in items:
            try:
                objects.append(convert(item))
            except (ValueError, AttributeError, OverflowError):
                skipped += 1
        metadata = listed.metadata or _ListMetadata()
        return Page(objects, skipped, metadata.continue_token or "", metadata.resource_version or "")

    def event(self, kind: Kind, line: bytes | bytearray) -> Event:
        """One line of a watch. Raises `UnreadableError`."""
        try:
            decoded = self._event[kind].decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return self._odd_event(line)
        metadata = decoded.object.metadata
        version = metadata.resource_version or ""
        if decoded.type == "BOOKMARK":
            annotations = metadata.annotations
            ends = annotations is not None and annotations.initial_events_end == "true"
            return Event(decoded.type, None, version, 0, "", ends)
        known: KubernetesObject | None = None
        try:
            known = self._convert[kind](decoded.object)
        except (ValueError, OverflowError):
            known = None
        return Event(decoded.type, known, version, 0, "")

    def one(self, kind: Kind, body: bytes | bytearray) -> Current:
        """An object that was asked for by its name. Raises `UnreadableError`."""
        try:
            decoded = self._object[kind].decode(body)
            known = self._convert[kind](decoded)
        except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
            raise UnreadableError(f"one of the {kind} is unreadable: {_one_line(error)}") from None
        phase = (decoded.status.phase if kind == "pods" and decoded.status else None) or ""
        return Current(known, decoded.metadata.resource_version or "", phase, phase in _OVER)

    def dump(self, body: bytes) -> dict[Kind, Page]:
        """What `kubectl get pods,nodes,services -A -o json` wrote. Raises `UnreadableError`."""
        try:
            listed = self._any_object.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableError(f"not a JSON list of Kubernetes objects: {_one_line(error)}") from None
        if listed.items is None or not (listed.kind or "").endswith("List"):
            raise UnreadableError(f"kind {listed.kind!r} is not a List of Kubernetes objects")
        default = _KIND_NAMES.get((listed.kind or "").removesuffix("List"))
        pages = {kind: Page([], 0, "", "") for kind in self._types}
        skipped = dict.fromkeys(self._types, 0)
        for raw in listed.items:
            try:
                kind = _KIND_NAMES.get(self._any_object.decode(raw).kind or "", default)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                kind = default or "pods"
                skipped[kind] += 1
                continue
            if kind is None:
                continue
            try:
                pages[kind].objects.append(self._convert[kind](self._object[kind].decode(raw)))
            except (msgspec.MsgspecError, ValueError, AttributeError, OverflowError, RecursionError):
                skipped[kind] += 1
        return {kind: Page(page.objects, skipped[kind], "", "") for kind, page in pages.items()}

    def _page_item_by_item(self, kind: Kind, body: bytes | bytearray) -> tuple[Any, list[Any]]:
        """The slow way, for a page in which some object is odd: None stands for such an object."""
        try:
            listed = self._raw_list.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableError(f"the list of {kind} is unreadable: {_one_line(error)}") from None
        items: list[Any] = []
        for raw in listed.items or []:
            try:
                items.append(self._object[kind].decode(raw))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                items.append(None)
        return listed, items

    def _odd_event(self, line: bytes | bytearray) -> Event:
        """An event whose object is not of the watched kind: ERROR with its Status, or one to be skipped."""
        try:
            event = self._raw_event.decode(line)
            if event.type == "ERROR":
                status = msgspec.json.decode(event.object, type=_Status)
                return Event("ERROR", None, "", status.code or 0, status.message or status.reason or "")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise UnreadableError(f"a line of the watch is unreadable: {_one_line(error)}") from None
        return Event(event.type, None, "", 0, "")

    def _pod(self, decoded: Any) -> Pod:
        metadata = decoded.metadata
        spec = decoded.spec or _PodSpec()
        status = decoded.status or _PodStatus()
        labels = metadata.labels
        app = ""
        for field in self._app_fields:
            app = app or getattr(labels, field, None) or ""
        ipv4: list[int] = []
        ipv6: list[int] = []
        texts = [address.ip for address in status.pod_ips or ()]
        if status.pod_ip not in texts:
            texts.insert(0, status.pod_ip)
        for text in texts:
            if text:
                family, address = parse_address(text)
                (ipv4 if family == 4 else ipv6).append(address)
        return Pod(
            compact_uid(_identity(metadata)),
            sys.intern(metadata.namespace or ""),
            metadata.name,
            sys.intern(spec.node_name or ""),
            sys.intern(app),
            sys.intern(getattr(labels, self._instance_id_field, None) or ""),
            sys.intern(getattr(labels, self._cell_field, None) or ""),
            self._second(metadata.creation_timestamp),
            self._second(status.start_time),
            not spec.host_network and status.phase not in _OVER,
            tuple(ipv4),
            tuple(ipv6),
            _host_ports(spec) if spec.host_network and status.phase not in _OVER else (),
        )

    def _second(self, moment: datetime | None) -> int:
        """Unix seconds; pods of the same second share the object, which counts with a hundred thousand."""
        if len(self._times) >= _TIMES_SHARED:
            self._times.clear()
        second = _seconds(moment)
        return self._times.setdefault(second, second)

    def _node(self, decoded: Any) -> Node:
        metadata = decoded.metadata
        uid = compact_uid(_identity(metadata))
        spec = decoded.spec or _NodeSpec()
        status = decoded.status or _NodeStatus()
        ipv4: list[int] = []
        ipv6: list[int] = []
        for entry in status.addresses or ():
            if entry.type == "InternalIP" and entry.address:
                family, address = parse_address(entry.address)
                (ipv4 if family == 4 else ipv6).append(address)
        networks = list(spec.pod_cidrs or ())
        if spec.pod_cidr and spec.pod_cidr not in networks:
            networks.insert(0, spec.pod_cidr)
        return Node(
            sys.intern(metadata.name),
            sys.intern(getattr(metadata.labels, self._zone_field, None) or ""),
            _seconds(metadata.creation_timestamp),
            tuple(ipv4),
            tuple(ipv6),
            tuple(parse_network(text) for text in networks),
            sys.intern(getattr(metadata.labels, self._cell_field, None) or ""),
            uid,
        )

    def _service(self, decoded: Any) -> Service:
        metadata = decoded.metadata
        uid = compact_uid(_identity(metadata))
        spec = decoded.spec or _ServiceSpec()
        status = decoded.status or _ServiceStatus()
        balancer = status.load_balancer or _LoadBalancer()
        texts = [spec.cluster_ip, *(spec.cluster_ips or ()), *(spec.external_ips or ())]
        texts += [ingress.ip for ingress in balancer.ingress or ()]
        ipv4: list[int] = []
        ipv6: list[int] = []
        for text in dict.fromkeys(texts):
            if text and text != _HEADLESS:
                family, address = parse_address(text)
                (ipv4 if family == 4 else ipv6).append(address)
        namespace = sys.intern(metadata.namespace or "")
        return Service(uid, namespace, metadata.name, tuple(ipv4), tuple(ipv6))


def _host_ports(spec: _PodSpec) -> tuple[int, ...]:
    """The ports that the containers declare (and sidecars: restartable init containers), as `Pod` has them.

    On the host's network a port of the container is the port of the host, whether hostPort repeats it or not.
    """
    found: set[int] = set()
    for raw, always in ((spec.containers, True), (spec.init_containers, False)):
        try:
            containers = _CONTAINERS.decode(raw) if len(bytes(raw)) else None
        except msgspec.MsgspecError:
            continue  # the pod is still a pod
        for container in containers or ():
            if not (always or container.restart_policy == "Always"):
                continue
            for port in container.ports or ():
                protocol = _PROTOCOLS.get(port.protocol)
                number = port.container_port or port.host_port
                if protocol is not None and 0 < number < 1 << 16:
                    found.add(protocol << 16 | number)
    return tuple(sorted(found))


def parse_address(text: str) -> tuple[Family, int]:
    """The family and number of an address; IPv4 mapped into IPv6 is IPv4. Raises `ValueError`.

    The unspecified addresses are refused: they belong to no one.
    """
    try:
        if ":" not in text:
            family: Family = 4
            number = int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big")
        else:
            family = 6
            number = int.from_bytes(socket.inet_pton(socket.AF_INET6, text), "big")
    except OSError:
        raise ValueError(f"{text!r} is not an IP address") from None
    if family == 6 and number >> 32 == _IPV4_MAPPED:
        family, number = 4, number & 0xFFFFFFFF
    if number == 0:
        raise ValueError(f"{text!r} is the unspecified address")
    return family, number


def parse_network(text: str) -> Network:
    """A prefix such as 10.0.3.0/24; host bits are cleared. Raises `ValueError`."""
    host, separator, length_text = text.partition("/")
    if not separator or not length_text.isascii() or not length_text.isdigit():
        raise ValueError(f"{text!r} is not an address prefix")
    version = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        packed = socket.inet_pton(version, host)
    except OSError:
        raise ValueError(f"{text!r} is not an address prefix") from None
    bits, length = 8 * len(packed), int(length_text)
    if length > bits:
        raise ValueError(f"{text!r} is not an address prefix")
    free = bits - length
    return Network(4 if bits == 32 else 6, int.from_bytes(packed, "big") >> free << free, length)


def _identity(metadata: _Metadata[Any]) -> str:
    if not metadata.name:
        raise ValueError("an object without a name")
    return metadata.uid or f"{metadata.namespace or ''}/{metadata.name}"


def _seconds(moment: datetime | None) -> int:
    """Unix seconds; 0 for none, and for a time without a zone, which the API never writes."""
    return max(0, int(moment.timestamp())) if moment is not None and moment.tzinfo is not None else 0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
