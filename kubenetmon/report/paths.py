"""Paths: the connection class, and within the VPC whether zones are crossed. Pure."""

from __future__ import annotations

PATHS = {
    "SAME_ZONE": "same zone",
    "CROSS_ZONE": "cross zone",
    "INTRA_VPC": "in the VPC",
    "INTRA_REGION": "in the region",
    "INTER_REGION": "other region",
    "PUBLIC_INTERNET": "internet",
    "UNKNOWN": "unknown",
}
"""How paths are called, the cheapest first. INTRA_VPC: the zone of one end is not known."""

_FROM, _TO = "sourceAvailabilityZone", "destinationAvailabilityZone"

PATH = (
    f"multiIf(connectionClass != 'INTRA_VPC' OR {_FROM} = '' OR {_TO} = '', toString(connectionClass), "
    f"{_FROM} = {_TO}, 'SAME_ZONE', 'CROSS_ZONE')"
)
"""The path of a row of `Flows.transfers('zone')`, as SQL."""
