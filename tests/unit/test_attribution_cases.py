"""What the original answers on 12,000 flows over three clusters and all real ranges, ours answers too."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kubenetmon.server.attribution import AttributionConfig, Attributor
from kubenetmon.server.ranges import RangeTable
from kubenetmon.server.rows import RowsConfig, columns
from tests.beds.attribution import CASE_CLOUDS, batch_of, inventory_of, load_cases, load_ranges, plain_rows
from tests.beds.original_rules import Original

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def real_ranges(shared_data: Path) -> RangeTable:
    return load_ranges(shared_data / "cloud-ranges")


@pytest.mark.parametrize("cloud", CASE_CLOUDS)
def test_every_column_is_as_in_the_original(shared_data: Path, real_ranges: RangeTable, cloud: str) -> None:
    cases = load_cases(shared_data, cloud)
    attributor = Attributor(AttributionConfig(cases.cloud, cases.region, "blue", ignore_udp=cases.ignore_udp))
    rows_config = RowsConfig("staging", cases.cloud, cases.region, "blue")
    snapshot = inventory_of(cases.cluster_json).snapshot()
    compared = 0
    for node, of_node in cases.by_node().items():
        batch = batch_of([case.flow for case in of_node], node)
        attributed = attributor.attribute(batch, snapshot, real_ranges)

        reasons = Counter(case.expect for case in of_node if isinstance(case.expect, str))
        assert {reason: ignored.records for reason, ignored in attributed.ignored.items()} == reasons
        assert attributed.empty_region == 0

        kept = [case.expect for case in of_node if not isinstance(case.expect, str)]
        rows = list(plain_rows(*columns(attributed, batch, rows_config)))
        assert len(rows) == 2 * len(kept)
        for expected, out, into in zip(kept, rows[: len(kept)], rows[len(kept) :], strict=True):
            assert _as_case(out, into) == expected
        compared += len(of_node)
    assert compared == 4000


@pytest.mark.parametrize("cloud", CASE_CLOUDS)
def test_our_account_of_the_originals_rules_is_right(
    shared_data: Path, real_ranges: RangeTable, cloud: str
) -> None:
    cases = load_cases(shared_data, cloud)
    objects = json.loads(cases.cluster_json)["items"]
    original = Original(objects, cases.cloud, cases.region, real_ranges, ignore_udp=cases.ignore_udp)
    for case in cases.cases:
        assert original.answer(case.flow, case.node) == case.expect


def _as_case(out: dict[str, Any], into: dict[str, Any]) -> dict[str, Any]:
    """A record's two rows in the form of the cases' `expect`."""
    assert (out["direction"], into["direction"]) == ("out", "in")
    assert out["intervalSeconds"] == 60
    assert (out["environment"], out["localCluster"]) == ("staging", "blue")
    counted = {"direction", "bytes", "packets"}
    shared = {name: value for name, value in out.items() if name not in counted}
    assert shared == {name: value for name, value in into.items() if name not in counted}
    ours = {"date", "intervalStartTime", "intervalSeconds", "environment", "connectionFlags", "localCloud"}
    ours |= {"localRegion", "localCluster", "localCell", "remoteCell", "remoteCluster"}
    return {
        **{name: value for name, value in shared.items() if name not in ours},
        "bytesOut": out["bytes"],
        "packetsOut": out["packets"],
        "bytesIn": into["bytes"],
        "packetsIn": into["packets"],
    }
