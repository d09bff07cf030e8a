"""The table of operating points: what policies and scheduler choose by."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.operating_table import LEARN_EVERY_S, MOST_LOSS, WIDEN_AFTER, OperatingTable
from server.stats import BatchStats
from tests.server.fake_machine import DEGREES, EVERYTHING, SIZES, WARM_UP, FakeMachine
from tocom_core.latency_profile import Accuracy, LatencyProfile, Measurement


def table(machine: FakeMachine | None = None, **options: Any) -> OperatingTable:
    """Return the table of a machine of which everything was measured."""
    return OperatingTable((machine or FakeMachine()).profile(), **options)


def table_of(
    measurements: list[Measurement], machine: FakeMachine, **options: Any
) -> OperatingTable:
    """Return the table of a machine that was measured wrongly."""
    return OperatingTable(replace(machine.profile(), measurements=measurements), **options)


def measured_as(seconds: dict[tuple[int, int], float], work: dict[int, float]) -> LatencyProfile:
    """Return a profile with exactly these durations."""
    cells = [Measurement(r, b, s, 0.005, 9) for (r, b), s in seconds.items()]
    return LatencyProfile({}, {}, work, cells, max_batch_size=max(b for _, b in seconds))


def batch(r: int, size: int, seconds: float) -> BatchStats:
    """Return a batch that took so long."""
    return BatchStats(r, size, 0.0, seconds, 0.0)


def test_what_two_batches_share_counts_once() -> None:
    """A batch that had to wait for the one before it is believed to take what came after that."""
    machine = FakeMachine()
    plain, overlapping = table(machine), table(machine)
    seconds = 1.2 * machine.batch_s(0, 8)
    for _ in range(30):
        plain.observe(batch(0, 8, seconds))
        overlapping.observe(replace(batch(0, 8, seconds), handover_s=0.03, overlap_s=0.03))
    assert overlapping.batch_s(0, 8) == pytest.approx(plain.batch_s(0, 8))


def test_a_batch_on_a_part_of_the_machine_tells_nothing() -> None:
    """One image beside another batch took one lane's time, which is not the machine's."""
    found = table()
    before = found.points()
    for _ in range(30):
        found.observe(replace(batch(0, 1, 5.0), overlap_s=0.01, partial=True))
    assert found.points() is before


def test_short_batches_are_learned_from_now_and_then() -> None:
    """After one of them those that follow are left out, till they took as long as the pause."""
    short_s = LEARN_EVERY_S / 5.5
    seconds = {(r, size): short_s for r in (0, 4) for size in (1, 2)}
    found = OperatingTable(measured_as(seconds, {0: 1.0, 4: 0.9}))
    states, learned = [found._belief.state], []
    for _ in range(14):
        found.observe(batch(0, 1, short_s))
        learned.append(found._belief.state is not states[-1])
        states.append(found._belief.state)
    assert [at for at, new in enumerate(learned) if new] == [0, 6, 12]


def test_a_switch_is_learned_from_at_once() -> None:
    """The first batch at another degree counts, however short the ones before it were."""
    short_s = LEARN_EVERY_S / 10
    seconds = {(r, size): short_s for r in (0, 4) for size in (1, 2)}
    found = OperatingTable(measured_as(seconds, {0: 1.0, 4: 0.9}))
    for r in (0, 4):
        before = found._belief.state
        found.observe(batch(r, 1, short_s))
        assert found._belief.state is not before


def test_points_hold_all_degrees_and_sizes() -> None:
    """One point per degree, ascending, with a duration for each batch size."""
    machine = FakeMachine()
    points = table(machine).points()
    assert tuple(p.r for p in points) == tuple(DEGREES)
    for point in points:
        assert len(point.batch_seconds) == 32
        for size in SIZES:
            assert point.batch_s(size) == pytest.approx(machine.batch_s(point.r, size), rel=0.02)
        assert point.measured and point.expected_accuracy is None


def test_relative_throughput_is_relative_to_r_0() -> None:
    """The lowest degree is the unit, whatever is learned."""
    machine = FakeMachine()
    found = table(machine)
    for _ in range(30):
        found.observe(batch(0, 8, 1.3 * machine.batch_s(0, 8)))
    points = found.points()
    assert points[0].relative_throughput == 1.0
    gain = points[16].images_per_s / points[0].images_per_s
    assert points[16].relative_throughput == pytest.approx(gain)


def test_the_efficient_batch_is_the_smallest_with_next_to_the_best_throughput() -> None:
    """No smaller batch reaches 97 % of the best throughput, and this one does."""
    for point in table(FakeMachine(batch_cost_s=0.01)).points():
        rates = [size / seconds for size, seconds in enumerate(point.batch_seconds, start=1)]
        assert 1 < point.batch_size < 32
        assert rates[point.batch_size - 1] >= 0.97 * max(rates) > max(rates[: point.batch_size - 1])


@pytest.mark.parametrize(("limit", "size"), [(math.inf, 12), (0.15, 5), (0.001, 1)])
def test_a_batch_takes_no_longer_than_bearable(limit: float, size: int) -> None:
    """The time budget bounds the efficient batch; one image is always allowed."""
    point = table(FakeMachine(batch_cost_s=0.015), max_batch_s=limit).points()[0]
    assert point.batch_size == pytest.approx(size, abs=1)
    assert size == 1 or point.batch_s(point.batch_size) <= limit


def test_a_size_that_was_believed_slow_is_tried_again() -> None:
    """Larger batches measured in a bad moment would else never be run, and never known better."""
    machine = FakeMachine(0.1, batch_cost_s=0.03)
    wrong = [
        Measurement(r, size, machine.batch_s(r, size) * (1.5 if size > 2 else 1.0), 0.03, 5)
        for r, size in EVERYTHING
    ]
    found = table_of(wrong, machine, max_batch_size=8)
    true = table(machine, max_batch_size=8).points()[0].batch_size
    assert found.points()[0].batch_size <= 2 < true
    sizes = []
    for _ in range(1000):  # a queue that is always full
        sizes.append(found.points()[0].batch_size)
        found.observe(machine.run(0, sizes[-1]))
    assert sum(sizes[-300:]) / 300 > 0.8 * true
    assert set(sizes[:WIDEN_AFTER]) == {sizes[0]}


def test_no_batch_is_tried_that_takes_too_long() -> None:
    """Twice the efficient size has to be bearable too."""
    machine = FakeMachine(batch_cost_s=0.05)
    found = table(machine, max_batch_s=machine.batch_s(0, 5))
    efficient = found.points()[0].batch_size
    for _ in range(5 * WIDEN_AFTER):
        found.observe(machine.run(0, efficient))
        assert found.points()[0].batch_size == efficient


def test_a_degree_that_is_not_faster_does_not_pay() -> None:
    """Where merging costs more than it saves, only r=0 pays."""
    dear = FakeMachine(merging_s=1.0)
    assert [p.r for p in table(dear, max_batch_size=8).points() if p.pays] == [0]


def test_a_degree_pays_only_if_it_beats_all_lower_ones() -> None:
    """One that is faster than r=0 but not than the degree below it gains nothing."""
    machine = FakeMachine()
    machine.odd = {9: 1.1}
    assert [p.r for p in table(machine).points() if not p.pays] == [9]


def test_what_pays_with_large_batches_pays() -> None:
    """A GPU whose single images take no less time with merging still gains throughput."""
    times = {(0, 1): 5.0, (0, 8): 5.0, (0, 32): 16.0, (8, 1): 6.0, (8, 8): 6.0, (8, 32): 10.0}
    found = OperatingTable(measured_as(times, {0: 1.0, 8: 0.5}))
    assert [p.pays for p in found.points()] == [True, True]
    assert found.points()[1].batch_s(1) > found.points()[0].batch_s(1)


def test_what_pays_with_single_images_only_does_not() -> None:
    """It would be chosen to drain a queue, and drain it slower."""
    times = {(0, 1): 2.0, (0, 8): 8.0, (0, 32): 20.0, (8, 1): 1.5, (8, 8): 9.0, (8, 32): 30.0}
    found = OperatingTable(measured_as(times, {0: 1.0, 8: 0.5}))
    assert [p.pays for p in found.points()] == [True, False]


def test_paying_does_not_flicker() -> None:
    """A degree begins to pay at 1 % gain and ceases at none: noise about 0.5 % changes nothing."""
    work = {0: 1.0, 8: 0.99}

    def gaining(share: float) -> dict[tuple[int, int], float]:
        return {(r, b): b * (1 - share * (r > 0)) for r in work for b in (1, 8)}

    def pays_at_half_a_percent(found: OperatingTable) -> bool:
        for _ in range(200):
            found.observe(batch(0, 8, 8.0))
            found.observe(batch(8, 8, 7.96))
        point = found.points()[1]
        assert point.batch_s(8) == pytest.approx(0.995 * found.batch_s(0, 8), rel=0.002)
        return point.pays

    assert not pays_at_half_a_percent(OperatingTable(measured_as(gaining(-0.02), work)))
    faster = OperatingTable(measured_as(gaining(0.03), work))
    assert faster.points()[1].pays
    assert pays_at_half_a_percent(faster)


def test_points_are_built_anew_only_when_something_moved() -> None:
    """The same tuple is returned until an estimate moved by half a percent."""
    machine = FakeMachine()
    found = table(machine)
    points = found.points()
    for _ in range(5):
        found.observe(machine.run(0, 8))
        assert found.points() is points
    found.observe(batch(0, 8, 1.5 * machine.batch_s(0, 8)))
    assert found.points() is not points
    assert found.points() is found.points()


def test_a_slower_machine_slows_all_points() -> None:
    """Five slow batches at one degree are enough, and `batch_s` says the same as `points`."""
    machine = FakeMachine(0.03)
    found = table(machine)
    for _ in range(20):
        found.observe(machine.run(0, 8))
    machine.slowness = 2.0
    for _ in range(5):
        found.observe(machine.run(0, 8))
    for point in found.points():
        assert point.batch_s(8) == pytest.approx(machine.batch_s(point.r, 8), rel=0.15)
        assert found.batch_s(point.r, 8) == point.batch_s(8)


def test_degrees_between_levels_count_as_the_lower_one() -> None:
    """A request's own max_r need not be a degree."""
    profile = measured_as({(4, 1): 1.0, (8, 8): 6.0}, {4: 0.9, 8: 0.7})
    found = OperatingTable(profile)
    assert found.batch_s(6, 3) == found.batch_s(4, 3)
    assert found.batch_s(0, 3) == found.batch_s(4, 3)
    assert found.batch_s(99, 3) == found.batch_s(8, 3)


