"""The dashboards over the table in ClickHouse, one for who runs the platform, one for who pays for it.

Each query asks one of the views that `kubenetmon schema apply --views` makes, so that no dashboard has rules
of its own for what counts once. Times go in as parameters of the view.
"""

from __future__ import annotations

from typing import Any

from panels import Panel, Row, dashboard, text_variable

SOURCE = "grafana-clickhouse-datasource"
_BYTES = "bytes"
_GIB = 1 << 30
_NEEDS = (
    "These panels ask the views that `kubenetmon schema apply --views` makes beside the table; give the "
    "database and the table above. Bytes between pods are counted once, as the sender's node saw them. "
    "`kubenetmon ask` gives the same answers on the command line, and the server's page draws them."
)
# What a path costs for each GiB and way, to be changed above; kubenetmon cost knows tiers and regions.
_PRICES = (
    ("cross_zone_price", "Cross zone, $/GiB each way", "0.01"),
    ("inter_region_price", "Other region, $/GiB out", "0.02"),
    ("internet_price", "Internet, $/GiB out", "0.09"),
)
_DOLLARS = (
    "multiIf(path = 'cross-zone', ${cross_zone_price}, path = 'inter-region' AND way = 'out', "
    "${inter_region_price}, path = 'internet' AND way = 'out', ${internet_price}, 0) "
    f"* bytes / {_GIB}"
)


def _view(name: str) -> str:
    return f"${{database}}.${{table}}_{name}(since = $__fromTime, until = $__toTime)"


def _about() -> Panel:
    return Panel("text", "", _NEEDS, width=24, height=3)


def _figure(title: str, description: str, query: str, unit: str = _BYTES, width: int = 4) -> Panel:
    return Panel("stat", title, description, [(query, "")], unit=unit, width=width, height=4)


def _moved(title: str, path: str, description: str) -> Panel:
    condition = f" WHERE path = '{path}'" if path else ""
    return _figure(title, description, f"SELECT sum(bytes) AS bytes FROM {_view('paths')}{condition}")


def _table(title: str, description: str, query: str, units: dict[str, str], **more: Any) -> Panel:
    return Panel("table", title, description, [(query, "")], units_by_column=units, height=9, **more)


_OVER_TIME = Panel(
    "timeseries",
    "Bytes by path",
    "Every byte once, by the path it took. A point is an hour, or more in a span of more than 64 hours.",
    [(f"SELECT time, path, bytes FROM {_view('paths')} ORDER BY time", "")],
    unit=_BYTES,
    width=24,
    stacked=True,
    minimum=0,
)


def platform() -> dict[str, Any]:
    """Who talks to whom, who opens connections, is the load even, are nodes near their limits."""
    rows = [
        Row(
            "Traffic",
            [
                _about(),
                _moved("All bytes", "", "Everything metered in the span."),
                _moved("Cross zone", "cross-zone", "Between ends whose zones are known and differ."),
                _moved("Same zone", "same-zone", "Between ends of one zone."),
                _moved("Internet", "internet", "To and from public addresses of nobody's cloud of ours."),
                _moved("Other region", "inter-region", "To and from other regions of this cloud."),
                _moved("Zone unknown", "unknown-zone", "Within the VPC, where an end has no known zone."),
                _OVER_TIME,
            ],
        ),
        Row(
            "Who talks to whom",
            [
                _table(
                    "Largest transfers",
                    "From app to app, by class of path.",
                    f"SELECT source, destination, class, service, bytes, share FROM {_view('top')} "
                    "ORDER BY bytes DESC LIMIT 50",
                    {"bytes": _BYTES, "share": "percentunit"},
                ),
                _table(
                    "Across zones",
                    "From app to app, between zones.",
                    "SELECT source, source_zone, destination, destination_zone, bytes, share "
                    f"FROM {_view('cross_zone')} ORDER BY bytes DESC LIMIT 50",
                    {"bytes": _BYTES, "share": "percentunit"},
                ),
            ],
        ),
        Row(
            "Connections",
            [
                _table(
                    "Who opens, who only receives",
                    "By app; inferred from ports where the rows do not say it.",
                    "SELECT end AS app, role, opened, accepted, unclear, sent, received "
                    f"FROM {_view('openers')} ORDER BY opened DESC LIMIT 50",
                    {"sent": _BYTES, "received": _BYTES},
                ),
                _table(
                    "Uneven over replicas",
                    "Clients whose connections or bytes are far from an even share on a replica.",
                    "SELECT client, server, replica, connections, connections_share, bytes, bytes_share, odd "
                    f"FROM {_view('balance')} WHERE odd != '' ORDER BY bytes DESC LIMIT 50",
                    {"connections_share": "percentunit", "bytes": _BYTES, "bytes_share": "percentunit"},
                ),
            ],
        ),
        Row(
            "Throughput and gaps in knowledge",
            [
                _table(
                    "Nodes' peak minutes",
                    "Means over whole minutes; `kubenetmon ask throughput` compares with the instance type.",
                    "SELECT name AS node, toDateTime(peak_minute) AS peak_minute, peak_sent, peak_received, "
                    f"p95_sent, p95_received FROM {_view('throughput')} "
                    "ORDER BY greatest(peak_sent, peak_received) DESC LIMIT 50",
                    dict.fromkeys(("peak_sent", "peak_received", "p95_sent", "p95_received"), "bps"),
                ),
                _table(
                    "Not attributed",
                    "What lacks a pod, an app, a zone or a path, and why.",
                    f"SELECT reason, local AS app, example, bytes, share FROM {_view('unattributed')} "
                    "ORDER BY bytes DESC LIMIT 50",
                    {"bytes": _BYTES, "share": "percentunit"},
                ),
            ],
        ),
    ]
    return _dashboard(
        "kubenetmon-platform",
        "kubenetmon: platform",
        "Who talks to whom, who opens connections, is the load even, are nodes near their limits.",
        rows,
        (),
        "now-24h",
    )


