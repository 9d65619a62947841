"""The options of `kubenetmon demo`, apart from what it does: `--help` imports nothing else."""

from __future__ import annotations

import argparse
from pathlib import Path

SHORTEST, LONGEST = 5, 3600


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the demo's options to its parser."""
    parser.add_argument(
        "--seconds",
        type=_seconds,
        default=20,
        metavar="N",
        help=f"how long the traffic runs, {SHORTEST} to {LONGEST} (default: 20)",
    )
    parser.add_argument(
        "--keep",
        type=Path,
        metavar="DIR",
        help="keep the database, configuration and logs in this directory, which must be empty or new",
    )
    parser.add_argument(
        "--page", action="store_true", help="at the end show the answers as a page, until Ctrl-C"
    )


def _seconds(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not SHORTEST <= int(text) <= LONGEST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {SHORTEST} to {LONGEST}")
    return int(text)
