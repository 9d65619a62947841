"""Builds `kubenetmon._conntrack`: cffi in API mode over libmnl and libnetfilter_conntrack.

A header that the build needs and cannot find ends it with one line that names the package.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from cffi import FFI

HERE = Path(__file__).resolve().parent
SOURCES = (
    *("batch.c", "booking.c", "early.c", "events.c", "index.c", "ledger.c", "merge.c", "message.c"),
    *("meter.c", "netlink.c", "seal.c", "state.c", "transaction.c", "watchdog.c"),
)
HEADERS = (
    *("batch.h", "clock.h", "events.h", "flow.h", "index.h", "interface.h", "ledger.h", "message.h"),
    *("meter.h", "netlink.h", "state.h", "transaction.h", "watchdog.h"),
)
WATCHDOG_SOURCES = ("csrc/programs/watchdog.c", "csrc/message.c", "csrc/netlink.c")
"""A program of its own, which setup.py links."""

PACKAGES = {
    "Python.h": "python3-dev",
    "linux/netfilter/nfnetlink_conntrack.h": "linux-libc-dev",
    "libmnl/libmnl.h": "libmnl-dev",
    "libnetfilter_conntrack/libnetfilter_conntrack.h": "libnetfilter-conntrack-dev",
}
"""The headers by the names of the Debian packages that bring them."""

LIBRARIES = ("netfilter_conntrack", "mnl")


def compiler() -> list[str]:
    """The C compiler's command, as setuptools will run it."""
    configured = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    for command in (configured, ["cc"], ["gcc"]):
        if shutil.which(command[0]):
            return command
    sys.exit("kubenetmon: no C compiler found: install the package gcc")


def package_flags(option: str) -> list[str]:
    """What pkg-config says of the libraries; nothing where it does not know them: the defaults may do."""
    if shutil.which("pkg-config") is None:
        return []
    asked = subprocess.run(  # noqa: S603 - no shell; fixed words
        ["pkg-config", option, *(f"lib{name}" for name in LIBRARIES)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    return shlex.split(asked.stdout) if asked.returncode == 0 else []


def check_headers(include_flags: list[str]) -> None:
    """End the build with one line unless every header that the sources include is there."""
    command = [*compiler(), *include_flags, f"-I{sysconfig.get_path('include')}"]
    command += [*shlex.split(os.environ.get("CPPFLAGS", "")), "-E", "-x", "c", "-o", os.devnull, "-"]
    missing = []
    for header, package in PACKAGES.items():
        include = f"#include <{header}>\n".encode()
        probe = subprocess.run(command, input=include, capture_output=True, check=False)  # noqa: S603
        if probe.returncode != 0:
            missing.append(f"<{header}> (install the package {package})")
    if missing:
        sys.exit(f"kubenetmon: cannot build, missing C headers: {', '.join(missing)}")


include_flags = package_flags("--cflags")
check_headers(include_flags)
COMPILE_FLAGS = ["-O2", "-std=gnu11", "-fvisibility=hidden", *include_flags]
LINK_FLAGS = package_flags("--libs-only-L")

ffibuilder = FFI()
ffibuilder.cdef((HERE / "interface.h").read_text(encoding="utf-8"))
ffibuilder.set_source(
    "kubenetmon._conntrack",
    '#include "meter.h"',
    sources=[f"csrc/{name}" for name in SOURCES],
    depends=[f"csrc/{name}" for name in HEADERS],
    include_dirs=["csrc"],
    libraries=list(LIBRARIES),
    extra_compile_args=COMPILE_FLAGS,
    extra_link_args=LINK_FLAGS,
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(HERE.parent), verbose=True)
