"""Measuring in rounds: all cells alike, noise shared out, earlier runs continued."""

import math
import statistics
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import ForwardFailed
from server.latency_rounds import Cell, LatencyRounds, _as_if_run
from tocom_core.latency_profile import Measurement

CELLS = [(0, 1), (0, 8), (4, 1), (4, 8)]


class Machine:
    """Takes a second more with each run."""

    def __init__(self, broken: Cell | None = None) -> None:
        self.run: list[Cell] = []
        self.broken = broken

    def __call__(self, r: int, batch: int) -> float:
        """Run a batch."""
        self.run.append((r, batch))
        if (r, batch) == self.broken:
            raise ForwardFailed("out of memory")
        return float(len(self.run))


def finish(rounds: LatencyRounds) -> int:
    """Run all rounds; how many there were."""
    count = 0
    while cells := rounds.next_round():
        for cell in cells:
            rounds.run(cell)
        count += 1
    return count


def test_each_round_runs_every_cell_once() -> None:
    """As many rounds as repeats; a cell's first, slow run comes on top and does not count."""
    machine = Machine()
    rounds = LatencyRounds(machine, CELLS, repeats=3)
    assert finish(rounds) == 3
    assert Counter(machine.run) == dict.fromkeys(CELLS, 4)
    assert [(m.r, m.batch) for m in rounds.measurements()] == CELLS
    assert {m.runs for m in rounds.measurements()} == {3}


def test_median_and_spread_are_those_of_the_runs() -> None:
    """Of one cell with runs of 2, 3 and 4 seconds after a cold one."""
    rounds = LatencyRounds(Machine(), [(0, 1)], repeats=3)
    finish(rounds)
    (measured,) = rounds.measurements()
    assert measured.seconds == 3.0
    assert measured.spread == pytest.approx(statistics.pstdev(map(math.log, (2, 3, 4))))


def test_the_order_changes_from_round_to_round() -> None:
    """So that no cell is always the one after the same other."""
    rounds = LatencyRounds(Machine(), [(r, 1) for r in range(8)], repeats=3)
    orders = []
    while cells := rounds.next_round():
        orders.append(tuple(cells))
        for cell in cells:
            rounds.run(cell)
    assert len(set(orders)) == 3 and {frozenset(order) for order in orders} == {
        frozenset(orders[0])
    }


def test_earlier_runs_are_continued() -> None:
    """They count as runs; cells that have enough are neither run nor changed."""
    machine = Machine()
    known = [Measurement(0, 1, 7.0, 0.1, 2), Measurement(0, 8, 9.0, 0.2, 5)]
    rounds = LatencyRounds(machine, [(0, 1), (0, 8)], repeats=3, known=known)
    assert finish(rounds) == 1
    assert machine.run == [(0, 1), (0, 1)]
    continued, kept = rounds.measurements()
    assert continued.runs == 3 and kept == known[1]
    assert continued.seconds == statistics.median([2.0, 7 * math.exp(-0.1), 7 * math.exp(0.1)])


def test_cells_that_are_not_asked_for_are_kept() -> None:
    """Measuring more batch sizes later does not lose those from before."""
    known = Measurement(2, 4, 1.0, 0.0, 1)
    rounds = LatencyRounds(Machine(), CELLS, repeats=2, known=[known])
    finish(rounds)
    assert known in rounds.measurements() and len(rounds.measurements()) == 5


def test_a_cell_that_fails_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    """The largest batch may not fit into memory; that is no reason to stop."""
    machine = Machine(broken=(4, 8))
    rounds = LatencyRounds(machine, CELLS, repeats=2)
    finish(rounds)
    assert machine.run.count((4, 8)) == 1
    assert [(m.r, m.batch) for m in rounds.measurements()] == CELLS[:3]
    assert "r=4 with 8 images left out: out of memory" in caplog.text


@given(seconds=st.floats(1e-4, 100), spread=st.floats(0, 1), runs=st.integers(1, 20))
def test_stand_ins_for_earlier_runs(seconds: float, spread: float, runs: int) -> None:
    """They have the number, the median and (from two on) the spread that were stored."""
    values = _as_if_run(Measurement(0, 1, seconds, spread, runs))
    assert len(values) == runs
    logs = [math.log(value / seconds) for value in values]
    assert statistics.median(logs) == pytest.approx(0, abs=1e-9)
    if runs > 1:
        assert statistics.pstdev(logs) == pytest.approx(spread, abs=1e-9)
