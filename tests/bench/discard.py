"""A ClickHouse that accepts every block and keeps none, for the server to write to while it is measured.

`python -m tests.bench.discard DIRECTORY PORT`: the tests' native front, with a real engine for everything but
the rows. It prints a line when it listens and ends with its standard input.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.beds.clickhouse_front import DiscardingEngine, Front


async def main(directory: Path, port: int) -> None:
    """Serve until standard input ends."""
    front = Front(DiscardingEngine(directory), {"default": ""}, None)
    front.port = port
    await front.listen()
    print("listening", flush=True)
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await lines.read()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
