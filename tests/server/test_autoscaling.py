"""The autoscaler's rule, against the examples of Kubernetes' documentation and its own promises."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.autoscaling import (
    Autoscaler,
    RateLimit,
    Readings,
    ScalingRules,
    wanted_replicas,
)

FREE = {"up_limits": (), "down_limits": (), "down_window_s": 0.0, "max_replicas": 1000}
"""No brake at all."""


def free(target: float, **more: object) -> ScalingRules:
    """Rules without brakes."""
    return ScalingRules(target, **{**FREE, **more})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("replicas", "value", "target", "wanted"),
    [
        (4, 200, 100, 8),  # "the number of replicas will be doubled, since 200.0 / 100.0 == 2.0"
        (4, 50, 100, 2),  # "you'll halve the number of replicas, since 50.0 / 100.0 == 0.5"
        (50, 90, 75, 60),  # of the announcement of configurable tolerances
        (4, 110, 100, 4),  # "skips any scaling action if the ratio is sufficiently close to 1.0
        (4, 90, 100, 4),  # (within a globally-configurable tolerance, 0.1 by default)"
        (4, 111, 100, 5),
        (4, 89, 100, 4),  # 3.56: parts of a replica count whole
        (10, 89, 100, 9),
        (1, 3.2, 0.8, 4),
        (3, 0.0, 0.8, 0),
        (3, 0.1 * 3, 0.1, 9),  # no tenth replica for an error of rounding
    ],
)
def test_follows_the_ratio_of_value_and_target(
    replicas: int, value: float, target: float, wanted: int
) -> None:
    """The examples of the documentation, and what follows from its formula."""
    readings = Readings([value] * replicas)
    assert wanted_replicas(replicas, readings, free(target)) == wanted


@pytest.mark.parametrize(
    ("values", "missing", "unready", "wanted"),
    [
        # More is wanted: those that tell nothing count as idle.
        ([2.4], 0, 2, 3),  # 2.4 / 3 is just the target: those that start are enough
        ([2.4], 2, 0, 3),
        ([4.0], 0, 2, 5),
        ([1.6], 0, 2, 3),  # without them 2 would do; it never turns round
        # Fewer are wanted: the missing count as busy, those that start not at all.
        ([0.2, 0.2], 1, 0, 2),
        ([0.2, 0.2], 0, 1, 1),
        # It asks for fewer, but with the missing ones at the target that is within the tolerance.
        ([0.7, 0.7], 7, 0, 9),
        ([], 3, 0, 3),  # nobody tells anything: nothing is done
        ([], 0, 3, 3),
    ],
)
def test_who_tells_nothing_dampens_the_change(
    values: list[float], missing: int, unready: int, wanted: int
) -> None:
    """Missing and not yet ready replicas, as the documentation has it; the target is 0.8."""
    current = len(values) + missing + unready
    readings = Readings(values, missing, unready)
    assert wanted_replicas(current, readings, free(0.8)) == wanted


def test_shrinks_once_the_window_has_passed() -> None:
    """Of what was wanted within 300 s the most is taken; growing does not wait."""
    scaler = Autoscaler(ScalingRules(1.0, max_replicas=20))
    replicas, seen = 2, []
    for now in range(0, 600, 15):
        load = 8.0 if 60 <= now < 120 else 2.0
        replicas = scaler.decide(now, replicas, Readings([load / replicas] * replicas))
        seen.append((now, replicas))
    changed = [one for one, before in zip(seen[1:], seen, strict=False) if one[1] != before[1]]
    # The last time that eight were wanted is 105; 300 s later that is forgotten.
    assert changed == [(60, 6), (75, 8), (405, 2)]


def test_a_wave_within_the_window_does_not_flap() -> None:
    """What is wanted again and again is kept; without a window it comes and goes."""
    for window_s, changes in ((300.0, 1), (0.0, 39)):
        scaler = Autoscaler(ScalingRules(1.0, down_window_s=window_s))
        replicas, seen = 2, [2]
        for now in range(0, 600, 15):
            load = 4.0 if now // 15 % 2 else 2.0
            replicas = scaler.decide(now, replicas, Readings([load / replicas] * replicas))
            seen.append(replicas)
        assert sum(one != other for one, other in itertools.pairwise(seen)) == changes


def test_growth_waits_for_its_own_window() -> None:
    """With a window for growth a short peak adds nothing."""
    scaler = Autoscaler(ScalingRules(1.0, up_window_s=60.0))
    wanted = [2.0, 9.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    seen = [scaler.decide(15 * i, 2, Readings([v / 2] * 2)) for i, v in enumerate(wanted)]
    assert seen == [2, 2, 2, 2, 2, 2, 6, 6]


def test_grows_by_four_or_doubles() -> None:
    """The default of Kubernetes: every 15 s 4 replicas or 100 %, whichever is more."""
    scaler = Autoscaler(ScalingRules(1.0, max_replicas=100))
    replicas, seen = 1, []
    for step in range(6):
        replicas = scaler.decide(15.0 * step, replicas, Readings([90 / replicas] * replicas))
        seen.append(replicas)
    assert seen == [5, 10, 20, 40, 80, 90]


def test_shrinks_as_in_the_example_of_the_documentation() -> None:
    """80 replicas that should be 10, at most 4 or 10 % a minute: 72, 64, …, and below 40 by 4."""
    limits = (RateLimit("replicas", 4, 60), RateLimit("percent", 10, 60))
    rules = ScalingRules(1.0, max_replicas=100, down_window_s=0.0, down_limits=limits, up_limits=())
    scaler = Autoscaler(rules)
    replicas, seen = 80, []
    for minute in range(14):
        replicas = scaler.decide(60.0 * minute, replicas, Readings([10 / replicas] * replicas))
        seen.append(replicas)
    assert seen == [72, 64, 57, 51, 45, 40, 36, 32, 28, 24, 20, 16, 12, 10]


def test_a_limit_looks_back_over_its_period() -> None:
    """Within one period it is not granted twice, however often the autoscaler looks."""
    rules = ScalingRules(1.0, up_limits=(RateLimit("replicas", 2, 60),))
    scaler = Autoscaler(rules)
    replicas, seen = 1, []
    for now in range(0, 121, 15):
        replicas = scaler.decide(now, replicas, Readings([9 / replicas] * replicas))
        seen.append(replicas)
    assert seen == [3, 3, 3, 3, 5, 5, 5, 5, 7]


@pytest.mark.parametrize(("load", "expected"), [(0.0, 3), (100.0, 8)])
def test_keeps_between_fewest_and_most(load: float, expected: int) -> None:
    """Whatever the signal says."""
    scaler = Autoscaler(free(0.8, min_replicas=3, max_replicas=8))
    assert scaler.decide(0.0, 4, Readings([load] * 4)) == expected


@given(
    st.lists(
        st.tuples(st.floats(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40
    )
)
def test_never_turns_against_the_signal(story: list[tuple[float, int, int]]) -> None:
    """It grows only while the signal is above the target, and never leaves its limits."""
    scaler = Autoscaler(ScalingRules(0.8, 2, 9))
    replicas = 2
    for step, (value, missing, unready) in enumerate(story):
        telling = max(1, replicas - missing - unready)
        readings = Readings([value] * telling, min(missing, replicas - telling), 0)
        chosen = scaler.decide(15.0 * step, replicas, readings)
        assert 2 <= chosen <= 9
        if chosen > replicas:
            assert value > 0.8
        replicas = chosen


@pytest.mark.parametrize(
    "wrong",
    [{"target": 0.0}, {"target": 1.0, "min_replicas": 0}, {"target": 1.0, "max_replicas": 0}],
)
def test_refuses_rules_that_cannot_be_meant(wrong: dict[str, float]) -> None:
    """A target of nothing would ask for infinitely many."""
    with pytest.raises(ValueError, match="expected"):
        ScalingRules(**wrong)  # type: ignore[arg-type]
