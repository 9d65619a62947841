"""The charts against the original's, as the development data list their values, names and defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.beds.charts import ORIGINAL_AGENT, ORIGINAL_SERVER
from tests.beds.manifests import PARTS, chart

pytestmark = pytest.mark.shared

OTHERWISE = {
    "image.repository": "there is no image of ours to pull: one builds it",
    "deployment.affinity": "the page says it in words; another test looks at it",
}
"""Defaults that are not compared, and why."""
WORDS = {"requests"}
"""Of the page, and no value's name."""
ORIGINAL = {"agent": ORIGINAL_AGENT, "server": ORIGINAL_SERVER}


def listed(page: str, part: str) -> dict[str, str | None]:
    """Path of each value that the page names to its default, None where it gives none."""
    section = page.split(f"## Chart kubenetmon-{part}: values and defaults\n")[1].split("Objects:")[0]
    found: dict[str, str | None] = {}
    for item in re.split(r" · |(?<=required)\. ", " ".join(section.split())):
        group = re.fullmatch(r"([A-Za-z]+)\.\{(.*)\}\.?", item.strip())
        if group is None:
            # Words such as "as above", defaults in words, and plain names.
            found |= {
                name: None
                for name in re.findall(r"^([A-Za-z]+)|, ([A-Za-z]+)", item)
                for name in name
                if name
            }
            continue
        for pair in re.split(r", (?=[A-Za-z]+(?::|,|$|\s))", group[2]):
            name, colon, default = pair.partition(": ")
            if colon or re.fullmatch(r"[A-Za-z]+", name):
                found[f"{group[1]}.{name}"] = default if colon else None
    return {path: default for path, default in found.items() if path not in WORDS}


def at(values: Any, path: str) -> Any:
    for name in path.split("."):
        values = values[name]
    return values


@pytest.mark.parametrize("part", PARTS)
def test_every_value_of_the_original_is_there_with_its_default(part: str, shared_data: Path) -> None:
    values = yaml.safe_load((chart(part) / "values.yaml").read_text())
    page = (shared_data / "original-interface.md").read_text()
    found = listed(page, part)
    checked = 0
    for path, default in found.items():
        ours = at(values, path)
        at(ORIGINAL[part], path)  # the tests give it to the charts
        if default is not None and path not in OTHERWISE:
            assert str(ours) == str(yaml.safe_load(default) if default != '""' else ""), path
            checked += 1
    assert checked >= {"agent": 14, "server": 20}[part]
