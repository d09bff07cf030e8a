"""The default policy: as low as demand allows, up at once, down with care, at rest when steady."""

import random
from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.demand import in_time
from server.demand_policy import DemandPolicy, first_sufficient
from tests.server.closed_loop import ClosedLoop
from tests.server.situations import LEVELS, SLO_S, levels, snapshot, snapshots
from tocom_core.operating_point import OperatingPoint


@settings(max_examples=200, deadline=None)
@given(load=snapshots(), data=st.data())
def test_only_levels_that_are_offered_and_pay(load, data) -> None:
    """Whatever the load, the choice is a level, and one that pays where there is one."""
    policy = DemandPolicy()
    current = data.draw(st.sampled_from([level.r for level in load.levels]))
    for _ in range(2):
        decision = policy.decide(load, current)
        paying = {level.r for level in load.levels if level.pays}
        assert decision.r in (paying or {level.r for level in load.levels})


@settings(max_examples=150, deadline=None)
@given(load=snapshots())
def test_the_choice_serves_who_waits_or_none_could(load) -> None:
    """A fresh policy never picks a level at which someone gets late while another would do."""
    chosen = DemandPolicy().decide(load, load.levels[0].r)
    paying = tuple(level for level in load.levels if level.pays) or load.levels
    level = next(level for level in paying if level.r == chosen.r)
    if not in_time(level, paying, load.backlog):
        margin_s = 0.2 * load.slo_s + load.spread * max(one.batch_seconds[-1] for one in paying)
        assert not any(in_time(one, paying, load.backlog, margin_s) for one in paying)


@given(answers=st.integers(0, 17), count=st.integers(0, 17), hint=st.integers(-1, 20))
def test_the_first_level_that_suffices_is_found(answers: int, count: int, hint: int) -> None:
    """Wherever the search begins; from the right place on it takes two looks."""
    some = LEVELS[:count]
    looks: list[int] = []

    def suffices(level: OperatingPoint) -> bool:
        looks.append(level.r)
        return level.r >= answers

    found = first_sufficient(some, suffices, hint)
    assert found == min(answers, len(some))
    assert len(looks) <= (2 if hint == found else 7)


def test_no_load_no_compression() -> None:
    """An idle server rests at the lowest level."""
    assert DemandPolicy().decide(snapshot(), 0).r == 0


def test_as_low_as_the_queue_allows() -> None:
    """16 images due in 0.24 s need 67 images/s and much room: neither r=0 nor r=16."""
    r = DemandPolicy().decide(snapshot(slack_s=[0.24] * 16), 0).r
    assert 1 <= r <= 12


def test_raising_is_immediate_and_as_far_as_needed() -> None:
    """One look at a long queue is enough."""
    policy = DemandPolicy()
    assert policy.decide(snapshot(0.0), 0).r == 0
    decision = policy.decide(snapshot(0.1, slack_s=[0.25] * 27), 0)
    assert (decision.r >= 12, decision.reason) == (True, "demand-rising")


def test_overload_takes_the_fastest() -> None:
    """More than any level serves: the fastest, until it is over."""
    decision = DemandPolicy().decide(snapshot(slack_s=[0.1] * 200), 3)
    assert (decision.r, decision.reason) == (16, "overload")


def test_expected_arrivals_count() -> None:
    """Before any queue has formed, a rate that r=0 cannot carry raises the degree."""
    assert DemandPolicy().decide(snapshot(rate=90.0), 0).r == 0
    assert DemandPolicy().decide(snapshot(rate=160.0), 0).r > 0


def test_the_margin_grows_with_the_load() -> None:
    """r=0 serves 25 images within the SLO: up to half of that it is kept, then r rises steeply."""

    def chosen(images: int) -> int:
        return DemandPolicy().decide(snapshot(slack_s=[SLO_S] * images), 0).r

    assert chosen(12) == 0
    assert chosen(20) == 16
    rising = [chosen(images) for images in range(25)]
    assert rising == sorted(rising)


def test_what_cannot_be_foretold_needs_more_room() -> None:
    """The same queue, on a machine whose batches take now more, now less than believed."""
    queue = [SLO_S] * 15
    quiet = DemandPolicy().decide(snapshot(slack_s=queue, spread=0.05), 0).r
    noisy = DemandPolicy().decide(snapshot(slack_s=queue, spread=0.25), 0).r
    assert (quiet, noisy) == (0, 16)


def test_patient_images_raise_nothing() -> None:
    """A pile of work that has minutes to go is no reason to compress, nor to stay compressed."""
    pile = [60.0] * 200
    assert DemandPolicy().decide(snapshot(slack_s=pile), 0).r == 0
    assert DemandPolicy().decide(snapshot(slack_s=[SLO_S] * 5 + pile), 0).r == 0
    assert DemandPolicy().decide(snapshot(slack_s=pile), 12).r == 0


