"""The health of the metering as the page shows it: the conservation identity, what waits, nodes and gaps.

Contract: `Health.document` reads this process's own metrics and checks; with several replicas the page shows
the one that serves it. `NODES` asks the table for every node's reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kubenetmon.clickhouse.table import literal
from kubenetmon.metrics import Metrics, catalogue
from kubenetmon.readiness import Readiness
from kubenetmon.report.answers import Answer, Column, render
from kubenetmon.report.flows import SIDE_COLUMNS, Flows
from kubenetmon.report.questions import Question
from kubenetmon.report.scope import Scope
from kubenetmon.report.statements import shared_nodes_only

GAP_SECONDS = 120
"""The shortest time without rows that counts as a gap: reports come once a minute."""


_METRICS = {
    "received": catalogue.SERVER_RECEIVED.name,
    "committed": catalogue.SERVER_COMMITTED.name,
    "ignored": catalogue.SERVER_IGNORED.name,
    "handed_back": catalogue.SERVER_HANDED_BACK.name,
    "pending": catalogue.SERVER_PENDING.name,
    "agents": catalogue.SERVER_AGENTS.name,
    "held_batches": catalogue.HELD_BATCHES.name,
    "exactly_once": catalogue.EXACTLY_ONCE.name,
    "insert_errors": f'{catalogue.WORKER_ERRORS.name}{{type="flush_batch_failed"}}',
    "insert_retries": catalogue.INSERT_RETRIES.name,
    "batches": f"sum by (outcome) ({catalogue.SERVER_BATCHES.name})",
}
"""What each number is in Prometheus."""
_COLUMNS = (Column("name"), Column("part"), Column("value", "count"), Column("metric"))


@dataclass(frozen=True, slots=True)
class Health:
    """What this server knows of itself. `rates` is its live view."""

    metrics: Metrics
    readiness: Readiness
    rates: Callable[[], Mapping[str, Any]]

    def document(self, now: float) -> dict[str, Any]:
        """For JSON."""
        value = self.metrics.value
        identity = []
        for unit in ("bytes", "packets"):
            ignored = {
                reason: int(value(catalogue.SERVER_IGNORED, reason=reason, unit=unit))
                for reason in catalogue.SERVER_IGNORED_REASONS
            }
            parts = {
                "received": int(value(catalogue.SERVER_RECEIVED, unit=unit)),
                "committed": int(value(catalogue.SERVER_COMMITTED, unit=unit)),
                "handed_back": int(value(catalogue.SERVER_HANDED_BACK, unit=unit)),
                "pending": int(value(catalogue.SERVER_PENDING, unit=unit)),
            }
            out = parts["committed"] + parts["handed_back"] + parts["pending"] + sum(ignored.values())
            identity.append(
                {"unit": unit, **parts, "ignored": ignored, "unaccounted": parts["received"] - out}
            )
        rates = self.rates()
        return {
            "now": int(now),
            "identity": identity,
            "agents": int(value(catalogue.SERVER_AGENTS)),
            "held_batches": int(value(catalogue.HELD_BATCHES)),
            "exactly_once": bool(value(catalogue.EXACTLY_ONCE)),
            "insert_errors": int(value(catalogue.WORKER_ERRORS, type="flush_batch_failed")),
            "insert_retries": int(value(catalogue.INSERT_RETRIES)),
            "batches": {
                outcome: sum(
                    int(value(catalogue.SERVER_BATCHES, wire=wire, outcome=outcome))
                    for wire in ("push", "submit")
                )
                for outcome in ("committed", "retry_later", "rejected")
            },
            "metrics": _METRICS,
            "live": {key: rates[key] for key in ("horizon", "nodes", "late_nodes", "interval")},
            **self.readiness.report(),
        }

    def csv(self, now: float) -> str:
        """The numbers of the document, one a line, each with its metric."""
        document = self.document(now)
        rows: list[tuple[str, str, object, str]] = []
        for part in document["identity"]:
            unit = str(part["unit"])
            names = ("received", "committed", "handed_back", "pending", "unaccounted")
            rows += [(name, unit, part[name], _METRICS.get(name, "")) for name in names]
            rows += [
                ("ignored", f"{unit}, {one}", n, _METRICS["ignored"]) for one, n in part["ignored"].items()
            ]
        single = ("agents", "held_batches", "exactly_once", "insert_errors", "insert_retries")
        rows += [(name, "", int(document[name]), _METRICS[name]) for name in single]
        rows += [("batches", outcome, n, _METRICS["batches"]) for outcome, n in document["batches"].items()]
        live = document["live"]
        rows += [(name, "", live[name], "") for name in ("horizon", "nodes", "interval")]
        rows += [("late_node", name, 1, "") for name in live["late_nodes"]]
        rows += [("check", name, int(one["ok"]), "") for name, one in document["checks"].items()]
        return render(Answer("health", "Health of the metering", _COLUMNS, rows, int(now), int(now)), "csv")


def _nodes(flows: Flows, scope: Scope) -> str:
    source, span = flows.source, f"toDateTime({scope.since}) AND toDateTime({scope.until - 1})"
    filters = "".join(
        f" AND local{SIDE_COLUMNS[key]} = {literal(value)}"
        for key, value in scope.filters.items()
        if key in ("node", "cluster", "zone")
    )
    reports = (
        "SELECT concat(localCluster, '/', localNode) AS node, toInt64(last_end) AS last_report, "
        "rows_stored, total, arrayMax(holes) AS longest_gap, arraySum(arrayFilter(one -> one >= "
        f"{GAP_SECONDS}, holes)) AS gaps, "
        f"countEqual(arrayMap(one -> one >= {GAP_SECONDS}, holes), 1) AS gap_count\n"
        "FROM (\nSELECT localCluster, localNode, sum(counted) AS rows_stored, sum(volume) AS total, "
        "arraySort(groupArray((begin, length))) AS reports, max(begin + length) AS last_end, "
        "arrayMap(at -> greatest(0, reports[at].1 - reports[at - 1].1 - reports[at - 1].2), "
        "range(2, length(reports) + 1)) AS found, if(empty(found), [toInt64(0)], found) AS holes\n"
        "FROM (\nSELECT localCluster, localNode, toInt64(toUnixTimestamp(intervalStartTime)) AS begin, "
        "toInt64(max(intervalSeconds)) AS length, count() AS counted, sum(bytes) AS volume\n"
        f"FROM {source.name}\n"
        f"WHERE date >= toDate(toDateTime({scope.since}), 'UTC') - 1 AND intervalStartTime BETWEEN {span} "
        # The original's table has rows of pods that it did not know, and so of no node.
        f"AND localNode != ''{filters}\n"
        "GROUP BY localCluster, localNode, begin\n)\nGROUP BY localCluster, localNode\n)"
    )
    return (
        "SELECT node, last_report, rows_stored, total, longest_gap, gaps, gap_count\n"
        f"FROM (\n{shared_nodes_only(reports, 'node')}\n)\n"
        f"ORDER BY last_report, node{f' LIMIT {scope.limit}' if scope.limit else ''}"
    )


NODES = Question(
    "nodes",
    "Reports by node",
    "when each node reported last, and for how long it did not",
    (),
    lambda _: (
        Column("node"),
        Column("last_report", "time"),
        Column("rows", "count"),
        Column("bytes", "bytes"),
        Column("longest_gap", "seconds"),
        Column("gaps", "seconds", title="all gaps"),
        Column("gap_count", "count"),
    ),
    _nodes,
    (
        f"A gap is a time of {GAP_SECONDS} s or more, between a node's first and last rows of the span, "
        "without rows: the node had nothing to report, or nobody reported. The filters node and zone hold "
        "here; namespace and app do not, a node reports for all of its pods.",
    ),
)
