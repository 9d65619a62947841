"""Lines for someone who watches, rewritten in place on a terminal and written at intervals elsewhere."""

from __future__ import annotations

import shutil
import sys
import time

_BAR = 20
_LINE_SECONDS = 5.0


def say(line: str) -> None:
    """One line of its own."""
    print(line, flush=True)


class Progress:
    """A bar with a text behind it that changes as time goes by."""

    def __init__(self, title: str, seconds: float) -> None:
        self._title, self._seconds = title, seconds
        self._begin = time.monotonic()
        self._said_at = self._begin
        self._terminal = sys.stdout.isatty()

    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begin

    def show(self, text: str) -> None:
        """Bring the line up to date."""
        share = min(1.0, self.elapsed() / self._seconds)
        now = time.monotonic()
        if self._terminal:
            bar = ("#" * round(share * _BAR)).ljust(_BAR, ".")
            line = f"{self._title} [{bar}] {text}"
            # A line that wraps could not be rewritten.
            sys.stdout.write(f"\r\x1b[K{line[: shutil.get_terminal_size().columns - 1]}")
            sys.stdout.flush()
        elif share >= 1 or now - self._said_at >= _LINE_SECONDS:
            self._said_at = now
            say(f"{self._title} {share:4.0%} {text}")

    def end(self) -> None:
        """Leave the line as it stands."""
        if self._terminal:
            sys.stdout.write("\n")
            sys.stdout.flush()
