"""What is learned from live batches on a machine whose truth is known."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.latency_belief import LatencyBelief
from tests.server.fake_machine import DEGREES, EVERYTHING, SIZES, WARM_UP, FakeMachine
from tocom_core.latency_fit import fit_latency

NOISES = [0.01, 0.05, 0.1]
STARTS = pytest.mark.parametrize("cells", [EVERYTHING, WARM_UP], ids=["measured", "warm-up"])


Cells = tuple[tuple[int, int], ...]


def belief_of(machine: FakeMachine, cells: Cells = EVERYTHING) -> LatencyBelief:
    """Return what is believed after these cells were measured."""
    profile = machine.profile(cells)
    return LatencyBelief(fit_latency(profile.measurements, profile.work, 32), spread=0.05)


def serve(
    belief: LatencyBelief, machine: FakeMachine, r: int, size: int = 8, batches: int = 1
) -> None:
    """Run some batches at one degree and learn from them."""
    for _ in range(batches):
        belief.learn_live(r, size, machine.run(r, size).compute_s)


def errors(belief: LatencyBelief, machine: FakeMachine, size: int = 8) -> np.ndarray:
    """Return log(believed / true) of each degree."""
    true = np.array([machine.batch_s(r, size) for r in DEGREES])
    return np.asarray(np.log(belief.seconds()[:, size - 1] / true))


@STARTS
@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("factor", [2.0, 0.5])
def test_a_machine_that_changes_is_noticed_for_all_degrees(
    cells: Cells, noise: float, factor: float
) -> None:
    """Five batches at one degree after it became half (or twice) as fast tell of all degrees."""
    for seed in range(5):
        machine = FakeMachine(noise, seed)
        belief = belief_of(machine, cells)
        serve(belief, machine, r=0, batches=30)
        before = errors(belief, machine)
        machine.slowness = factor
        serve(belief, machine, r=0, batches=5)
        assert np.abs(errors(belief, machine) - before).max() < 0.06 + 2.5 * noise


@pytest.mark.parametrize("noise", NOISES)
def test_it_is_noticed_even_where_each_batch_has_another_degree(noise: float) -> None:
    """A policy that moves at once must not make every degree look odd by itself."""
    machine = FakeMachine(noise)
    belief = belief_of(machine)
    serve(belief, machine, r=0, batches=30)
    machine.slowness = 2.0
    for r in (2, 4, 6, 8, 10, 12):
        serve(belief, machine, r)
    assert np.abs(errors(belief, machine)).max() < 0.08 + 2.5 * noise


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("factor", [1.5, 0.7])
def test_a_wrong_degree_is_corrected_without_spoiling_others(noise: float, factor: float) -> None:
    """A jump right after a switch is the degree's: at all its sizes, and at no other degree."""
    machine = FakeMachine(noise)
    belief = belief_of(machine)
    serve(belief, machine, r=0, batches=30)
    machine.odd = {8: factor}
    before = errors(belief, machine)
    serve(belief, machine, r=8, batches=8)
    after = errors(belief, machine)
    assert abs(after[8]) < 0.03 + noise
    assert abs(errors(belief, machine, size=32)[8]) < 0.4 * abs(before[8])
    others = [r for r in DEGREES if r != 8]
    assert np.abs(after[others] - before[others]).max() < 0.03 + 0.5 * noise


def test_what_was_attributed_wrongly_is_taken_back() -> None:
    """A machine that slows down at the first switch spoils no degree for good."""
    machine = FakeMachine(0.02)
    belief = belief_of(machine)
    serve(belief, machine, r=0, batches=30)
    machine.slowness = 1.3
    serve(belief, machine, r=16, batches=3)
    for r in (0, 16, 8, 0, 16, 8):
        serve(belief, machine, r, batches=10)
    found = np.abs(errors(belief, machine))
    assert found[[0, 8, 16]].max() < 0.04
    assert found.max() < 0.5 * math.log(1.3)


@pytest.mark.parametrize("noise", NOISES)
def test_one_outlier_moves_little(noise: float) -> None:
    """A batch that took a hundred times too long costs a tenth, and the next ones mend it."""
    machine = FakeMachine(noise)
    belief = belief_of(machine)
    serve(belief, machine, r=0, batches=30)
    before = errors(belief, machine)
    belief.learn_live(0, 8, 100 * machine.batch_s(0, 8))
    assert np.abs(errors(belief, machine) - before).max() < 0.11
    serve(belief, machine, r=0, batches=10)
    assert np.abs(errors(belief, machine)).max() < 0.03 + 0.8 * noise