def finops() -> dict[str, Any]:
    """What the transfers cost, whose they are, and what goes to cloud services."""
    dollars = f"SELECT sum({_DOLLARS}) AS dollars FROM {_view('cost')}"
    rows = [
        Row(
            "Cost, at the prices above",
            [
                _about(),
                _figure("All", "Cross zone, other regions and internet.", dollars, "currencyUSD", 6),
                _figure(
                    "Cross zone",
                    "Both ends pay for each byte between zones.",
                    f"{dollars} WHERE path = 'cross-zone'",
                    "currencyUSD",
                    6,
                ),
                _figure(
                    "Other regions",
                    "What went out to other regions of this cloud.",
                    f"{dollars} WHERE path = 'inter-region'",
                    "currencyUSD",
                    6,
                ),
                _figure(
                    "Internet",
                    "What went out to the internet, at one price; `kubenetmon cost` knows tiers.",
                    f"{dollars} WHERE path = 'internet'",
                    "currencyUSD",
                    6,
                ),
                _table(
                    "By workload",
                    "Each end pays for its own way. Exact, with tiers and your prices: `kubenetmon cost`.",
                    f"SELECT name AS workload, path, sum(bytes) AS volume, sum({_DOLLARS}) AS dollars "
                    f"FROM {_view('cost')} GROUP BY workload, path HAVING dollars > 0 "
                    "ORDER BY dollars DESC LIMIT 100",
                    {"volume": _BYTES, "dollars": "currencyUSD"},
                ),
                _table(
                    "By namespace",
                    "The same, by namespace.",
                    "SELECT splitByChar('/', name)[1] AS namespace, sum(bytes) AS volume, "
                    f"sum({_DOLLARS}) AS dollars FROM {_view('cost')} GROUP BY namespace HAVING dollars > 0 "
                    "ORDER BY dollars DESC LIMIT 100",
                    {"volume": _BYTES, "dollars": "currencyUSD"},
                ),
            ],
        ),
        Row("Bytes", [_OVER_TIME]),
        Row(
            "What to look into",
            [
                _table(
                    "Across zones",
                    "The pairs that pay most for zones.",
                    "SELECT source, source_zone, destination, destination_zone, bytes, "
                    f"bytes / {_GIB} * 2 * ${{cross_zone_price}} AS dollars FROM {_view('cross_zone')} "
                    "ORDER BY bytes DESC LIMIT 50",
                    {"bytes": _BYTES, "dollars": "currencyUSD"},
                ),
                _table(
                    "Cloud services",
                    "S3 by default; `kubenetmon ask s3 --service any` shows all.",
                    f"SELECT local AS app, service, cloud, region, class, sent, received FROM {_view('s3')} "
                    "ORDER BY sent + received DESC LIMIT 50",
                    {"sent": _BYTES, "received": _BYTES},
                ),
            ],
        ),
    ]
    variables = tuple(text_variable(name, label, value) for name, label, value in _PRICES)
    return _dashboard(
        "kubenetmon-finops",
        "kubenetmon: FinOps",
        "What the transfers cost and whose they are. Prices are at the top, to be changed.",
        rows,
        variables,
        "now-30d",
    )


def _dashboard(
    uid: str,
    title: str,
    description: str,
    rows: list[Row],
    variables: tuple[dict[str, Any], ...],
    since: str,
) -> dict[str, Any]:
    table = (
        text_variable("database", "Database", "default"),
        text_variable("table", "Table", "network_flows_0"),
    )
    model = dashboard(
        uid=uid,
        title=title,
        description=description,
        source=SOURCE,
        variables=[*table, *variables],
        rows=rows,
    )
    return model | {"time": {"from": since, "to": "now"}, "refresh": ""}
