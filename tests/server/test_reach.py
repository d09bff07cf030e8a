"""The best that can be done for a request with some limit, beside a plain search."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from server.reach import Levels, Reach
from server.stats import NO_LIMIT
from tests.server.situations import LEVELS, machines


def _accepted(levels: Levels, reachable: Levels, limit: int) -> Levels:
    """Return the levels at which a request with this limit may be served, searched one by one."""
    within = tuple(level for level in reachable if level.r <= limit)
    paying = (level for level in levels if level.pays or level is levels[0])
    lower = tuple(level for level in paying if level.r <= limit)
    return within or lower or levels[:1]


@given(machine=machines(), data=st.data())
def test_the_tables_agree_with_a_search(machine: Levels, data: st.DataObject) -> None:
    """For every limit, with any levels out of reach."""
    some = data.draw(st.sets(st.sampled_from(range(len(machine))), min_size=1))
    reachable = tuple(machine[index] for index in sorted(some))
    keeping = tuple(level for level in machine if level.pays or level is machine[0])
    reach = Reach(machine, reachable, keeping)
    for r in range(machine[-1].r + 2):
        lower = [level for level in machine if level.r <= r]
        assert reach.level(r) is (lower or machine)[-1 if lower else 0]
    for limit in (*range(machine[-1].r + 2), NO_LIMIT):
        accepted = _accepted(machine, reachable, limit)
        best = max(accepted, key=lambda level: (level.images_per_s, -level.r))
        assert reach.alone_one_s(limit) == min(level.batch_s(1) for level in accepted)
        if limit < machine[-1].r:
            limits = np.array([limit])
            assert reach.degrees(limits, machine[-1].r).tolist() == [best.r]
            assert reach.alone_s(limits).tolist() == [reach.alone_one_s(limit)]


def test_a_wanted_degree_is_given_to_all_that_accept_it() -> None:
    """Only those with a lower limit get another one."""
    reach = Reach(LEVELS, LEVELS, LEVELS)
    assert reach.degrees(np.array([NO_LIMIT, 12, 5, 0]), 12).tolist() == [12, 12, 5, 0]


def test_clearing_a_queue_takes_full_batches_and_a_rest() -> None:
    """Twenty images in batches of eight at 200 images/s."""
    assert abs(Reach(LEVELS, LEVELS, LEVELS).clear_s(20) - 0.1) < 1e-9
