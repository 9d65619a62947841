"""Writes the dashboards beside this file (`nox -s dashboards`); a test compares them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from answers import finops, platform  # noqa: E402
from metering import metering  # noqa: E402


def dashboards() -> dict[str, dict[str, Any]]:
    """File name to model."""
    return {"metering.json": metering(), "platform.json": platform(), "finops.json": finops()}


def text(model: dict[str, Any]) -> str:
    """As it is written."""
    return json.dumps(model, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    for name, model in dashboards().items():
        (HERE / name).write_text(text(model))
