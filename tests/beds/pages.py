"""Pages of HTTP ports of this machine, for tests."""

from __future__ import annotations

import urllib.error
import urllib.request


def page(port: int, path: str, *, host: str = "localhost", timeout: float = 10.0) -> tuple[int, bytes]:
    """(status, body) of a page, whatever its status; raises `OSError` when nobody answers."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
