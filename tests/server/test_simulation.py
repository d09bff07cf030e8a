"""The simulation: what a request goes through in simulated time, and what always holds."""

import itertools
import math
import statistics
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.oracle import OracleMachine, offline_bound
from server.policies import BUILDERS
from server.simulated_machine import BatchTimer, Machine, SlowDown
from server.simulated_requests import Arrival, Ledger
from server.simulated_time import SimulatedClock, Timetable
from server.simulation import simulate
from tests.server.simulated_profiles import ACCURACY, LARGEST, SLO_S, batch_s, machine, run

ALONE_S = batch_s(0, 1)

POLICIES = st.sampled_from(sorted(BUILDERS))
TIMES = st.lists(st.floats(0, 1.5).map(lambda time: round(time, 3)), max_size=60).map(sorted)
OVERHEADS = st.tuples(*[st.sampled_from([0.0, 0.002, 0.01])] * 3)
LANES = st.integers(1, 3)
REQUESTS = st.lists(
    st.builds(
        Arrival,
        st.floats(0, 4),
        priority=st.integers(0, 2),
        max_r=st.none() | st.integers(0, 9),
        deadline_s=st.none() | st.floats(0.01, 0.6),
    ),
    max_size=60,
).map(lambda arrivals: sorted(arrivals, key=lambda arrival: arrival.at_s))


def test_events_happen_in_order_of_time_and_entry() -> None:
    """Later entries come later at equal times; what lies beyond the end waits."""
    clock = SimulatedClock()
    timetable = Timetable(clock)
    seen: list[tuple[str, float]] = []

    def note(name: str) -> None:
        seen.append((name, clock()))

    for name, time in (("b", 2.0), ("a", 1.0), ("c", 2.0), ("d", 3.0)):
        timetable.at(time, partial(note, name))
    timetable.run_until(3.0)
    assert seen == [("a", 1.0), ("b", 2.0), ("c", 2.0)]
    assert clock() == 3.0
    timetable.run_until()
    assert seen[-1] == ("d", 3.0)


def test_a_request_alone_takes_its_overheads_and_its_batch() -> None:
    """Due to queue, batch, and back to the client: nothing else."""
    [fate] = run([1.0], machine((0.005, 0.003, 0.1))).fates
    assert (fate.outcome, fate.r, fate.batch_size) == ("ok", 0, 1)
    assert fate.latency_s == pytest.approx(0.005 + ALONE_S + 0.003)
    assert fate.correct == ACCURACY[0]


def test_a_request_waits_for_the_batch_that_is_running() -> None:
    """The second is served when the first is done."""
    first, second = run([1.0, 1.01], machine()).fates
    assert first.done_s == pytest.approx(1.0 + ALONE_S)
    assert second.done_s == pytest.approx(1.0 + 2 * ALONE_S)


def test_an_arrival_lengthens_the_batch_that_is_running() -> None:
    """Each arrival during a batch costs it the interference, also while it is overdue."""
    fates = run([1.0, 1.01, 1.0215], machine((0.0, 0.0, 0.005))).fates
    assert fates[0].done_s == pytest.approx(1.0 + ALONE_S + 2 * 0.005)


def test_an_idle_machine_waits_a_moment_for_a_fuller_batch() -> None:
    """Within the queue delay others join; the next batch is taken at once."""
    found = run([1.0, 1.01, 1.03], machine(), queue_delay_s=0.02)
    assert [record.size for record in found.batches] == [2, 1]
    assert found.batches[0].started_at == pytest.approx(1.02)
    assert found.batches[1].started_at == found.batches[0].ended_at


def test_a_full_batch_is_not_waited_for() -> None:
    """Nor does the delay that is then over start another batch later."""
    arrivals = [1.0] * LARGEST + [1.5]
    found = run(arrivals, machine(), queue_delay_s=0.05)
    assert found.batches[0].started_at == 1.0
    assert found.batches[-1].started_at == pytest.approx(1.55)


def test_a_batch_is_shared_out_to_lanes() -> None:
    """Three images are two on one lane, which takes what four take on both, and one."""
    found = run([1.0, 1.0, 1.0], machine(lanes=2), queue_delay_s=0.001)
    assert [record.size for record in found.batches] == [3]
    assert found.fates[0].done_s == pytest.approx(1.001 + batch_s(0, 4))


def test_a_lane_that_is_free_begins_the_next_batch() -> None:
    """Two batches of three images take two lanes as long as six images do."""
    part_s, single_s = batch_s(8, 4), batch_s(8, 2)
    arrivals = [1.0, 1.0, 1.0, 1.02, 1.02, 1.02]
    found = run(arrivals, machine(lanes=2), "static", static_r=8, queue_delay_s=0.001)
    first, second = found.batches
    assert (first.size, second.size) == (3, 3)
    assert first.started_at == pytest.approx(1.001)
    assert first.ended_at == pytest.approx(1.001 + part_s)
    assert second.started_at == pytest.approx(1.001 + single_s)
    assert second.ended_at == pytest.approx(1.001 + part_s + single_s)


