"""SlackFit: the slack of the most urgent image decides how long a batch takes, hence its degree."""

import math
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.policy import Decision
from server.slackfit_policy import LatencyBuckets, SlackFitPolicy
from tests.server.closed_loop import ClosedLoop
from tests.server.situations import level, levels, linear_speedup, machines, snapshot
from tocom_core.operating_point import OperatingPoint

# Batches of up to 4: r=0 takes 0.1, 0.2, 0.3, 0.4 s, r=8 takes 0.045, 0.09, 0.135, 0.18 s.
TWO = (level(0, 10.0, max_batch=4), level(8, 4 / 0.18, max_batch=4))
SLO_S = 1.5  # a batch may take a third of it


def buckets(offered: tuple[OperatingPoint, ...] = TWO) -> LatencyBuckets:
    """Return four buckets; for `TWO` they end at 0.134, 0.223, 0.311 and 0.4 s."""
    return LatencyBuckets(offered, longest_s=SLO_S / 3, count=4)


@pytest.mark.parametrize(
    ("bearable_s", "most", "expected"),
    [
        (math.inf, 4, (4, 0)),
        (0.41, 4, (4, 0)),  # the whole batch without compression
        (0.32, 4, (3, 0)),
        (0.32, 2, (2, 0)),  # the third bucket has no batch that two images fill
        (0.23, 4, (4, 8)),  # of what takes 0.13 to 0.22 s, four images at r=8 are the most
        (0.23, 2, (2, 0)),  # and with two waiting, two at r=0
        (0.14, 4, (2, 8)),
        (0.14, 1, (1, 0)),
        (0.01, 4, (2, 8)),  # nothing fits: the lowest bucket
        (-1.0, 1, (1, 0)),
    ],
)
def test_the_largest_batch_of_the_highest_bucket_below_the_slack(
    bearable_s: float, most: int, expected: tuple[int, int]
) -> None:
    """The bucket is picked by the slack, in it the batch by its size, then the degree."""
    assert buckets().fitting(bearable_s, most) == expected


def test_of_equal_batches_in_a_bucket_the_lowest_degree_is_taken() -> None:
    """Two degrees that are about as fast share a bucket: more accuracy costs no slack."""
    close = (*TWO, level(9, 23.0, max_batch=4))
    assert buckets(close).fitting(0.23, 4) == (4, 8)


@settings(max_examples=200, deadline=None)
@given(
    offered=machines(),
    longest_s=st.floats(0.001, 1.0),
    bearable_s=st.floats(-0.5, 2.0),
    most=st.integers(1, 20),
)
def test_a_choice_fits_and_wastes_little(
    offered: tuple[OperatingPoint, ...], longest_s: float, bearable_s: float, most: int
) -> None:
    """It takes less than the slack where anything does, and at most two buckets less than could be.

    Two, since a choice may lie at the lower end of its bucket and another just above the slack's.
    """
    found = LatencyBuckets(offered, longest_s=longest_s, count=10)
    batch, r = found.fitting(bearable_s, most)
    seconds = {item.r: item.batch_seconds for item in offered}
    possible = [
        took_s
        for item in offered
        for took_s in item.batch_seconds[:most]
        if took_s <= max(longest_s, found.quickest_s)
    ]
    took_s = seconds[r][batch - 1]
    everything = [s for item in offered for s in item.batch_seconds if s <= longest_s]
    width_s = (max([*everything, found.quickest_s]) - found.quickest_s) / 10
    assert batch <= most
    assert took_s <= max(bearable_s, found.quickest_s + width_s) * (1 + 1e-9)
    assert not [s for s in possible if took_s + 2 * width_s < s < bearable_s - 2 * width_s]


def test_an_idle_server_is_ready_without_compression() -> None:
    """Without a queue the next image is assumed to come alone and with all its slack."""
    assert SlackFitPolicy().decide(snapshot(slo_s=SLO_S, levels=TWO), 8) == Decision(0, "slack", 1)


