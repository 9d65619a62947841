"""The page's answers over HTTP: exact on a known world, the same as the command line's, and bounded."""

from __future__ import annotations

import asyncio
import csv
import io
import json
import re
from typing import Any

import aiohttp
import pytest

from kubenetmon.metrics import catalogue
from kubenetmon.report.page.answering import AnsweringConfig
from kubenetmon.report.page.api import PageConfig
from kubenetmon.report.page.asked import parse
from kubenetmon.report.questions import QUESTIONS
from kubenetmon.report.series import step_of
from tests.report.conftest import Page, served

pytestmark = pytest.mark.chdb

NAMES = (*QUESTIONS, "paths", "nodes", "cost")


async def _get(address: str, path: str) -> tuple[int, str, Any]:
    async with aiohttp.ClientSession() as session, session.get(f"{address}{path}") as answer:
        return answer.status, await answer.text(), answer.headers


async def _json(address: str, path: str) -> Any:
    status, body, _ = await _get(address, path)
    assert status == 200, body
    return json.loads(body)


async def test_bytes_by_path_are_those_that_were_put_in(page: Page) -> None:
    async with served(page.api()) as address:
        answer = await _json(address, f"/api/ask?question=paths&{page.span}")
        classes = await _json(address, f"/api/ask?question=classes&{page.span}")
    sums: dict[str, int] = {}
    for slot, path, count in answer["rows"]:
        assert page.start <= slot < page.until
        assert slot % answer["step"] == 0
        sums[path] = sums.get(path, 0) + count
    known = dict(page.world.sums)
    names = {
        "PUBLIC_INTERNET": "internet",
        "INTRA_REGION": "region-service",
        "INTER_REGION": "inter-region",
        "UNKNOWN": "unknown",
        "PARTNER": "class:PARTNER",
    }
    assert sums == {names.get(path, path): count for path, count in known.items()}
    assert sum(row[3] for row in classes["rows"]) == sum(known.values())


