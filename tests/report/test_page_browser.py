"""The page in a real browser: every view draws, dark, narrow and printed too; nobody else is asked.

`KUBENETMON_TEST_SCREENSHOTS=DIRECTORY` keeps the pictures, to be looked at.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.beds.browser import Tab, browser
from tests.report.conftest import Page, served

pytestmark = [pytest.mark.chdb, pytest.mark.chromium]

VIEWS = ("overview", "cost", "talks", "services", "balance", "throughput", "health")
PICTURES = os.environ.get("KUBENETMON_TEST_SCREENSHOTS")
DONE = "document.getElementById('main').dataset.state === 'done' && !document.querySelector('.wait')"


@asynccontextmanager
async def opened(page: Page, view: str = "overview", more: str = "") -> AsyncIterator[tuple[Tab, str]]:
    async with served(page.api()) as address, browser() as tab:
        await tab.size(1280, 900)
        await tab.open(f"{address}/#/{view}?{page.span}{more}")
        await tab.until(DONE)
        yield tab, address


async def _picture(tab: Tab, name: str) -> None:
    if PICTURES:
        await tab.picture(Path(PICTURES) / f"{name}.png")


async def test_every_view_draws_light_dark_and_narrow_without_a_complaint(page: Page) -> None:
    async with opened(page) as (tab, address):
        for view in VIEWS:
            await tab.size(1280, 900)
            await tab.run(f"location.hash = '#/{view}?{page.span}'")
            await tab.until(f"document.querySelector('nav a[data-view={view}][aria-current]') && {DONE}")
            assert await tab.run("document.querySelectorAll('.error[role=alert]').length") == 0, view
            assert await tab.run("document.querySelectorAll('main table tbody tr').length") > 1, view
            for width, dark in ((1280, False), (1280, True), (420, False)):
                await tab.size(width, 900, dark=dark)
                assert await tab.run("document.documentElement.scrollWidth - innerWidth") <= 0, (view, width)
                if view == "overview":
                    text = "document.querySelector('figure svg text').getBoundingClientRect().height"
                    await tab.until(f"{text} > 9")
                ground = await tab.run("getComputedStyle(document.body).backgroundColor")
                assert (ground == "rgb(20, 23, 26)") is dark
                await _picture(tab, f"{view}-{width}{'-dark' if dark else ''}")
        assert tab.complaints == []
        assert any(url.startswith(f"{address}/api/ask") for url in tab.requests)
        assert [url for url in tab.requests if not url.startswith((address, "data:", "about:"))] == []


async def test_the_figures_are_the_worlds(page: Page) -> None:
    async with opened(page) as (tab, _):
        shown = await tab.run(
            "Object.fromEntries([...document.querySelectorAll('section[aria-label=Moved] dl > div')].map("
            "one => [one.querySelector('dt').textContent, one.querySelector('dd a').title]))"
        )
    known = page.world.sums
    assert shown["All bytes"] == f"{sum(known.values()):,} bytes"
    assert shown["cross zone"] == f"{known['cross-zone']:,} bytes"
    assert shown["PARTNER"] == f"{known['PARTNER']:,} bytes"
    assert shown["internet"] == f"{known['PUBLIC_INTERNET']:,} bytes"


async def test_no_number_of_any_view_is_without_a_link(page: Page) -> None:
    """Each leads to a query or a CSV, and its panel has links that keys reach."""
    async with opened(page) as (tab, address):
        for view in VIEWS:
            await tab.run(f"location.hash = '#/{view}?{page.span}'")
            await tab.until(f"document.querySelector('nav a[data-view={view}][aria-current]') && {DONE}")
            numbers = (
                "[...document.querySelectorAll('main td.number, main td.cell, main dd')]"
                ".filter(one => /\\d/.test(one.textContent))"
            )
            loose = await tab.run(
                f"{numbers}.filter(one => !one.querySelector('a[href^=\"api/\"]'))"
                ".map(one => one.textContent)"
            )
            assert loose == [], view
            assert await tab.run(f"{numbers}.length") > 5, view
            panels = await tab.run(
                "[...document.querySelectorAll('main section')].map("
                "one => [...one.querySelectorAll('.links a')].map(a => a.textContent + a.tabIndex).join())"
            )
            assert set(panels) == {"CSV0,JSON0,query0"}, view
            for url in await tab.run(
                "[...new Set([...document.querySelectorAll('main .links a')].map(a => a.href))]"
            ):
                assert await tab.run(f"fetch({url!r}).then(one => one.status)") == 200, url
            assert url.startswith(address)
        await tab.run("document.querySelector('main td.number a').click()")
        assert "1,000,000 bytes" in await tab.run("document.getElementById('query-value').textContent")
        metric = await tab.run("document.getElementById('query-sql').textContent")
        assert metric == 'sum(kubenetmon_server_received_total{unit="bytes"})'


async def test_every_number_leads_to_its_query_and_csv(page: Page) -> None:
    async with opened(page, "talks") as (tab, _):
        for panel in ("Zone to zone", "App to app", "Across zones", "All pairs"):
            links = await tab.run(
                f"[...document.querySelectorAll('section[aria-label=\"{panel}\"] .links a')]"
                ".map(a => a.textContent)"
            )
            assert links == ["CSV", "JSON", "query"]
        loose = await tab.run(
            "[...document.querySelectorAll('main td.number, main td.cell, main dd')]"
            ".filter(one => /\\d/.test(one.textContent))"
            ".filter(one => !one.querySelector('a[href*=\"format=sql\"]')).length"
        )
        assert loose == 0
        await tab.run("document.querySelector('td.cell a').click()")
        assert await tab.run("document.getElementById('query').open")
        assert "bytes" in await tab.run("document.getElementById('query-value').textContent")
        assert "WITH flows AS" in await tab.run("document.getElementById('query-sql').textContent")
        command = await tab.run("document.getElementById('query-command').textContent")
        assert command.startswith("kubenetmon ask top --since @")
        url = await tab.run("document.querySelector('#query-links a').href")
        body = await tab.run(f"fetch({url!r}).then(answer => answer.text())")
        assert body.startswith("source,destination,class,service,bytes,share")
        await _picture(tab, "query")
        await tab.press("Escape")
        assert not await tab.run("document.getElementById('query').open")


async def test_it_is_used_by_keyboard_alone(page: Page) -> None:
    async with opened(page) as (tab, address):
        await tab.press("5", "5")
        await tab.until("document.title.startsWith('Balance')")
        await tab.until(DONE)
        assert "since=" in await tab.run("location.hash"), "the span stays"
        await tab.press("3", "3")
        await tab.until("document.title.startsWith('Who talks')")
        await tab.until(DONE)
        await tab.press("/", "/")
        assert await tab.run("document.activeElement.name") == "namespace"
        await tab.type("data")
        await tab.press("Enter")
        # The address changes at once, the view with the event that follows: what was drawn before is done.
        await tab.until("location.hash.includes('namespace=data')")
        shown = "document.getElementById('main').textContent"
        await tab.until(f"!{shown}.includes('recommendations') && {shown}.includes('postgres') && {DONE}")
        # From the top, Tab reaches the skip link first, then the views.
        await tab.open("about:blank")
        await tab.open(f"{address}/#/talks?{page.span}")
        await tab.until(DONE)
        reached = []
        for _ in range(40):
            await tab.press("Tab")
            reached.append(await tab.run("document.activeElement.textContent || document.activeElement.name"))
        assert reached[:2] == ["Skip to the answers", "Overview"]
        for wanted in ("Health", "since", "zone", "Ask", "CSV", "query", "As a table"):
            assert wanted in reached
        outline = await tab.run("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none"


async def test_the_skip_link_leads_to_the_answers_of_the_view(page: Page) -> None:
    async with opened(page, "talks", "&namespace=data") as (tab, _):
        before = await tab.run("location.hash")
        await tab.press("Tab")
        await tab.until("document.activeElement.className === 'skip'")
        await tab.press("Enter")
        await tab.until("document.activeElement.id === 'main'")
        await tab.until(DONE)
        assert await tab.run("location.hash") == before
        assert await tab.run("document.title.startsWith('Who talks')")
        await tab.press("Tab")
        inside = "document.querySelector('main').contains(document.activeElement)"
        await tab.until(f"document.activeElement.id !== 'main' && {inside}")


async def test_the_query_is_opened_and_left_by_keys(page: Page) -> None:
    async with opened(page, "talks") as (tab, _):
        for _ in range(80):
            await tab.press("Tab")
            if await tab.run("document.activeElement.textContent") == "query":
                break
        await tab.run("window.before = document.activeElement")
        await tab.press("Enter")
        await tab.until("document.getElementById('query').open")
        assert await tab.run("document.getElementById('query').contains(document.activeElement)")
        assert "WITH flows AS" in await tab.run("document.getElementById('query-sql').textContent")
        await tab.press("Escape")
        await tab.until("!document.getElementById('query').open")
        assert await tab.run("document.activeElement === window.before")
        assert await tab.run("document.activeElement.textContent") == "query"


async def test_the_even_share_is_of_all_replicas_where_the_rows_end_within_them(page: Page) -> None:
    async with opened(page, "balance") as (tab, _):
        whole = (
            "[...document.querySelectorAll('tbody')]"
            ".find(one => one.rows[0].textContent.includes('shop/frontend 4'))"
        )
        assert await tab.run(f"{whole}.querySelector('.bar b').style.left") == "25%"
        # As the page would be told of more rows than it asks for: those of one group are cut.
        await tab.run(
            "window.fetch = (asked => async (url, more) => { const answer = await asked(url, more);"
            "if (!String(url).includes('question=balance')) return answer;"
            "const body = await answer.json(); body.rows = body.rows.slice(0, 3); body.cut = true;"
            "return new Response(JSON.stringify(body)); })(window.fetch)"
        )
        await tab.run("document.querySelector('#scope button[type=submit]').click()")
        await tab.until(f"document.querySelectorAll('tbody tr').length === 4 && {DONE}")
        assert "3 of 4 replicas" in await tab.run("document.querySelector('tr.group').textContent")
        assert await tab.run("document.querySelector('.bar b').style.left") == "25%"


async def test_tables_sort_and_say_so(page: Page) -> None:
    async with opened(page, "talks") as (tab, _):
        table = "document.querySelector('section[aria-label=\"All pairs\"] table')"
        await tab.run(f"{table}.querySelectorAll('thead button')[4].focus()")
        await tab.press("Enter")
        assert await tab.run(f"{table}.querySelectorAll('th')[4].getAttribute('aria-sort')") == "descending"
        await tab.press("Enter")
        assert await tab.run(f"{table}.querySelectorAll('th')[4].getAttribute('aria-sort')") == "ascending"
        values = await tab.run(
            f"[...{table}.querySelectorAll('tbody td:nth-child(5) a')]"
            ".map(a => parseInt(a.title.replaceAll(',', '')))"
        )
        assert values == sorted(values)
        assert len(values) > 5


async def test_what_pods_are_called_stays_text(page: Page) -> None:
    hostile = "<img src=x onerror=alert(1)>\\'\"&"
    await page.sink.query(
        "INSERT INTO default.network_flows_0 (date, intervalStartTime, intervalSeconds, direction, "
        "connectionClass, localNode, localApp, localPod, bytes) VALUES "
        f"(toDate({page.start}), {page.start}, 60, 'out', 'PUBLIC_INTERNET', 'n', '{hostile}', 'p', {10**12})"
    )
    try:
        async with opened(page, "talks") as (tab, _):
            assert await tab.run("document.querySelectorAll('main img').length") == 0
            assert "<img src=x" in await tab.run("document.getElementById('main').textContent")
            assert tab.complaints == []
    finally:
        await page.sink.query("DELETE FROM default.network_flows_0 WHERE localNode = 'n'")


async def test_the_theme_is_the_systems_until_one_is_chosen(page: Page) -> None:
    async with opened(page, "health") as (tab, _):
        color = "getComputedStyle(document.body).backgroundColor"
        light = await tab.run(color)
        for wanted in ("light", "dark", None):
            await tab.run("document.getElementById('theme').click()")
            assert await tab.run("document.documentElement.dataset.theme ?? null") == wanted
            assert (await tab.run(color) == light) is (wanted != "dark")


async def test_printed_it_is_light_whole_and_without_controls(page: Page) -> None:
    async with opened(page) as (tab, _):
        await tab.size(1280, 900, dark=True, media="print")
        assert await tab.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert await tab.run("getComputedStyle(document.querySelector('nav')).display") == "none"
        await _picture(tab, "print")
        printed = await tab.pdf()
        assert printed.startswith(b"%PDF")
        assert 1 <= printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") <= 8


async def test_errors_are_said_where_the_answer_would_be(page: Page) -> None:
    async with opened(page) as (tab, address):
        await tab.run("location.hash = '#/talks?since=nonsense'")
        await tab.until("document.querySelectorAll('.error[role=alert]').length >= 4")
        assert "is not a time" in await tab.run("document.querySelector('.error').textContent")
        await tab.open("about:blank")
        await tab.open(f"{address}/#/talks?since=%401500000000&until=%401500003600")
        await tab.until(DONE)
        assert (
            await tab.run("document.getElementById('main').textContent.match(/Nothing was found/g).length")
            == 4
        )
