"""How the C library's allocator keeps what the server frees.

glibc gives each thread that allocates an arena of its own, and an arena gives little back: blocks of some
megabytes that threads make and others free leave 40 MB behind. Two arenas serve our few threads as well.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
"""mallopt(3), malloc.h."""

_ARENAS = 2


def share_arenas() -> None:
    """Call before threads start; where the C library is another than glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
