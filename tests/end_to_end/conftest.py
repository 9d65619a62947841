"""What the tests of the receiver share: one at work, and an agent's connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpclib.client
import pytest

from tests.beds.receiving import Rig, running_receiver
from tests.end_to_end.reporting import connected


@pytest.fixture
async def rig(request: pytest.FixtureRequest) -> AsyncIterator[Rig]:
    """A receiver as the test module says in `RECEIVER`."""
    async with running_receiver(request.module.RECEIVER) as running:
        yield running


@pytest.fixture
async def channel(rig: Rig) -> AsyncIterator[grpclib.client.Channel]:
    async with connected(rig.port) as channel:
        yield channel