def test_a_batch_beyond_the_largest_counts_as_several() -> None:
    """An estimate for a whole queue is the sum of its batches."""
    found = table(max_batch_size=8)
    assert found.batch_s(0, 20) == pytest.approx(2 * found.batch_s(0, 8) + found.batch_s(0, 4))


@pytest.mark.parametrize("limit", [1, 5, 32, 64])
def test_the_batch_limit_is_the_servers(limit: int) -> None:
    """The profile may have been measured for smaller or larger batches."""
    found = table(max_batch_size=limit)
    assert {len(p.batch_seconds) for p in found.points()} == {limit}
    assert all(1 <= p.batch_size <= limit for p in found.points())


@pytest.mark.parametrize(
    ("r", "size", "seconds"),
    [(17, 8, 1.0), (0, 0, 1.0), (0, 9, 1.0), (0, 8, 0.0), (0, 8, math.nan), (0, 8, math.inf)],
)
def test_what_cannot_be_is_ignored_live_and_refused_idle(r: int, size: int, seconds: float) -> None:
    """A batch that makes no sense must not end a server; a measurement is the caller's mistake."""
    found = table(max_batch_size=8)
    points = found.points()
    found.observe(batch(r, size, seconds))
    assert found.points() is points
    with pytest.raises(ValueError, match="expected a degree"):
        found.measure(r, size, seconds)


