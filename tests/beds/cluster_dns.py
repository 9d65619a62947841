"""The names of services, as a cluster's DNS server answers them.

`python -m tests.beds.cluster_dns ADDRESS KUBECONFIG` listens on UDP port 53 there until it is killed and asks
the API anew for each question. SERVICE.NAMESPACE.svc.cluster.local has the service's address, or, for a
headless one, those of its ready endpoints; there is nothing else in the world (NXDOMAIN), and no other type
than A (no answers). Source: https://github.com/kubernetes/dns/blob/master/docs/specification.md
"""

from __future__ import annotations

import ipaddress
import json
import socket
import ssl
import struct
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import yaml

_DOMAIN = ".svc.cluster.local"
_ADDRESS_RECORD, _NO_SUCH_NAME, _SECONDS = 1, 3, 5


class _Api:
    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        cluster = config["clusters"][0]["cluster"]
        self._url = cluster["server"]
        self._token = config["users"][0]["user"]["token"]
        self._tls = ssl.create_default_context(cafile=cluster["certificate-authority"])

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self._url + path, headers={"Authorization": f"Bearer {self._token}"})
        try:
            with urllib.request.urlopen(request, timeout=5, context=self._tls) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            error.close()
            return None


def _addresses(api: _Api, name: str) -> list[str] | None:
    """None when there is no such name."""
    parts = name.removesuffix(_DOMAIN).split(".")
    if not name.endswith(_DOMAIN) or len(parts) != 2:
        return None
    service, namespace = parts
    found = api.get(f"/api/v1/namespaces/{namespace}/services/{service}")
    if found is None:
        return None
    address = found["spec"].get("clusterIP", "None")
    if address != "None":
        return [address]
    endpoints = api.get(f"/api/v1/namespaces/{namespace}/endpoints/{service}") or {}
    return [one["ip"] for subset in endpoints.get("subsets") or [] for one in subset.get("addresses") or []]


def _answer(api: _Api, question: bytes) -> bytes:
    identity, flags, _, _, _, _ = struct.unpack_from("!6H", question)
    at, labels = 12, []
    while length := question[at]:
        labels.append(question[at + 1 : at + 1 + length].decode("ascii"))
        at += 1 + length
    (kind,) = struct.unpack_from("!H", question, at + 1)
    asked = question[12 : at + 5]
    found = _addresses(api, ".".join(labels).lower())
    records = [ipaddress.IPv4Address(one).packed for one in found or []] if kind == _ADDRESS_RECORD else []
    code = _NO_SUCH_NAME if found is None else 0
    # A response, authoritative, recursion available; the name of each record is a pointer to the question's.
    head = struct.pack("!6H", identity, 0x8480 | (flags & 0x0100) | code, 1, len(records), 0, 0)
    body = b"".join(struct.pack("!HHHIH", 0xC00C, 1, 1, _SECONDS, 4) + record for record in records)
    return head + asked + body


def main(address: str, kubeconfig: str) -> None:
    """Answer until killed."""
    api = _Api(Path(kubeconfig))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind((address, 53))
        while True:
            question, peer = endpoint.recvfrom(4096)
            try:
                endpoint.sendto(_answer(api, question), peer)
            except (IndexError, struct.error, UnicodeDecodeError, OSError) as error:
                print(f"{peer}: {error!r}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
