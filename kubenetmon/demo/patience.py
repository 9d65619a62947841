"""How long the demo waits for its own processes: longer where the machine is slow, as an emulated one is.

`KUBENETMON_DEMO_PATIENCE` is a factor, 1 unless set. It changes what the demo waits for and nothing that it
measures or compares.
"""

from __future__ import annotations

import math
import os

from kubenetmon.errors import MachineError

VARIABLE = "KUBENETMON_DEMO_PATIENCE"


def patience(seconds: float) -> float:
    """That many seconds, times what the environment says. Raises `MachineError` when it says no factor."""
    told = os.environ.get(VARIABLE, "1")
    try:
        factor = float(told)
    except ValueError:
        factor = math.nan
    if not 1 <= factor <= 1000:
        raise MachineError(f"{VARIABLE}={told!r} is not a number from 1 to 1000")
    return seconds * factor
