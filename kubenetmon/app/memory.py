"""How the C library's allocator keeps what the server frees (docs/decisions/0027-two-malloc-arenas.md).

glibc gives each thread that allocates an arena of its own, and an arena gives little back: blocks of some
megabytes that threads make and others free leave 40 MB behind. Two arenas serve our few threads as well. Nor
does an arena give back what lies below something that lives: glibc puts ever larger blocks there once one of
their size was freed, so that pages of lists and merged arrays leave 19 MB holes between 100,000 pods. With a
fixed threshold such blocks are mappings of their own.
"""

from __future__ import annotations

import ctypes

_M_ARENA_MAX, _M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -8, -3, -1
"""mallopt(3), malloc.h."""

_ARENAS = 2
_LISTING_MAPPING_BYTES, _BATCH_MAPPING_BYTES = 512 * 1024, 4096 * 1024
"""From how many bytes on a block is a mapping of its own: while lists are read, and from then on, because the
arrays of a batch would be mapped anew in every batch."""

_KEPT_FREE_BYTES = 8192 * 1024
"""What an arena may keep free at its top: about the blocks of a batch. With glibc's 128 KiB they go back to
the kernel after each step and come back page by page, microseconds each."""


def expect_lists() -> None:
    """Call before threads start; where the C library is another than glibc nothing happens."""
    _set(_M_ARENA_MAX, _ARENAS)
    _set(_M_MMAP_THRESHOLD, _LISTING_MAPPING_BYTES)


def expect_batches() -> None:
    """Call once the cluster is known."""
    _set(_M_MMAP_THRESHOLD, _BATCH_MAPPING_BYTES)
    _set(_M_TRIM_THRESHOLD, _KEPT_FREE_BYTES)


def _set(parameter: int, value: int) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(parameter, value)