def test_an_image_alone_has_all_lanes_and_one_beside_others_has_one() -> None:
    """The second comes while the first has both, the third while the second has one of them."""
    found = run([1.0, 1.001, 1.015], machine(lanes=2))
    done = [fate.done_s for fate in found.fates]
    assert done[0] == pytest.approx(1.0 + ALONE_S)
    assert found.batches[1].size == 2
    assert done[1] == pytest.approx(1.0 + ALONE_S + batch_s(0, 2))


def test_another_degree_waits_until_all_lanes_are_free() -> None:
    """The weights are not changed under a batch that is running."""
    limited = Arrival(1.02, max_r=0)
    crowd = [Arrival(1.0)] * 3
    truth = machine(lanes=2, switch_s=0.01)
    found = run([*crowd, limited], truth, "static", static_r=8, queue_delay_s=0.001)
    first, second = found.batches
    assert (first.r, second.r) == (8, 0)
    assert second.started_at < first.ended_at
    assert second.ended_at == pytest.approx(first.ended_at + 0.01 + batch_s(0, 2))


def test_a_switch_takes_time_and_is_counted() -> None:
    """A static degree other than the source costs one switch, in the first batch."""
    found = run([1.0, 2.0], machine(switch_s=0.01), "static", static_r=8)
    assert found.switches == 1
    assert found.fates[0].latency_s == pytest.approx(batch_s(8, 1) + 0.01)
    assert found.fates[1].latency_s == pytest.approx(batch_s(8, 1))


def test_a_slow_spell_makes_batches_longer() -> None:
    """Batches that begin in it take the factor's time; others do not."""
    slow = replace(machine(), slow_downs=(SlowDown(2.0, 3.0, 3.0),))
    fates = run([1.0, 2.5, 3.5], slow).fates
    assert [fate.latency_s for fate in fates] == pytest.approx([ALONE_S, 3 * ALONE_S, ALONE_S])


def test_noise_keeps_the_mean_and_follows_the_seed() -> None:
    """Durations vary by sigma around the same mean; a seed repeats them."""
    noisy = machine(noise=0.3)
    timer = BatchTimer(noisy, [1])
    factors = [timer.seconds(0, 1, 0.0) / ALONE_S for _ in range(4000)]
    assert statistics.fmean(factors) == pytest.approx(1.0, abs=0.03)
    assert statistics.stdev(map(math.log, factors)) == pytest.approx(0.3, abs=0.02)
    arrivals = [0.02 * i for i in range(200)]
    assert run(arrivals, noisy, seed=1) == run(arrivals, noisy, seed=1)
    assert run(arrivals, noisy, seed=1) != run(arrivals, noisy, seed=2)


def test_a_request_is_given_up_at_its_deadline() -> None:
    """In the queue and in a batch alike the client hears of it at the deadline."""
    slow = replace(machine(), slow_downs=(SlowDown(0.0, 9.0, 20.0),))
    arrivals = [Arrival(1.0, deadline_s=0.1), Arrival(1.05, deadline_s=0.2)]
    fates = run(arrivals, slow, slo_s=5.0).fates
    assert [fate.outcome for fate in fates] == ["expired", "expired"]
    assert [fate.done_s for fate in fates] == pytest.approx([1.1, 1.25])


def test_a_deadline_may_pass_during_decoding() -> None:
    """Such a request never joins the queue, and its place is free again."""
    arrivals = [Arrival(1.0, deadline_s=0.04), Arrival(1.2)]
    found = run(arrivals, machine((0.06, 0.0, 0.0)))
    assert [fate.outcome for fate in found.fates] == ["expired", "ok"]
    assert found.fates[0].done_s == pytest.approx(1.04)
    assert len(found.batches) == 1


def test_overload_raises_the_degree_and_calm_lowers_it() -> None:
    """The real policy is at work: 1.3 times the capacity is carried, at a price in accuracy."""
    busy = [i / 65 for i in range(650)]
    calm = [10.0 + i for i in range(20)]
    found = run(busy + calm, machine())
    assert {fate.r for fate in found.fates[:5]} == {0}
    assert all(fate.on_time(SLO_S) for fate in found.fates)
    assert max(fate.r or 0 for fate in found.fates[100:650]) == 8
    assert {fate.r for fate in found.fates[-10:]} == {0}


