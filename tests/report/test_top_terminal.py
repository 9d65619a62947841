"""`kubenetmon top` on a real terminal: what a person sees on it, and how they get it back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from kubenetmon.server.moved import Digest
from kubenetmon.server.rates import Rates
from tests.beds.live_server import live_server, workload
from tests.beds.terminal import Terminal

COMMAND = (sys.executable, "-m", "kubenetmon", "top", "--interval", "200ms", "--server")


@asynccontextmanager
async def shown(
    columns: int = 80, rows: int = 24, environment: Mapping[str, str] | None = None, *, seen: str = "frontend"
) -> AsyncIterator[tuple[Terminal, Rates]]:
    async with live_server() as (address, rates):
        terminal = Terminal((*COMMAND, address), columns=columns, rows=rows, environment=environment)
        try:
            await terminal.until(seen)
            yield terminal, rates
        finally:
            terminal.close()


def busy(rates: Rates, count: int = 200) -> None:
    """A report of many workloads, each sending as much as its number says."""
    end = int(time.time()) // 10 * 10
    many = {workload(f"app-{number:03}"): (1e6 * number, 2e6) for number in range(count)}
    rates.add(Digest("node-a", end - 10, end, many))


@pytest.mark.parametrize(
    ("columns", "rows", "head", "row"),
    [
        (40, 10, "APP    PATH        SENT/s*  RECV/s*", "app-199  cross zone   19MiB   195KiB"),
        (80, 24, "APP                       PATH               SENT*     RECEIVED*        HISTORY", ""),
        (132, 40, "APP                       NAMESPACE  PATH               SENT*     RECEIVED*", ""),
    ],
)
async def test_every_line_stands_in_its_columns(columns: int, rows: int, head: str, row: str) -> None:
    async with shown(columns, rows) as (terminal, rates):
        busy(rates)
        await terminal.until("app-199")
        lines = terminal.lines
        assert lines[0].startswith("kubenetmon top by app") or columns < 50
        assert lines[0].endswith("s ago")
        at = next(number for number, line in enumerate(lines) if line.startswith("APP"))
        assert at == 2
        end = lines[at].index("*") + 1
        first = [line for line in lines[at + 1 : -1] if line]
        assert len(first) == rows - at - 2, "the rows fill the screen"
        # What was sent ends below its head, in each row.
        assert {line[:end].split()[-1].lstrip("0123456789.") for line in first} <= {"MiB/s", "MiB"}
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in first)
        assert f"1-{len(first)} of 20" in lines[-1]
        assert "q quit" in lines[-1]
        terminal.press("q")
        assert await terminal.ended() == 0
        assert terminal.restored


async def test_keys_are_answered_at_once_and_move_no_row() -> None:
    async with shown() as (terminal, rates):
        busy(rates)
        await terminal.until("app-199")
        above = terminal.lines[1:3]
        terminal.press("/app-17")
        await terminal.until("filter: app-17_   10 rows   enter keeps it")
        assert [line.split()[0] for line in terminal.lines[3:13]] == [f"app-{n}" for n in range(179, 169, -1)]
        assert terminal.screen.buffer[23][0].reverse, "the prompt stands out"
        assert terminal.lines[2] == above[1], "the heads stay where they are"
        terminal.press("\x7f8\r")
        await terminal.until("filter: app-18 (escape drops it)")
        terminal.press("n")
        await terminal.until(lambda lines: lines[3].startswith("app-180"))
        terminal.press("b")
        await terminal.until("POD*")
        terminal.press("\x1b")
        await terminal.until("1-20 of 202   q quit")
        terminal.press("u")
        await terminal.until("bit/s")
        terminal.press(" ")
        await terminal.until("PAUSED")
        terminal.press("q")
        assert await terminal.ended() == 0


async def test_a_window_that_is_dragged_is_drawn_anew() -> None:
    async with shown(200, 50) as (terminal, rates):
        busy(rates)
        await terminal.until("1-46 of 202")
        for columns, rows in ((60, 15), (132, 40), (20, 4), (80, 24)):
            terminal.resize(columns, rows)
            if rows > 4:
                await terminal.until(f"1-{rows - 4} of 202")
                assert len(terminal.lines[2].split()) in (4, 5, 6)
        terminal.press("q")
        assert await terminal.ended() == 0
        assert terminal.restored


@pytest.mark.parametrize(
    "how", ["q", "\x03", "\x1c", signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT], ids=repr
)
async def test_the_terminal_is_given_back_however_it_ends(how: str | signal.Signals) -> None:
    async with shown(rows=10) as (terminal, _):
        assert terminal.screen.cursor.hidden
        assert terminal.screen.alternate
        assert not terminal.restored
        if isinstance(how, str):
            terminal.press(how)
        else:
            terminal.kill(how)
        assert await terminal.ended() == 0
        assert terminal.restored


async def test_the_terminal_is_given_back_before_an_error_is_told() -> None:
    """An error that nobody foresaw: the source raises what is none of ours."""
    program = (
        "import asyncio\n"
        "from kubenetmon.clock import SYSTEM_CLOCK\n"
        "from kubenetmon.report.top.screen import State\n"
        "from kubenetmon.report.top.terminal import show\n"
        "class Source:\n"
        "    async def fetch(self, by):\n"
        "        await asyncio.sleep(0.5)\n"
        "        raise RuntimeError('nobody foresaw this')\n"
        "asyncio.run(show(Source(), State(), interval=1.0, clock=SYSTEM_CLOCK))\n"
    )
    terminal = Terminal((sys.executable, "-c", program))
    await terminal.until("Waiting for the first report")
    assert await terminal.ended() == 1
    assert terminal.restored
    assert "RuntimeError: nobody foresaw this" in "\n".join(terminal.lines)
    terminal.close()


async def test_a_line_that_is_cut_ends_it() -> None:
    async with live_server() as (address, _):
        terminal = Terminal((*COMMAND, address))
        await terminal.until("frontend")
        os.close(terminal.file)
        os.close(terminal.other)
        for _ in range(100):
            pid, status = os.waitpid(terminal.process, os.WNOHANG)  # noqa: ASYNC222
            if pid:
                break
            await asyncio.sleep(0.05)
        assert pid, "it goes on without a terminal"
        assert os.waitstatus_to_exitcode(status) == 0


async def test_a_server_that_goes_away_is_said_in_full_and_waited_for() -> None:
    async with live_server() as (address, _):
        terminal = Terminal((*COMMAND, address), columns=80)
        await terminal.until("frontend")
    await terminal.until("no server answers")
    await terminal.until("or read the table with --table\nAPP ")
    assert any(line.startswith("frontend ") for line in terminal.lines), "what was known last stays"
    terminal.press("\x03")
    assert await terminal.ended() == 0
    assert terminal.restored
    terminal.close()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dumb", "TERM names no terminal that can be drawn on"),
        ("xterm-nowhere", "TERM='xterm-nowhere': this machine does not know that terminal: try TERM=xterm"),
        ("", "TERM='': this machine does not know that terminal"),
    ],
)
async def test_a_terminal_that_cannot_be_drawn_on_is_one_line(name: str, says: str) -> None:
    terminal = Terminal((*COMMAND, "127.0.0.1:9"), columns=200, environment={"TERM": name})
    assert await terminal.ended() == 2
    assert [line for line in terminal.lines if line] == [line for line in terminal.lines if says in line]
    assert terminal.restored
    terminal.close()


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "vt100"}, {"LC_ALL": "C"}], ids=repr)
async def test_it_does_without_colours_and_unicode(environment: dict[str, str]) -> None:
    async with live_server() as (address, _):
        terminal = Terminal((*COMMAND, address), environment=environment)
        await terminal.until("frontend")
    await terminal.until("! no server answers")
    cells = [cell for row in terminal.screen.buffer.values() for cell in row.values()]
    assert {(cell.fg, cell.bg) for cell in cells} == {("default", "default")} or "LC_ALL" in environment
    assert "\n".join(terminal.lines).isascii() == ("LC_ALL" in environment)
    terminal.press("q")
    assert await terminal.ended() == 0
    terminal.close()


async def test_a_slow_line_suffices() -> None:
    async with shown(100, 20) as (terminal, rates):
        await terminal.read(1.0)
        # Nothing new: only the age of the data is written, once a second.
        assert await terminal.read(2.0) < 2 * 100
        busy(rates)
        # A report that changes everything is one picture, however often the source is asked.
        assert await terminal.read(2.0) < 100 * 20 * 3
        terminal.press("/")
        assert await terminal.read(0.5) < 300, "the prompt alone is drawn"
        terminal.press("\r")
        await terminal.until("q quit")
        terminal.press("q")
        assert await terminal.ended() == 0
