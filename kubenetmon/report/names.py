"""What the ends of a connection are called: SQL. Pure.

Contract: apps, namespaces, zones, … are called by their column, and have one row however many clusters have
them. Nodes and pods are one each, and so is an app that `own_app` names: a pod is `namespace/pod`, such an
app `namespace/app`, and where a span has the name in several clusters, the cluster stands before it. Over the
relations of `kubenetmon.report.flows` it is `shared` that knows these; over finished rows, `where_shared`.
"""

from __future__ import annotations

from kubenetmon.clickhouse.rollups import REMOTE_CLUSTER

SIDE_COLUMNS = {
    "app": "App",
    "pod": "Pod",
    "namespace": "Namespace",
    "node": "Node",
    "zone": "AvailabilityZone",
    "cloud": "Cloud",
    "region": "Region",
    "cluster": "Cluster",
}
"""Word to the column's name behind `local` or `remote`."""

_ONE_EACH = {"node": "node", "pod": "pod", "own_app": "app"}
"""The keys whose names are one each, and the word of what they name."""


def name_of(key: str, prefix: str = "") -> str:
    """The expression that names an end by a word of `SIDE_COLUMNS` or as `own_app`; `prefix` begins its
    columns, without one they are the words themselves. `Flows.define` is told of the key."""
    if key not in _ONE_EACH:
        return _column(key, prefix)
    return f"if({_is_shared(key, prefix)}, {with_cluster(key, prefix)}, {_within_cluster(key, prefix)})"


def space_of_pod(prefix: str) -> str:
    """What `name_of` has of a pod before the pod's own name."""
    cluster, namespace = _column("cluster", prefix), _column("namespace", prefix)
    return f"if({_is_shared('pod', prefix)}, concat({cluster}, '/', {namespace}), {namespace})"


def with_cluster(key: str, prefix: str = "") -> str:
    """The name with its cluster before it, for `where_shared`; `name_of` of what is not one each."""
    if key not in _ONE_EACH:
        return _column(key, prefix)
    name, cluster = _column(_ONE_EACH[key], prefix), _column("cluster", prefix)
    return f"if({name} = '', '', concat({cluster}, '/', {_within_cluster(key, prefix)}))"


def needed_by(key: str) -> tuple[str, ...]:
    """The words of `SIDE_COLUMNS` that `name_of` and `with_cluster` need."""
    if key not in _ONE_EACH:
        return (key,)
    return (_ONE_EACH[key], "cluster", *(() if key == "node" else ("namespace",)))


def shared(*keys: str) -> str:
    """The relation of one row: `names`, those of the keys' names that several clusters have in `flows`, and
    `yes`, as many times true; empty where the keys have none that are one each. One cluster costs no more
    than a look at who there is."""
    chosen = [key for key in dict.fromkeys(keys) if key in _ONE_EACH]
    if not chosen:
        return ""
    sides = (("local", "localCluster"), ("remote", REMOTE_CLUSTER))
    several = "(SELECT uniqExact(arrayJoin([" + ", ".join(f"toString({one})" for _, one in sides) + "]))"
    # Whoever there is, once, and only then by name: names are made of few rows.
    everyone = "\n    UNION ALL\n".join(
        f"    SELECT {_within_cluster(key, side)} AS name, {cluster} AS cluster FROM flows\n"
        f"    WHERE {several} FROM flows) > 1\n"
        f"    GROUP BY {', '.join(_columns(key, side))}, localCluster, remoteCluster"
        for key in chosen
        for side, cluster in sides
    )
    return (
        "  SELECT groupArray(name) AS names, arrayMap(one -> true, names) AS yes FROM (\n"
        f"    SELECT name FROM (\n{everyone})\n"
        "    WHERE name != '' GROUP BY name HAVING uniqExact(cluster) > 1)"
    )


def where_shared(relation: str, column: str) -> str:
    """A relation of a row for each node or pod, with the cluster before a name only where two rows have that
    name. `column` has the cluster before every name."""
    named = f"SELECT *, substring({column}, position({column}, '/') + 1) AS bare FROM (\n{relation}\n)"
    counted = f"SELECT *, count() OVER (PARTITION BY bare) AS namesakes FROM (\n{named}\n)"
    shown = f"if(namesakes > 1, {column}, bare) AS {column}"
    return f"SELECT * EXCEPT ({column}, bare, namesakes), {shown}\nFROM (\n{counted}\n)"


def _is_shared(key: str, prefix: str) -> str:
    # No IN: what a key of GROUP BY is made of may hold no set (NOT_FOUND_COLUMN_IN_BLOCK). And no has():
    # that goes through all names for each row.
    name = _within_cluster(key, prefix)
    return f"transform({name}, (SELECT names FROM shared), (SELECT yes FROM shared), false)"


def _within_cluster(key: str, prefix: str) -> str:
    name = _column(_ONE_EACH[key], prefix)
    if key == "node":
        return name
    namespace = _column("namespace", prefix)
    return f"if({name} = '' OR {namespace} = '', {name}, concat({namespace}, '/', {name}))"


def _columns(key: str, prefix: str) -> tuple[str, ...]:
    return tuple(_column(word, prefix) for word in needed_by(key) if word != "cluster")


def _column(word: str, prefix: str) -> str:
    return f"{prefix}{SIDE_COLUMNS[word]}" if prefix else word
