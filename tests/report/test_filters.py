"""Every question under every filter, by result: they hold for the end that `--help` names."""

from __future__ import annotations

import pytest

from tests.beds.known_traffic import STRANGE, Transfer
from tests.report import known_answers
from tests.report.known_answers import Keep, keeping
from tests.report.known_tables import Table
from tests.report.test_answers import judge_balance, judge_throughput

pytestmark = [pytest.mark.chdb, pytest.mark.asyncio(loop_scope="module")]

FILTERS: tuple[dict[str, str], ...] = (
    {"namespace": "team-a"},
    {"app": "twin"},
    {"app": STRANGE},
    {"node": "node-2"},
    {"zone": "zone-b"},
    {"app": "web", "namespace": "ns-1"},
    {"app": "web", "node": "node-1", "zone": "zone-a"},
    {"app": "' OR 1 = 1 --"},
    {"app": "\\"},
)
filtered = pytest.mark.parametrize("filters", FILTERS, ids=str)


def _either(keep: Keep, one: Transfer) -> bool:
    return keep(one.source) or keep(one.destination)


@filtered
async def test_classes_are_of_either_end(table: Table, filters: dict[str, str]) -> None:
    keep = keeping(filters)
    wanted = table.world.summed(lambda one: (one.klass,) if _either(keep, one) else None)
    assert await table.sums("classes", "class", **filters) == wanted


@filtered
async def test_top_is_of_either_end(table: Table, filters: dict[str, str]) -> None:
    keep = keeping(filters)
    wanted = table.world.summed(
        lambda one: (one.source.app, one.destination.app) if _either(keep, one) else None
    )
    assert await table.sums("top", "source", "destination", **filters) == wanted


@filtered
async def test_cross_zone_is_of_either_end(table: Table, filters: dict[str, str]) -> None:
    keep = keeping(filters)

    def key(one: Transfer) -> tuple[str, str] | None:
        zones = (one.source.zone, one.destination.zone)
        return zones if "" not in zones and zones[0] != zones[1] and _either(keep, one) else None

    found = await table.sums("cross-zone", "source_zone", "destination_zone", **filters)
    assert found == table.world.summed(key)


@filtered
async def test_a_cloud_service_is_of_who_uses_it(table: Table, filters: dict[str, str]) -> None:
    keep = keeping(filters)
    for column, end in (("sent", "source"), ("received", "destination")):

        def key(one: Transfer, end: str = end) -> tuple[str, str] | None:
            user = getattr(one, end)
            return (user.app, one.service) if one.service and user.node and keep(user) else None

        found = await table.sums("s3", "local", "service", of=column, service="any", **filters)
        assert +found == table.world.summed(key)


@filtered
async def test_openers_are_those_that_match(table: Table, filters: dict[str, str]) -> None:
    records = (await table.ask("openers", **filters)).records()
    found = {row["end"]: [row["opened"], row["accepted"], row["sent"], row["received"]] for row in records}
    assert found == table.world.ends("app", keeping(filters))


@filtered
async def test_balance_is_over_the_replicas_that_match(table: Table, filters: dict[str, str]) -> None:
    judge_balance(
        known_answers.balance(table.world, keeping(filters)),
        (await table.ask("balance", **filters)).records(),
    )


@pytest.mark.parametrize("client", ["web", "ns-1/web", "twin", "team-a/twin", STRANGE, "nobody"])
@pytest.mark.parametrize("filters", [{}, {"app": "db"}, {"namespace": "team-b"}], ids=str)
async def test_balance_of_one_client(table: Table, client: str, filters: dict[str, str]) -> None:
    records = (await table.ask("balance", client=client, **filters)).records()
    judge_balance(known_answers.balance(table.world, keeping(filters)), records, client)


@pytest.mark.parametrize("by", ["node", "app"])
@filtered
async def test_throughput_is_of_the_ends_that_match(table: Table, filters: dict[str, str], by: str) -> None:
    answer = await table.ask("throughput", by=by, **filters)
    judge_throughput(known_answers.minutes(table.world, by, keeping(filters)), answer.records())
    partial = by == "node" and bool({"app", "namespace"} & filters.keys())
    assert partial == any("what else the node moves is left out" in note for note in answer.notes)


@filtered
async def test_what_is_not_attributed_is_of_the_local_end(table: Table, filters: dict[str, str]) -> None:
    wanted = known_answers.unattributed(table.world, "app", keeping(filters))
    assert await table.sums("unattributed", "reason", "local", **filters) == wanted
