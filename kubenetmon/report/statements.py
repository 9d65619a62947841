"""The SQL of each question, over the relations of `kubenetmon.report.flows`. Pure.

Contract: a statement's columns are those that `kubenetmon.report.questions` names, in order. Names and values
of the operator go in through `literal` only; a scope's `by` is one of `KEYS`.
"""

from __future__ import annotations

import dataclasses

from kubenetmon.clickhouse.table import literal
from kubenetmon.report.flows import SIDE_COLUMNS, Flows, in_namespace, name_of, named_by
from kubenetmon.report.scope import Scope


def shared_nodes_only(relation: str, column: str) -> str:
    """A relation of a row for each node, with the cluster before a name only where two rows have that name.
    `column` has the cluster before every name; a node's own has no slash."""
    named = f"SELECT *, splitByChar('/', {column})[-1] AS bare FROM (\n{relation}\n)"
    counted = f"SELECT *, count() OVER (PARTITION BY bare) AS namesakes FROM (\n{named}\n)"
    shown = f"if(namesakes > 1, {column}, bare) AS {column}"
    return f"SELECT * EXCEPT ({column}, bare, namesakes), {shown}\nFROM (\n{counted}\n)"


def _limited(scope: Scope) -> str:
    return f"\nLIMIT {scope.limit}" if scope.limit else ""


def _ends(scope: Scope) -> tuple[str, ...]:
    return (*named_by(scope.by or "app"), *scope.filters)


def end_filter(scope: Scope, prefix: str) -> str:
    """The condition that the end whose columns begin with `prefix` matches the filters; empty: none."""
    return " AND ".join(
        f"{prefix}{SIDE_COLUMNS[key] if prefix else key} = {literal(value)}"
        for key, value in scope.filters.items()
    )


def either_end(scope: Scope) -> str:
    """The condition that an end of a transfer matches the filters."""
    source, destination = end_filter(scope, "source"), end_filter(scope, "destination")
    return f"(({source}) OR ({destination}))" if source else "1"


def _local_filter(scope: Scope) -> str:
    return end_filter(scope, "local") or "1"


def cross_zone(flows: Flows, scope: Scope) -> str:
    """Bytes from zone to zone."""
    key = scope.by or "app"
    return flows.define(key) + (
        f"SELECT {name_of(key, 'source')} AS source, sourceAvailabilityZone AS source_zone, "
        f"{name_of(key, 'destination')} AS destination, destinationAvailabilityZone AS destination_zone, "
        "sum(bytes) AS total, total / greatest(1, sum(total) OVER ()) AS share\n"
        f"FROM (\n{flows.transfers('zone', *_ends(scope))}\n)\n"
        "WHERE sourceAvailabilityZone != '' AND destinationAvailabilityZone != '' "
        f"AND sourceAvailabilityZone != destinationAvailabilityZone AND {either_end(scope)}\n"
        "GROUP BY source, source_zone, destination, destination_zone\n"
        f"ORDER BY total DESC, source, source_zone, destination, destination_zone{_limited(scope)}"
    )


def _service(flows: Flows, scope: Scope) -> str:
    key = scope.by or "app"
    wanted = f"remoteCloudService = {literal(scope.service)}" if scope.service else "remoteCloudService != ''"
    return flows.define(key) + (
        f"SELECT {name_of(key, 'local')} AS local, remoteCloudService AS service, remoteCloud AS cloud, "
        "remoteRegion AS region, connectionClass AS class, sumIf(bytes, direction = 'out') AS sent, "
        "sumIf(bytes, direction = 'in') AS received\n"
        f"FROM flows\nWHERE {wanted} AND {_local_filter(scope)}\n"
        "GROUP BY local, service, cloud, region, class\n"
        f"ORDER BY sent + received DESC, local, service, cloud, region, class{_limited(scope)}"
    )


def s3(flows: Flows, scope: Scope) -> str:
    """Bytes to and from a cloud service; `scope.service` is its name, empty for s3, `any` for all."""
    service = {"any": "", "": "s3"}.get(scope.service, scope.service)
    return _service(flows, dataclasses.replace(scope, service=service))


def openers(flows: Flows, scope: Scope) -> str:
    """Who opens, who only receives."""
    key = scope.by or "app"
    return flows.define(key) + (
        f"SELECT {name_of(key)} AS end, multiIf(opens > 0 AND accepts > 0, 'opens and receives', "
        "opens > 0, 'opens', accepts > 0, 'only receives', 'unclear') AS role, "
        f"{flows.connections_if('opened = 1')} AS opens, {flows.connections_if('opened = -1')} AS accepts, "
        f"{flows.connections_if('opened = 0')} AS unclear, sum(sent) AS bytes_sent, "
        "sum(received) AS bytes_received\n"
        f"FROM (\n{flows.ends(end_filter(scope, ''))}\n)\n"
        "GROUP BY end\n"
        f"ORDER BY opens DESC, accepts DESC, end{_limited(scope)}"
    )


