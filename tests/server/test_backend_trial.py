"""Which of two backends is faster, on a machine that is not quiet."""

from collections.abc import Callable, Iterator

import pytest

from server.backend_trial import FEWEST_ROUNDS, MOST_ROUNDS, times_faster
from tests.server.fakes import ManualClock


def job(clock: ManualClock, seconds: Iterator[float]) -> Callable[[], None]:
    """Take the next of these times; the first call is not timed."""

    def run() -> None:
        clock.now += next(seconds, 0.0)

    return run


def test_the_median_round_counts() -> None:
    """A pause in one round, and a slow first call, decide nothing."""
    clock = ManualClock()
    slow = job(clock, iter([9.0, 0.02, 0.02, 5.0] + [0.02] * 9))
    fast = job(clock, iter([9.0, 0.01, 0.01, 0.01] + [0.01] * 9))
    assert times_faster([slow], [fast], clock) == pytest.approx(2.0)


def test_jobs_count_alike() -> None:
    """Twice as fast on one and half as fast on the other is level, however long each takes."""
    clock = ManualClock()
    slow = [job(clock, iter([0.002] * 20)), job(clock, iter([0.1] * 20))]
    fast = [job(clock, iter([0.001] * 20)), job(clock, iter([0.2] * 20))]
    assert times_faster(slow, fast, clock) == pytest.approx(1.0)


@pytest.mark.parametrize(("each", "rounds"), [(0.001, MOST_ROUNDS), (1.0, FEWEST_ROUNDS)])
def test_rounds_end(each: float, rounds: int) -> None:
    """Quick models get all rounds; with slow ones start-up is not held up."""
    clock, calls = ManualClock(), 0

    def run() -> None:
        nonlocal calls
        calls += 1
        clock.now += each

    times_faster([run], [run], clock)
    assert calls == 2 + 2 * rounds
