"""SIGKILL at random instants of a process that meters into a state directory: every byte once."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from kubenetmon.demo.network import Namespace
from kubenetmon.proto import FlowBatch
from tests.beds.router import RouterBed
from tests.kernel.metered import Record, decode, sums_of

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

KILLS = 100


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("kills") as made:
        yield made


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory on a tmpfs where there is one, as a state directory should be."""
    shared_memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared_memory if shared_memory.is_dir() else None) as made:
        for name in ("state", "deliveries"):
            (Path(made) / name).mkdir()
        yield Path(made)


class Victim:
    """One life of `tests.kernel.state_victim`."""

    def __init__(self, node: Namespace, place: Path) -> None:
        arguments = [str(place / "state"), str(place / "deliveries")]
        self.process = node.popen(
            [sys.executable, "-m", "tests.kernel.state_victim", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def says(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().decode().strip()

    def finish(self) -> None:
        """Let it seal and deliver what is pending, and end."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"finish\n")
        self.process.stdin.flush()
        assert self.says() == "finished"
        assert self.process.wait(30) == 0
        self._close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._close()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


def delivered(place: Path) -> list[Record]:
    """What the server would hold: each batch once, however often it came."""
    records: list[Record] = []
    for path in (place / "deliveries").iterdir():
        if not path.name.startswith("."):  # else its sender was killed before the server had it
            batch = FlowBatch().parse(path.read_bytes())
            for arrays, width in ((batch.ipv4, 4), (batch.ipv6, 16)):
                assert arrays is not None
                records += decode(arrays, width)
    return records


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
