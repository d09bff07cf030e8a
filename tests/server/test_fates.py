"""The figures of a replay: shares of what was offered, and nothing to gain from refusing."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fates import Fate, Outcome, Range, count_switches, over_seeds, percentile, summarise

SLO_S = 0.2


@st.composite
def fates(draw: st.DrawFn) -> Fate:
    """A request with any end."""
    due_s, took_s = draw(st.floats(0, 100)), draw(st.floats(0, 1))
    outcome: Outcome = draw(st.sampled_from(["ok", "shed", "expired", "failed"]))
    if outcome != "ok":
        return Fate(due_s, due_s + took_s, outcome, None)
    r, correct = draw(st.integers(0, 16)), draw(st.sampled_from([0.0, 0.5, 1.0]))
    return Fate(due_s, due_s + took_s, outcome, r, correct, 4)


def ok(due_s: float, latency_s: float, r: int = 0, correct: float = 1.0) -> Fate:
    """A result."""
    return Fate(due_s, due_s + latency_s, "ok", r, correct, 1)


def test_figures_of_a_small_replay() -> None:
    """Each figure by hand: two in time (one right), one late, one of each other end."""
    figures = summarise(
        [
            ok(0, 0.1, r=0, correct=1),
            ok(1, 0.2 - 1e-9, r=4, correct=0),
            ok(2, 0.3, r=8, correct=1),
            Fate(3, 3.01, "shed", None),
            Fate(4, 4.5, "expired", None),
            Fate(5, 5.5, "failed", None),
        ],
        SLO_S,
        seconds=10,
    )
    assert (figures.offered, figures.violations, figures.late) == (6, 4, 1)
    assert (figures.shed, figures.expired, figures.failed) == (1, 1, 1)
    assert figures.attainment == pytest.approx(2 / 6)
    assert figures.goodput == pytest.approx(0.2)
    assert figures.accuracy == pytest.approx(2 / 3)
    assert figures.on_time_correct == pytest.approx(1 / 6)
    assert figures.mean_r == 4
    assert figures.p50_s == pytest.approx(0.2)
    assert figures.p99_s == pytest.approx(0.3)
    assert figures.switches == 2


@given(st.lists(fates(), min_size=1, max_size=40), st.data())
def test_refusing_never_looks_better(run: list[Fate], data: st.DataObject) -> None:
    """Turning any request into a refusal raises neither attainment, goodput nor correctness."""
    place = data.draw(st.integers(0, len(run) - 1))
    refused = [*run]
    refused[place] = replace(run[place], outcome="shed", r=None, correct=math.nan)
    before, after = (summarise(one, SLO_S, seconds=100) for one in (run, refused))
    for name in ("attainment", "goodput", "on_time_correct"):
        assert getattr(after, name) <= getattr(before, name)


@given(st.lists(fates(), max_size=40))
def test_every_request_is_counted_once(run: list[Fate]) -> None:
    """In time, late, shed, expired and failed add up to what was offered."""
    figures = summarise(run, SLO_S, seconds=100)
    timely = figures.offered - figures.violations
    ends = figures.late + figures.shed + figures.expired + figures.failed
    assert timely + ends == figures.offered == len(run)


def test_a_result_at_the_slo_is_in_time() -> None:
    """The promise includes its own edge."""
    assert Fate(0.0, SLO_S, "ok", 0).on_time(SLO_S)
    assert not Fate(0.0, math.nextafter(SLO_S, 1), "ok", 0).on_time(SLO_S)


def test_without_labels_correctness_is_not_known() -> None:
    """One unjudged answer makes the shares unknown, not smaller; the rest is known."""
    figures = summarise([ok(0, 0.1), ok(1, 0.1, correct=math.nan)], SLO_S)
    assert figures.accuracy is None and figures.on_time_correct is None
    assert figures.attainment == 1


def test_nothing_served_and_nothing_offered() -> None:
    """Shares of nothing are not known; a replay that served nothing scores 0."""
    refused = summarise([Fate(1.0, 1.0, "shed", None)], SLO_S)
    assert refused.attainment == refused.on_time_correct == refused.goodput == 0
    assert refused.accuracy is refused.mean_r is refused.p50_s is None
    nothing = summarise([], SLO_S)
    assert nothing.attainment is nothing.on_time_correct is None and nothing.goodput == 0


def test_length_of_the_trace_defaults_to_the_last_request() -> None:
    """Goodput needs a time span."""
    assert summarise([ok(0, 0.1), ok(4, 0.1)], SLO_S).goodput == pytest.approx(0.5)


def test_switches_follow_completion() -> None:
    """Requests may overtake one another: what counts is the order of results."""
    run = [ok(0, 0.9, r=8), ok(0.5, 0.1, r=0), Fate(0.6, 0.7, "shed", None), ok(0.7, 0.1, r=0)]
    assert count_switches(run) == 1
    assert summarise(run, SLO_S, switches=7).switches == 7


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=50), st.integers(1, 100))
def test_percentile_is_a_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    """And the next smaller value would be exceeded by too many."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values)
    assert sum(value < found for value in values) < percent / 100 * len(values)


def test_over_seeds_tells_median_and_range() -> None:
    """Per figure; a figure that a seed does not know is not known over seeds either."""
    runs = [summarise([ok(0, took)], SLO_S, seconds=1) for took in (0.1, 0.15, 0.5)]
    ranges = over_seeds(runs)
    assert ranges["attainment"] == Range(1, 0, 1)
    assert ranges["p50_s"] == Range(0.15, 0.1, 0.5)
    unknown = [*runs, summarise([Fate(0, 0, "shed", None)], SLO_S)]
    assert over_seeds(unknown)["p50_s"] is None
    assert over_seeds(unknown)["attainment"] is not None
