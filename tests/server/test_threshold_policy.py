"""Queue thresholds: up at once and as far as needed, down slowly, at rest under constant load."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.policy import Decision
from server.threshold_policy import ThresholdPolicy, predicted_latency_s
from tests.server.closed_loop import ClosedLoop
from tests.server.situations import level, levels, linear_speedup, snapshot

# Unless said otherwise r=0 serves 100 images/s, r=16 200, and the SLO is 0.25 s: the marks are at
# 0.175 s and 0.0875 s.


def test_steady_below_the_mark() -> None:
    """A queue that drains well inside the SLO changes nothing."""
    load = snapshot(waiting=10, rate=90.0)
    assert ThresholdPolicy().decide(load, 0) == Decision(0, "steady")


def test_raises_at_once_and_as_far_as_needed() -> None:
    """The first overloaded snapshot raises r to the first level that drains in time."""
    # 20 images within 0.175 s need 114.3 images/s, the rate with its head-room 115: r=3 has 118.75.
    load = snapshot(waiting=20, rate=100.0)
    assert ThresholdPolicy().decide(load, 0) == Decision(3, "queue-rising")


def test_raises_far_enough_for_the_arrivals() -> None:
    """A level that clears the queue but not the arrivals is not enough."""
    load = snapshot(waiting=20, rate=150.0)
    assert ThresholdPolicy().decide(load, 0).r == 12  # 175 >= 1.15 x 150


def test_images_being_decoded_count() -> None:
    """A burst is seen before it has joined the queue."""
    assert ThresholdPolicy().decide(snapshot(decoding=20, rate=100.0), 0).r == 3


def test_raises_to_the_fastest_when_nothing_suffices() -> None:
    """A hopeless queue gets all the speed there is, and then stays there."""
    policy = ThresholdPolicy()
    assert policy.decide(snapshot(waiting=500, rate=900.0), 0).r == 16
    decision = policy.decide(snapshot(0.1, waiting=500, rate=900.0), 16)
    assert decision == Decision(16, "saturated")


def test_raises_to_the_fastest_when_the_queue_is_half_full() -> None:
    """A small queue in front of a fast model fills before the SLO is in danger."""
    load = snapshot(waiting=8, rate=90.0, queue_size=16)
    assert ThresholdPolicy().decide(load, 0) == Decision(16, "queue-rising")


def test_waiting_alone_raises() -> None:
    """A short queue that has waited for long is as bad as a long one."""
    assert ThresholdPolicy().decide(snapshot(waiting=1, waited_s=0.2, rate=10.0), 0).r == 16


def test_late_answers_raise_one_step_and_then_wait() -> None:
    """Latency above the SLO raises r; the old latencies in the window do not raise it again."""
    policy = ThresholdPolicy()
    late: dict[str, Any] = {"rate": 10.0, "recent_latency_s": 0.3}
    assert policy.decide(snapshot(**late), 0) == Decision(1, "latency")
    assert policy.decide(snapshot(1.0, **late), 1).r == 1
    assert policy.decide(snapshot(2.1, **late), 1).r == 2


def decide_every(
    policy: ThresholdPolicy, step_s: float, seconds: float, r: int, **load: Any
) -> list[int]:
    """Let the policy decide in a constant situation; return the degrees."""
    degrees = []
    for i in range(round(seconds / step_s) + 1):
        r = policy.decide(snapshot(i * step_s, **load), r).r
        degrees.append(r)
    return degrees


def test_lowers_one_level_after_the_dwell_time() -> None:
    """Calm must last for dwell_s before the first level goes, one at a time."""
    degrees = decide_every(ThresholdPolicy(dwell_s=2.0), 0.125, 2.0, r=16)
    assert degrees == [16] * 16 + [15]


def test_further_levels_follow_faster() -> None:
    """While calm lasts, each quarter dwell time gives back one more level, down to the lowest."""
    degrees = decide_every(ThresholdPolicy(dwell_s=2.0), 0.125, 12.0, r=16)
    assert degrees[-1] == 0
    assert degrees.index(0) == 16 + 15 * 4
    assert all(a - b in (0, 1) for a, b in pairwise(degrees))


def test_one_busy_moment_starts_the_dwell_time_again() -> None:
    """Calm has to be unbroken."""
    policy = ThresholdPolicy(dwell_s=2.0)
    assert policy.decide(snapshot(0.0), 8).r == 8
    assert policy.decide(snapshot(1.9, waiting=10, waited_s=0.1), 8).r == 8
    assert policy.decide(snapshot(2.1), 8).r == 8
    assert policy.decide(snapshot(4.2), 8).r == 7


def test_does_not_lower_into_trouble() -> None:
    """The next lower level must carry the arrivals with head-room, however calm it is now."""
    degrees = decide_every(ThresholdPolicy(dwell_s=2.0), 0.25, 60.0, r=16, rate=130.0)
    # 1.3 x 130 = 169 images/s: r=12 has 175, r=11 has 168.75.
    assert degrees[-1] == 12


def test_late_answers_are_not_calm() -> None:
    """As long as recent answers broke the SLO, nothing is given back."""
    degrees = decide_every(ThresholdPolicy(), 0.25, 1.5, r=16, recent_latency_s=0.3)
    assert set(degrees) == {16}


def test_a_degree_set_by_someone_else_starts_the_dwell_time_again() -> None:
    """Calm from before a pin does not count after it."""
    policy = ThresholdPolicy(dwell_s=2.0)
    assert policy.decide(snapshot(0.0), 4).r == 4
    assert policy.decide(snapshot(3.0), 12).r == 12
    assert policy.decide(snapshot(5.1), 12).r == 11


def test_a_failed_lowering_makes_the_next_one_wait_longer() -> None:
    """A level that proved too slow is not tried again after the same time."""
    policy = ThresholdPolicy(dwell_s=2.0)
    policy.decide(snapshot(0.0), 8)
    assert policy.decide(snapshot(2.0), 8).r == 7
    assert policy.decide(snapshot(2.5, waiting=26, rate=120.0), 7).r == 8
    policy.decide(snapshot(3.0), 8)
    assert policy.decide(snapshot(6.9), 8).r == 8
    assert policy.decide(snapshot(7.1), 8).r == 7


@pytest.mark.parametrize(("images_per_s", "rests_at"), [(10.0, 0), (5.0, 8)])
def test_comes_back_where_one_image_takes_a_good_part_of_the_slo(
    images_per_s: float, rests_at: int
) -> None:
    """Sparse single images count as calm, down to the level at which one alone is in time.

    5 images/s at r=0 are 200 ms an image, above the mark of 175 ms; r=8 takes 172.4 ms.
    """
    slow = levels(linear_speedup(images_per_s, 1.32))
    policy, r = ThresholdPolicy(), 16
    for arrival in range(60):
        r = policy.decide(snapshot(float(arrival), waiting=1, rate=1.0, levels=slow), r).r
    assert r == rests_at


def test_jumps_over_levels_that_do_not_pay() -> None:
    """Where r=1 to 5 are slower than r=0, the policy passes over them, up and down."""
    uneven = levels(lambda r: 100.0 if r == 0 else 60.0 + 8 * r)
    assert [item.r for item in uneven if item.pays] == [0, *range(6, 17)]
    policy = ThresholdPolicy(dwell_s=2.0)
    assert policy.decide(snapshot(waiting=18, rate=10.0, levels=uneven), 0).r == 6
    policy.decide(snapshot(1.0, levels=uneven), 6)
    assert policy.decide(snapshot(3.1, levels=uneven), 6).r == 0
    assert policy.decide(snapshot(3.2, levels=uneven), 5).r == 6


@pytest.mark.parametrize("marks", [(0.5, 0.5), (0.3, 0.6), (1.2, 0.5), (0.5, 0.0)])
def test_marks_must_leave_a_gap(marks: tuple[float, float]) -> None:
    """Without a gap between the marks there is no hysteresis: refused."""
    with pytest.raises(ValueError, match="low < high"):
        ThresholdPolicy(high=marks[0], low=marks[1])


def test_the_prediction_is_the_longest_of_the_waiting_images() -> None:
    """The oldest waited already and rides in the first batch; the newest waits for them all."""
    steady = level(0, 100.0)
    assert predicted_latency_s(snapshot(), steady) == 0.0
    assert predicted_latency_s(snapshot(waiting=2, waited_s=0.2), steady) == pytest.approx(0.22)
    assert predicted_latency_s(snapshot(waiting=30, waited_s=0.1), steady) == pytest.approx(0.3)


@settings(max_examples=25, deadline=None)
@given(
    load=st.floats(0.05, 1.9),
    gain=st.floats(1.3, 3.0),
    speed=st.floats(30.0, 150.0),
    overhead_s=st.floats(0.0, 0.02),
)
@example(load=1.5, gain=2.0, speed=35.0, overhead_s=0.0)
@example(load=1.0, gain=2.0, speed=100.0, overhead_s=0.005)
@example(load=0.97, gain=2.0, speed=100.0, overhead_s=0.0)
@example(load=0.9996351744713291, gain=2.0, speed=30.0, overhead_s=0.00025)
def test_constant_load_settles(load: float, gain: float, speed: float, overhead_s: float) -> None:
    """After 25 s of constant load there is no oscillation.

    At next to exactly a degree's capacity the queue takes longer than that to reach the mark; so
    one step may come late, but not one and back.
    """
    machine = levels(linear_speedup(speed, gain), overhead_s=overhead_s)
    loop = ClosedLoop(ThresholdPolicy(), machine)
    loop.run_steady(load * speed, 40.0)
    assert loop.switches(since=25.0) <= 1


@settings(max_examples=15, deadline=None)
@given(
    spike=st.floats(1.2, 1.6),
    rest=st.sampled_from([0.0, 0.1, 0.25]),
    speed=st.floats(30.0, 150.0),
)
@example(spike=1.5, rest=0.25, speed=35.0)
def test_spike_is_met_held_and_given_back(spike: float, rest: float, speed: float) -> None:
    """A spike raises r within a second or two, all are in time, and r returns to 0 afterwards."""
    loop = ClosedLoop(ThresholdPolicy(), levels(linear_speedup(speed, 2.0)))
    loop.run_steady(0.3 * speed, 5.0)
    assert loop.r == 0
    loop.run_steady(spike * speed, 20.0)
    # A spike of 1 + x fills the queue to the mark after about 0.18 s / x.
    assert max(loop.degrees_within(5.0, 5.1 + 0.35 / (spike - 1))) > 0
    assert loop.switches(since=12.0) <= 2
    loop.run_steady(rest * speed, 20.0)
    assert loop.r == 0
    assert loop.attainment() > 0.99


def test_misjudged_levels_are_not_tried_again_and_again() -> None:
    """Where levels are a fifth slower than believed, r changes at most each few dwell times."""
    believed = levels(linear_speedup(40.0, 2.0))
    true_s = {item.r: item.batch_seconds for item in levels(linear_speedup(32.0, 2.0))}
    loop = ClosedLoop(ThresholdPolicy(), believed, lambda r, size: true_s[r][size - 1])
    loop.run_steady(48.0, 60.0)
    assert loop.switches(since=20.0) <= 40 / ThresholdPolicy.PATIENCE * 2
    assert loop.attainment() > 0.98
