"""The life of a process: start parts in order, watch them, stop them in reverse order under a deadline.

Contract: a component's `run()` is a forever-task; if it returns or raises, the whole process stops with an
error that names it. On SIGTERM or SIGINT (or `request_stop`) every component is asked to `stop()` in the
reverse of the order given, so that who takes in work stops before who finishes it; when the deadline
passes, what is left is cancelled. A second signal cancels at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from typing import Any, Protocol

from kubenetmon.errors import KubenetmonError

logger = logging.getLogger(__name__)


class Component(Protocol):
    """A part of the program with a life of its own."""

    @property
    def name(self) -> str:
        """What logs and errors call it."""
        ...

    async def run(self) -> None:
        """Work until cancelled; returning is an error."""
        ...

    async def stop(self) -> None:
        """Finish what was begun and return; `run` is cancelled afterwards."""
        ...


class ComponentEndedError(KubenetmonError):
    """A part that should run for ever has returned."""


class Lifecycle:
    """Runs components; owns their tasks and the signal handlers."""

    def __init__(self, components: Sequence[Component], *, stop_deadline: float) -> None:
        self._components = list(components)
        self._stop_deadline = stop_deadline
        self._stop_requested = asyncio.Event()
        self._impatient = asyncio.Event()

    def request_stop(self) -> None:
        """Begin an orderly stop; the second call ends the patience."""
        if self._stop_requested.is_set():
            self._impatient.set()
        self._stop_requested.set()

    async def run(self) -> None:
        """Run everything until asked to stop; raises what a component raised."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.request_stop)
        tasks = [asyncio.create_task(self._guard(part), name=part.name) for part in self._components]
        stop = asyncio.create_task(self._stop_requested.wait(), name="stop requested")
        everything: list[asyncio.Task[Any]] = [stop, *tasks]
        try:
            await asyncio.wait(everything, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in tasks if task.done()]
            if not failed:
                logger.info("Stopping")
            await self._stop_all(tasks)
            for task in failed:
                task.result()
        finally:
            for part in everything:
                part.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def _guard(self, part: Component) -> None:
        await part.run()
        raise ComponentEndedError(f"{part.name} ended by itself; this is a defect, please report it")

    async def _stop_all(self, tasks: list[asyncio.Task[None]]) -> None:
        async def in_order() -> None:
            for part, task in reversed(list(zip(self._components, tasks, strict=True))):
                if not task.done():
                    try:
                        await part.stop()
                    except Exception:
                        logger.exception("%s did not stop in order", part.name)
                    task.cancel()
                    await asyncio.wait([task])

        ordered = asyncio.create_task(in_order(), name="orderly stop")
        impatient = asyncio.create_task(self._impatient.wait())
        done, _ = await asyncio.wait(
            [ordered, impatient], timeout=self._stop_deadline, return_when=asyncio.FIRST_COMPLETED
        )
        if ordered not in done:
            waiting_for = [task.get_name() for task in tasks if not task.done()]
            logger.warning("Did not stop within %gs: %s", self._stop_deadline, ", ".join(waiting_for))
        for task in (ordered, impatient):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
