"""The greedy filling of windows with work finds the optimum of a linear program."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.work_filling import Filling, Offer, WorkWindows

optimize = pytest.importorskip("scipy.optimize")

JOBS = st.lists(
    st.tuples(st.floats(0, 3), st.floats(0, 3), st.integers(0, 1)), min_size=1, max_size=6
)
OFFERS = st.lists(
    st.lists(st.builds(Offer, st.floats(0.1, 4), st.floats(0.1, 1)), max_size=4),
    min_size=2,
    max_size=2,
)


def windows(jobs: list[tuple[float, float, int]]) -> WorkWindows:
    """Return jobs, given as (gap to the one before, extra room, class)."""
    release = np.cumsum([gap for gap, _, _ in jobs])
    due = np.maximum.accumulate(release + [room for _, room, _ in jobs])
    return WorkWindows(release, due, np.array([kind for _, _, kind in jobs]))


def by_linear_program(
    jobs: list[tuple[float, float, int]], offers: list[list[Offer]], bonus: float
) -> float:
    """Return the optimum, from a linear program over shares of offers: slow, but without wit."""
    release = np.cumsum([gap for gap, _, _ in jobs])
    due = np.maximum.accumulate(release + [room for _, room, _ in jobs])
    columns = [(i, offer) for i, (_, _, kind) in enumerate(jobs) for offer in offers[kind]]
    if not columns:
        return 0.0
    rows, limits = [], []
    for i in range(len(jobs)):
        rows.append([float(job == i) for job, _ in columns])
        limits.append(1.0)
        for j in range(i, len(jobs)):
            rows.append([offer.work_s if i <= job <= j else 0.0 for job, offer in columns])
            limits.append(due[j] - release[i])
    gains = [-(offer.value + bonus) for _, offer in columns]
    return -float(optimize.linprog(gains, A_ub=rows, b_ub=limits).fun)


def worth(filling: Filling, bonus: float) -> float:
    """Return what was maximised."""
    return filling.value + bonus * filling.served


@given(JOBS, OFFERS, st.floats(-1, 3))
def test_finds_the_optimum_of_the_linear_program(
    jobs: list[tuple[float, float, int]], offers: list[list[Offer]], bonus: float
) -> None:
    """Whatever windows, offers and bonus: as valuable as the linear program's best."""
    found = windows(jobs).fill(offers, bonus)
    assert worth(found, bonus) == pytest.approx(by_linear_program(jobs, offers, bonus), abs=1e-7)


def test_serves_all_cheaply_before_any_well() -> None:
    """With a high bonus, a good answer for one never costs another its answer."""
    offers = [[Offer(1.0, 0.5), Offer(2.0, 1.0)]]
    jobs = WorkWindows(np.zeros(2), np.full(2, 3.0), np.zeros(2, np.int64))
    found = jobs.fill(offers, 1e6)
    assert (found.served, found.value) == pytest.approx((2.0, 1.5))


def test_a_cost_on_serving_leaves_only_what_is_worth_it() -> None:
    """With a negative bonus only jobs with a better offer are served."""
    offers = [[Offer(1.0, 0.5)], [Offer(1.0, 0.9)]]
    jobs = WorkWindows(np.zeros(2), np.full(2, 3.0), np.array([0, 1]))
    assert jobs.fill(offers, -0.7) == Filling(1.0, 0.9)


def test_refuses_windows_that_overtake_each_other() -> None:
    """First come, first served is right for agreeable windows only."""
    with pytest.raises(ValueError, match="both rise"):
        WorkWindows(np.array([0.0, 1.0]), np.array([5.0, 2.0]), np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="before its release"):
        WorkWindows(np.array([2.0]), np.array([1.0]), np.zeros(1, np.int64))
