"""What paths are called. Pure. `cost.PATH_OF_TRANSFER` and the server's live view name them."""

from __future__ import annotations

PATHS = {
    "same-zone": "same zone",
    "cross-zone": "cross zone",
    "unknown-zone": "zone unknown",
    "region-service": "in the region",
    "inter-region": "other region",
    "internet": "internet",
    "unknown": "unknown",
}
"""The cheapest first; unknown-zone: within the VPC, and the zone of one end is not known."""
