"""Processes as they are shipped: without packages that only the tests install."""

from __future__ import annotations

import os
from pathlib import Path

_HIDDEN = Path(__file__).parent / "as_shipped"


def hide_test_packages() -> None:
    """Python processes started from now on find what kubenetmon depends on, and no pydantic."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(_HIDDEN), os.environ.get("PYTHONPATH"))))
