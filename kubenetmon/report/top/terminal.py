"""The live view on a terminal: curses draws, asyncio waits for keys, reports and resizes.

Contract: `show` returns when the person quits; the terminal is as before, however it ends. curses sends only
what has changed since the last picture, and between two answers of the source only their age moves, so that a
slow line suffices: what a key changes is drawn at once from the answer at hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import curses
import locale
import os
import select
import signal
import sys
from collections.abc import AsyncIterator, Callable

from kubenetmon.clock import Clock
from kubenetmon.errors import ConfigurationError, KubenetmonError
from kubenetmon.report.top.screen import State, Style, lines
from kubenetmon.report.top.sources import TopSource
from kubenetmon.report.top.view import TopView

_ESCAPE_MILLISECONDS = 100
"""How long a terminal's escape sequence may take to arrive; the escape key is known after that."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_KEYS = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_PPAGE: "page up",
    curses.KEY_NPAGE: "page down",
    curses.KEY_HOME: "home",
    curses.KEY_BACKSPACE: "backspace",
    curses.KEY_ENTER: "enter",
}
_CHARACTERS = {"\n": "enter", "\r": "enter", "\x1b": "escape", "\x7f": "backspace", "\b": "backspace"}


async def show(source: TopSource, state: State, *, interval: float, clock: Clock) -> None:
    """Show the source's answers, one every `interval` seconds at most, until `q`, Ctrl-C, a signal that ends
    or a terminal that is gone. Raises `ConfigurationError` where the terminal is not known here."""
    async with _terminal() as screen:
        await _View(screen, source, state, interval, clock).run()


class _View:
    def __init__(
        self, screen: curses.window, source: TopSource, state: State, interval: float, clock: Clock
    ) -> None:
        self._screen, self._source, self._state = screen, source, state
        self._interval, self._clock = interval, clock
        self._view = self._newest = TopView("connecting")
        self._error = ""
        self._unicode = "UTF" in (locale.nl_langinfo(locale.CODESET) or "").upper()
        self._styles = _styles()
        self._quit: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._refresh = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(sys.stdin.fileno(), self._guarded, self._read_keys)
        loop.add_signal_handler(signal.SIGWINCH, self._guarded, self._resized)
        for number in _ENDING:
            loop.add_signal_handler(number, self._end)
        fetching = asyncio.create_task(self._fetch())
        try:
            self._draw()
            await asyncio.wait((self._quit, fetching), return_when=asyncio.FIRST_COMPLETED)
            if not self._quit.done():
                fetching.result()
            self._quit.result()
        finally:
            fetching.cancel()
            await asyncio.gather(fetching, return_exceptions=True)
            loop.remove_reader(sys.stdin.fileno())
            for number in (signal.SIGWINCH, *_ENDING):
                loop.remove_signal_handler(number)

    def _end(self) -> None:
        if not self._quit.done():
            self._quit.set_result(None)

    def _guarded(self, call: Callable[[], None]) -> None:
        """What goes wrong in a callback of the loop ends the view, instead of being printed across it."""
        try:
            call()
        except Exception as error:  # noqa: BLE001 - `run` raises it
            if not self._quit.done():
                self._quit.set_exception(error)

    async def _fetch(self) -> None:
        while True:
            asked = self._clock.monotonic()
            asking = asyncio.create_task(self._source.fetch(self._state.by))
            try:
                while not await self._waited(asking) and not self._refresh.is_set():
                    self._draw()
                if asking.done():
                    self._newest, self._error = asking.result(), ""
            except KubenetmonError as error:
                self._error = str(error)
            finally:
                asking.cancel()
            self._refresh.clear()
            self._take()
            rest = asked + self._interval - self._clock.monotonic()
            if asking.done() and not asking.cancelled() and rest > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(rest):
                        await self._refresh.wait()

    async def _waited(self, asking: asyncio.Task[TopView]) -> bool:
        """Whether the answer has come, after an interval or a key that wants another one at the latest."""
        key = asyncio.create_task(self._refresh.wait())
        try:
            await asyncio.wait((asking, key), timeout=self._interval, return_when=asyncio.FIRST_COMPLETED)
        finally:
            key.cancel()
        return asking.done()

    def _take(self) -> None:
        """Show the newest answer."""
        if not self._state.paused:
            self._view = self._newest
        self._draw()

    def _read_keys(self) -> None:
        before, got_any = self._state, False
        while True:
            try:
                got = self._screen.get_wch()
            except curses.error:
                break
            key = _KEYS.get(got, "") if isinstance(got, int) else _CHARACTERS.get(got, got)
            if key == "q" and not self._state.typing:
                self._end()
                return
            self._state = self._state.pressed(key)
            got_any = True
        if not got_any and self._hung_up():
            self._end()
        if self._state.by != before.by:
            self._refresh.set()
        if self._state != before:
            self._take()

    def _hung_up(self) -> bool:
        """Whether the terminal is gone: it would be readable for ever, with nothing to read."""
        poll = select.poll()
        poll.register(sys.stdin.fileno(), 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _resized(self) -> None:
        size = os.get_terminal_size(sys.stdin.fileno())
        curses.resize_term(size.lines, size.columns)  # resizeterm would also press KEY_RESIZE, for ever
        self._screen.clearok(True)  # the terminal has moved the old picture about
        self._draw()

    def _draw(self) -> None:
        height, width = self._screen.getmaxyx()
        made = lines(
            self._view,
            self._state,
            width - 1,  # writing to the last column of the last line is an error in curses
            height,
            self._clock.time(),
            unicode=self._unicode,
            error=self._error,
        )
        self._screen.erase()
        for row, line in enumerate(made):
            with contextlib.suppress(curses.error):  # the terminal has become smaller meanwhile
                self._screen.addstr(row, 0, line.text, self._styles[line.style])
        self._screen.refresh()


def _styles() -> dict[Style, int]:
    styles = {
        Style.PLAIN: curses.A_NORMAL,
        Style.DIM: curses.A_DIM,
        Style.HEAD: curses.A_REVERSE,
        Style.TITLE: curses.A_BOLD,
        Style.PROMPT: curses.A_REVERSE | curses.A_BOLD,
        Style.WARNING: curses.A_BOLD,
    }
    if curses.has_colors() and not os.environ.get("NO_COLOR"):
        curses.start_color()
        curses.use_default_colors()
        # Red can be read on black and on white; yellow cannot on white.
        curses.init_pair(1, curses.COLOR_RED, -1)
        styles[Style.WARNING] |= curses.color_pair(1)
    return styles


@contextlib.asynccontextmanager
async def _terminal() -> AsyncIterator[curses.window]:
    locale.setlocale(locale.LC_ALL, "")
    os.environ.setdefault("ESCDELAY", str(_ESCAPE_MILLISECONDS))
    name = os.environ.get("TERM", "")
    try:
        curses.setupterm(name or "unknown", sys.stdout.fileno())
    except curses.error:
        raise ConfigurationError(
            f"TERM={name!r:.40}: this machine does not know that terminal: try TERM=xterm, or use --count 1"
        ) from None
    screen = curses.initscr()
    try:
        curses.noecho()
        curses.cbreak()
        screen.keypad(True)
        screen.nodelay(True)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        yield screen
    finally:
        with contextlib.suppress(curses.error):  # a terminal that is gone takes none of them
            screen.keypad(False)
        with contextlib.suppress(curses.error):
            curses.echo()
            curses.nocbreak()
        with contextlib.suppress(curses.error):
            curses.endwin()
