"""The demand side: when who is done, who can be in time, and whom to give up."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from server.demand import excess, extra_s, finish_s, in_time, paced
from server.reach import Levels
from server.stats import Backlog, FloatArray
from tests.server.fakes import believed
from tests.server.situations import backlog, level, machines
from tocom_core.operating_point import OperatingPoint

LEVELS = believed(lambda r, size: size / (100.0 + 6.25 * r), batch_size=4)
"""100 images/s at r=0, 200 at r=16, in batches of four."""
SLOW, FAST = LEVELS[0], LEVELS[16]


def test_an_image_is_done_with_its_batch() -> None:
    """Six images in batches of four: four done together, then two."""
    assert finish_s(SLOW, 6) == pytest.approx([0.04] * 4 + [0.06] * 2)


def done_s(one: OperatingPoint, levels: Levels, waiting: Backlog) -> FloatArray:
    """When each waiting image is done, with what limited ones cost on top."""
    extra = extra_s(one, levels, waiting)
    finish = finish_s(one, len(waiting))
    return finish if extra is None else finish + np.cumsum(extra)


@given(machine=machines(), count=st.integers(0, 60))
def test_the_reckoning_agrees_with_batches_run_one_by_one(machine, count: int) -> None:
    """Against a plain loop over batches."""
    one = machine[0]
    finish: list[float] = []
    while len(finish) < count:
        size = min(one.batch_size, count - len(finish))
        finish += [(finish[-1] if finish else 0.0) + one.batch_s(size)] * size
    assert finish_s(one, count) == pytest.approx(finish)


def test_limited_images_cost_what_their_own_degree_costs() -> None:
    """An image that accepts no compression takes 10 ms where the others take 5."""
    waiting = backlog([1.0] * 4, [None, 0, None, 8])
    plain = done_s(FAST, LEVELS, backlog([1.0] * 4))
    at_eight = 1 / LEVELS[8].images_per_s - 1 / FAST.images_per_s
    extra = [0.0, 0.005, 0.005, 0.005 + at_eight]
    assert done_s(FAST, LEVELS, waiting) - plain == pytest.approx(extra)


@pytest.mark.parametrize(
    ("slack_s", "timely"),
    [
        ([0.05] * 4, True),
        ([0.04] * 4, True),
        ([0.015, 0.05, 0.05, 0.05], False),  # it would have to go ahead in a batch of one
        ([0.05, 0.05, 0.05, 0.039], False),
        ([0.05] * 4 + [0.0501] * 2, False),
        ([0.05] * 4 + [0.0601] * 2, True),
    ],
)
def test_in_time_asks_for_efficient_batches(slack_s: list[float], timely: bool) -> None:
    """Everybody is in time if each batch ends before the first of its images is due."""
    assert in_time(SLOW, LEVELS, backlog(slack_s)) == timely


def test_a_margin_asks_for_more_room() -> None:
    """What just fits does not fit with a margin."""
    assert not in_time(SLOW, LEVELS, backlog([0.04] * 4), margin_s=0.001)


@st.composite
def slacks(draw: st.DrawFn, one: OperatingPoint) -> list[float]:
    """Return slacks of any kind, in any order; many are exactly, or next to, the end of a batch."""
    ends = finish_s(one, 40).tolist()
    near = st.sampled_from(ends) | st.sampled_from(ends).map(lambda end: math.nextafter(end, 0))
    slack = st.floats(-1, 2) | near | st.just(math.inf)
    found = draw(st.lists(slack, max_size=40))
    return sorted(found) if draw(st.booleans()) else found


@settings(max_examples=300)
@given(machine=machines(), data=st.data(), margin_s=st.sampled_from([0.0, 0.01]))
def test_in_time_compares_each_image_with_its_end(
    machine: Levels, data: st.DataObject, margin_s: float
) -> None:
    """Short cuts and a look per batch say the same as a look at each image."""
    slack_s = data.draw(slacks(machine[-1]))
    if data.draw(st.booleans()):  # around the time that all takes, where the short cuts end
        slack_s = [slack + machine[-1].clear_s(len(slack_s)) for slack in slack_s]
    limits = data.draw(
        st.none()
        | st.lists(st.none() | st.integers(0, 16), min_size=len(slack_s), max_size=len(slack_s))
    )
    waiting = backlog(slack_s, limits)
    done = done_s(machine[-1], machine, waiting) + margin_s
    if extra_s(machine[-1], machine, waiting) is not None:
        gaps = np.array(slack_s) - done
        if abs(gaps).min() < 1e-9:
            return  # a tie: the order of sums decides
    # Within a batch the extra of later images does not delay the earlier ones' comparison.
    assert in_time(machine[-1], machine, waiting, margin_s) == bool((slack_s >= done).all())


def test_batches_keep_pace_with_the_arrivals() -> None:
    """The smallest batch that carries the rate; the efficient one where none does."""
    machine = believed(lambda r, size: 0.02 + 0.005 * size, batch_size=8)
    assert paced(machine[0], 10.0).batch_size == 1
    assert paced(machine[0], 80.0).batch_size == 3
    assert paced(machine[0], 1000.0).batch_size == 8


def _fewest(slack_s: Sequence[float], costs: Sequence[float], more_s: float) -> int:
    """Return how few must be given up with so much more slack, by trying all subsets."""
    count = len(slack_s)
    for size in range(count, -1, -1):
        for kept in itertools.combinations(range(count), size):
            time_s = 0.0
            for index in kept:
                time_s += costs[index]
                if time_s > slack_s[index] + more_s:
                    break
            else:
                return count - size
    raise AssertionError("nobody at all is feasible")


@settings(max_examples=100, deadline=None)
@given(
    slack_s=st.lists(st.floats(0.001, 0.08), max_size=8).map(sorted),
    limited=st.lists(st.booleans(), min_size=8, max_size=8),
)
def test_no_fewer_can_be_given_up(slack_s: list[float], limited: list[bool]) -> None:
    """With one priority and due times in order it is Moore and Hodgson's optimum."""
    one = believed(lambda r, size: size / (100.0 if r == 0 else 200.0), (0, 16), batch_size=1)
    limits = [0 if is_limited else None for is_limited, _ in zip(limited, slack_s, strict=False)]
    waiting = backlog(slack_s, limits)
    gone = excess(waiting, one[1], one, lambda index: 1)
    costs = [0.01 if limit == 0 else 0.005 for limit in limits]
    # In a tie the order of sums decides.
    assert _fewest(slack_s, costs, 1e-12) <= len(gone) <= _fewest(slack_s, costs, -1e-12)
    time_s = 0.0
    for index in sorted(set(range(len(slack_s))) - set(gone.tolist())):
        time_s += costs[index]
        assert time_s <= slack_s[index] + 1e-9