def test_what_was_run_counts_as_measured() -> None:
    """Measured are the degrees of the profile, those measured since, and those served."""
    machine = FakeMachine()
    found = OperatingTable(machine.profile(WARM_UP))
    found.observe(machine.run(4, 8))
    found.measure(8, 2, machine.batch_s(8, 2))
    assert [p.r for p in found.points() if p.measured] == [0, 4, 8, 16]
    assert found.measured_cells == {*WARM_UP, (8, 2)}


def test_idle_measurements_complete_the_grid() -> None:
    """From two cells to all of them, on a machine that is unlike the first guess."""
    machine = FakeMachine(0.02, batch_cost_s=0.06, merging_s=0.03)
    machine.odd = {5: 1.2}
    found = OperatingTable(machine.profile(WARM_UP))
    for r, size in EVERYTHING:
        found.measure(r, size, machine.run(r, size).compute_s)
    assert found.measured_cells == set(EVERYTHING)
    for r, size in EVERYTHING:
        assert found.batch_s(r, size) == pytest.approx(machine.batch_s(r, size), rel=0.1)


def test_accuracy_comes_from_the_profile_or_the_caller() -> None:
    """Given accuracies replace all earlier ones; of degrees left out nothing is known."""
    profile = replace(FakeMachine().profile(), accuracies=(Accuracy(0, 0.8, "evaluation", 100),))
    found = OperatingTable(profile)
    assert found.points()[0].expected_accuracy == 0.8
    found.set_accuracy({8: 0.7})
    assert [found.points()[r].expected_accuracy for r in (0, 8)] == [None, 0.7]
    points = found.points()
    found.set_accuracy({8: 0.7})
    assert found.points() is points
    assert OperatingTable(profile, accuracy={0: 0.6}).points()[0].expected_accuracy == 0.6


