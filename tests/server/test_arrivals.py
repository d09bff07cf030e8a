"""Traces: the grammar, the rates, the spacing, and that a seed fixes everything."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.arrivals import EVEN, EXAMPLES, POISSON, Phase, PhasedTrace, parse_trace
from server.errors import SettingsError

RATE = 40.0

multiples = st.floats(0, 5).map(lambda value: round(value, 3))
phases = st.builds(Phase, multiples, multiples, st.floats(0.1, 20))
shapes = st.lists(phases, min_size=1, max_size=5).filter(lambda made: any(p.mean for p in made))


def intervals(times: list[float]) -> list[float]:
    """Distances between neighbours."""
    return [later - earlier for earlier, later in itertools.pairwise(times)]


@given(shapes, st.sampled_from([EVEN, 0.5, POISSON, 4.0, 8.0]), st.integers(0, 2**32))
def test_arrivals_rise_and_stay_where_there_is_load(
    shape: list[Phase], cv2: float, seed: int
) -> None:
    """In any trace times rise, lie within its length, and no phase of rate 0 has any."""
    trace = PhasedTrace("any", tuple(shape), cv2)
    times = trace.times(RATE, seed)
    assert times == sorted(times)
    start_s = 0.0
    for phase in shape:
        end_s = start_s + phase.seconds
        if phase.mean == 0:
            assert not [at for at in times if start_s + 1e-6 < at < end_s - 1e-6]
        start_s = end_s
    assert all(0 <= at <= start_s + 1e-6 for at in times)
    assert times == trace.times(RATE, seed)


@given(shapes)
def test_even_arrivals_are_as_many_as_the_rate_says(shape: list[Phase]) -> None:
    """Without randomness the count is the integral of the rate, to the nearest whole number."""
    expected = sum(RATE * phase.mean * phase.seconds for phase in shape)
    times = PhasedTrace("any", tuple(shape), EVEN).times(RATE, 0)
    assert abs(len(times) - expected) <= 0.5 + 1e-6


def test_even_arrivals_are_equally_far_apart() -> None:
    """One every 25 ms at 40 per second, the first in the middle of its interval."""
    times = parse_trace("constant:1x2,even").times(RATE, 0)
    assert times[0] == pytest.approx(0.0125)
    assert intervals(times) == pytest.approx([0.025] * 79)


@pytest.mark.parametrize("cv2", [1, 4, 8])
def test_bursts_have_the_asked_variation_and_rate(cv2: int) -> None:
    """Mean and squared coefficient of variation of many intervals are those that were asked for."""
    gaps = intervals(parse_trace(f"gamma:0.9x3000,cv2={cv2}").times(RATE, 1))
    assert statistics.fmean(gaps) == pytest.approx(1 / (0.9 * RATE), rel=0.05)
    variation = statistics.variance(gaps) / statistics.fmean(gaps) ** 2
    assert variation == pytest.approx(cv2, rel=0.1)


def test_arrivals_are_poisson_unless_told_otherwise() -> None:
    """A step without an option has the variation of exponential intervals."""
    gaps = intervals(parse_trace("step:1x2000").times(RATE, 1))
    assert statistics.variance(gaps) / statistics.fmean(gaps) ** 2 == pytest.approx(1, rel=0.05)


def test_steps_follow_one_another() -> None:
    """Each phase has its own rate and its own seconds."""
    times = parse_trace("step:0.5x20,1.5x60,0.5x20,even").times(RATE, 0)
    counts = [sum(a <= at < b for at in times) for a, b in ((0, 20), (20, 80), (80, 100))]
    assert counts == [400, 3600, 400]


def test_a_ramp_rises_linearly() -> None:
    """From 0 to 2 over 10 s: a quarter of the arrivals in the first half."""
    trace = parse_trace("ramp:0-2x10,even")
    times = trace.times(RATE, 0)
    assert len(times) == 400
    assert sum(at < 5 for at in times) == 100
    assert intervals(times)[0] > 10 * intervals(times)[-1]


def test_a_ramp_may_fall() -> None:
    """Downwards is the mirror image of upwards."""
    down = parse_trace("ramp:2-0.5x10,even").times(RATE, 0)
    up = parse_trace("ramp:0.5-2x10,even").times(RATE, 0)
    assert down == pytest.approx([10 - at for at in reversed(up)])


def test_seeds_differ() -> None:
    """Another seed is another draw of the same shape."""
    trace = parse_trace("constant:1x10")
    assert trace.times(RATE, 0) != trace.times(RATE, 1)


def test_the_capacity_sets_the_rate_but_not_the_length() -> None:
    """Twice the capacity: twice the arrivals in the same time."""
    trace = parse_trace("constant:0.9x60,even")
    assert len(trace.times(2 * RATE, 0)) == 2 * len(trace.times(RATE, 0))
    assert trace.seconds(RATE) == trace.seconds(2 * RATE) == 60


def test_scale_multiplies_all_rates() -> None:
    """`scale` is the same as writing larger multiples, and the name says so."""
    scaled = parse_trace("step:0.5x2,1x3", scale=2)
    assert scaled.times(RATE, 3) == parse_trace("step:1x2,2x3").times(RATE, 3)
    assert scaled.name == "2 × (step:0.5x2,1x3)"


@pytest.mark.parametrize("short", EXAMPLES)
def test_a_kind_alone_is_its_example(short: str) -> None:
    """`step` is short for the trace that the documentation shows."""
    assert parse_trace(short) == parse_trace(EXAMPLES[short])


def test_description_tells_length_mean_and_spacing() -> None:
    """A report must say what was replayed."""
    told = parse_trace("step:0.5x20,1.5x60,0.5x20").describe(RATE, 0)
    assert "100 s" in told and "mean 1.1 ×" in told and "Poisson" in told


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("steps:1x2", "there is no kind 'steps'"),
        ("step:", "expected constant:MxS"),
        ("step:1", "expected constant:MxS"),
        ("step:-1x2", "expected constant:MxS"),
        ("step:1x2,,1x2", "expected constant:MxS"),
        ("constant:1x2,2x2", "expected constant:MxS"),
        ("ramp:1x2", "expected constant:MxS"),
        ("ramp:1-2x3,1-2x3", "expected constant:MxS"),
        ("gamma:1x2", "needs ',cv2=C'"),
        ("gamma:1x2,even", "needs ',cv2=C'"),
        ("gamma:1x2,cv2=many", "cv2 from 0 to 100"),
        ("gamma:1x2,cv2=-1", "cv2 from 0 to 100"),
        ("constant:1x0", "more than 0"),
        ("constant:1001x5", "at most 1000 times"),
        ("constant:1x1e9", "expected constant:MxS"),
        ("constant:0x5", "no arrivals"),
    ],
)
def test_nonsense_is_refused_with_the_grammar(spec: str, reason: str) -> None:
    """The message names the trace and what was expected."""
    with pytest.raises(SettingsError) as refused:
        parse_trace(spec)
    assert spec in str(refused.value) and reason in str(refused.value)


@pytest.mark.parametrize("scale", [0, -1, float("nan"), float("inf")])
def test_scale_must_be_a_sensible_number(scale: float) -> None:
    """No load, or none that ends, is a mistake."""
    with pytest.raises(SettingsError, match="scale"):
        parse_trace("step", scale=scale)


def test_only_a_recording_has_a_window() -> None:
    """A duration beside a trace that says its own would be ambiguous."""
    with pytest.raises(SettingsError, match="itself says how long"):
        parse_trace("step", duration_s=10)
