"""Ranges files of the size and shape of the real ones, made up, to take time and memory of.

Contract: deterministic. As in the published files of 2026 there are some 45,000 IPv4 and 15,600 IPv6 prefixes
in some 105,000 claims, nested, most of Azure's named twice: once by region and once by service.
"""

from __future__ import annotations

import json
import random
import socket

from kubenetmon.server.ranges import PROVIDERS

_AWS4, _AWS6, _AZURE4, _AZURE6 = 7500, 1600, 37_000, 14_000
_REGIONS = [f"region-{number}" for number in range(60)]


def _prefix(random_: random.Random, family: int) -> str:
    if family == 4:
        length = random_.choice((20, 22, 23, 24, 26, 27, 28, 29, 30, 31, 32, 32))
        number = random_.randrange(11 << 24, 100 << 24) >> (32 - length) << (32 - length)
        return f"{socket.inet_ntop(socket.AF_INET, number.to_bytes(4))}/{length}"
    length = random_.choice((40, 44, 46, 48, 52, 56, 60, 64, 120, 128))
    number = (0x26 << 120 | random_.getrandbits(120)) >> (128 - length) << (128 - length)
    return f"{socket.inet_ntop(socket.AF_INET6, number.to_bytes(16))}/{length}"


def _aws(random_: random.Random) -> object:
    document: dict[str, list[dict[str, str]]] = {}
    for key, name, family, count in (
        ("prefixes", "ip_prefix", 4, _AWS4),
        ("ipv6_prefixes", "ipv6_prefix", 6, _AWS6),
    ):
        items = document[key] = []
        for _ in range(count):
            prefix, region = _prefix(random_, family), random_.choice(_REGIONS)
            items += [
                {name: prefix, "region": region, "service": service, "network_border_group": region}
                for service in random_.sample(["AMAZON", "EC2", "S3"], random_.randint(1, 2))
            ]
    return document


def _azure(random_: random.Random) -> object:
    prefixes = [
        _prefix(random_, family) for family, count in ((4, _AZURE4), (6, _AZURE6)) for _ in range(count)
    ]
    random_.shuffle(prefixes)
    values = []
    for start in range(0, len(prefixes), 100):
        lot = prefixes[start : start + 100]
        region = random_.choice(_REGIONS)
        for name, service, some in (
            (f"AzureCloud.{region}", "", lot),
            (f"Sql.{region}", "AzureSQL", lot[:76]),
        ):
            properties = {"region": region, "systemService": service, "addressPrefixes": some}
            values.append({"name": name, "id": name, "properties": properties})
    return {"changeNumber": 1, "cloud": "Public", "values": values}


def large_files() -> dict[str, bytes]:
    """All providers' files."""
    random_ = random.Random(7)
    few = {"prefixes": [{"ipv4Prefix": "203.0.113.0/24", "service": "Google Cloud", "scope": "us-central1"}]}
    documents = {"aws": _aws(random_), "gcp": few, "google": few, "azure": _azure(random_)}
    return {provider: json.dumps(documents[provider], indent=1).encode() for provider in PROVIDERS}
