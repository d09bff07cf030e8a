"""The load policy: raises at once, lowers slowly, settles under constant load."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.meters import ArrivalRate
from server.policy import Decision, StaticPolicy, ThresholdPolicy, frontier
from server.stats import LoadSnapshot
from tests.server.fakes import linear_speedup, points

SLO_S = 0.25
SPEED = linear_speedup(100.0, 2.0, 16)  # images/s: 100 at r=0, 200 at r=16
LEVELS = points(SPEED)


def snapshot(
    now: float = 0.0,
    queue: int = 0,
    oldest_s: float = 0.0,
    rate: float = 0.0,
    latency_s: float | None = None,
    queue_size: int | None = None,
    levels=LEVELS,
) -> LoadSnapshot:
    """Return a snapshot with the given load; the rest is calm."""
    return LoadSnapshot(now, queue, oldest_s, 0, rate, latency_s, queue_size, SLO_S, levels)


def test_static_policy_ignores_the_load() -> None:
    """The static policy always gives its degree."""
    policy = StaticPolicy(5)
    assert policy.decide(snapshot(queue=10_000, oldest_s=9.0), 0) == Decision(5, "static")


def test_static_policy_keeps_to_the_allowed_levels() -> None:
    """A fixed degree outside the bounds becomes the nearest inside."""
    assert StaticPolicy(9).decide(snapshot(levels=LEVELS[:4]), 0).r == 3


def test_steady_below_the_mark() -> None:
    """A queue that drains well inside the SLO changes nothing."""
    assert ThresholdPolicy().decide(snapshot(queue=10, rate=90), 0) == Decision(0, "steady")


def test_raises_at_once_and_as_far_as_needed() -> None:
    """The first overloaded snapshot raises r to the first level that drains in time."""
    decision = ThresholdPolicy(high=0.7).decide(snapshot(queue=20, rate=100), 0)
    assert decision.reason == "queue-rising"
    # 20 images within 0.175 s need 114.3 images/s; the rate with its head-room 115: r=3 has 118.75.
    assert decision.r == 3


def test_raises_far_enough_for_the_arrivals() -> None:
    """A level that clears the queue but not the arrivals is not enough."""
    assert ThresholdPolicy().decide(snapshot(queue=20, rate=150), 0).r == 12  # 175 >= 1.15 x 150


def test_raises_to_the_fastest_when_nothing_suffices() -> None:
    """A hopeless queue gets all the speed there is, and then stays there."""
    policy = ThresholdPolicy()
    assert policy.decide(snapshot(queue=500, rate=900), 0).r == 16
    assert policy.decide(snapshot(now=0.1, queue=500, rate=900), 16) == Decision(16, "saturated")


def test_raises_to_the_fastest_when_the_queue_is_half_full() -> None:
    """A small queue in front of a fast model fills before the SLO is in danger."""
    load = snapshot(queue=8, rate=90, queue_size=16)
    assert ThresholdPolicy().decide(load, 0) == Decision(16, "queue-rising")


def test_waiting_alone_raises() -> None:
    """A short queue that has waited for long is as bad as a long one."""
    assert ThresholdPolicy().decide(snapshot(queue=1, oldest_s=0.2, rate=10), 0).r == 16


def test_late_answers_raise_one_step_and_then_wait() -> None:
    """Latency above the SLO raises r; the old latencies in the window do not raise it again."""
    policy = ThresholdPolicy()
    assert policy.decide(snapshot(rate=10, latency_s=0.3), 0) == Decision(1, "latency")
    assert policy.decide(snapshot(now=1.0, rate=10, latency_s=0.3), 1).r == 1
    assert policy.decide(snapshot(now=2.1, rate=10, latency_s=0.3), 1).r == 2


def decide_every(
    policy: ThresholdPolicy, step_s: float, seconds: float, r: int, **load
) -> list[int]:
    """Let the policy decide in a constant situation; return the degrees."""
    degrees = []
    for i in range(round(seconds / step_s) + 1):
        r = policy.decide(snapshot(now=i * step_s, **load), r).r
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
    assert policy.decide(snapshot(now=0.0), 8).r == 8
    assert policy.decide(snapshot(now=1.9, queue=10, oldest_s=0.05), 8).r == 8
    assert policy.decide(snapshot(now=2.1), 8).r == 8
    assert policy.decide(snapshot(now=4.2), 8).r == 7


def test_does_not_lower_into_trouble() -> None:
    """The next lower level must carry the arrivals with head-room, however calm it is now."""
    degrees = decide_every(ThresholdPolicy(dwell_s=2.0), 0.25, 60.0, r=16, rate=130.0)
    # 1.3 x 130 = 169 images/s: r=12 has 175, r=11 has 168.75.
    assert degrees[-1] == 12


def test_late_answers_are_not_calm() -> None:
    """As long as recent answers broke the SLO, nothing is given back."""
    degrees = decide_every(ThresholdPolicy(dwell_s=1.0), 0.25, 1.5, r=16, latency_s=0.3)
    assert set(degrees) == {16}


def test_a_degree_set_by_someone_else_starts_the_dwell_time_again() -> None:
    """Calm from before a pin does not count after it."""
    policy = ThresholdPolicy(dwell_s=2.0)
    assert policy.decide(snapshot(now=0.0), 4).r == 4
    assert policy.decide(snapshot(now=3.0), 12).r == 12
    assert policy.decide(snapshot(now=5.1), 12).r == 11


def test_a_failed_lowering_makes_the_next_one_wait_longer() -> None:
    """A level that proved too slow is not tried again after the same time."""
    policy = ThresholdPolicy(dwell_s=2.0)
    policy.decide(snapshot(now=0.0), 8)
    assert policy.decide(snapshot(now=2.0), 8).r == 7
    assert policy.decide(snapshot(now=2.5, queue=26, rate=120), 7).r == 8
    policy.decide(snapshot(now=3.0), 8)
    assert policy.decide(snapshot(now=6.9), 8).r == 8
    assert policy.decide(snapshot(now=7.1), 8).r == 7


@pytest.mark.parametrize(("images_per_s", "rests_at"), [(10.0, 0), (5.0, 8)])
def test_comes_back_where_one_image_takes_a_good_part_of_the_slo(
    images_per_s: float, rests_at: int
) -> None:
    """Sparse single images count as calm, down to the level at which one alone is in time.

    5 images/s at r=0 are 200 ms an image, above the mark of 175 ms; r=8 takes 172.4 ms.
    """
    levels = points(linear_speedup(images_per_s, 1.32, 16))
    policy, r = ThresholdPolicy(), 16
    for arrival in range(60):
        sparse = snapshot(now=float(arrival), queue=1, rate=1.0, levels=levels)
        r = policy.decide(sparse, r).r
    assert r == rests_at


def test_a_level_that_brings_no_speed_is_never_chosen() -> None:
    """Where r=1 to 8 are slower than r=0, the policy jumps over them, up and down."""
    levels = points(lambda r: 100.0 if r == 0 else 60.0 + 8 * r)
    assert [level.r for level in frontier(levels)] == [0, *range(6, 17)]
    policy = ThresholdPolicy(dwell_s=2.0)
    assert policy.decide(snapshot(queue=18, rate=10, levels=levels), 0).r == 6
    policy.decide(snapshot(now=1.0, levels=levels), 6)
    assert policy.decide(snapshot(now=3.1, levels=levels), 6).r == 0


def test_unmeasured_levels_are_taken_at_their_word() -> None:
    """Without any throughput the policy still raises on waiting and lowers on calm."""
    policy = ThresholdPolicy(dwell_s=2.0)
    levels = points(None)
    assert policy.decide(snapshot(queue=4, oldest_s=0.2, levels=levels), 0).r == 16
    policy.decide(snapshot(now=1.0, levels=levels), 16)
    assert policy.decide(snapshot(now=9.0, levels=levels), 16).r == 15


@pytest.mark.parametrize("marks", [(0.5, 0.5), (0.3, 0.6), (1.2, 0.5), (0.5, 0.0)])
def test_marks_must_leave_a_gap(marks: tuple[float, float]) -> None:
    """Without a gap between the marks there is no hysteresis: refused."""
    with pytest.raises(ValueError, match="low < high"):
        ThresholdPolicy(high=marks[0], low=marks[1])


class Queue:
    """A simulated server: constant arrivals, one batch at a time, a policy that decides before it.

    A batch takes `overhead_s + size / speed(r)` and no more than 32 images.
    """

    def __init__(self, policy: ThresholdPolicy, speed: Callable[[int], float], overhead_s: float):
        self.policy = policy
        self.speed = speed
        self.overhead_s = overhead_s
        self.levels = points(lambda r: 32 / (overhead_s + 32 / speed(r)))
        self.rate = ArrivalRate()
        self.now = self.next_arrival = 0.0
        self.waiting: list[float] = []
        self.r = 0
        self.degrees: list[tuple[float, int]] = []

    def run(self, images_per_s: float, seconds: float) -> None:
        """Serve constant arrivals for a while."""
        end = self.now + seconds
        self.next_arrival = self.now
        while self.now < end:
            self._arrive(images_per_s)
            oldest = self.now - self.waiting[0] if self.waiting else 0.0
            load = snapshot(
                self.now,
                len(self.waiting),
                oldest,
                self.rate.per_second(self.now),
                levels=self.levels,
            )
            self.r = self.policy.decide(load, self.r).r
            self.degrees.append((self.now, self.r))
            batch, self.waiting = self.waiting[:32], self.waiting[32:]
            busy_s = self.overhead_s + len(batch) / self.speed(self.r) if batch else 0.25
            self.now = min(self.now + busy_s, end if not batch else math.inf)
            if not batch and images_per_s:
                self.now = min(self.now, self.next_arrival)

    def _arrive(self, images_per_s: float) -> None:
        while images_per_s and self.next_arrival <= self.now:
            self.waiting.append(self.next_arrival)
            self.rate.add(1, self.next_arrival)
            self.next_arrival += 1 / images_per_s

    def switches(self, since: float) -> int:
        """Count the changes of degree after that time."""
        late = [r for at, r in self.degrees if at >= since]
        return sum(a != b for a, b in pairwise(late))


@settings(max_examples=40, deadline=None)
@given(
    load=st.floats(0.05, 1.9),
    gain=st.floats(1.3, 3.0),
    speed=st.floats(30.0, 300.0),
    overhead_s=st.floats(0.0, 0.02),
)
@example(load=1.5, gain=2.0, speed=35.0, overhead_s=0.0)
@example(load=1.0, gain=2.0, speed=100.0, overhead_s=0.005)
@example(load=0.97, gain=2.0, speed=100.0, overhead_s=0.0)
def test_constant_load_settles(load: float, gain: float, speed: float, overhead_s: float) -> None:
    """After 30 s of constant load the degree stays where it is: no oscillation."""
    queue = Queue(ThresholdPolicy(dwell_s=2.0), linear_speedup(speed, gain, 16), overhead_s)
    offered = load * queue.levels[0].images_per_s  # type: ignore[operator]
    queue.run(offered, 50.0)
    assert queue.switches(since=30.0) == 0


@settings(max_examples=20, deadline=None)
@given(
    spike=st.floats(1.2, 1.8),
    rest=st.sampled_from([0.0, 0.1, 0.25]),
    speed=st.floats(30.0, 300.0),
)
@example(spike=1.5, rest=0.25, speed=35.0)
def test_spike_is_met_held_and_given_back(spike: float, rest: float, speed: float) -> None:
    """A spike raises r within a second, keeps the queue short, and r returns to 0 afterwards."""
    queue = Queue(ThresholdPolicy(dwell_s=2.0), linear_speedup(speed, 2.0, 16), 0.0)
    queue.run(0.3 * speed, 5.0)
    assert queue.r == 0
    queue.run(spike * speed, 30.0)
    # A spike of 1 + x fills the queue to the mark after about 0.18 s / x.
    risen_at = next(at for at, r in queue.degrees if r > 0)
    assert risen_at < 5.0 + 0.35 / (spike - 1)
    assert queue.switches(since=12.0) <= 2
    assert len(queue.waiting) / speed < SLO_S
    queue.run(rest * speed, 25.0)
    assert queue.r == 0
