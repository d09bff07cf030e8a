"""The bound that stands beside a replay's attainment."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pace_bound import most_in_time
from server.simulated_machine import SlowDown

GRID_S = 0.001
"""The exhaustive search moves in such steps."""


def fits(arrivals: tuple[int, ...], image: int, slo: int, slow: tuple[int, int]) -> bool:
    """Whether all these are in time, in steps of the grid; from `slow` on, every second rests."""
    now, start, end = 0, *slow
    for arrival in arrivals:
        now, left = max(now, arrival), image
        while left:
            left -= not (start <= now < end and (now - start) % 2 == 0)
            now += 1
        if now > arrival + slo:
            return False
    return True


@given(
    arrivals=st.lists(st.integers(0, 30), min_size=1, max_size=6).map(sorted),
    image=st.integers(1, 8),
    slo=st.integers(1, 24),
    slow=st.tuples(st.integers(0, 20), st.integers(0, 15)),
)
def test_no_choice_of_images_serves_more(
    arrivals: list[int], image: int, slo: int, slow: tuple[int, int]
) -> None:
    """All subsets, each in order of arrival, on a machine that is half as fast for a while."""
    start, end = slow[0], slow[0] + 2 * slow[1]
    best = max(
        len(chosen)
        for count in range(len(arrivals) + 1)
        for chosen in itertools.combinations(arrivals, count)
        if fits(chosen, image, slo, (start, end))
    )
    bound = most_in_time(
        [arrival * GRID_S for arrival in arrivals],
        image * GRID_S,
        slo * GRID_S + 1e-9 + (GRID_S if start < end else 0),  # one may begin amid two steps
        [SlowDown(start * GRID_S, end * GRID_S, 2.0)],
    )
    assert bound >= best
    if start == end:
        assert bound == best


def test_what_a_slow_spell_costs() -> None:
    """100 images/s meet 125, and 62.5 for a second: the SLO bridges 0.2 s of that."""
    arrivals_s = [k / 100 for k in range(400)]
    assert most_in_time(arrivals_s, 0.008, 0.2) == 400
    slow = [SlowDown(1.0, 2.0, 2.0)]
    lost = 400 - most_in_time(arrivals_s, 0.008, 0.2, slow)
    assert 37.5 - 20 - 1 <= lost <= 37.5
