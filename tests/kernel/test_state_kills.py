"""SIGKILL at random instants of a process that meters into a state directory: every byte once."""

from __future__ import annotations

import contextlib
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.beds.router import RouterBed
from tests.kernel.metered import sums_of
from tests.kernel.victims import Victim, delivered, make_place

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KILLS = 100


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("kills") as made:
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    with make_place() as made:
        yield made


@contextlib.contextmanager
def traffic(bed: RouterBed, chance: random.Random) -> Iterator[None]:
    """Connections of both protocols, one after the other, while the context lasts."""
    stopping = threading.Event()

    def go_on() -> None:
        while not stopping.is_set():
            # A victim that is being forked holds our sockets, and so the port, until it becomes itself.
            with contextlib.suppress(OSError):
                bed.udp([chance.randrange(1, 1400) for _ in range(chance.randrange(1, 20))], answers=1)
                bed.tcp(chance.randrange(1, 100_000), chance.randrange(1, 100_000))

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def test_a_hundred_kills_lose_and_double_nothing(bed: RouterBed, place: Path) -> None:
    seed = int.from_bytes(os.urandom(4))
    print("seed", seed)
    chance = random.Random(seed)
    alive = Victim(bed.node, place)
    assert alive.says() == "metering"
    with traffic(bed, chance):
        for number in range(KILLS):
            # From before the ledger is taken up to well into sealing, delivering and forgetting.
            if number > 0 and chance.random() < 0.9:
                assert alive.says() == "metering"
            threading.Event().wait(chance.uniform(0.0, 0.05))
            alive.kill()
            alive = Victim(bed.node, place)
    assert alive.says() == "metering"
    alive.finish()
    sums = sums_of(delivered(place))
    assert sums == bed.truth()
    epochs = {path.name.partition("-")[0] for path in (place / "deliveries").iterdir() if path.name[0] != "."}
    assert len(epochs) == 1, "a ledger was lost on the way"
    assert not list((place / "state").glob("aside-*"))