async def test_cost_by_path_is_the_prices_times_the_bytes(page: Page) -> None:
    async with served(page.api()) as address:
        answer = await _json(address, f"/api/ask?question=cost&by=path&{page.span}")
    crossing = page.world.sums["cross-zone"]
    rows = {row[1]: row for row in answer["rows"]}
    # One cent each way for 2^30 bytes, which is what the bill calls a GB.
    for way in ("in", "out"):
        row = rows[f"aws/cross-zone-{way}"]
        assert row[2] == crossing
        assert float(row[4]) == pytest.approx(crossing / 2**30 * 0.01, abs=1e-9)
    total = sum(float(row[4] or 0) for row in answer["rows"])
    assert float(answer["summary"]["total"]) == pytest.approx(total, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
async def test_every_answer_has_its_query_its_csv_and_its_command(page: Page, name: str) -> None:
    query = f"question={name}&{page.span}&limit=5000"
    async with served(page.api()) as address:
        answer = await _json(address, f"/api/ask?{query}")
        _, text, headers = await _get(address, f"/api/ask?{query}&format=csv")
        _, sql, _ = await _get(address, f"/api/ask?{query}&format=sql")
    assert answer["rows"]
    assert sql.strip() == answer["sql"]
    assert await page.sink.query(answer["sql"])
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == [column["name"] for column in answer["columns"]]
    assert len(rows) - 1 == len(answer["rows"])
    assert headers["content-disposition"] == f'attachment; filename="kubenetmon-{name}.csv"'
    if name in ("paths", "nodes"):
        assert answer["command"] == ""
    else:
        assert answer["command"].startswith(
            f"kubenetmon {'cost' if name == 'cost' else 'ask ' + name} --since"
        )


@pytest.mark.parametrize("name", NAMES)
async def test_only_what_is_cut_is_said_to_be(page: Page, name: str) -> None:
    async with served(page.api()) as address:
        query = f"/api/ask?question={name}&{page.span}"
        rows = len((await _json(address, f"{query}&limit=5000"))["rows"])
        for limit, cut in [(one, one < rows) for one in (rows - 1, rows) if one]:
            answer = await _json(address, f"{query}&limit={limit}")
            assert answer["cut"] is (cut and name != "paths")
            assert len(answer["rows"]) == (rows if name == "paths" else limit)


async def test_gaps_of_a_node_are_found(page: Page) -> None:
    gone = page.start + 60 * 100
    await page.sink.query(
        "INSERT INTO default.network_flows_0 "
        "(date, intervalStartTime, intervalSeconds, localNode, bytes) VALUES "
        + ", ".join(
            f"(toDate({at}), {at}, {seconds}, 'gappy', 1)"
            for at, seconds in ((gone, 60), (gone + 60, 300), (gone + 360, 60), (gone + 1020, 60))
        )
    )
    async with served(page.api()) as address:
        answer = await _json(address, f"/api/ask?question=nodes&{page.span}")
    row = next(row for row in answer["rows"] if row[0] == "gappy")
    assert row == ["gappy", gone + 1080, 4, 4, 600, 600, 1]
    await page.sink.query("DELETE FROM default.network_flows_0 WHERE localNode = 'gappy'")


async def test_health_shows_the_identity_without_a_table(page: Page) -> None:
    async with served(page.api(with_sink=False)) as address:
        answer = await _json(address, "/api/health")
        refused, body, _ = await _get(address, "/api/ask?question=classes")
        status, text, headers = await _get(address, "/api/health?format=csv")
        assert (await _get(address, "/api/health?format=xml"))[0] == 400
    assert answer["identity"][0]["received"] == 1_000_000
    assert answer["identity"][0]["unaccounted"] == 0
    assert status == 200
    assert headers["content-disposition"] == 'attachment; filename="kubenetmon-health.csv"'
    lines = {(row["name"], row["part"]): row for row in csv.DictReader(io.StringIO(text))}
    assert lines["received", "bytes"]["value"] == "1000000"
    assert lines["ignored", "bytes, udp"]["value"] == "100000"
    assert lines["unaccounted", "bytes"]["value"] == "0"
    names = {spec.name for spec in catalogue.SERVER_METRICS}
    metrics = {one for row in lines.values() for one in re.findall(r"kubenetmon_\w+", row["metric"])}
    assert len(metrics) > 8
    assert metrics <= names
    assert answer["checks"] == {"grpc": {"ok": True, "detail": "port 8884"}}
    assert refused == 502
    assert "nothing is stored here" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("question=colours", "question is one of"),
        ("question=classes&format=xml", "format is one of"),
        ("question=classes&limit=0", "limit is a number"),
        ("question=classes&limit=%C2%B2", "limit is a number"),
        ("question=classes&limit=999999999999999999999", "limit is a number"),
        ("question=classes&limit=5001", "limit is a number"),
        ("question=classes&limit=0000000019999999", "limit is a number"),
        ("question=classes&limit=000000001" + "0" * 30, "limit is a number"),
        ("question=classes&limit=000000001" + "0" * 5000, "limit is a number"),
        ("question=cost&service=s3", "service is not for the question cost"),
        ("question=s3&client=web", "client is not for the question s3"),
        ("question=paths&service=s3", "service is not for the question paths"),
        ("question=classes&since=yesterdayish", "is not a time"),
        ("question=classes&since=1h&until=2h", "is empty"),
        ("question=classes&by=colour", "by is one of"),
        ("question=classes&app=%00", "is not a name"),
        ("question=classes&app=" + "a" * 2000, "is not a name"),
        ("question=classes&sql=DROP", "there is no parameter"),
    ],
)
async def test_what_cannot_be_asked_is_one_clear_line(page: Page, query: str, said: str) -> None:
    async with served(page.api()) as address:
        status, body, _ = await _get(address, f"/api/ask?{query}")
    assert status == 400
    assert said in json.loads(body)["error"]


@pytest.mark.parametrize("name", ["limit", "since", "until", "by", "question", "format", "app", "service"])
async def test_whatever_is_sent_is_an_answer_or_one_line(page: Page, name: str) -> None:
    values = (
        "%ff",
        "%ed%a0%80",
        "%00",
        "0" * 5000 + "1",
        "9" * 4000 + "d",
        "@" + "9" * 30,
        "1e400h",
        "nan",
        "-1",
    )
    async with served(page.api()) as address:
        for value in values:
            given = {"question": "top", "since": f"%40{page.start}", "limit": "1", name: value}
            query = "&".join("=".join(one) for one in given.items())
            status, body, _ = await _get(address, f"/api/ask?{query}")
            assert status in (200, 400), (value[:20], body)
            assert "\n" not in body.strip()


