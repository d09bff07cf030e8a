"""Freed memory goes back to the system: when, how often, and that it really does."""

import asyncio
import ctypes
import os
import sys
from pathlib import Path

import pytest

from server import memory_return
from server.memory_return import RETURN_EVERY_S, STATM, WORTH_BYTES, MemoryReturn

BLOCK, BLOCKS = 1000, 200_000


class Machine:
    """A process with some memory in use and some that is free but not returned, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.used, self.free = 800 * 2**20, 0
        self.returns = 0

    def resident(self) -> int:
        """In use or not, it is resident."""
        return self.used + self.free

    def give_back(self) -> None:
        """What is free goes."""
        self.returns += 1
        self.free = 0

    def work(self) -> MemoryReturn:
        """What is tested, on this machine."""
        return MemoryReturn(
            lambda: self.now, resident_bytes=self.resident, give_back=self.give_back
        )

    def pass_time(self, work: MemoryReturn, seconds: float) -> None:
        """A pause of so long, with the batcher's steps in it."""
        for _ in range(round(seconds / 0.05)):
            self.now += 0.05
            asyncio.run(work.step())


@pytest.fixture
def machine() -> Machine:
    """A machine on which nothing has happened."""
    return Machine()


def resident() -> int:
    """Resident memory of this process in bytes."""
    return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def settled(machine: Machine) -> MemoryReturn:
    """The work after what starting up had left behind is returned."""
    work = machine.work()
    machine.pass_time(work, RETURN_EVERY_S + 1)
    assert machine.returns == 1
    return work


def test_what_a_burst_left_behind_is_returned(machine: Machine) -> None:
    """In the next pause, once; and the next burst's too."""
    work = settled(machine)
    for burst in (2, 3):
        machine.free = 3 * WORTH_BYTES
        machine.pass_time(work, 0.1)
        assert (machine.returns, machine.free) == (burst, 0)
        machine.pass_time(work, RETURN_EVERY_S)
        assert machine.returns == burst


def test_a_little_is_left_alone(machine: Machine) -> None:
    """Getting pages back costs more than it is worth."""
    work = settled(machine)
    machine.free = WORTH_BYTES - 1
    machine.pass_time(work, 60)
    assert machine.returns == 1


def test_memory_in_use_is_not_asked_for_again(machine: Machine) -> None:
    """A larger model is no reason to try for ever; what comes on top of it is."""
    work = settled(machine)
    machine.used += 10 * WORTH_BYTES
    machine.pass_time(work, 120)
    assert machine.returns == 2
    machine.free = 2 * WORTH_BYTES
    machine.pass_time(work, 2)
    assert machine.returns == 3


def test_memory_that_went_by_itself_lowers_what_growth_is_measured_from(machine: Machine) -> None:
    """After a smaller model has come, growth to the old size is growth."""
    work = settled(machine)
    machine.used -= 5 * WORTH_BYTES
    machine.pass_time(work, 20)
    machine.free = 2 * WORTH_BYTES
    machine.pass_time(work, 2)
    assert (machine.returns, machine.free) == (2, 0)


def test_it_is_not_done_over_and_over(machine: Machine) -> None:
    """Where every pause finds memory to return, it is done every ten seconds."""
    work = settled(machine)
    for _ in range(120):
        machine.free = 2 * WORTH_BYTES
        machine.pass_time(work, 0.5)
    assert machine.returns - 1 <= 60 / RETURN_EVERY_S + 1


def test_without_glibc_there_is_none(
    monkeypatch: pytest.MonkeyPatch, machine: Machine, tmp_path: Path
) -> None:
    """Nor without Linux's /proc."""
    monkeypatch.setattr(memory_return, "STATM", tmp_path / "statm")
    assert MemoryReturn.of_this_process(lambda: machine.now) is None
    monkeypatch.undo()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert MemoryReturn.of_this_process(lambda: machine.now) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and calls glibc")
def test_free_memory_really_goes() -> None:
    """One small block at the end of 200 MB keeps all of them, until they are returned."""
    now = 0.0
    work = MemoryReturn.of_this_process(lambda: now)
    if work is None:
        pytest.skip("this C library has no malloc_trim")
    asyncio.run(work.step())
    before = resident()
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    blocks = [libc.malloc(BLOCK) for _ in range(BLOCKS)]
    for block in blocks:
        ctypes.memset(block, 1, BLOCK)
    last = blocks.pop()
    for block in blocks:
        libc.free(block)
    del blocks
    held = resident() - before
    now = RETURN_EVERY_S
    assert asyncio.run(work.step())
    left = resident() - before
    libc.free(last)
    assert held > 0.9 * BLOCK * BLOCKS
    assert left < 0.3 * held