def test_the_spread_starts_with_the_profiles_and_follows_live_batches() -> None:
    """It is what scheduler and policy take as their margin."""
    machine = FakeMachine(0.15)
    found = table(machine)
    assert found.spread == pytest.approx(0.03)
    for _ in range(150):
        found.observe(machine.run(0, 8))
    assert found.spread == pytest.approx(0.15, rel=0.4)
    unknown = LatencyProfile({}, {}, {0: 1.0}, [Measurement(0, 1, 0.1), Measurement(0, 8, 0.8)])
    assert OperatingTable(unknown).spread == pytest.approx(0.1)


@settings(deadline=None, max_examples=25)
@given(
    served=st.lists(st.tuples(st.sampled_from(DEGREES), st.integers(1, 32)), max_size=40),
    idle=st.lists(st.sampled_from(EVERYTHING), max_size=10),
    slowness=st.floats(0.3, 3),
)
def test_a_saved_belief_is_the_belief_of_the_next_start(
    served: list[tuple[int, int]], idle: list[tuple[int, int]], slowness: float
) -> None:
    """A table made from `to_profile` believes the same of every cell that was measured well.

    A cell that was run only once is a single noisy run to the next start, which leans it towards
    its neighbours once more: the more so, the more it contradicts them.
    """
    machine = FakeMachine(0.05)
    known = EVERYTHING[::5]
    found = OperatingTable(machine.profile(known), max_batch_size=32)
    machine.slowness = slowness
    for r, size in served:
        found.observe(machine.run(r, size))
    for r, size in idle:
        found.measure(r, size, machine.run(r, size).compute_s)
    profile = found.to_profile()
    again = OperatingTable(profile)
    assert {(m.r, m.batch) for m in profile.measurements} == found.measured_cells
    for r, size in found.measured_cells:
        allowed = 0.01 if (r, size) in known else 0.05 + 0.1 * abs(math.log(slowness))
        assert again.batch_s(r, size) == pytest.approx(found.batch_s(r, size), rel=allowed)


@settings(deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.sampled_from(DEGREES), st.integers(1, 32), st.floats(1e-9, 86_400)),
        max_size=40,
    )
)
def test_points_are_always_usable(batches: list[tuple[int, int, float]]) -> None:
    """Whatever is measured, r=0 pays and all figures are finite, positive and consistent."""
    found = OperatingTable(FakeMachine().profile(WARM_UP), max_batch_s=0.2)
    for r, size, seconds in batches:
        found.observe(batch(r, size, seconds))
        points = found.points()
        assert points[0].pays and points[0].relative_throughput == 1.0
        for point in points:
            assert 0 < point.images_per_s < math.inf
            assert list(point.batch_seconds) == sorted(point.batch_seconds)
            assert 1 <= point.batch_size <= 32
            below = [p.batch_s(point.batch_size) for p in points if p.r < point.r]
            bearable_s = (1 + MOST_LOSS) * min(below, default=math.inf)
            assert not point.pays or point.batch_s(point.batch_size) < bearable_s
