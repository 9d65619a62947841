"""The dashboard over /metrics: is everything metered, delivered and stored?"""

from __future__ import annotations

from typing import Any

from panels import Panel, Row, dashboard, query_variable

_SERVER = 'instance=~"$server"'
_AGENT = 'instance=~"$agent"'
_RATE = "[$__rate_interval]"
_READ = "kubenetmon_collector_last_successful_collection_timestamp_unix_seconds"
_READ_US = "kubenetmon_collector_last_collection_duration_us"
_GOOD_AT_ZERO = ((None, "green"), (0.5, "red"))


def _stat(title: str, query: str, description: str, **options: Any) -> Panel:
    return Panel("stat", title, description, [(query, "")], width=4, height=4, **options)


def _quantile(metric: str, labels: str = "") -> str:
    matchers = f"{_SERVER}{labels}"
    return f"histogram_quantile(0.95, sum by (le) (rate({metric}_bucket{{{matchers}}}{_RATE})))"


def _instances(metric: str) -> str:
    return f"label_values({metric}, instance)"


def metering() -> dict[str, Any]:
    """The dashboard's model."""
    server_leak = (
        f'sum(kubenetmon_server_received_total{{{_SERVER},unit="bytes"}})'
        f' - sum(kubenetmon_server_committed_total{{{_SERVER},unit="bytes"}})'
        f' - sum(kubenetmon_server_ignored_total{{{_SERVER},unit="bytes"}})'
        f' - sum(kubenetmon_server_handed_back_total{{{_SERVER},unit="bytes"}})'
        f' - sum(kubenetmon_server_pending{{{_SERVER},unit="bytes"}})'
    )
    agent_leak = (
        f'sum(kubenetmon_agent_observed_total{{{_AGENT},unit="bytes"}})'
        f' - sum(kubenetmon_agent_reported_total{{{_AGENT},unit="bytes"}})'
        f' - sum(kubenetmon_agent_ignored_total{{{_AGENT},unit="bytes"}})'
        f' - sum(kubenetmon_agent_pending{{{_AGENT},unit="bytes"}})'
    )
    rows = [
        Row(
            "Is everything metered?",
            [
                _stat(
                    "Nodes without an agent",
                    'max(kubenetmon_server_inventory_objects{kind="nodes"}) - sum(kubenetmon_server_agents)',
                    "Nodes in the cluster less agents connected to any server.",
                    thresholds=_GOOD_AT_ZERO,
                ),
                _stat(
                    "Unaccounted for, agents",
                    agent_leak,
                    "observed - reported - ignored - pending. Anything but 0 is a defect of kubenetmon.",
                    unit="bytes",
                    thresholds=_GOOD_AT_ZERO,
                ),
                _stat(
                    "Unaccounted for, servers",
                    server_leak,
                    "received - committed - ignored - handed back - pending. Anything but 0 is a defect.",
                    unit="bytes",
                    thresholds=_GOOD_AT_ZERO,
                ),
                _stat(
                    "Longest gap",
                    f"max(kubenetmon_agent_event_gap_seconds{{{_AGENT}}})",
                    "For how long no agent listened on a node before the present one began. From 10 s on, "
                    "flows that ended in it may miss their last bytes.",
                    unit="s",
                    thresholds=((None, "green"), (10, "orange"), (120, "red")),
                ),
                _stat(
                    "Batches held",
                    f"sum(kubenetmon_server_held_batches{{{_SERVER}}})",
                    "Batches that ClickHouse refuses until an operator mends something; /ready says what.",
                    thresholds=_GOOD_AT_ZERO,
                ),
                _stat(
                    "Exactly once",
                    f"min(kubenetmon_server_exactly_once{{{_SERVER}}})",
                    "1 while the table's deduplication window covers batches that are sent again.",
                    thresholds=((None, "red"), (1, "green")),
                ),
            ],
        ),
        Row(
            "Bytes on their way",
            [
                Panel(
                    "timeseries",
                    "Agents: observed and reported",
                    "What the kernel counted, and what went into batches. Reports come once an interval.",
                    [
                        (
                            f'sum(rate(kubenetmon_agent_observed_total{{{_AGENT},unit="bytes"}}{_RATE}))',
                            "observed",
                        ),
                        (
                            f'sum(rate(kubenetmon_agent_reported_total{{{_AGENT},unit="bytes"}}{_RATE}))',
                            "reported",
                        ),
                    ],
                    unit="Bps",
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Servers: received, committed, ignored",
                    "received = committed + ignored + handed back + pending.",
                    [
                        (
                            f'sum(rate(kubenetmon_server_received_total{{{_SERVER},unit="bytes"}}{_RATE}))',
                            "received",
                        ),
                        (
                            f'sum(rate(kubenetmon_server_committed_total{{{_SERVER},unit="bytes"}}{_RATE}))',
                            "committed",
                        ),
                        (
                            "sum by (reason) (rate(kubenetmon_server_ignored_total"
                            f'{{{_SERVER},unit="bytes"}}{_RATE})) > 0',
                            "ignored: {{reason}}",
                        ),
                        (
                            "sum(rate(kubenetmon_server_handed_back_total"
                            f'{{{_SERVER},unit="bytes"}}{_RATE}))',
                            "handed back",
                        ),
                    ],
                    unit="Bps",
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Waiting at agents",
                    "Sealed batches that no server has acknowledged, the ten nodes with most.",
                    [(f"topk(10, kubenetmon_agent_unacknowledged_batches{{{_AGENT}}})", "{{instance}}")],
                    width=8,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Waiting at servers",
                    "Received and neither committed nor ignored yet.",
                    [(f'kubenetmon_server_pending{{{_SERVER},unit="bytes"}}', "{{instance}}")],
                    unit="bytes",
                    width=8,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "From receipt to commit, 95th percentile",
                    "Age of a batch when ClickHouse holds it, and how long inserts take.",
                    [
                        (_quantile("kubenetmon_worker_insert_batch_age_ms"), "age at commit"),
                        (_quantile("kubenetmon_worker_insert_wait_time_ms", ',type="inserted"'), "insert"),
                    ],
                    unit="ms",
                    width=8,
                    minimum=0,
                ),
            ],
        ),
        Row(
            "Nodes",
            [
                Panel(
                    "timeseries",
                    "conntrack table, share of nf_conntrack_max",
                    "The ten fullest. At 100 % the kernel drops new connections.",
                    [
                        (
                            f"topk(10, kubenetmon_agent_conntrack_entries{{{_AGENT}}}"
                            f" / (kubenetmon_agent_conntrack_limit{{{_AGENT}}} > 0))",
                            "{{instance}}",
                        )
                    ],
                    unit="percentunit",
                    thresholds=((None, "green"), (0.8, "orange"), (0.95, "red")),
                    minimum=0,
                    maximum=1,
                ),
                Panel(
                    "timeseries",
                    "Since the last read of conntrack",
                    "The ten nodes read longest ago; the collection interval is 5 s by default.",
                    [
                        (
                            f"topk(10, time() - {_READ}{{{_AGENT}}})",
                            "{{instance}}",
                        )
                    ],
                    unit="s",
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Not metered, or in doubt",
                    "Flows without counters, offloaded, gone without an event, of uncertain identity, and "
                    "counters that another process resets.",
                    [
                        (f"sum(kubenetmon_agent_flows_without_counters{{{_AGENT}}})", "without counters"),
                        (f"sum(kubenetmon_agent_offloaded_flows{{{_AGENT}}})", "offloaded"),
                        (
                            f"sum(increase(kubenetmon_agent_vanished_flows_total{{{_AGENT}}}{_RATE}))",
                            "vanished",
                        ),
                        (
                            f"sum(increase(kubenetmon_agent_ambiguous_identity_total{{{_AGENT}}}{_RATE}))",
                            "ambiguous",
                        ),
                        (
                            f"sum(increase(kubenetmon_agent_foreign_resets_total{{{_AGENT}}}{_RATE}))",
                            "reset by others",
                        ),
                    ],
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Reading conntrack",
                    "Duration of the last read, the ten slowest nodes.",
                    [
                        (
                            f"topk(10, {_READ_US}{{{_AGENT}}})",
                            "{{instance}}",
                        )
                    ],
                    unit="µs",
                    minimum=0,
                ),
            ],
        ),
        Row(
            "What the servers know and do",
            [
                Panel(
                    "timeseries",
                    "Age of cloud ranges",
                    "Downloaded daily; old ones take new addresses of a cloud for the internet.",
                    [
                        (
                            f"max by (provider) (kubenetmon_server_range_age_seconds{{{_SERVER}}})",
                            "{{provider}}",
                        )
                    ],
                    unit="s",
                    width=8,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Kubernetes objects known",
                    "The most that any server knows.",
                    [(f"max by (kind) (kubenetmon_server_inventory_objects{{{_SERVER}}})", "{{kind}}")],
                    width=8,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Errors",
                    "From ClickHouse by its code, failed inserts, relists of Kubernetes after errors.",
                    [
                        (
                            "sum by (code) (increase(kubenetmon_server_clickhouse_errors_total"
                            f"{{{_SERVER}}}{_RATE})) > 0",
                            "ClickHouse {{code}}",
                        ),
                        (
                            f"sum by (type) (increase(kubenetmon_worker_errors_total{{{_SERVER}}}{_RATE}))",
                            "{{type}}",
                        ),
                        (
                            "sum by (kind) (increase(kubenetmon_server_watch_relists_total"
                            f'{{{_SERVER},reason="error"}}{_RATE}))',
                            "relists: {{kind}}",
                        ),
                    ],
                    width=8,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Batches by outcome",
                    "What servers answered to agents.",
                    [
                        (
                            f"sum by (outcome) (rate(kubenetmon_server_batches_total{{{_SERVER}}}{_RATE}))",
                            "{{outcome}}",
                        )
                    ],
                    unit="reqps",
                    width=12,
                    minimum=0,
                ),
                Panel(
                    "timeseries",
                    "Event loop lag",
                    "The longest delay since the scrape before; seconds mean that a process is short of CPU.",
                    [("topk(10, kubenetmon_event_loop_lag_max_seconds)", "{{instance}}")],
                    unit="s",
                    width=12,
                    minimum=0,
                ),
            ],
        ),
    ]
    return dashboard(
        uid="kubenetmon-metering",
        title="kubenetmon: health of the metering",
        description="Whether every byte that the kernels count reaches ClickHouse once. From /metrics.",
        source="prometheus",
        variables=[
            query_variable(
                "server", "Server", "prometheus", "label_values(kubenetmon_server_agents, instance)"
            ),
            query_variable("agent", "Agent", "prometheus", _instances("kubenetmon_agent_flows")),
        ],
        rows=rows,
    )
