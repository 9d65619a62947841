"""What a Grafana would make of a dashboard file: its structure, and its queries with variables filled in.

`lost` reads it as Grafana's own schema of dashboards and panels has it (the classes that Grafana generates
from that schema); the ClickHouse data source is a plugin, whose queries no schema describes.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

DIRECTORY = Path(__file__).resolve().parents[2] / "deploy" / "grafana"


def generator() -> ModuleType:
    """deploy/grafana/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("kubenetmon_dashboards", DIRECTORY / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path[:] = before
    return module


def targets(model: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Each query of the dashboard with its panel's title."""
    return [(panel["title"], target) for panel in model["panels"] for target in panel.get("targets", ())]


def promql(expression: str) -> str:
    """The expression as Grafana sends it."""
    filled = expression.replace("$__rate_interval", "4m").replace("$__range", "6h")
    filled = re.sub(r"\$\{?(server|agent)\}?", ".*", filled)
    assert "$" not in filled, f"a variable that the dashboard does not declare: {filled}"
    return filled


def clickhouse_sql(query: str, begin: int, end: int, database: str, table: str) -> str:
    """The query as the ClickHouse data source sends it, for a span (Unix seconds) and the text variables."""
    filled = query.replace("$__fromTime", f"toDateTime({begin})").replace("$__toTime", f"toDateTime({end})")
    for name, value in {
        "database": database,
        "table": table,
        "cross_zone_price": "0.01",
        "inter_region_price": "0.02",
        "internet_price": "0.09",
    }.items():
        filled = filled.replace(f"${{{name}}}", value)
    assert "$" not in filled, f"a variable that the dashboard does not declare: {filled}"
    return filled


def structure_problems(model: dict[str, Any]) -> list[str]:
    """What Grafana would stumble over; [] when it is well."""
    problems = [
        f"{key} is missing"
        for key in ("uid", "title", "schemaVersion", "panels", "templating", "time")
        if not model.get(key)
    ]
    if not re.fullmatch(r"[a-z0-9-]{1,40}", model.get("uid", "")):
        problems.append("uid: at most 40 of a-z, 0-9 and -")
    panels = model.get("panels", [])
    numbers = [panel["id"] for panel in panels]
    if len(set(numbers)) != len(numbers):
        problems.append("two panels have one id")
    taken: dict[tuple[int, int], str] = {}
    declared = {variable["name"] for variable in model.get("templating", {}).get("list", [])}
    for panel in panels:
        place, title = panel["gridPos"], panel["title"]
        if place["x"] + place["w"] > 24:
            problems.append(f"{title} is wider than the screen")
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    problems.append(f"{title} lies on {taken[x, y]}")
                taken[x, y] = title
        if panel["type"] == "row":
            continue
        if not panel.get("targets") and panel["type"] != "text":
            problems.append(f"{title} asks nothing")
        if panel["type"] != "text" and not panel.get("description"):
            problems.append(f"{title} does not say what it shows")
        letters = [target["refId"] for target in panel.get("targets", ())]
        if len(set(letters)) != len(letters):
            problems.append(f"{title}: two queries have one refId")
        for target in panel.get("targets", ()):
            if not (target.get("expr") or target.get("rawSql")):
                problems.append(f"{title}: an empty query")
            used = set(re.findall(r"\$\{?([a-z]\w*)", target.get("expr", "") + target.get("rawSql", "")))
            problems += [f"{title}: ${name} is not declared" for name in sorted(used - declared)]
            if target["datasource"]["uid"] != "${source}":
                problems.append(f"{title}: the data source is fixed")
    return sorted(set(problems))


def lost(model: dict[str, Any]) -> list[str]:
    """What does not come back when Grafana's own classes read a dashboard and write it: keys that they do not
    know, and values that they change. What they add are defaults."""
    plugins.register_default_plugins()
    return _differences(model, json.loads(JSONEncoder().encode(Dashboard.from_json(model))), "")


def _differences(mine: Any, theirs: Any, where: str) -> list[str]:
    if isinstance(mine, dict) and isinstance(theirs, dict):
        found = [f"{where}/{key}: not known" for key in mine.keys() - theirs.keys()]
        for key in mine.keys() & theirs.keys():
            found += _differences(mine[key], theirs[key], f"{where}/{key}")
        return sorted(found)
    if isinstance(mine, list) and isinstance(theirs, list) and len(mine) == len(theirs):
        pairs = enumerate(zip(mine, theirs, strict=True))
        return [each for at, pair in pairs for each in _differences(*pair, f"{where}/{at}")]
    return [] if mine == theirs else [f"{where}: {mine!r} becomes {theirs!r}"]
