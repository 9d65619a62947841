"""What deploy/ describes, on a real API server: everything it knows is taken and read back as written."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.beds import resource_models
from tests.beds.charts import everything, release
from tests.beds.kubernetes import ApiRefusedError, Cluster
from tests.beds.manifests import Object, pick

pytestmark = pytest.mark.apiserver

NEWER = {"policy/v1"}
"""Newer than the API server that tests have; checked offline with the rest."""


def known_to(cluster: Cluster, one: Object) -> Object | None:
    """The object without what the API server is too old for; None: all of it is."""
    if one["apiVersion"] in NEWER or resource_models.knows(one["apiVersion"]):
        with pytest.raises(KeyError):
            cluster.resource_path(one)
        return None
    older = copy.deepcopy(one)
    if older["kind"] == "DaemonSet" and older["spec"]["updateStrategy"]["rollingUpdate"].pop(
        "maxSurge", None
    ):
        older["spec"]["updateStrategy"]["rollingUpdate"]["maxUnavailable"] = 1
    return older


def assert_holds(wanted: Any, found: Any, where: str) -> None:
    """Everything wanted is there; defaults may have come with it."""
    if isinstance(wanted, dict):
        for name, value in wanted.items():
            if value in (False, {}, []) and name not in found:
                continue  # the API leaves out what says nothing
            assert name in found, f"{where}.{name}"
            assert_holds(value, found[name], f"{where}.{name}")
    elif isinstance(wanted, list):
        assert len(wanted) == len(found), where
        for index, value in enumerate(wanted):
            assert_holds(value, found[index], f"{where}[{index}]")
    elif ".resources." in where:
        assert found  # a quantity, in the form that the API prefers
    else:
        assert str(wanted) == str(found), where


@pytest.mark.parametrize("name", sorted(everything()))
def test_objects_are_taken_and_read_back(cluster: Cluster, name: str) -> None:
    for namespace in ("kubenetmon-agent", "kubenetmon-server"):
        cluster.create_namespace(namespace)
    every = [wanted for one in everything()[name] if (wanted := known_to(cluster, one)) is not None]
    for wanted in every:
        if wanted["kind"] != "Namespace":
            cluster.delete(wanted)  # another's leftovers: lists would merge
    applied = 0
    for wanted in every:
        cluster.apply_server_side(wanted)
        found = cluster.request("GET", cluster.resource_path(wanted))
        assert_holds({key: wanted[key] for key in wanted if key != "metadata"}, found, wanted["kind"])
        assert_holds(wanted["metadata"], found["metadata"], wanted["kind"])
        applied += 1
    assert applied >= 3


def test_an_unknown_field_is_refused(cluster: Cluster) -> None:
    wanted = known_to(cluster, pick(release("agent"), "DaemonSet"))
    assert wanted is not None
    wanted["spec"]["template"]["spec"]["hostNetwrok"] = True
    cluster.create_namespace("kubenetmon-agent")
    with pytest.raises(ApiRefusedError, match="hostNetwrok"):
        cluster.apply_server_side(wanted)
