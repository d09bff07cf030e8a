"""AIMD: a miss costs half the accuracy that is left, each calm while wins back a level."""

from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from server.aimd_policy import AimdPolicy
from server.policy import Decision
from tests.server.closed_loop import ClosedLoop
from tests.server.situations import levels, linear_speedup, snapshot

# Unless said otherwise r=0 serves 100 images/s, r=16 200, and the SLO is 0.25 s.
BIG = levels(max_batch=32)  # at r=0 a batch of 12 takes half the SLO, at r=16 one of 25


def decide_every(
    policy: AimdPolicy, step_s: float, seconds: float, r: int, **load: Any
) -> list[int]:
    """Let the policy decide in a constant situation; return the degrees."""
    degrees = []
    for i in range(round(seconds / step_s) + 1):
        r = policy.decide(snapshot(i * step_s, **load), r).r
        degrees.append(r)
    return degrees


def limits(policy: AimdPolicy, count: int, r: int = 0, **load: Any) -> list[int | None]:
    """Let the policy decide `count` times at a degree; return the batch limits."""
    return [policy.decide(snapshot(levels=BIG, **load), r).max_batch for _ in range(count)]


def test_full_batches_in_time_let_the_limit_grow_by_one() -> None:
    """The search starts at one image and adds one each time."""
    assert limits(AimdPolicy(), 5, slack_s=[9.0] * 40) == [1, 2, 3, 4, 5]


def test_a_batch_that_is_not_full_teaches_nothing() -> None:
    """With two images waiting nobody learns whether five would be in time."""
    assert limits(AimdPolicy(), 5, slack_s=[9.0] * 2) == [1, 2, 3, 3, 3]
    assert limits(AimdPolicy(), 3) == [1, 1, 1]


def test_a_batch_that_is_too_long_cuts_the_limit_by_a_tenth() -> None:
    """At r=0 twelve images take half the SLO: thirteen are too many, and 0.9 of them is eleven."""
    assert limits(AimdPolicy(), 17, slack_s=[9.0] * 40)[9:] == [10, 11, 12, 11, 12, 11, 12, 11]


def test_a_lower_degree_cuts_the_limit_until_it_fits() -> None:
    """What was found at r=16 is too much at r=0."""
    policy = AimdPolicy()
    assert max(limits(policy, 40, r=16, slack_s=[9.0] * 40)) == 25  # type: ignore[type-var]
    policy = AimdPolicy(dwell_s=1e6)
    limits(policy, 30, r=16, slack_s=[9.0] * 40)
    assert 9 <= (limits(policy, 1, r=0, slack_s=[9.0] * 40)[0] or 0) <= 12


def test_late_answers_do_not_make_batches_smaller() -> None:
    """Smaller batches would serve less, and more would be late."""
    policy = AimdPolicy()
    before = limits(policy, 6, slack_s=[9.0] * 40)[-1] or 0
    after = policy.decide(snapshot(1.0, levels=BIG, slack_s=[9.0] * 40, late=5), 0).max_batch or 0
    assert after > before


def test_foreseen_misses_halve_the_way_to_the_top() -> None:
    """While the queue cannot be served in time, r closes in on the top: 0, 8, 12, 14, 15, 16."""
    policy, r, degrees = AimdPolicy(), 0, []
    for step in range(6):
        decision = policy.decide(snapshot(step / 50, waiting=80, rate=300.0), r)
        r = decision.r
        degrees.append((r, decision.reason))
    assert degrees == [
        (8, "miss"),
        (12, "miss"),
        (14, "miss"),
        (15, "miss"),
        (16, "miss"),
        (16, "saturated"),
    ]


def test_late_answers_raise_once_and_then_count_again_after_an_slo() -> None:
    """What is late just after a raise had waited before it."""
    policy = AimdPolicy()
    assert policy.decide(snapshot(0.0, late=3), 0).r == 0  # of earlier times
    assert policy.decide(snapshot(1.0, late=4), 0) == Decision(8, "miss", 1)
    assert policy.decide(snapshot(1.2, late=9), 8).r == 8
    assert policy.decide(snapshot(1.3, late=9), 8).r == 8
    assert policy.decide(snapshot(1.4, late=10), 8).r == 12


