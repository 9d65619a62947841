"""Grafana dashboards as data: the few kinds of panels that ours are made of, laid out in rows of 24 columns.

Pure. The model is Grafana's dashboard JSON (grafana.com/docs/grafana/latest/dashboards/build-dashboards/
view-dashboard-json-model), schema version 39 (Grafana 11). Data sources are template variables, so that an
import needs no edits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """One panel. `queries` are (query, legend) in the data source's language; `unit` is Grafana's name of it.

    `kind` is stat, timeseries, table, barchart or text (`queries` empty, `description` is the text).
    `thresholds` are (from which value on, color), the first from minus infinity (None).
    """

    kind: str
    title: str
    description: str
    queries: Sequence[tuple[str, str]] = ()
    unit: str = "short"
    width: int = 12
    height: int = 8
    thresholds: Sequence[tuple[float | None, str]] = ()
    units_by_column: dict[str, str] = field(default_factory=dict)
    stacked: bool = False
    minimum: float | None = None
    maximum: float | None = None


@dataclass(frozen=True)
class Row:
    """A headline and the panels under it."""

    title: str
    panels: Sequence[Panel]


def dashboard(
    *,
    uid: str,
    title: str,
    description: str,
    source: str,
    variables: Sequence[dict[str, Any]],
    rows: Sequence[Row],
) -> dict[str, Any]:
    """The whole of it; `source` is the data source's type, prometheus or grafana-clickhouse-datasource."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in rows:
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "gridPos": {"h": 1, "w": WIDTH, "x": 0, "y": y},
                "panels": [],
            }
        )
        y += 1
        x = height = 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y, height = 0, y + height, 0
            place = {"h": panel.height, "w": panel.width, "x": x, "y": y}
            panels.append(_panel(panel, len(panels) + 1, place, source))
            x, height = x + panel.width, max(height, panel.height)
        y += height
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["kubenetmon"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "utc",
        "refresh": "1m",
        "time": {"from": "now-6h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "kubenetmon",
                "tags": ["kubenetmon"],
                "asDropdown": True,
                "keepTime": True,
            }
        ],
        "annotations": {"list": []},
        "templating": {"list": [_source_variable(source), *variables]},
        "panels": panels,
    }


def text_variable(name: str, label: str, value: str) -> dict[str, Any]:
    """A constant that whoever imports may change."""
    chosen = {"text": value, "value": value, "selected": True}
    return {
        "name": name,
        "type": "textbox",
        "label": label,
        "query": value,
        "current": chosen,
        "options": [chosen],
        "hide": 0,
    }


def query_variable(name: str, label: str, source: str, query: str) -> dict[str, Any]:
    """A choice of several values that the data source lists."""
    return {
        "name": name,
        "type": "query",
        "label": label,
        "datasource": _source(source),
        "query": query,
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"], "selected": True},
        "sort": 1,
        "hide": 0,
    }


def _source_variable(source: str) -> dict[str, Any]:
    return {
        "name": "source",
        "type": "datasource",
        "label": "Data source",
        "query": source,
        "hide": 0,
        "current": {},
    }


def _source(source: str) -> dict[str, str]:
    return {"type": source, "uid": "${source}"}


def _panel(panel: Panel, number: int, place: dict[str, int], source: str) -> dict[str, Any]:
    if panel.kind == "text":
        return {
            "id": number,
            "type": "text",
            "title": panel.title,
            "transparent": True,
            "gridPos": place,
            "options": {"mode": "markdown", "content": panel.description},
        }
    made: dict[str, Any] = {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": _source(source),
        "targets": [
            _target(query, legend, chr(ord("A") + index), panel, source)
            for index, (query, legend) in enumerate(panel.queries)
        ],
        "fieldConfig": {"defaults": _defaults(panel), "overrides": _overrides(panel)},
        "options": _OPTIONS[panel.kind],
    }
    return made


def _target(query: str, legend: str, letter: str, panel: Panel, source: str) -> dict[str, Any]:
    target: dict[str, Any] = {"refId": letter, "datasource": _source(source)}
    series = panel.kind == "timeseries"
    if source == "prometheus":
        target |= {"expr": query, "legendFormat": legend or "__auto", "range": series, "instant": not series}
        return target | ({} if series else {"format": "table" if panel.kind == "table" else "time_series"})
    # The ClickHouse data source (grafana.com/grafana/plugins/grafana-clickhouse-datasource), version 4:
    # format 0 is time series, 1 is table.
    return target | {
        "editorType": "sql",
        "rawSql": query,
        "queryType": "timeseries" if series else "table",
        "format": 0 if series else 1,
    }


def _defaults(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit}
    bounds = {"min": panel.minimum, "max": panel.maximum}
    defaults |= {key: value for key, value in bounds.items() if value is not None}
    if panel.thresholds:
        steps = [{"value": value, "color": color} for value, color in panel.thresholds]
        defaults["thresholds"] = {"mode": "absolute", "steps": steps}
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind == "timeseries":
        defaults["color"] = {"mode": "palette-classic"}
        defaults["custom"] = {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if panel.stacked else 8,
            "showPoints": "never",
            "spanNulls": False,
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "line" if panel.thresholds else "off"},
        }
    return defaults


def _overrides(panel: Panel) -> list[dict[str, Any]]:
    return [
        {"matcher": {"id": "byName", "options": column}, "properties": [{"id": "unit", "value": unit}]}
        for column, unit in panel.units_by_column.items()
    ]


_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
    },
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
    "table": {"showHeader": True, "cellHeight": "sm", "footer": {"show": False}},
    "barchart": {
        "orientation": "horizontal",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}