def test_the_most_urgent_image_decides() -> None:
    """One image that has waited for long outweighs many that have not, wherever it stands."""
    policy = SlackFitPolicy()
    fresh = snapshot(slack_s=[1.5, 1.5, 1.5, 1.5], slo_s=SLO_S, levels=TWO)
    one_old = snapshot(slack_s=[1.5, 1.5, 1.5, 0.3], slo_s=SLO_S, levels=TWO)
    assert policy.decide(fresh, 0) == Decision(0, "slack", 4)
    assert policy.decide(one_old, 0).r == 8


def test_who_cannot_be_in_time_does_not_count() -> None:
    """An image that even r=8 is too slow for changes nothing for the others."""
    policy = SlackFitPolicy()
    load = snapshot(slack_s=[0.02, 1.5, 1.5, 1.5], slo_s=SLO_S, levels=TWO)
    assert policy.decide(load, 0).r == 0
    hopeless = snapshot(slack_s=[0.02, -3.0], slo_s=SLO_S, levels=TWO)
    assert policy.decide(hopeless, 0) == Decision(8, "slack", 1)


def test_a_doubt_and_a_switch_come_off_the_slack() -> None:
    """What fits exactly does not fit any more where durations vary or a switch costs."""
    policy = SlackFitPolicy()
    load: dict[str, Any] = {
        "slack_s": [0.48] * 4,
        "slo_s": SLO_S,
        "levels": TWO,
    }  # 0.405 less the margin
    assert policy.decide(snapshot(**load), 0) == Decision(0, "slack", 4)
    doubts: tuple[dict[str, Any], ...] = ({"spread": 0.2}, {"switch_s": 0.1})
    for doubt in doubts:
        decision = policy.decide(snapshot(**load, **doubt), 0)
        assert (decision.r, decision.max_batch) != (0, 4)


def test_new_levels_are_sorted_anew() -> None:
    """When r=0 turns out too slow for any batch, the same slack leads to a higher degree."""
    policy = SlackFitPolicy()
    load: dict[str, Any] = {"slack_s": [0.48] * 4, "slo_s": SLO_S}
    assert policy.decide(snapshot(**load, levels=TWO), 0).r == 0
    slower = (level(0, 1.5, max_batch=4), level(8, 12.0, max_batch=4))
    assert policy.decide(snapshot(**load, levels=slower), 0).r == 8


def test_a_batch_leaves_time_to_wait_for_one() -> None:
    """No batch takes more than a third of the SLO, however much slack there is."""
    offered = levels(linear_speedup(50.0, 2.0), max_batch=32)
    decision = SlackFitPolicy().decide(snapshot(slack_s=[9.0] * 32, slo_s=0.6, levels=offered), 0)
    chosen = next(item for item in offered if item.r == decision.r)
    assert chosen.batch_s(decision.max_batch or 32) <= 0.2


@settings(max_examples=20, deadline=None)
@given(load=st.floats(0.1, 1.5), speed=st.floats(30.0, 150.0))
@example(load=1.4, speed=35.0)
def test_constant_load_ends_in_a_steady_cycle(load: float, speed: float) -> None:
    """Nobody is late, and the mean degree of one stretch of 5 s is that of the next."""
    loop = ClosedLoop(SlackFitPolicy(), levels(linear_speedup(speed, 2.0)))
    loop.run_steady(load * speed, 40.0)
    means = [
        fmean(r for at, r in loop.degrees if start <= at < start + 5) for start in range(15, 40, 5)
    ]
    assert loop.attainment() > 0.99
    assert max(abs(a - b) for a, b in pairwise(means)) < 1.0


def test_a_spike_raises_and_its_end_lowers() -> None:
    """Queueing eats up slack and leads to higher degrees; afterwards there is none."""
    loop = ClosedLoop(SlackFitPolicy(), levels(linear_speedup(40.0, 2.0)))
    loop.run_steady(12.0, 5.0)
    assert loop.degrees_within(0.0) == {0}
    loop.run_steady(58.0, 20.0)
    assert max(loop.degrees_within(5.0, 8.0)) > 4
    loop.run_steady(12.0, 5.0)
    assert loop.degrees_within(26.0) == {0}
