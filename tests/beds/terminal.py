"""A real terminal of the kernel's with a command on it, and what a person would see there (pyte).

Contract: `Terminal` starts the command at once; `lines` is the screen as text, one string a line. What pyte
does not know of xterm is added here: repetition (REP), scrolling (SU, SD) and the alternate screen.
"""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from fcntl import ioctl
from typing import Any, ClassVar

import pyte
import pyte.screens


class _Screen(pyte.Screen):
    """Knows when the alternate screen is shown, repeats the last character, and scrolls on demand."""

    alternate = False
    _last = " "

    def draw(self, data: str) -> None:
        super().draw(data)
        self._last = data[-1:] or self._last

    def repeat(self, count: int = 1) -> None:
        self.draw(self._last * max(1, count))

    def scroll_up(self, count: int = 1) -> None:
        self._scroll(count, self.index, bottom=True)

    def scroll_down(self, count: int = 1) -> None:
        self._scroll(count, self.reverse_index, bottom=False)

    def _scroll(self, count: int, step: Callable[[], None], *, bottom: bool) -> None:
        """Moves the lines within the margins; the cursor stays."""
        at = self.cursor.y
        margins = self.margins or pyte.screens.Margins(0, self.lines - 1)
        self.cursor.y = margins.bottom if bottom else margins.top
        for _ in range(max(1, count)):
            step()
        self.cursor.y = at

    def set_mode(self, *modes: int, **options: Any) -> None:
        if 1049 in modes:
            self.alternate = True
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        if 1049 in modes:
            self.alternate = False
        super().reset_mode(*modes, **options)


class _Stream(pyte.ByteStream):
    csi: ClassVar[dict[str, str]] = {
        **pyte.ByteStream.csi,
        "b": "repeat",
        "S": "scroll_up",
        "T": "scroll_down",
    }
    events = pyte.ByteStream.events | {"repeat", "scroll_up", "scroll_down"}


class Terminal:
    """`command` on a terminal of its own, with `environment` on top of this process's."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        rows: int = 20,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        # Whoever runs the tests may have said how large its own terminal is.
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        given = {**inherited, "TERM": "xterm-256color", "LC_ALL": "C.UTF-8", **(environment or {})}
        self.screen = _Screen(columns, rows)
        self._stream = _Stream(self.screen)
        self.written = b""
        main, self.other = pty.openpty()
        self.file = main
        self._size(columns, rows)
        self.modes_before = termios.tcgetattr(self.other)
        self.process = os.fork()
        if self.process == 0:
            os.close(main)
            os.login_tty(self.other)
            os.execve(command[0], list(command), given)

    @property
    def lines(self) -> list[str]:
        """The screen's lines without blanks at their ends."""
        return [line.rstrip() for line in self.screen.display]

    @property
    def restored(self) -> bool:
        """True where the next command finds the terminal as this one found it: its modes, the cursor shown,
        the alternate screen left, and no colour or emphasis on."""
        plain = self.screen.default_char
        attributes = self.screen.cursor.attrs
        return (
            termios.tcgetattr(self.other) == self.modes_before
            and not self.screen.cursor.hidden
            and not self.screen.alternate
            and attributes._replace(data=plain.data) == plain
        )

    def resize(self, columns: int, rows: int) -> None:
        """As a window that is dragged: the command gets SIGWINCH."""
        self._size(columns, rows)
        self.screen.resize(rows, columns)

    def press(self, keys: str) -> None:
        """Type; what was written before is forgotten."""
        self.written = b""
        os.write(self.file, keys.encode())

    def kill(self, number: int) -> None:
        """Send the command a signal."""
        os.kill(self.process, number)

    async def read(self, seconds: float) -> int:
        """Take what is written meanwhile; returns how many bytes."""
        deadline, count = time.monotonic() + seconds, 0
        while time.monotonic() < deadline:
            count += self._take()
            await asyncio.sleep(0.02)
        return count

    async def until(self, seen: str | Callable[[list[str]], bool], seconds: float = 20.0) -> None:
        """Until the text is on the screen, or the lines are as wanted."""
        deadline = time.monotonic() + seconds
        while not (seen in "\n".join(self.lines) if isinstance(seen, str) else seen(self.lines)):
            assert time.monotonic() < deadline, f"{seen!r} is not on the screen:\n" + "\n".join(self.lines)
            self._take()
            await asyncio.sleep(0.02)

    async def ended(self, seconds: float = 10.0) -> int:
        """Its exit status (negative: the signal), once all that it wrote is on the screen."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._take()
            pid, status = os.waitpid(self.process, os.WNOHANG)  # noqa: ASYNC222
            if pid:
                self._take()
                return os.waitstatus_to_exitcode(status)
            await asyncio.sleep(0.02)
        os.kill(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)  # noqa: ASYNC222
        raise AssertionError("it does not end")

    def close(self) -> None:
        """Let go of the terminal."""
        os.close(self.file)
        os.close(self.other)

    def _size(self, columns: int, rows: int) -> None:
        ioctl(self.file, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _take(self) -> int:
        count = 0
        while select.select([self.file], [], [], 0)[0]:
            try:
                got = os.read(self.file, 65536)
            except OSError:
                break
            self.written += got
            self._stream.feed(got)
            count += len(got)
        return count