@given(machine=machines(), data=st.data(), doubt=st.sampled_from([0.0, 0.04, 0.4]))
def test_whoever_comes_when_the_time_is_filled_goes(
    machine: Levels, data: st.DataObject, doubt: float
) -> None:
    """Equal costs, due times in any order as priorities make them: one by one says the same.

    The first batch may take longer than believed, what comes after it less.
    """
    waiting = backlog(data.draw(slacks(machine[0])))
    batch_s = machine[0].batch_s(machine[0].batch_size)
    ends = [
        end_s + doubt * batch_s - doubt * max(0.0, end_s - batch_s)
        for end_s in finish_s(machine[0], len(waiting)).tolist()
    ]
    slack_s = waiting.slack_s.tolist()
    exact = [abs(end_s - slack) < 1e-9 for end_s in ends for slack in slack_s]
    assume(not doubt or not any(exact))  # where rounding decides
    kept: list[int] = []
    for index, slack in enumerate(slack_s):
        if ends[len(kept)] <= slack:
            kept.append(index)
    gone = excess(waiting, machine[0], machine, lambda index: 1, doubt)
    assert gone.tolist() == sorted(set(range(len(waiting))) - set(kept))


@given(
    machine=machines(),
    data=st.data(),
    begin_s=st.lists(st.floats(0, 1), max_size=2).map(lambda later: (0.0, *sorted(later))),
    stretches=st.integers(1, 12),
)
def test_priorities_one_after_the_other_change_nothing_of_that(
    machine: Levels, data: st.DataObject, begin_s: tuple[float, ...], stretches: int
) -> None:
    """Few or many stretches of rising slack, one or several devices: one by one says the same."""
    drawn = data.draw(slacks(machine[0]))
    slack_s = [slack for first in range(stretches) for slack in sorted(drawn[first::stretches])]
    ends = finish_s(machine[0], len(slack_s), begin_s).tolist()
    gone: list[int] = []
    for index, slack in enumerate(slack_s):
        if ends[index - len(gone)] > slack:
            gone.append(index)
    waiting = replace(backlog(slack_s), begin_s=begin_s)
    assert excess(waiting, machine[0], machine, lambda index: 1).tolist() == gone


def test_nobody_of_higher_priority_goes_for_a_lower_one() -> None:
    """A costly image of high priority stays, the low one behind it goes."""
    one = believed(lambda r, size: size / (100.0 if r == 0 else 200.0), (0, 16), batch_size=1)
    waiting = backlog([0.01, 0.012], [0, None])
    assert excess(waiting, one[1], one, [0, 2].__getitem__).tolist() == [1]
    assert excess(waiting, one[1], one, [1, 1].__getitem__).tolist() == [0]


def test_a_single_level_has_nothing_below() -> None:
    """Limits below the only level change nothing that could be reckoned."""
    one = level(5, 100.0)
    assert done_s(one, (one,), backlog([1.0], [2])) == pytest.approx(finish_s(one, 1))
