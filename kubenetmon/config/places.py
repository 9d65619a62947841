"""The settings that say where remotes are: `networks` and `peer_clusters`.

Contract: parsers like those of `kubenetmon.config.values`; each raises `ConfigurationError` that names the
key down to the field at fault.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kubenetmon.config import values
from kubenetmon.config.values import Network
from kubenetmon.errors import ConfigurationError

CLASSES = ("INTRA_VPC", "INTRA_REGION", "INTER_REGION", "PUBLIC_INTERNET")
"""The classes that kubenetmon gives itself; a setting may name others."""

MOST_NETWORKS = 1000
MOST_PEERS = 100


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is; `cloud` and `region` empty: our own, `connection_class` empty: by these two."""

    cloud: str = ""
    region: str = ""
    connection_class: str = ""

    def resolved(self, cloud: str, region: str) -> Place:
        """With nothing left open, seen from our own cloud and region."""
        there, region_there = self.cloud or cloud, self.region or region
        if there != cloud:
            by_place = "PUBLIC_INTERNET"
        else:
            by_place = "INTRA_VPC" if region_there == region else "INTER_REGION"
        return Place(there, region_there, self.connection_class or by_place)


@dataclass(frozen=True, slots=True)
class NetworkSetting:
    """One entry of `networks`."""

    name: str
    cidrs: tuple[Network, ...]
    place: Place
    zone: str
    service: str
    cluster: str


@dataclass(frozen=True, slots=True)
class PeerSetting:
    """One entry of `peer_clusters`."""

    name: str
    kubeconfig: Path
    place: Place


def networks(name: str, value: Any) -> tuple[NetworkSetting, ...]:
    """Names to CIDRs with cloud, region, zone, class, service and cluster of their own."""
    found = []
    owner: dict[Network, str] = {}
    for key, fields in _entries(name, value, MOST_NETWORKS, "networks"):
        path = f"{name}.{key}"
        _check_fields(path, fields, ("cidrs", "cloud", "region", "class", "zone", "service", "cluster"))
        if "cidrs" not in fields:
            raise ConfigurationError(f"{path}.cidrs is missing: list its networks, as in [10.50.0.0/16]")
        cidrs = values.networks(f"{path}.cidrs", fields["cidrs"])
        for cidr in cidrs:
            if owner.setdefault(cidr, key) != key:
                raise ConfigurationError(f"{path}.cidrs: {cidr} is in {name}.{owner[cidr]} as well")
        found.append(
            NetworkSetting(
                key,
                cidrs,
                _place(path, fields),
                values.optional_text(f"{path}.zone", fields.get("zone", "")),
                values.optional_text(f"{path}.service", fields.get("service", key)).lower(),
                values.optional_text(f"{path}.cluster", fields.get("cluster", "")),
            )
        )
    return tuple(found)


def peer_clusters(name: str, value: Any) -> tuple[PeerSetting, ...]:
    """Names of other clusters to their kubeconfig, or to kubeconfig, cloud, region and class."""
    found = []
    for key, fields in _entries(name, value, MOST_PEERS, "clusters", short="kubeconfig"):
        path = f"{name}.{key}"
        _check_fields(path, fields, ("kubeconfig", "cloud", "region", "class"))
        if "kubeconfig" not in fields:
            raise ConfigurationError(f"{path}.kubeconfig is missing: give the path of a kubeconfig")
        kubeconfig = values.path(f"{path}.kubeconfig", fields["kubeconfig"])
        found.append(PeerSetting(key, kubeconfig, _place(path, fields)))
    return tuple(found)


def _entries(
    name: str, value: Any, most: int, what: str, *, short: str = ""
) -> list[tuple[str, dict[str, Any]]]:
    """`short` names the field that an entry's value is when it is a text and no map."""
    if not isinstance(value, dict) or len(value) > most:
        raise ConfigurationError(f"{name}: give a map of names to {what}, at most {most}")
    found = []
    for key, entry in value.items():
        checked = values.text(name, key)
        fields = {short: entry} if short and isinstance(entry, str) else entry
        if not isinstance(fields, dict):
            raise ConfigurationError(f"{name}.{checked}: give a map of settings; see `kubenetmon config`")
        # A key without a value is as good as none.
        found.append((checked, {field: given for field, given in fields.items() if given is not None}))
    return found


def _check_fields(path: str, fields: dict[str, Any], known: tuple[str, ...]) -> None:
    for field in fields:
        if field not in known:
            near = difflib.get_close_matches(str(field), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise ConfigurationError(f"{path}: unknown key {field!r}; {hint}")


def _place(path: str, fields: dict[str, Any]) -> Place:
    return Place(
        values.optional_text(f"{path}.cloud", fields.get("cloud", "")).lower(),
        values.optional_text(f"{path}.region", fields.get("region", "")).lower(),
        _connection_class(f"{path}.class", fields.get("class", "")),
    )


def _connection_class(name: str, value: Any) -> str:
    """One of ours, or another name in capitals that is no misspelling of one of ours."""
    given = values.optional_text(name, value)
    if not given or given in CLASSES:
        return given
    near = difflib.get_close_matches(given.upper(), CLASSES, n=1, cutoff=0.85)
    if near:
        raise ConfigurationError(f"{name}: {given!r} is no class; did you mean {near[0]}?")
    if not re.fullmatch(r"[A-Z][A-Z0-9_]{0,63}", given):
        raise ConfigurationError(
            f"{name}: {given!r:.80} is not one of {', '.join(CLASSES)} nor another name in capitals"
        )
    return given