def balance(flows: Flows, scope: Scope) -> str:
    """Each client's share on each replica of the server apps; `filters` are the server's, `scope.client` is
    an app's name, with or without its namespace. Apps of one name in two namespaces or clusters are two;
    the cluster stands before a name that several have."""
    opened_by_source, sides = "opener = 1", ("source", "destination")
    picked = {
        word: f"if({opened_by_source}, {first}, {second})"
        for word, first, second in (
            # What has no name is one client, wherever it is.
            ("client_cluster", *(f"if({end}App = '', '', {end}Cluster)" for end in sides)),
            ("client_app", "sourceApp", "destinationApp"),
            ("client", in_namespace("app", "source"), in_namespace("app", "destination")),
            ("server_cluster", "destinationCluster", "sourceCluster"),
            ("server", in_namespace("app", "destination"), in_namespace("app", "source")),
            ("replica", name_of("pod", "destination"), name_of("pod", "source")),
        )
    }
    server = " AND ".join(
        f"if({opened_by_source}, destination{SIDE_COLUMNS[key]}, source{SIDE_COLUMNS[key]}) "
        f"= {literal(value)}"
        for key, value in scope.filters.items()
    )
    conditions = ["opener != 0", "replica != ''", "server != ''"] + ([server] if server else [])
    ends = "client_cluster, client_app, client, server_cluster, server"
    transfers = flows.transfers("app", "pod", "namespace", "cluster", *scope.filters, opener=True)
    pairs = (
        f"SELECT {', '.join(f'{expression} AS {word}' for word, expression in picked.items())}, "
        f"{flows.connections()} AS links, sum(bytes) AS volume\n"
        f"FROM (\n{transfers}\n)\n"
        f"WHERE {' AND '.join(conditions)}\nGROUP BY {ends}, replica"
    )
    every = (
        f"SELECT {ends}, groupArray((replica, links, volume)) AS served, "
        "arrayMap(one -> one.1, served) AS known, "
        "groupUniqArrayArray(known) OVER (PARTITION BY server_cluster, server) AS replicas\n"
        f"FROM (\n{pairs}\n)\nGROUP BY {ends}"
    )
    spread = (
        f"SELECT {ends}, length(replicas) AS replica_count, each AS replica, "
        "indexOf(known, each) AS at, if(at = 0, 0, served[at].2) AS links, "
        "if(at = 0, 0, served[at].3) AS volume, "
        "arraySum(arrayMap(one -> one.2, served)) AS all_links, "
        "arraySum(arrayMap(one -> one.3, served)) AS all_volume\n"
        f"FROM (\n{every}\n)\nARRAY JOIN replicas AS each"
    )
    counted = (
        "SELECT *, [client_app, client, concat(client_cluster, '/', client)] AS client_names, "
        "uniqExact(client_cluster) OVER (PARTITION BY client) > 1 AS client_has_namesakes, "
        "uniqExact(server_cluster) OVER (PARTITION BY server) > 1 AS server_has_namesakes\n"
        f"FROM (\n{spread}\n)"
    )
    named = (
        "SELECT * EXCEPT (client, server), "
        "if(client_has_namesakes, concat(client_cluster, '/', client), client) AS client, "
        "if(server_has_namesakes, concat(server_cluster, '/', server), server) AS server\n"
        f"FROM (\n{counted}\n)"
    )
    judged = (
        "SELECT *, if(all_links = 0, 0, links / all_links) AS links_share, "
        "if(all_volume = 0, 0, volume / all_volume) AS volume_share, "
        "links_share * replica_count AS links_ratio, volume_share * replica_count AS volume_ratio, "
        "all_links / replica_count AS expected, "
        "(abs(links - expected) > 3 * sqrt(expected) AND (links_ratio > 1.5 OR links_ratio < 0.5)) "
        "AS odd_links, (volume_ratio > 1.5 OR volume_ratio < 0.5) AS odd_volume\n"
        f"FROM (\n{named}\n)\nWHERE replica_count > 1"
        + (f" AND has(client_names, {literal(scope.client)})" if scope.client else "")
    )
    return flows.define() + (
        "SELECT client, server, replica, links AS connections, links_share, volume AS total, volume_share, "
        "max(volume_ratio) OVER (PARTITION BY client, server) AS spread, "
        "multiIf(links = 0 AND volume = 0, 'idle', odd_links AND odd_volume, 'connections and bytes', "
        "odd_links, 'connections', odd_volume, 'bytes', '') AS odd, replica_count AS replicas\n"
        f"FROM (\n{judged}\n)\n"
        f"ORDER BY all_volume DESC, server, client, total DESC, replica{_limited(scope)}"
    )


def top(flows: Flows, scope: Scope) -> str:
    """Who sends to whom."""
    key = scope.by or "app"
    return flows.define(key) + (
        f"SELECT {name_of(key, 'source')} AS source, {name_of(key, 'destination')} AS destination, "
        "connectionClass AS class, remoteCloudService AS service, "
        "sum(bytes) AS total, total / greatest(1, sum(total) OVER ()) AS share\n"
        f"FROM (\n{flows.transfers(*_ends(scope))}\n)\nWHERE {either_end(scope)}\n"
        "GROUP BY source, destination, class, service\n"
        f"ORDER BY total DESC, source, destination, class, service{_limited(scope)}"
    )