@pytest.mark.parametrize("noise", NOISES)
def test_steady_noise_is_averaged_out(noise: float) -> None:
    """On a machine that does not change, estimates wander much less than single batches."""
    machine = FakeMachine(noise)
    belief = belief_of(machine)
    found = []
    for _ in range(400):
        serve(belief, machine, r=4)
        found.append(errors(belief, machine)[4])
    assert np.std(found[50:]) < 0.4 * noise
    assert abs(np.mean(found[50:])) < 0.2 * noise
    assert belief.spread == pytest.approx(noise, rel=0.4)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10_000), noise=st.floats(0, 0.1), factor=st.floats(0.4, 2.5))
def test_all_that_is_served_is_learned(seed: int, noise: float, factor: float) -> None:
    """From two measurements, on a machine unlike them: what is visited comes to be known."""
    machine = FakeMachine(noise, seed)
    belief = belief_of(machine, WARM_UP)
    machine.slowness = factor
    machine.odd = {4: 1.3, 12: 0.8}
    visits = np.random.default_rng(seed).choice([0, 4, 8, 12, 16], size=300)
    for r in visits.tolist():
        serve(belief, machine, r)
    assert np.abs(errors(belief, machine)[::4]).max() < 0.05 + 1.5 * noise


def test_sizes_are_learned_apart() -> None:
    """A degree that is slow with large batches only stays fast with single images."""
    machine = FakeMachine()
    belief = belief_of(machine)
    for _ in range(30):
        for r in (0, 16):
            serve(belief, machine, r, size=1)
            odd = 1.4 if r == 16 else 1.0
            belief.learn_live(r, 32, odd * machine.batch_s(r, 32))
    assert errors(belief, machine, size=32)[16] == pytest.approx(math.log(1.4), abs=0.03)
    assert errors(belief, machine, size=1)[16] == pytest.approx(0, abs=0.03)
    assert errors(belief, machine, size=32)[0] == pytest.approx(0, abs=0.03)


def test_a_cell_never_stops_learning() -> None:
    """Large batches that become slow after thousands are found out, with one degree in use."""
    machine = FakeMachine(0.05)
    belief = belief_of(machine)
    for factor, batches in ((1.0, 2000), (1.4, 150)):
        for _ in range(batches):
            serve(belief, machine, r=0, size=1)
            belief.learn_live(0, 32, factor * machine.run(0, 32).compute_s)
    assert abs(errors(belief, machine, size=1)[0]) < 0.08
    assert errors(belief, machine, size=32)[0] == pytest.approx(math.log(1.4), abs=0.08)


def test_an_idle_measurement_settles_a_cell_that_was_unknown() -> None:
    """It says much of a cell never measured, little of the machine, nothing of the spread."""
    machine = FakeMachine()
    belief = belief_of(machine, WARM_UP)
    spread = belief.spread
    single = belief.seconds()[0, 0]
    belief.learn_idle(0, 32, 1.5 * machine.batch_s(0, 32))
    assert belief.seconds()[0, 31] == pytest.approx(1.5 * machine.batch_s(0, 32), rel=0.05)
    assert belief.seconds()[0, 0] == pytest.approx(single, rel=0.02)
    assert belief.spread == spread


@settings(deadline=None)
@given(
    batches=st.lists(
        st.tuples(st.sampled_from(DEGREES), st.integers(1, 32), st.floats(1e-9, 86_400)),
        max_size=60,
    )
)
def test_no_batch_breaks_the_belief(batches: list[tuple[int, int, float]]) -> None:
    """Whatever is measured: finite, positive, never falling with the size."""
    belief = belief_of(FakeMachine(), WARM_UP)
    for r, size, seconds in batches:
        belief.learn_live(r, size, seconds)
        believed = belief.seconds()
        assert np.all(np.isfinite(believed)) and np.all(believed > 0)
        assert np.all(np.diff(believed, axis=1) >= 0)
        assert 0 <= belief.spread <= math.log(2)


def test_a_long_life_does_not_wear_it_out() -> None:
    """After 20,000 batches it is as exact, and as quick to notice, as after a few."""
    machine = FakeMachine(0.05)
    belief = belief_of(machine)
    random = np.random.default_rng(1)
    for r, size in zip(random.choice(17, 20_000), random.choice(SIZES, 20_000), strict=True):
        serve(belief, machine, int(r), int(size))
    assert np.abs(errors(belief, machine)).max() < 0.1
    machine.slowness = 2.0
    serve(belief, machine, r=0, batches=5)
    assert np.abs(errors(belief, machine)).max() < 0.2
