"""Measuring in idle time: every cell, few runs each, short steps, and a look back now and then."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.grid import MOST_DEGREES, RUNS, Cell, GridMeasurement, batch_sizes
from tests.server.fakes import ManualClock
from tocom_core.latency_profile import Measurement

BUDGET_S = 0.1


class Machine:
    """Runs a batch in no time and notes it; believes that an image takes `image_s`."""

    def __init__(self, image_s: float = 0.001, broken: Cell | None = None) -> None:
        self.image_s = image_s
        self.broken = broken
        self.run: list[Cell] = []
        self.told: list[tuple[int, int, float]] = []

    async def __call__(self, r: int, batch: int) -> float:
        """Run a batch."""
        self.run.append((r, batch))
        if (r, batch) == self.broken:
            raise RuntimeError("no memory")
        return batch / (10 + r) + len(self.run)

    def batch_s(self, r: int, size: int) -> float:
        """Return the believed duration."""
        return size * self.image_s

    def measure(self, r: int, batch: int, seconds: float) -> None:
        """Note what is told."""
        self.told.append((r, batch, seconds))


def make_grid(machine: Machine, clock: Callable[[], float], **changes: Any) -> GridMeasurement:
    """A grid of three degrees and batches of 1, 2, 4 and 8."""
    chosen = {"max_batch_size": 8, "budget_s": BUDGET_S, **changes}
    return GridMeasurement(machine, machine, chosen.pop("degrees", (0, 4, 2)), clock, **chosen)


def steps(grid: GridMeasurement, most: int = 10_000) -> int:
    """Step until there is nothing to do; how many it took."""

    async def work() -> int:
        for taken in range(most):
            if not await grid.step():
                return taken
        return most

    return asyncio.run(work())


def progress(grid: GridMeasurement) -> tuple[bool, int, int]:
    """What the grid says of itself."""
    return grid.done, grid.measured, grid.total


def test_all_cells_are_measured_and_the_first_slow_run_is_not_told() -> None:
    """Each cell of the grid is told three times, and was run once more before."""
    machine = Machine()
    grid = make_grid(machine, ManualClock())
    assert progress(grid) == (False, 0, 12)
    steps(grid)
    assert progress(grid) == (True, 12, 12)
    cells = {(r, batch) for r in (0, 4, 2) for batch in (1, 2, 4, 8)}
    told = Counter((r, batch) for r, batch, _ in machine.told)
    assert set(told) == cells and min(told.values()) >= RUNS
    assert Counter(machine.run) == told + Counter(cells)


def test_what_is_told_is_what_was_measured() -> None:
    """The seconds that the run gave reach the table with their own cell."""
    machine = Machine()
    steps(make_grid(machine, ManualClock(), degrees=(3,), max_batch_size=1))
    assert machine.run == [(3, 1)] * (RUNS + 1)
    assert machine.told == [(3, 1, 1 / 13 + run) for run in (2, 3, 4)]


def test_the_most_telling_degrees_come_first() -> None:
    """An interrupted measurement knows the ends and not the beginning."""
    machine = Machine()
    steps(make_grid(machine, ManualClock()), most=30)
    first_seen = list(dict.fromkeys(r for r, _ in machine.run))
    assert first_seen == [0, 4]


def test_long_batches_are_left_to_live_traffic() -> None:
    """No step is expected to take longer than the budget; beliefs decide it anew each time."""
    machine = Machine(image_s=BUDGET_S / 3)
    grid = make_grid(machine, ManualClock())
    steps(grid)
    assert {batch for _, batch in machine.run} == {1, 2}
    assert progress(grid) == (True, 6, 6)
    machine.image_s = BUDGET_S / 8
    assert progress(grid) == (False, 6, 12)
    steps(grid)
    assert {batch for _, batch in machine.run} == {1, 2, 4, 8}


def test_known_cells_are_not_measured_again() -> None:
    """Stored measurements count with their runs; with all of them known nothing is left to do."""
    machine = Machine()
    known = [Measurement(r, batch, 0.1, runs=RUNS) for r in (0, 4) for batch in (1, 2, 4, 8)]
    grid = make_grid(machine, ManualClock(), degrees=(0, 4), known=known)
    assert grid.done and steps(grid) == 0 and machine.run == []


def test_a_warm_up_counts_as_one_run() -> None:
    """What was run once needs two more, and no cold one."""
    machine = Machine()
    known = [Measurement(0, 1, 0.1, runs=1)]
    steps(make_grid(machine, ManualClock(), degrees=(0,), max_batch_size=1, known=known))
    assert len(machine.run) == len(machine.told) == RUNS - 1


def test_completion_is_told_once() -> None:
    """When the last cell is measured, and not again after later checks."""
    machine, clock, told = Machine(), ManualClock(), list[int]()
    grid = make_grid(machine, clock, on_complete=lambda: told.append(len(machine.run)))
    steps(grid)
    assert told == [len(machine.run)]
    clock.now += 60
    steps(grid)
    assert len(told) == 1


def test_a_listener_that_fails_does_not_stop_the_work(caplog: pytest.LogCaptureFixture) -> None:
    """A full disk is logged, and checks go on."""

    def fail() -> None:
        raise OSError("disk full")

    machine, clock = Machine(), ManualClock()
    grid = make_grid(machine, clock, on_complete=fail)
    steps(grid)
    before = len(machine.run)
    clock.now += 60
    assert steps(grid) == 1 and len(machine.run) == before + 1
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == [
        "disk full"
    ]


def test_a_cell_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that does not fit into memory is tried once; the others are measured."""
    machine = Machine(broken=(4, 8))
    grid = make_grid(machine, ManualClock())
    steps(grid)
    assert machine.run.count((4, 8)) == 1
    assert progress(grid) == (True, 11, 11)
    assert "r=4 with 8 images failed" in caplog.text


def test_afterwards_one_cell_is_looked_at_per_interval() -> None:
    """Each in its turn, no more often than asked, and all of them in the end."""
    machine, clock = Machine(), ManualClock()
    grid = make_grid(machine, clock, recheck_every_s=5.0)
    steps(grid)
    machine.run.clear()
    machine.told.clear()
    for second in range(5 * 12):
        clock.now += 1
        assert steps(grid) == (second % 5 == 4)
    assert len(machine.run) == len(machine.told) == 12 == len(set(machine.run))


def test_a_known_cell_is_looked_at_between_new_ones() -> None:
    """So that a machine that slows down meanwhile does not spoil the cells still to come."""
    machine = Machine()
    known = [Measurement(0, 1, 0.1, runs=RUNS)]
    steps(make_grid(machine, ManualClock(), known=known), most=10)
    new, newer = [(0, 2)] * 4, [(0, 4)] * 4
    assert machine.run == [*new, (0, 1), *newer, (0, 2)]


def test_of_many_degrees_the_first_are_measured() -> None:
    """A model with a hundred degrees is not measured for minutes."""
    grid = make_grid(Machine(), ManualClock(), degrees=range(100), max_batch_size=1)
    assert grid.total == MOST_DEGREES


@given(largest=st.integers(1, 5000))
def test_batch_sizes(largest: int) -> None:
    """Powers of two from 1 on; the next one would be too large."""
    sizes = batch_sizes(largest)
    assert sizes == [2**power for power in range(len(sizes))]
    assert sizes[-1] <= largest < 2 * sizes[-1]
