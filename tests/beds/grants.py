"""The grants that docs/clickhouse.md names."""

from __future__ import annotations

import re
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "clickhouse.md"


def documented(user: str) -> list[str]:
    """What the page grants that user, as `User.grants` wants it."""
    found = re.findall(rf"^GRANT (.+) TO {user};$", _PAGE.read_text(), re.M)
    assert found, user
    return found
