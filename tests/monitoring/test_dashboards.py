"""The dashboard files: as the generator makes them, and such that Grafana takes them."""

from __future__ import annotations

import copy
import json

import pytest

from tests.beds import grafana

MADE = grafana.generator().dashboards()


def test_the_files_are_current_and_no_other_lies_there() -> None:
    written = {path.name: path.read_text() for path in grafana.DIRECTORY.glob("*.json")}
    text = grafana.generator().text
    assert written == {name: text(model) for name, model in MADE.items()}, "run nox -s dashboards"


@pytest.mark.parametrize("name", MADE)
def test_grafana_finds_nothing_to_stumble_over(name: str) -> None:
    model = json.loads((grafana.DIRECTORY / name).read_text())
    assert grafana.structure_problems(model) == []


@pytest.mark.parametrize("name", MADE)
def test_grafanas_own_schema_knows_every_key_and_keeps_every_value(name: str) -> None:
    assert grafana.lost(json.loads((grafana.DIRECTORY / name).read_text())) == []


def test_the_schema_check_can_fail() -> None:
    model = json.loads(json.dumps(MADE["metering.json"]))  # nothing is shared between panels
    panel = next(panel for panel in model["panels"] if panel["type"] == "timeseries")
    panel["options"]["legned"] = {}
    panel["fieldConfig"]["defaults"]["decimalz"] = 1
    model["refreshh"] = "1m"
    at = model["panels"].index(panel)
    assert grafana.lost(model) == [
        f"/panels/{at}/fieldConfig/defaults/decimalz: not known",
        f"/panels/{at}/options/legned: not known",
        "/refreshh: not known",
    ]


def test_the_structural_check_can_fail() -> None:
    model = copy.deepcopy(MADE["metering.json"])
    model["panels"][2]["gridPos"] = dict(model["panels"][1]["gridPos"])
    model["panels"][3]["targets"][0]["expr"] = "up{instance=~'$nowhere'}"
    del model["uid"]
    problems = " ".join(grafana.structure_problems(model))
    for word in ("lies on", "$nowhere is not declared", "uid"):
        assert word in problems


def test_uids_and_titles_are_one_each() -> None:
    for key in ("uid", "title"):
        values = [model[key] for model in MADE.values()]
        assert len(set(values)) == len(values)