@pytest.mark.parametrize(
    "value", ["' OR 1=1 --", "\\' OR 1=1 --", "x') UNION ALL SELECT 1", "{since:DateTime}"]
)
async def test_a_filter_is_a_name_and_no_sql(page: Page, value: str) -> None:
    async with served(page.api()) as address, aiohttp.ClientSession() as session:
        parameters = {
            "question": "classes",
            "app": value,
            "since": f"@{page.start}",
            "until": f"@{page.until}",
        }
        async with session.get(f"{address}/api/ask", params=parameters) as answer:
            document = await answer.json()
    assert document["rows"] == []


async def test_queries_run_read_only_and_within_limits(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page.sink, "strict", False)
    api = page.api(PageConfig(query_seconds=1, query_memory=50 << 20))
    assert api._sink is not None
    for statement, name in (
        ("DROP TABLE default.network_flows_0", "READONLY"),
        ("SELECT number FROM numbers(10000000)", "TOO_MANY_ROWS"),
        ("SELECT count() FROM numbers(1000000000000)", "TIMEOUT_EXCEEDED"),
        ("SELECT groupArray(number) FROM numbers(1000000000)", "MEMORY_LIMIT"),
    ):
        with pytest.raises(Exception, match=name):
            await api._sink.query(statement)


async def test_a_crowd_costs_two_queries_at_a_time_and_is_told_to_come_back(page: Page) -> None:
    running = most = 0
    true_query = page.sink.query

    async def slow(sql: str, settings: Any = None) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.05)
            return await true_query(sql, settings)
        finally:
            running -= 1

    page.sink.query = slow  # type: ignore[method-assign]
    try:
        api = page.api(PageConfig(answering=AnsweringConfig(at_once=2, waiting=8)))
        async with served(api) as address:
            asked = [
                _get(address, f"/api/ask?question=classes&{page.span}&limit={number % 40 + 1}")
                for number in range(60)
            ]
            answers = await asyncio.gather(*asked)
    finally:
        del page.sink.query  # type: ignore[method-assign]
    statuses = [status for status, _, _ in answers]
    assert most <= 2
    assert statuses.count(200) >= 10
    assert set(statuses) == {200, 503}
    assert all(headers["retry-after"] for status, _, headers in answers if status == 503)


async def test_what_takes_too_long_is_said(page: Page) -> None:
    api = page.api(PageConfig(answering=AnsweringConfig(timeout=0.01)))
    async with served(api) as address:
        status, body, _ = await _get(address, f"/api/ask?question=top&{page.span}")
    assert status == 504
    assert "shorter span" in json.loads(body)["error"]


async def test_the_bundle_is_whole_and_closed_to_others(page: Page) -> None:
    async with served(page.api()) as address:
        for path in ("/", "/page.css", "/page.js", "/charts.js", "/tables.js", "/views.js"):
            status, body, headers = await _get(address, path)
            assert status == 200
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "frame-ancestors 'none'" in headers["content-security-policy"]
            assert headers["cross-origin-resource-policy"] == "same-origin"
            assert "access-control-allow-origin" not in headers
            for elsewhere in ("http://", "https://cdn", "//fonts", "@import"):
                assert elsewhere not in body.replace("http://www.w3.org/2000/svg", "")
        assert (await _get(address, "/../api.py"))[0] == 404
        async with aiohttp.ClientSession() as session, session.post(f"{address}/api/ask") as answer:
            assert answer.status == 405


def test_grouping_that_a_question_does_not_know_is_its_own() -> None:
    assert parse({"question": "cost", "by": "app"}, 1_800_000_000).by == "app"
    assert parse({"question": "cost"}, 1_800_000_000).by == "workload"
    assert parse({"question": "classes", "by": "zone"}, 1_800_000_000).by == ""


def test_callers_within_a_minute_share_answers() -> None:
    first, second = (parse({"question": "top"}, 1_800_000_000 + late) for late in (1, 59))
    assert first == second
    assert first != parse({"question": "top"}, 1_800_000_061)


def test_slots_are_few_whatever_the_span() -> None:
    for span in (60, 3600, 86_400, 7 * 86_400, 31 * 86_400, 400 * 86_400):
        assert span / step_of(0, span) <= 64
