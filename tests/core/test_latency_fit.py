"""The fit: sensible from two measurements, close with a few, exact where measured."""

import itertools
import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom_core.latency_fit import Grid, LatencyFit, fit_latency
from tocom_core.latency_profile import Measurement

WORK = {r: 1 - 0.0315 * r for r in range(17)}
"""As that of a ViT with 196 patches."""
LARGEST = 32

Latency = Callable[[int, int], float]


def cpu(r: int, batch: int) -> float:
    """Seconds on a machine where compute is the bottleneck and merging costs a little."""
    merging = 0.001 + 0.0005 * batch if r > 0 else 0.0
    return 0.002 + 0.027 * batch * WORK[r] + merging


def gpu(r: int, batch: int) -> float:
    """Seconds on a machine that is flat up to some batch, and linear from there."""
    launches = 0.005 + 0.001 * (r > 0)
    return max(launches, 0.0004 * batch * WORK[r])


def fitted(
    latency: Latency, cells: Iterable[tuple[int, int]], largest: int = LARGEST, lanes: int = 1
) -> LatencyFit:
    """Fit what these cells take, measured well."""
    measured = [Measurement(r, b, latency(r, b), spread=0.02, runs=5) for r, b in cells]
    return fit_latency(measured, WORK, largest, lanes)


def worst_error(fit: LatencyFit, latency: Latency) -> float:
    """Return the largest relative error over all degrees and sizes."""
    cells = itertools.product(WORK, range(1, LARGEST + 1))
    return max(abs(fit.batch_s(r, b) / latency(r, b) - 1) for r, b in cells)


def test_two_measurements_suffice_where_compute_is_the_bottleneck() -> None:
    """A single image at r=0 and a batch at the highest degree tell all within 16 %."""
    assert worst_error(fitted(cpu, [(0, 1), (16, 8)]), cpu) < 0.16


def test_four_measurements_find_what_merging_costs() -> None:
    """Small and large batches at both ends fix all four coefficients."""
    fit = fitted(cpu, itertools.product([0, 16], [1, 8]))
    assert fit.coefficients == pytest.approx([0.002, 0.001, 0.027, 0.0005], rel=0.1)
    assert worst_error(fit, cpu) < 0.01


@pytest.mark.parametrize("lanes", [2, 3])
def test_lanes_make_some_sizes_wasteful(lanes: int) -> None:
    """Seven images on two lanes take as long as eight; no odd size has to be measured for that."""

    def shared_out(r: int, batch: int) -> float:
        return cpu(r, lanes * math.ceil(batch / lanes))

    fit = fitted(shared_out, itertools.product([0, 8, 16], [1, 2, 4, 8, 16, 32]), lanes=lanes)
    assert worst_error(fit, shared_out) < 0.03
    per_image = [fit.batch_s(0, size) / size for size in range(1, LARGEST + 1)]
    whole = per_image[lanes - 1 :: lanes]
    assert max(whole[1:]) < min(per_image[lanes : 2 * lanes - 1])


def test_a_flat_then_linear_machine_is_followed() -> None:
    """The corrections carry what no law can: a knee, rounded off within its octave."""
    few = worst_error(fitted(gpu, itertools.product([0, 16], [1, 32])), gpu)
    more = worst_error(fitted(gpu, itertools.product([0, 8, 16], [1, 4, 8, 16, 32])), gpu)
    assert few > 0.3
    assert more < 0.2


@pytest.mark.parametrize("latency", [cpu, gpu])
def test_more_measurements_do_not_make_it_worse(latency: Latency) -> None:
    """Each finer grid of cells is at least about as good as the coarser one."""
    grids = [([0, 16], [1, 32]), ([0, 8, 16], [1, 8, 32]), (range(17), [1, 2, 4, 8, 16, 32])]
    errors = [worst_error(fitted(latency, itertools.product(*grid)), latency) for grid in grids]
    assert errors[1] <= errors[0] + 0.01
    assert errors[2] <= errors[1] + 0.01


def test_a_measured_cell_is_met_and_its_neighbours_follow() -> None:
    """A degree that is slower than any law has it so, and those beside it lean that way."""

    def odd(r: int, batch: int) -> float:
        return cpu(r, batch) * (1.3 if r == 8 else 1.0)

    fit = fitted(odd, itertools.product([0, 4, 8, 12, 16], [1, 8, 32]))
    assert fit.batch_s(8, 8) == pytest.approx(odd(8, 8), rel=0.02)
    assert fit.batch_s(12, 8) == pytest.approx(cpu(12, 8), rel=0.02)
    assert 1.05 < fit.batch_s(9, 8) / cpu(9, 8) < 1.3