def classes(flows: Flows, scope: Scope) -> str:
    """Bytes by class of path."""
    return flows.define() + (
        "SELECT connectionClass AS class, sumIf(bytes, direction = 'out') AS sent, "
        "sumIf(bytes, direction = 'in') AS received, sum(bytes) AS total, "
        "total / greatest(1, sum(total) OVER ()) AS share\n"
        f"FROM (\n{flows.transfers(*scope.filters)}\n)\nWHERE {either_end(scope)}\n"
        f"GROUP BY class\nORDER BY total DESC, class{_limited(scope)}"
    )


_REASONS = (
    ("local pod unknown", "localPod = '' AND localApp = ''"),
    ("local pod has no app label", "localPod != '' AND localApp = ''"),
    ("remote pod has no app label", "remotePod != '' AND remoteApp = ''"),
    (
        "private address of nobody known",
        "connectionClass = 'INTRA_VPC' AND remotePod = '' AND remoteNode = ''",
    ),
    (
        "zone unknown between known ends",
        "connectionClass = 'INTRA_VPC' AND localNode != '' AND remoteNode != '' "
        "AND (sourceAvailabilityZone = '' OR destinationAvailabilityZone = '')",
    ),
    ("path unknown (no cloud ranges)", "connectionClass = 'UNKNOWN'"),
)


def unattributed(flows: Flows, scope: Scope) -> str:
    """What lacks a label, and which."""
    key = scope.by or "app"
    name = name_of(key, "local")
    reasons = ", ".join(f"if({condition}, {literal(reason)}, '')" for reason, condition in _REASONS)
    by_address = (
        f"SELECT reason, {name} AS local, remoteAddress, sum(bytes) AS volume, "
        "any(everything) AS everything\n"
        "FROM (\nSELECT *, sum(bytes) OVER () AS everything FROM (\n"
        f"SELECT *, [{reasons}] AS reasons FROM (\n{flows.transfers('zone')}\n)\n"
        f"WHERE {_local_filter(scope)}\n)\n)\n"
        "ARRAY JOIN arrayFilter(one -> one != '', reasons) AS reason\n"
        "GROUP BY reason, local, remoteAddress"
    )
    return flows.define(key) + (
        "SELECT reason, local, argMax(if(remoteAddress = toIPv6('::'), '', "
        "replaceOne(toString(remoteAddress), '::ffff:', '')), "
        "(remoteAddress != toIPv6('::'), volume, remoteAddress)) AS example, "
        "sum(volume) AS total, total / greatest(1, any(everything)) AS share\n"
        f"FROM (\n{by_address}\n)\n"
        f"GROUP BY reason, local\nORDER BY total DESC, reason, local{_limited(scope)}"
    )


def throughput(flows: Flows, scope: Scope) -> str:
    """Peak and 95th percentile of minutes, bit/s."""
    key = scope.by or "node"
    condition = " AND ".join(f"{name} = {literal(value)}" for name, value in scope.filters.items())
    hours = flows.hours_of_minutes(key, condition)
    ends = (
        "SELECT name, sending, groupArrayArray(minutes) AS each, max(arrayMax(minutes)) AS most, "
        "argMax(toUnixTimestamp(intervalStartTime) + 60 * (indexOf(minutes, arrayMax(minutes)) - 1), "
        "(arrayMax(minutes), -toInt64(toUnixTimestamp(intervalStartTime)))) AS most_at, "
        "min(toUnixTimestamp(intervalStartTime) + 60 * (arrayFirstIndex(one -> one > 0, minutes) - 1)) "
        "AS first_minute, "
        "max(toUnixTimestamp(intervalStartTime) + 60 * (arrayLastIndex(one -> one > 0, minutes) - 1)) "
        "AS last_minute\n"
        f"FROM (\n{hours}\n)\nGROUP BY name, sending"
    )
    together = (
        "SELECT name, maxIf(most, sending) AS peak_out, argMaxIf(most_at, most, sending) AS at_out, "
        "maxIf(most, NOT sending) AS peak_in, argMaxIf(most_at, most, NOT sending) AS at_in, "
        "intDiv(max(last_minute) - min(first_minute), 60) + 1 AS span, "
        "toUInt64(span - intDiv(95 * span + 99, 100) + 1) AS rank, "
        "arrayReverseSort(anyIf(each, sending))[rank] AS high_out, "
        "arrayReverseSort(anyIf(each, NOT sending))[rank] AS high_in\n"
        f"FROM (\n{ends}\n)\nGROUP BY name"
    )
    if key == "node":
        together = shared_nodes_only(together, "name")
    return (
        "SELECT name, if(peak_out >= peak_in, at_out, at_in) AS peak_minute, "
        "peak_out * 8 / 60 AS peak_sent, peak_in * 8 / 60 AS peak_received, "
        "high_out * 8 / 60 AS p95_sent, high_in * 8 / 60 AS p95_received\n"
        f"FROM (\n{together}\n)\n"
        f"ORDER BY greatest(peak_out, peak_in) DESC, name{_limited(scope)}"
    )