def test_a_counter_that_starts_again_is_no_miss() -> None:
    """After a reset of the counters fewer are late than before."""
    policy = AimdPolicy()
    policy.decide(snapshot(0.0, late=100), 0)
    assert policy.decide(snapshot(1.0, late=2), 0).r == 0
    assert policy.decide(snapshot(2.0, late=3), 0).r == 8


def test_each_dwell_time_without_a_miss_wins_back_a_level() -> None:
    """One level at a time, down to the lowest."""
    degrees = decide_every(AimdPolicy(dwell_s=2.0), 0.25, 40.0, r=16)
    assert [degrees.index(r) for r in range(15, -1, -1)] == list(range(8, 129, 8))
    assert degrees[-1] == 0


def test_a_miss_starts_the_dwell_time_again() -> None:
    """Growth waits for a whole dwell time after each miss, also at the top."""
    policy = AimdPolicy(dwell_s=2.0)
    policy.decide(snapshot(0.0), 16)
    assert policy.decide(snapshot(1.9, late=1), 16) == Decision(16, "saturated", 1)
    assert policy.decide(snapshot(3.8, late=1), 16).r == 16
    assert policy.decide(snapshot(4.0, late=1), 16) == Decision(15, "no-miss", 1)


def test_does_not_lower_into_trouble() -> None:
    """A lower degree that is believed slower than the arrivals, with head-room, is not tried."""
    # 1.15 x 130 = 149.5 images/s: r=8 has 150, r=7 143.75.
    assert decide_every(AimdPolicy(), 0.25, 60.0, r=16, rate=130.0)[-1] == 8


def test_answers_next_to_the_slo_keep_the_degree() -> None:
    """Nobody was late, but with less speed somebody would have been."""
    assert set(decide_every(AimdPolicy(), 0.25, 5.0, r=16, recent_latency_s=0.24)) == {16}


def test_passes_over_levels_that_do_not_pay() -> None:
    """The way to the top, and the way back, count only levels that are worth it."""
    uneven = levels(lambda r: 100.0 if r == 0 else 60.0 + 8 * r)  # r=1 to 5 do not pay
    policy = AimdPolicy()
    assert policy.decide(snapshot(0.0, levels=uneven), 6).r == 6
    assert policy.decide(snapshot(1.5, levels=uneven), 6).r == 0
    assert policy.decide(snapshot(1.6, levels=uneven, waiting=80), 0).r == 11  # 12 levels: place 6


@settings(max_examples=25, deadline=None)
@given(
    load=st.floats(0.05, 1.6),
    speed=st.floats(30.0, 150.0),
    overhead_s=st.floats(0.0, 0.02),
)
@example(load=1.4, speed=35.0, overhead_s=0.0)
def test_constant_load_settles(load: float, speed: float, overhead_s: float) -> None:
    """With durations judged rightly, r stays after 25 s, or leaves and returns once."""
    machine = levels(linear_speedup(speed, 2.0), overhead_s=overhead_s)
    loop = ClosedLoop(AimdPolicy(), machine)
    loop.run_steady(load * speed, 40.0)
    assert loop.switches(since=25.0) <= 2


def test_misjudged_levels_give_a_saw_tooth_and_few_misses() -> None:
    """Where levels are a third slower than believed, r is tried lower once a dwell time."""
    believed = levels(linear_speedup(40.0, 2.0))
    true_s = {item.r: item.batch_seconds for item in levels(linear_speedup(26.0, 2.0))}
    loop = ClosedLoop(AimdPolicy(), believed, lambda r, size: true_s[r][size - 1])
    loop.run_steady(40.0, 60.0)
    assert 0 < loop.switches(since=20.0) <= 60
    assert loop.attainment() > 0.98


@pytest.mark.parametrize("speed", [35.0, 120.0])
def test_a_spike_raises_and_its_end_lowers(speed: float) -> None:
    """A spike raises r, next to all are in time, and r comes back level by level."""
    loop = ClosedLoop(AimdPolicy(), levels(linear_speedup(speed, 2.0)))
    loop.run_steady(0.3 * speed, 5.0)
    assert loop.degrees_within(0.0) == {0}
    loop.run_steady(1.5 * speed, 20.0)
    assert max(loop.degrees_within(5.0, 7.0)) >= 8
    loop.run_steady(0.3 * speed, 25.0)
    assert loop.r == 0
    assert loop.attainment() > 0.99
