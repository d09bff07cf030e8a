"""The offline bound: never below what an exhaustive search finds, and tight where it can be."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.oracle import OracleMachine, offline_bound
from server.stats import NO_LIMIT

Point = tuple[int, float]
"""(answers in time, sum of their expected accuracies)"""

SLO_S = 10.0
CLOSE = 1e-6


def search(
    arrivals: Sequence[float],
    machine: OracleMachine,
    slo_s: float,
    max_r: Sequence[int | None] | None = None,
) -> set[Point]:
    """Return what all schedules reach: every order, batch, degree, lane, and useful wait.

    A batch begins as early as it can, or at a later arrival (which it thereby dodges); beginning
    between two arrivals is never better than beginning at the first of them. Images that would be
    late are not in batches: without them a batch is only shorter. On lanes, any part may run on any
    of them at any time, as if it were a batch of its own, and a single image may have them all.
    """
    limits = [NO_LIMIT if r is None else r for r in max_r or [None] * len(arrivals)]
    reached: set[Point] = set()

    def extend(free: tuple[float, ...], left: frozenset[int], count: int, total: float) -> None:
        reached.add((count, round(total, 9)))
        for lane, r in itertools.product(range(len(free)), machine.batch_seconds):
            allowed = [i for i in left if limits[i] >= r]
            largest = -(-len(machine.batch_seconds[r]) // machine.lanes)
            for batch in _subsets(allowed, largest):
                ready = max(arrivals[i] + machine.before_queue_s for i in batch)
                due = min(arrivals[i] for i in batch) + slo_s - machine.after_batch_s
                for taken, size in _ways(lane, len(batch), machine):
                    begin = max(ready, *(free[i] for i in taken))
                    for start in _starts(begin, arrivals):
                        end = _end(start, arrivals, machine, r, size)
                        if end <= due + 1e-12:
                            then = tuple(end if i in taken else at for i, at in enumerate(free))
                            gain = len(batch) * machine.accuracy[r]
                            extend(then, left - set(batch), count + len(batch), total + gain)

    lanes = machine.servers * machine.lanes
    extend((-math.inf,) * lanes, frozenset(range(len(arrivals))), 0, 0.0)
    return reached


def _ways(lane: int, images: int, machine: OracleMachine) -> Iterator[tuple[range, int]]:
    """Return which lanes so many images may have, and as what size of batch they take their time.

    That is a part of a batch on this lane, or a single image on all lanes of its server.
    """
    yield range(lane, lane + 1), images * machine.lanes
    if images == 1 and machine.lanes > 1 and lane % machine.lanes == 0:
        yield range(lane, lane + machine.lanes), 1


def _subsets(items: Sequence[int], largest: int) -> Iterator[tuple[int, ...]]:
    for size in range(1, min(len(items), largest) + 1):
        yield from itertools.combinations(items, size)


def _starts(earliest: float, arrivals: Sequence[float]) -> list[float]:
    return sorted({earliest, *(a for a in arrivals if a > earliest)})


def _end(
    start: float, arrivals: Sequence[float], machine: OracleMachine, r: int, size: int
) -> float:
    """Return the end of a batch that each arrival during it lengthens.

    With several servers some arrivals go elsewhere; the luckiest case is that all do.
    """
    seconds = machine.batch_seconds[r]
    end = start + seconds[min(size, len(seconds)) - 1]
    if machine.servers == 1:
        for arrival in sorted(arrivals):
            if start < arrival < end:
                end += machine.interference_s
    return end


def assert_bounds(
    points: set[Point],
    arrivals: Sequence[float],
    machine: OracleMachine,
    slo_s: float,
    max_r: Sequence[int | None] | None = None,
) -> None:
    """Fail if the bound lies below any of the points, in any of its three answers."""
    bound = offline_bound(arrivals, machine, slo_s, max_r)
    offered = len(arrivals)
    assert bound.attainment() >= max(count for count, _ in points) / offered - CLOSE
    assert bound.correct_share() >= max(total for _, total in points) / offered - CLOSE
    for count, total in points:
        if count:
            assert bound.accuracy_at(count / offered) >= total / count - CLOSE


@st.composite
def machines(draw: st.DrawFn, servers: int = 1, degrees: int = 3, lanes: int = 1) -> OracleMachine:
    """Return a machine of up to three degrees and, on each lane, up to three images at once."""
    count, largest = draw(st.integers(1, degrees)), draw(st.integers(1, 3 * lanes))
    seconds = {
        r: sorted(draw(st.lists(st.floats(0.5, 12), min_size=largest, max_size=largest)))
        for r in range(count)
    }
    accuracy = {r: draw(st.floats(0.1, 1)) for r in range(count)}
    overheads = draw(st.tuples(*[st.sampled_from([0.0, 0.3, 2.0])] * 3))
    before_s, after_s, interference_s = overheads
    return OracleMachine(seconds, accuracy, servers, before_s, after_s, interference_s, lanes)


TIMES = (st.floats(0, 25) | st.floats(0, 6)).map(lambda time: round(time, 2))
"""Of images that may or may not meet in a batch."""


@settings(deadline=None, max_examples=250)
@given(st.lists(TIMES, min_size=1, max_size=4), machines())
def test_never_below_the_best_schedule(arrivals: list[float], machine: OracleMachine) -> None:
    """No schedule at all of up to four images beats the bound, with all overheads."""
    assert_bounds(search(arrivals, machine, SLO_S), arrivals, machine, SLO_S)


@settings(deadline=None, max_examples=15)
@given(st.lists(TIMES, min_size=5, max_size=5), machines(degrees=2))
def test_never_below_the_best_schedule_of_five(
    arrivals: list[float], machine: OracleMachine
) -> None:
    """Nor does a schedule of five images."""
    assert_bounds(search(arrivals, machine, SLO_S), arrivals, machine, SLO_S)


@settings(deadline=None, max_examples=60)
@given(st.lists(TIMES, min_size=1, max_size=3), machines(servers=2))
def test_never_below_the_best_schedule_of_two_servers(
    arrivals: list[float], machine: OracleMachine
) -> None:
    """Two servers are no better than the bound, wherever the images go."""
    assert_bounds(search(arrivals, machine, SLO_S), arrivals, machine, SLO_S)


@settings(deadline=None, max_examples=60)
@given(st.lists(TIMES, min_size=1, max_size=3), machines(degrees=2, lanes=2))
def test_never_below_the_best_schedule_on_two_lanes(
    arrivals: list[float], machine: OracleMachine
) -> None:
    """Nor are lanes that share out batches, each beginning when it is free."""
    assert_bounds(search(arrivals, machine, SLO_S), arrivals, machine, SLO_S)


@settings(deadline=None, max_examples=120)
@given(
    st.lists(st.tuples(TIMES, st.none() | st.integers(0, 2)), min_size=1, max_size=4), machines()
)
def test_never_below_the_best_schedule_with_limits(
    requests: list[tuple[float, int | None]], machine: OracleMachine
) -> None:
    """Requests with a limit on the degree are bounded too."""
    arrivals, max_r = [at for at, _ in requests], [r for _, r in requests]
    points = search(arrivals, machine, SLO_S, max_r)
    assert_bounds(points, arrivals, machine, SLO_S, max_r)


def machine(seconds: Mapping[int, Sequence[float]], **more: float) -> OracleMachine:
    """Return a machine whose degrees 0, 1, … are right in 90, 80, … %."""
    return OracleMachine(seconds, {r: 0.9 - 0.1 * r for r in seconds}, **more)  # type: ignore[arg-type]


def test_tight_where_there_is_time_enough() -> None:
    """Images far apart are all served at the best degree."""
    bound = offline_bound([0.0, 100.0, 200.0], machine({0: [2.0], 1: [1.0]}), SLO_S)
    assert bound.attainment() == pytest.approx(1.0)
    assert bound.correct_share() == pytest.approx(0.9)
    assert bound.accuracy_at(1.0) == pytest.approx(0.9)


def test_tight_where_some_must_be_served_faster() -> None:
    """Four images at once in ten seconds: two well in 3 s each, two fast in 2 s each."""
    slow_and_fast = machine({0: [3.0], 1: [2.0]})
    bound = offline_bound([0.0] * 4, slow_and_fast, SLO_S)
    count, total = max(search([0.0] * 4, slow_and_fast, SLO_S))
    assert (count, total) == (4, 3.4)
    assert bound.attainment() == pytest.approx(1.0)
    assert bound.accuracy_at(1.0) == pytest.approx(0.85)


def test_tight_where_some_must_be_dropped() -> None:
    """Twelve images at once, one second each, in ten seconds: ten."""
    bound = offline_bound([0.0] * 12, machine({0: [1.0]}), SLO_S)
    assert bound.attainment() == pytest.approx(10 / 12)
    assert bound.correct_share() == pytest.approx(9 / 12)


def test_tight_with_batches() -> None:
    """Batching that pays is believed: four images in two batches of two."""
    bound = offline_bound([0.0] * 6, machine({0: [4.0, 5.0]}), SLO_S)
    assert bound.attainment() == pytest.approx(4 / 6)


def test_lonely_images_are_not_believed_to_be_batched() -> None:
    """Images that come too far apart for one batch cost what a batch of one costs."""
    lonely = machine({0: [8.0, 8.5]})
    assert offline_bound([0.0, 5.0], lonely, SLO_S).attainment() == pytest.approx(7.5 / 8)
    assert offline_bound([0.0, 1.5], lonely, SLO_S).attainment() == pytest.approx(1.0)


def test_fewer_answers_may_be_better_ones() -> None:
    """The accuracy at a lower share is that of the schedule which drops some for the others."""
    bound = offline_bound([0.0] * 4, machine({0: [5.0], 1: [2.5]}), SLO_S)
    assert bound.accuracy_at(1.0) == pytest.approx(0.8)
    assert bound.accuracy_at(0.75) == pytest.approx((0.9 + 2 * 0.8) / 3)
    assert bound.accuracy_at(0.5) == pytest.approx(0.9)


def test_a_share_beyond_the_bound_counts_as_the_bound() -> None:
    """A lucky replay above the highest attainment gets the accuracy there."""
    bound = offline_bound([0.0] * 12, machine({0: [1.0]}), SLO_S)
    assert bound.accuracy_at(1.0) == bound.accuracy_at(bound.attainment()) == pytest.approx(0.9)


def test_overheads_take_their_time() -> None:
    """Time before the queue and after the batch is not there for computing."""
    late = machine({0: [1.0]}, before_queue_s=2.0, after_batch_s=3.0)
    assert offline_bound([0.0] * 12, late, SLO_S).attainment() == pytest.approx(5 / 12)


def test_interference_takes_capacity() -> None:
    """Arrivals that lengthen running batches are paid for; those that come at once are not."""
    arrivals = [0.9 * i for i in range(200)]
    quiet = machine({0: [1.5, 2.0]})
    noisy = machine({0: [1.5, 2.0]}, interference_s=0.2)
    free = offline_bound(arrivals, quiet, SLO_S).attainment()
    assert offline_bound(arrivals, noisy, SLO_S).attainment() == pytest.approx(free / 1.1)
    at_once = [0.0] * 8
    free = offline_bound(at_once, quiet, SLO_S).attainment()
    assert offline_bound(at_once, noisy, SLO_S).attainment() == pytest.approx(free)


def test_a_machine_that_is_always_too_slow_serves_nothing() -> None:
    """Without a usable degree nothing is in time, and no accuracy is invented."""
    bound = offline_bound([0.0, 1.0], machine({0: [11.0]}), SLO_S)
    assert bound.attainment() == bound.correct_share() == 0
    assert math.isnan(bound.accuracy_at(0.5))


def test_more_servers_serve_more() -> None:
    """Two servers carry twice as much."""
    crowd = [0.0] * 40
    one, two = machine({0: [1.0]}), machine({0: [1.0]}, servers=2)
    assert offline_bound(crowd, one, SLO_S).attainment() == pytest.approx(10 / 40)
    assert offline_bound(crowd, two, SLO_S).attainment() == pytest.approx(20 / 40)


def test_tight_on_two_lanes() -> None:
    """Two images take what a batch of two takes, one on each lane; a third waits for one."""
    two_lanes = machine({0: [3.0, 5.0]}, lanes=2)
    assert offline_bound([0.0] * 4, two_lanes, SLO_S).attainment() == pytest.approx(1.0)
    assert offline_bound([0.0] * 8, two_lanes, SLO_S).attainment() == pytest.approx(4 / 8)


@pytest.mark.parametrize("arrivals", [[], [0.0, math.nan]])
def test_refuses_arrivals_that_are_none(arrivals: list[float]) -> None:
    """No arrivals, or one at no time, is an error and not a bound."""
    with pytest.raises(ValueError, match="arrival"):
        offline_bound(arrivals, machine({0: [1.0]}), SLO_S)


def test_refuses_limits_for_other_images() -> None:
    """One limit per arrival."""
    with pytest.raises(ValueError, match="expected 2 values of max_r, got 1"):
        offline_bound([0.0, 1.0], machine({0: [1.0]}), SLO_S, [None])
