"""What the pipeline says of a batch, and the receiver tells the agent."""

from __future__ import annotations

from dataclasses import dataclass

from kubenetmon.proto import Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a batch; `reason` is for people and empty when committed."""

    outcome: Outcome
    reason: str = ""