def test_a_queue_that_leaves_no_margin_is_no_overload_yet() -> None:
    """The operator reads "overload" only where some will be late."""
    tight = DemandPolicy().decide(snapshot(slack_s=[SLO_S] * 40), 0)
    assert (tight.r, tight.reason) == (16, "demand-rising")
    late = DemandPolicy().decide(snapshot(slack_s=[SLO_S] * 60), 0)
    assert (late.r, late.reason) == (16, "overload")


def test_images_being_decoded_count() -> None:
    """They will stand in the queue in a moment."""
    calm = snapshot(rate=90.0)
    busy = snapshot(rate=90.0, decoding=40)
    assert DemandPolicy().decide(busy, 0).r > DemandPolicy().decide(calm, 0).r


def test_limited_requests_raise_the_degree_of_the_others() -> None:
    """What some may not save, the others must."""
    free = DemandPolicy().decide(snapshot(slack_s=[0.2] * 18), 0).r
    half = DemandPolicy().decide(snapshot(slack_s=[0.2] * 18, max_r=[0, None] * 9), 0).r
    assert half >= free


def test_lowering_waits_for_the_dwell_time() -> None:
    """A degree that was needed within the last second is kept, and given back after it."""
    policy = DemandPolicy(dwell_s=1.0)
    r = policy.decide(snapshot(0.0, slack_s=[0.2] * 34), 0).r
    for tick in range(1, 10):
        assert policy.decide(snapshot(tick / 10), r).r == r
    decision = policy.decide(snapshot(1.1), r)
    assert (decision.r, decision.reason) == (0, "demand-falling")


def test_a_negative_dwell_time_is_refused() -> None:
    """The value is named."""
    with pytest.raises(ValueError, match="dwell_s=-1"):
        DemandPolicy(dwell_s=-1)


@pytest.mark.parametrize("rate", [30, 80, 97, 103, 130, 160, 185, 196])
@pytest.mark.parametrize("overhead_s", [0.0, 0.02])
def test_constant_load_settles(rate: int, overhead_s: float) -> None:
    """Even arrivals below the top speed: after some seconds no more switches, everyone in time."""
    machine = levels(overhead_s=overhead_s)
    loop = ClosedLoop(DemandPolicy(), machine)
    loop.run_steady(rate, 30.0)
    assert loop.switches(since=10.0) == 0
    assert loop.attainment(since=10.0) >= 0.999


@settings(max_examples=25, deadline=None)
@given(rate=st.floats(10.0, 190.0), gain=st.floats(1.2, 3.0), overhead_s=st.floats(0, 0.02))
def test_any_constant_load_settles(rate: float, gain: float, overhead_s: float) -> None:
    """No oscillation for any rate that the fastest degree carries with a little room.

    Once in a long while the arrivals fall out of step with the batches, and one batch is faster.
    """
    machine = levels(lambda r: 100.0 * (1 + (gain - 1) * r / 16), overhead_s=overhead_s)
    top = max(level.images_per_s for level in machine)
    loop = ClosedLoop(DemandPolicy(), machine)
    loop.run_steady(min(rate, 0.95 * top), 25.0)
    assert loop.switches(since=12.0) <= 2


def _gamma(rate: float, cv2: float, seconds: float, seed: int) -> Iterator[float]:
    """Arrivals with gamma-distributed distances."""
    draw = random.Random(seed)
    gaps = (draw.gammavariate(1 / cv2, cv2 / rate) for _ in range(round(1.2 * rate * seconds)))
    return (at for at in accumulate(gaps) if at < seconds)


@pytest.mark.parametrize("seed", range(3))
def test_bursts_are_taken_in_time(seed: int) -> None:
    """CV² 4 at 0.9 of the capacity of r=0: next to nobody is late, and r stays low on average."""
    loop = ClosedLoop(DemandPolicy(), LEVELS)
    loop.run(_gamma(90.0, 4.0, 60.0, seed), 60.0)
    assert loop.attainment() >= 0.99
    images = sum(size for _, size in loop.batches)
    assert sum(r * size for r, size in loop.batches) / images < 9


def test_a_step_is_taken_and_given_back() -> None:
    """1.5 times the capacity of r=0 for a while: in time throughout, back at r=0 soon after."""
    loop = ClosedLoop(DemandPolicy(), LEVELS)
    loop.run_steady(50.0, 10.0)
    assert loop.degrees_within(2.0) == {0}
    loop.run_steady(150.0, 20.0)
    loop.run_steady(50.0, 10.0)
    assert loop.attainment() >= 0.99
    assert loop.degrees_within(35.0) == {0}


def test_the_slo_may_be_too_tight_for_the_lowest_level() -> None:
    """Where one image at r=0 takes longer than the SLO allows, a faster level serves it."""
    slow = levels(lambda r: 100.0 * (1 + r / 16), max_batch=1)
    loop = ClosedLoop(DemandPolicy(), slow, slo_s=0.008)
    loop.run_steady(20.0, 5.0)
    assert loop.attainment() >= 0.99
    assert SLO_S > 0.008
