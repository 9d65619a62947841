"""The two extension modules, built by cffi in API mode, out of line. Everything else is in pyproject.toml."""

from setuptools import setup

setup(
    cffi_modules=[
        "csrc/build_conntrack.py:ffibuilder",
        "csrc/build_observations.py:ffibuilder",
    ],
)
