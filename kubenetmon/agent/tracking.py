"""Connection tracking, switched on for a machine that has no rules that need it.

The kernel tracks connections in a network namespace only while some rule there looks at them. A Kubernetes
node has such rules; a laptop may not. `Tracking` adds one small nft table of our own that looks and decides
nothing. The table carries the flag `owner`: the kernel removes it together with the `nft` process that made
it, and that process ends when its standard input closes, so that nothing is left behind even when we are
killed. (`flags owner`: nft(8), since Linux 5.12.)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil

from kubenetmon.errors import MachineError

logger = logging.getLogger(__name__)

TABLE = "kubenetmon"
_HOOKS = ("prerouting", "output")
_PATIENCE = 10.0


def _script() -> str:
    chains = "".join(
        f" chain {hook} {{ type filter hook {hook} priority filter; policy accept; ct state new; }};"
        for hook in _HOOKS
    )
    return f"add table inet {TABLE} {{ flags owner;{chains} }}\nlist table inet {TABLE}\n"


class Tracking:
    """Owns the `nft` process that owns the table: `switch_on` makes it, `switch_off` ends it."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None

    async def switch_on(self) -> None:
        """Add the table. Raises `MachineError` where nft is missing or refuses."""
        if shutil.which("nft") is None:
            raise MachineError("nft is not on PATH: install nftables (apt-get install nftables)")
        self._process = process = await asyncio.create_subprocess_exec(
            "nft",
            "--interactive",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C is for us; the table goes when we say so
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(_script().encode())
        said: list[str] = []
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.stdin.drain()
                # The listing that follows the table's making shows it line by line; an error comes instead.
                while line := (await process.stdout.readline()).decode(errors="replace").strip():
                    said.append(line)
                    if line.startswith("Error") or f"table inet {TABLE} {{" in line:
                        break
        except (TimeoutError, OSError):
            said.append("no answer from nft")
        if not said or f"table inet {TABLE} {{" not in said[-1]:
            await self.switch_off()
            reason = said[-1] if said else "nft ended at once"
            raise MachineError(
                f"connection tracking cannot be switched on ({reason}): is this root, with nf_tables?"
            )
        logger.info("Added the nft table inet %s, which switches connection tracking on while I run", TABLE)

    async def switch_off(self) -> None:
        """Let the table go; safe to call twice."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_PATIENCE):
                await process.communicate()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        logger.info("Removed the nft table inet %s", TABLE)
