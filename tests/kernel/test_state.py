"""The state directory between two lives: taken up to the byte, or set aside with one line and a metric."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kubenetmon.agent.conntrack import Conntrack, ConntrackConfig
from kubenetmon.agent.state import EVENTS, LEDGER, SENT_BY_PUSH, StateDirectory, batch_name
from kubenetmon.errors import ConfigurationError
from kubenetmon.metrics import Metrics
from kubenetmon.metrics.catalogue import AGENT_METRICS
from tests.beds.router import RouterBed
from tests.kernel.metered import Life

pytestmark = pytest.mark.root


@pytest.fixture
def bed() -> Iterator[RouterBed]:
    with RouterBed("state") as made:
        yield made


async def one_life(bed: RouterBed, path: Path) -> None:
    """A life that leaves flows, one of them pending, and one batch."""
    life = Life(bed.node, path)
    await life.conntrack.read()
    await asyncio.to_thread(bed.udp, [100, 200], 1)
    await life.conntrack.read()
    [batch] = life.conntrack.seal(60, 120, 5.0)
    assert batch.bytes == bed.true_bytes()
    await asyncio.to_thread(bed.udp, [300], 1)
    await life.conntrack.read()
    life.end()


async def test_the_next_life_goes_on_from_the_exact_byte(bed: RouterBed, tmp_path: Path) -> None:
    await one_life(bed, tmp_path)
    sealed = bed.true_bytes()
    await asyncio.to_thread(bed.udp, [50], 1)
    life = Life(bed.node, tmp_path)
    resumed = life.conntrack.resumed
    assert (resumed.next_sequence, resumed.unsealed_from, resumed.unsealed_from_monotonic) == (2, 120, 5.0)
    assert resumed.gap > 0
    [stored] = life.conntrack.stored_batches()
    assert (stored.sequence, stored.begin, stored.end, stored.sent) == (1, 60, 120, 0)
    assert stored.epoch == resumed.epoch
    await life.conntrack.read()
    [batch] = life.conntrack.seal(120, 180, 6.0)
    assert stored.records.bytes + batch.bytes == bed.true_bytes() > sealed
    life.state.leaves_by_push(1)
    life.state.remove(2)
    assert [(one.sequence, one.sent) for one in life.conntrack.stored_batches()] == [(1, SENT_BY_PUSH)]
    life.end()


async def test_a_batch_file_that_was_never_sealed_is_none(bed: RouterBed, tmp_path: Path) -> None:
    await one_life(bed, tmp_path)
    (tmp_path / batch_name(2)).write_bytes((tmp_path / batch_name(1)).read_bytes()[:700])
    life = Life(bed.node, tmp_path)
    assert [one.sequence for one in life.conntrack.stored_batches()] == [1]
    assert not (tmp_path / batch_name(2)).exists()
    life.end()


async def test_an_end_heard_before_the_first_read_is_metered_by_the_next_life(
    bed: RouterBed, tmp_path: Path
) -> None:
    life = Life(bed.node, tmp_path)
    await asyncio.to_thread(bed.udp, [100, 200], 1)
    bed.node.run(["conntrack", "-F"])
    async with asyncio.timeout(10):
        while not any((tmp_path / EVENTS).read_bytes()[8:24]):  # noqa: ASYNC110 - the shim's thread says it
            await asyncio.sleep(0.01)
    life.end()
    life = Life(bed.node, tmp_path)
    await life.conntrack.read()
    [batch] = life.conntrack.seal(60, 120, 5.0)
    assert batch.bytes == bed.true_bytes()
    assert 0 < life.conntrack.resumed.gap < 60, "it begins where listening began"
    life.end()


def flip(path: Path, at: int) -> None:
    contents = bytearray(path.read_bytes())
    contents[at] ^= 0x10
    path.write_bytes(contents)


FAULTS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "flipped counter": ("corrupt", lambda path: flip(path / LEDGER, 4096 + 70)),
    "flipped header": ("corrupt", lambda path: flip(path / LEDGER, 480)),
    "torn": ("truncated", lambda path: os.truncate(path / LEDGER, 5000)),
    "cut to nothing much": ("truncated", lambda path: os.truncate(path / LEDGER, 100)),
    "another file": ("corrupt", lambda path: (path / LEDGER).write_bytes(b"not a ledger" * 10_000) and None),
    "another version": ("version", lambda path: flip(path / LEDGER, 8)),
    "events gone": ("corrupt", lambda path: (path / EVENTS).unlink()),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_cannot_be_used_is_set_aside_and_metering_goes_on(
    fault: str, bed: RouterBed, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reason, spoil = FAULTS[fault]
    await one_life(bed, tmp_path)
    spoil(tmp_path)
    life = Life(bed.node, tmp_path)
    assert life.aside(reason) == 1
    [line] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert str(tmp_path) in line.getMessage()
    assert (tmp_path / f"aside-{reason}-{LEDGER}").exists()
    [stored] = life.conntrack.stored_batches()
    assert stored.epoch != life.conntrack.resumed.epoch, "a batch keeps the identity that it was sealed under"
    assert life.conntrack.resumed.next_sequence == stored.sequence + 1
    await life.conntrack.read()
    before = bed.true_bytes()
    await asyncio.to_thread(bed.udp, [500], 1)
    await life.conntrack.read()
    [batch] = life.conntrack.seal(0, 1, 1.0)
    assert batch.bytes == bed.true_bytes() - before
    life.end()


async def test_a_ledger_from_before_the_last_boot_is_set_aside(
    bed: RouterBed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await one_life(bed, tmp_path)
    monkeypatch.setattr("kubenetmon.agent.conntrack._boot_id", lambda: b"another boot")
    life = Life(bed.node, tmp_path)
    assert life.aside("other_boot") == 1
    assert [one.sequence for one in life.conntrack.stored_batches()] == [1]
    life.end()


async def test_another_nodes_state_is_set_aside_whole(bed: RouterBed, tmp_path: Path) -> None:
    await one_life(bed, tmp_path)
    life = Life(bed.node, tmp_path, node_name="node-b")
    assert life.conntrack.stored_batches() == []
    assert life.aside("foreign") == 1
    assert not (tmp_path / batch_name(1)).exists()
    life.end()


@pytest.fixture(params=["300k", "11m"], ids=["no room for a ledger", "no room for a batch"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    size = f"size={request.param}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


async def test_a_full_directory_is_said_and_metering_goes_on_in_memory(bed: RouterBed, small: Path) -> None:
    life = Life(bed.node, small)
    await life.conntrack.read()
    before = bed.true_bytes()
    left = os.statvfs(small)
    (small / "hog").write_bytes(bytes(left.f_bavail * left.f_frsize))
    await asyncio.to_thread(bed.udp, [500], 1)
    await life.conntrack.read()
    [batch] = life.conntrack.seal(0, 1, 1.0)
    assert batch.bytes == bed.true_bytes() - before
    assert life.aside("full") == 1
    assert life.conntrack.seal(1, 2, 2.0) == []
    life.end()


def test_a_directory_has_one_owner(tmp_path: Path) -> None:
    first, second = (StateDirectory(tmp_path, metrics=Metrics(AGENT_METRICS)) for _ in range(2))
    assert first.lock()
    assert not second.lock()
    first.close()
    assert second.lock()
    second.close()


def test_a_directory_that_cannot_be_made_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    state = StateDirectory(tmp_path / "file" / "state", metrics=Metrics(AGENT_METRICS))
    with pytest.raises(ConfigurationError, match="KUBENETMON_STATE_DIR"):
        state.lock()


async def test_a_waiting_agent_hears_what_ends_and_doubles_nothing(bed: RouterBed, tmp_path: Path) -> None:
    old = Life(bed.node, tmp_path)
    await old.conntrack.read()
    metrics = Metrics(AGENT_METRICS)
    state = StateDirectory(tmp_path, metrics=metrics)
    new = Conntrack(ConntrackConfig(), state=state, node_name="node-a")
    bed.node.call(new.listen)
    # Both hear this flow's end; the old one books it and forgets it.
    await asyncio.to_thread(bed.udp, [100], 1)
    bed.node.run(["conntrack", "-F"])
    sealed = old.conntrack.seal(0, 1, 1.0)
    for _ in range(4):
        await old.conntrack.read()
        await asyncio.sleep(0.1)
        new.wait()
    assert old.conntrack.totals().entries == 0
    # Both hear this one's; the old one books it just before it is gone.
    await asyncio.to_thread(bed.udp, [200], 1)
    bed.node.run(["conntrack", "-F"])
    new.wait()
    sealed += old.conntrack.seal(1, 2, 2.0)
    old.end()
    # Only the new one hears this one's.
    await asyncio.to_thread(bed.udp, [300], 1)
    bed.node.run(["conntrack", "-F"])
    new.wait()
    assert state.lock()
    bed.node.call(new.open)
    assert new.resumed.gap == 0
    await new.read()
    sealed += new.seal(2, 3, 3.0)
    assert sum(batch.bytes for batch in sealed) == bed.true_bytes()
    assert new.totals().vanished == 0
    new.close()
    state.close()
