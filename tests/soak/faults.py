"""What happens to the processes during a run, and when: drawn from the seed before it begins."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

CALM_SECONDS = 10.0
"""At either end of the run, so that a kill meets traffic, and all are up when it ends."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """`kill` an agent (`target` is its node's name) and start it again; the server `goes` and `returns`."""

    moment: float
    """Seconds after the traffic's beginning."""
    kind: Literal["kill", "goes", "returns"]
    target: str = ""


def schedule(seconds: float, *, kills: int, outage: float, nodes: tuple[str, ...], seed: int) -> list[Fault]:
    """The faults of a run of so many seconds, in their order; the outage lies in its middle.

    Raises `ValueError` when the outage leaves no time before and after it.
    """
    latest = seconds - CALM_SECONDS
    if kills and latest <= CALM_SECONDS:
        raise ValueError(f"kills need a run of more than {2 * CALM_SECONDS:g} s")
    if outage >= seconds - 2 * CALM_SECONDS:
        raise ValueError(f"an outage of {outage:g} s does not fit into a run of {seconds:g} s")
    draw = random.Random(seed)
    faults = [Fault(draw.uniform(CALM_SECONDS, latest), "kill", draw.choice(nodes)) for _ in range(kills)]
    if outage:
        begin = (seconds - outage) / 2
        faults += [Fault(begin, "goes"), Fault(begin + outage, "returns")]
    return sorted(faults)
