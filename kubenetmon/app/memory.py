"""How the C library's allocator keeps what the server frees (docs/decisions/0027-two-malloc-arenas.md).

glibc gives each thread that allocates an arena of its own, and an arena gives little back: blocks of some
megabytes that threads make and others free leave 40 MB behind. Two arenas serve our few threads as well. Nor
does an arena give back what lies below something that lives: glibc puts ever larger blocks there once one of
their size was freed, so that pages of lists and merged arrays leave 19 MB holes between 100,000 pods. With a
fixed threshold such blocks are mappings of their own.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX, _M_MMAP_THRESHOLD = -8, -3
"""mallopt(3), malloc.h."""

_ARENAS = 2
_OWN_MAPPING_BYTES = 512 * 1024
"""Above what the arrays of a batch take, which would be mapped anew in every batch."""


def give_back_what_is_freed() -> None:
    """Call before threads start; where the C library is another than glibc nothing happens."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _OWN_MAPPING_BYTES)
