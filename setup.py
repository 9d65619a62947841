"""The extension modules, built by cffi in API mode, out of line, and the watchdog, a program of its own."""

import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).parent / "csrc"))
from build_conntrack import COMPILE_FLAGS, LIBRARIES, LINK_FLAGS, WATCHDOG_SOURCES


class BuildWatchdogToo(build_ext):
    """Links the watchdog beside the extension modules, where the agent looks for it."""

    def run(self) -> None:
        super().run()
        beside = Path(self.get_ext_fullpath("kubenetmon._conntrack"))
        objects = self.compiler.compile(
            list(WATCHDOG_SOURCES), output_dir=self.build_temp, extra_postargs=COMPILE_FLAGS
        )
        self.compiler.link_executable(
            objects,
            str(beside.with_name("_watchdog")),
            libraries=list(LIBRARIES),
            extra_postargs=LINK_FLAGS,
        )


setup(
    cmdclass={"build_ext": BuildWatchdogToo},
    cffi_modules=[
        "csrc/build_conntrack.py:ffibuilder",
        "csrc/build_observations.py:ffibuilder",
        "csrc/build_gather.py:ffibuilder",
    ],
)
