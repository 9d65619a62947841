"""Builds `kubenetmon._observations`: cffi in API mode, no library beyond the C one."""

from __future__ import annotations

import re
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent


def declarations(header: str) -> str:
    """What cffi may see of the header: constants as `#define NAME ...`, and all that is not preprocessing."""
    kept: list[str] = []
    for line in header.splitlines():
        constant = re.match(r"#define (OBSERVATION_\w+) \d+", line)
        if constant:
            kept.append(f"#define {constant.group(1)} ...")
        elif not line.startswith("#"):
            kept.append(line)
    return re.sub(r"\[OBSERVATION_\w+\]", "[...]", "\n".join(kept))


ffibuilder = FFI()
ffibuilder.cdef(declarations((HERE / "observations.h").read_text(encoding="utf-8")))
ffibuilder.set_source(
    "kubenetmon._observations",
    '#include "observations.h"',
    sources=["csrc/observations.c"],
    include_dirs=["csrc"],
    depends=["csrc/observations.h"],
    extra_compile_args=["-O2"],
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(HERE.parent), verbose=True)