def test_a_noisy_measurement_is_believed_less() -> None:
    """The same outlier counts for less if its runs disagreed."""

    def corrected(spread: float) -> float:
        cells = set(itertools.product([0, 8, 16], [1, 4, 8])) - {(8, 4)}
        measured = [Measurement(r, b, cpu(r, b), 0.02, 5) for r, b in sorted(cells)]
        outlier = Measurement(8, 4, 1.5 * cpu(8, 4), spread)
        return fit_latency([*measured, outlier], WORK, 8).batch_s(8, 4) / cpu(8, 4)

    assert corrected(0.01) > 1.35
    assert corrected(0.5) < 1.25


def test_measured_cells_are_sure_and_far_ones_are_not() -> None:
    """The covariance says what is worth measuring next."""
    fit = fitted(cpu, [(0, 1), (16, 32)])
    doubts = np.sqrt(np.diag(fit.covariance)).reshape(len(WORK), -1)
    assert doubts[0, 0] < 0.02 > doubts[16, -1]
    assert doubts[0, -1] > 0.2 < doubts[16, 0]


@settings(deadline=None)
@given(data=st.data())
def test_any_measurements_give_usable_durations(data: st.DataObject) -> None:
    """Positive, finite, never falling with the size; one cell or many, however contradicting."""
    degrees = st.dictionaries(st.integers(0, 40), st.floats(0.01, 1), min_size=1, max_size=6)
    work = data.draw(degrees)
    largest = data.draw(st.integers(1, 48))
    cells = data.draw(
        st.lists(
            st.tuples(st.sampled_from(sorted(work)), st.integers(1, 64)),
            min_size=1,
            max_size=12,
            unique=True,
        )
    )
    measured = [
        Measurement(r, b, data.draw(st.floats(1e-6, 1e3)), data.draw(st.floats(0, 1)), 3)
        for r, b in cells
    ]
    fit = fit_latency(measured, work, largest)
    assert fit.seconds.shape == (len(work), max(largest, *(m.batch for m in measured)))
    assert np.all(np.isfinite(fit.seconds)) and np.all(fit.seconds > 0)
    assert np.all(np.diff(fit.seconds, axis=1) >= 0)
    assert np.all(fit.coefficients >= 0)
    assert np.all(np.isfinite(fit.covariance)) and np.all(np.diag(fit.covariance) > -1e-12)


def test_a_batch_beyond_the_largest_counts_as_several() -> None:
    """Twenty images in batches of at most eight are two full batches and one of four."""
    fit = fitted(cpu, [(0, 1), (16, 8)], largest=8)
    assert fit.batch_s(4, 20) == pytest.approx(2 * fit.batch_s(4, 8) + fit.batch_s(4, 4))
    assert fit.batch_s(4, 16) == pytest.approx(2 * fit.batch_s(4, 8))


def test_a_model_without_merging_has_one_degree() -> None:
    """One degree and one measurement are a profile, too."""
    fit = fit_latency([Measurement(0, 1, 0.03)], {0: 1.0}, 1)
    assert fit.batch_s(0, 1) == pytest.approx(0.03, rel=0.01)


def test_an_unknown_degree_is_a_mistake_of_the_caller() -> None:
    """The fit knows the degrees of its model only."""
    with pytest.raises(KeyError):
        fitted(cpu, [(0, 1), (16, 8)]).batch_s(17, 1)


@pytest.mark.parametrize("largest", [1, 2, 3, 8, 24, 33])
def test_knots_are_powers_of_two_and_the_largest_size(largest: int) -> None:
    """Each size is a mixture of its two neighbouring knots, and a knot is itself."""
    grid = Grid.over({0: 1.0}, largest)
    assert grid.sizes[0] == 1 and grid.sizes[-1] == largest
    assert np.all(np.diff(grid.sizes) > 0)
    assert grid.weights.shape == (largest, len(grid.sizes))
    assert grid.weights.sum(axis=1) == pytest.approx(np.ones(largest))
    assert np.all((grid.weights > 0).sum(axis=1) <= 2)
    assert grid.weights[grid.sizes.astype(int) - 1] == pytest.approx(np.eye(len(grid.sizes)))


def test_no_degree_comes_out_as_free() -> None:
    """Measurements that contradict the arithmetic leave every degree a cost by the law."""
    cells = [(0, 1, 30.0), (8, 8, 30.0), (16, 1, 1.0)]
    measured = [Measurement(r, b, seconds, 0.01, 9) for r, b, seconds in cells]
    fit = fit_latency(measured, {0: 0.02, 8: 0.5, 16: 1.0}, 8)
    assert np.all(fit.law_s > 0)
    assert fit.batch_s(0, 1) == pytest.approx(30.0, rel=0.1)