def test_hopeless_overload_sheds_and_answers_the_rest_in_time() -> None:
    """At three times what the fastest degree carries, what is served is not late."""
    found = run([i / 250 for i in range(2500)], machine())
    outcomes = [fate.outcome for fate in found.fates]
    assert outcomes.count("shed") > 1000
    served = [fate for fate in found.fates if fate.outcome == "ok"]
    assert sum(fate.on_time(SLO_S) for fate in served) >= 0.97 * len(served)


@settings(deadline=None, max_examples=60)
@given(REQUESTS, POLICIES, OVERHEADS, st.booleans(), st.sampled_from([0.0, 0.002, 0.05]), LANES)
def test_every_request_has_one_answer_that_it_can_accept(
    arrivals: list[Arrival],
    policy: str,
    overhead: tuple[float, float, float],
    shed_late: bool,
    queue_delay_s: float,
    lanes: int,
) -> None:
    """Whatever they ask for: one fate each, no `max_r` passed, nothing after a deadline."""
    truth = machine(overhead, switch_s=0.001, noise=0.2, lanes=lanes)
    found = run(
        arrivals, truth, policy, static_r=8, shed_late=shed_late, queue_delay_s=queue_delay_s
    )
    assert [fate.due_s for fate in found.fates] == [arrival.at_s for arrival in arrivals]
    for arrival, fate in zip(arrivals, found.fates, strict=True):
        assert fate.done_s >= fate.due_s
        if fate.r is not None and arrival.max_r is not None:
            assert fate.r <= arrival.max_r
        if arrival.deadline_s is not None:
            assert fate.done_s <= arrival.at_s + arrival.deadline_s + overhead[1] + 1e-9
    served = sum(fate.outcome == "ok" for fate in found.fates)
    assert served <= sum(record.size for record in found.batches)
    assert all(1 <= record.size <= LARGEST for record in found.batches)
    if lanes == 1:
        for one, other in itertools.pairwise(found.batches):
            assert one.ended_at <= other.started_at


@settings(deadline=None, max_examples=80)
@given(TIMES.filter(bool), POLICIES, st.sampled_from([0, 4, 8]), OVERHEADS, LANES)
def test_no_policy_beats_the_oracle(
    times: list[float],
    policy: str,
    static_r: int,
    overhead: tuple[float, float, float],
    lanes: int,
) -> None:
    """Attainment, on-time-and-correct and accuracy all stay below the offline bound."""
    truth = machine(overhead, lanes=lanes)
    found = run(times, truth, policy, static_r=static_r)
    bound = offline_bound(
        times, OracleMachine(truth.batch_seconds, truth.accuracy, 1, *overhead, lanes), SLO_S
    )
    timely = [fate for fate in found.fates if fate.on_time(SLO_S - 1e-9)]
    correct = math.fsum(fate.correct for fate in timely)
    assert len(timely) / len(times) <= bound.attainment() + 1e-6
    assert correct / len(times) <= bound.correct_share() + 1e-6
    if timely:
        best = bound.accuracy_at(len(timely) / len(times))
        assert correct / len(timely) <= best + 1e-6


def test_a_request_cannot_be_answered_twice() -> None:
    """The ledger refuses a second answer, and an end with open requests."""
    ledger = Ledger([Arrival(0.0)])
    with pytest.raises(RuntimeError, match="1 of 1 requests were never answered"):
        ledger.fates()
    ledger.close(0, 1.0, "shed")
    with pytest.raises(RuntimeError, match="answered twice"):
        ledger.close(0, 2.0, "ok")


def test_refuses_arrivals_out_of_order_and_a_farm_without_servers() -> None:
    """Time does not run backwards, and somebody has to serve."""
    with pytest.raises(ValueError, match="rising"):
        run([2.0, 1.0], machine())
    with pytest.raises(ValueError, match="one server"):
        simulate([], [])


def test_capacity_counts_what_arrivals_cost() -> None:
    """Saturated, each image served is one that arrived during a batch."""
    assert machine().capacity(0, 8) == pytest.approx(8 / 0.162)
    assert machine((0.0, 0.0, 0.005)).capacity(0, 8) == pytest.approx(8 / 0.202)
    assert Machine({0: [0.5]}).capacity(0, 1) == 2.0


def test_lanes_take_what_their_parts_take() -> None:
    """Three images on two lanes are a part of two and one of one; one alone has both lanes."""
    two_lanes = machine(lanes=2)
    assert two_lanes.busy_s(0, 3) == pytest.approx((batch_s(0, 4) + batch_s(0, 2)) / 2)
    assert two_lanes.busy_s(0, 1) == pytest.approx(batch_s(0, 1))
    assert two_lanes.busy_s(0, 1, beside=True) == pytest.approx(batch_s(0, 2) / 2)
    assert machine().busy_s(0, 3) == pytest.approx(batch_s(0, 3))
