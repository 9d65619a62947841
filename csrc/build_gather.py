"""Builds `kubenetmon._gather`: cffi in API mode, no library beyond the C one."""

from __future__ import annotations

from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def declarations(header: str) -> str:
    """What cffi may see of the header: all that is not preprocessing."""
    return "\n".join(line for line in header.splitlines() if not line.startswith("#"))


ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "gather.h").read_text(encoding="utf-8")))
ffibuilder.set_source(
    "kubenetmon._gather",
    '#include "gather.h"',
    sources=["csrc/gather.c"],
    include_dirs=["csrc"],
    depends=["csrc/gather.h"],
    extra_compile_args=["-O2"],
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(HERE.parent), verbose=True)
