"""From a few measured latencies to all of them: duration of a batch by degree and size.

Two steps, both on relative errors, as a tenth too slow is as bad at 2 ms as at 2 s:

1. *A law.* `t(r, b) = c0 + c1·[r>0] + b·(c2·work(r) + c3·[r>0])`: what a batch costs, what merging
   adds to it, what an image's arithmetic costs, what merging adds to that; none is negative. Small
   penalties pull towards `b·work(r)` alone, so that two measurements suffice. Where a batch is
   shared out to lanes, `b` is rounded up to a multiple of them: seven images on two lanes take as
   long as eight, so the law knows which sizes waste a part of the machine.
2. *A correction field.* log(measured / law), as a Gaussian process over (work, log2 b) with an
   exponential kernel ("kriging"). A measured cell is met up to its own noise; between measured
   neighbours the correction runs next to linearly; far from all of them it fades to the law. The
   field stands on knots (every degree × powers of two) and is linear in log2 b between them, so it
   follows what no such law can: a GPU whose latency is flat up to some batch and linear from there.

The field comes with its covariance: how sure each cell is, and which cells err alike. Whoever
measures on (`server.latency_belief`) goes on from there.

Source: C. E. Rasmussen, C. K. I. Williams, *Gaussian Processes for Machine Learning* (2006),
section 2.2; C. L. Lawson, R. J. Hanson, *Solving Least Squares Problems* (1974), chapter 23.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tocom_core.latency_profile import Measurement

Array = NDArray[np.float64]

PENALTIES = (0.03, 0.1, 0.1, 0.1)
"""On c0, c1, c2's distance from the best rate seen, and c3, each relative to a typical size."""
LEAST_RATE = 0.01
"""An image's arithmetic costs at least this share of what it takes at the best rate seen."""
FIELD_SD = 0.3
"""How far the law is off, as a standard deviation of the logarithm, before anything is measured."""
WORK_LENGTH = 0.3
"""Degrees whose work differs by this much of r=0's share a correction to 37 %."""
OCTAVES_LENGTH = 3.0
"""Likewise batch sizes: a factor of eight."""
SINGLE_RUN_SD = 0.05
"""Noise of one run where its spread is not known."""
LEAST_SD = 0.005
"""No measurement is believed to be more exact."""


@dataclass(frozen=True)
class Grid:
    """Where the correction field stands: degrees × knots of batch size.

    Attributes:
        work: `(degrees,)`, ascending in r.
        degrees: their r.
        sizes: `(knots,)` batch sizes of the knots, ascending: powers of two and the largest size.
    """

    degrees: tuple[int, ...]
    work: Array
    sizes: Array

    @classmethod
    def over(cls, work: Mapping[int, float], largest: int) -> "Grid":
        """Return the grid for these degrees and batches of up to `largest` images."""
        degrees = tuple(sorted(work))
        powers = [2.0**i for i in range(math.ceil(math.log2(largest)))] if largest > 1 else []
        return cls(degrees, np.array([work[r] for r in degrees]), np.array([*powers, largest]))

    @cached_property
    def index(self) -> Mapping[int, int]:
        """Degree → its row."""
        return {r: i for i, r in enumerate(self.degrees)}

    @cached_property
    def weights(self) -> Array:
        """`(sizes, knots)`: how much each knot counts for batches of 1, 2, … images."""
        octaves = np.log2(np.arange(1, int(self.sizes[-1]) + 1))
        knots = np.log2(self.sizes)
        columns = [np.interp(octaves, knots, row) for row in np.eye(len(knots))]
        return np.stack(columns, axis=1)

    @cached_property
    def size_kernel(self) -> Array:
        """`(knots, knots)`: correlation of the corrections at two batch sizes."""
        return _kernel(np.log2(self.sizes), OCTAVES_LENGTH)

    def prior(self) -> Array:
        """Covariance of the field before any measurement; cells in order degree, then knot."""
        alike = np.kron(_kernel(self.work, WORK_LENGTH), self.size_kernel)
        return np.asarray(FIELD_SD**2 * alike, np.float64)


def _kernel(places: Array, length: float) -> Array:
    return np.asarray(np.exp(-np.abs(places[:, None] - places[None, :]) / length))


@dataclass(frozen=True)
class LatencyFit:
    """Believed durations on one device.

    Attributes:
        grid: where the field stands.
        law_s: `(degrees, sizes)` seconds by the law alone, for batches of 1, 2, … images, up to the
            larger one of `max_batch_size` and the largest batch measured.
        field: `(degrees · knots,)` corrections to log(law), cells in order degree, then knot.
        covariance: of the field's errors, `(cells, cells)`.
        coefficients: `c0, c1, c2, c3` of the law, in seconds.
    """

    grid: Grid
    law_s: Array
    field: Array
    covariance: Array
    coefficients: Array

    @cached_property
    def seconds(self) -> Array:
        """`(degrees, sizes)` seconds of a batch of 1, 2, … images; never falling with the size."""
        return durations(self.law_s, self.field, self.grid)

    def batch_s(self, r: int, size: int) -> float:
        """Return the believed seconds of a batch; one beyond the largest counts as several.

        Raises:
            KeyError: `r` is no degree of the model.
        """
        row = self.seconds[self.grid.index[r]]
        full, rest = divmod(size, len(row))
        return float(full * row[-1] + (row[rest - 1] if rest else 0.0))


def durations(law_s: Array, field: Array, grid: Grid) -> Array:
    """Law × exp(field), made to never fall as a batch grows: `(degrees, sizes)` seconds."""
    corrections = field.reshape(len(grid.degrees), -1) @ grid.weights.T
    seconds: Array = np.maximum.accumulate(law_s * np.exp(corrections), axis=1)
    return seconds


def fit_latency(
    measurements: Sequence[Measurement],
    work: Mapping[int, float],
    max_batch_size: int,
    lanes: int = 1,
) -> LatencyFit:
    """Fit durations for all degrees of `work` and batches of up to `max_batch_size` images.

    Args:
        measurements: one or more, of degrees in `work`, any batch size.
        work: every degree → its multiply-adds relative to r=0.
        max_batch_size: the largest batch to estimate.
        lanes: how many share out a batch by images.
    """
    grid = Grid.over(work, max(max_batch_size, *(m.batch for m in measurements)))
    rows = [grid.index[m.r] for m in measurements]
    columns = [m.batch - 1 for m in measurements]
    seconds = np.array([m.seconds for m in measurements])
    terms = _terms(grid, lanes)
    coefficients = _fit_law(terms[rows, columns], seconds)
    law_s: Array = terms @ coefficients

    observed = np.zeros((len(rows), len(grid.degrees), len(grid.sizes)))
    observed[np.arange(len(rows)), rows] = grid.weights[columns]
    field, covariance = _krige(
        grid.prior(),
        observed.reshape(len(rows), -1),
        np.log(seconds / law_s[rows, columns]),
        np.array([_noise_sd(m) ** 2 for m in measurements]),
    )
    return LatencyFit(grid, law_s, field, covariance, coefficients)


def _terms(grid: Grid, lanes: int) -> Array:
    """What the four coefficients are multiplied with: `(degrees, sizes, 4)`."""
    merging = (np.array(grid.degrees) > 0)[:, None]
    images = lanes * np.ceil(np.arange(1.0, grid.sizes[-1] + 1) / lanes)[None, :]
    ones = np.ones_like(images)
    factors = (ones, merging * ones, images * grid.work[:, None], images * merging)
    return np.stack(np.broadcast_arrays(*factors), axis=-1)


def _fit_law(terms: Array, seconds: Array) -> Array:
    """Solve non-negative least squares on relative errors, plus the penalties, exactly.

    With four coefficients each set of those that are not 0 can be tried: the problem is convex, so
    that the best solution without a negative coefficient is the one.

    Args:
        terms: `(measurements, 4)`.
        seconds: `(measurements,)`.
    """
    best_rate = np.min(seconds / terms[:, 2])
    typical = np.array([seconds.min(), seconds.min(), best_rate, best_rate])
    pulls = np.array(PENALTIES)
    matrix = np.concatenate([terms * typical / seconds[:, None], np.diag(pulls)])
    wanted = np.concatenate([np.ones(len(seconds)), pulls * (0.0, 0.0, 1.0, 0.0)])
    best, least = np.zeros(4), math.inf
    for free in product((False, True), repeat=4):
        solution = np.zeros(4)
        solution[list(free)] = np.linalg.lstsq(matrix[:, free], wanted, rcond=None)[0]
        error = float(np.sum((matrix @ solution - wanted) ** 2))
        if np.all(solution >= 0) and error < least:
            best, least = solution, error
    best[2] = max(best[2], LEAST_RATE)  # else r=0 could come out as free
    return np.asarray(best * typical)


def _krige(prior: Array, observed: Array, values: Array, noise: Array) -> tuple[Array, Array]:
    """Condition a field of mean 0 on what was measured: its mean and its covariance.

    Args:
        prior: `(cells, cells)` covariance.
        observed: `(measurements, cells)`, how each measurement weighs the cells.
        values: `(measurements,)`.
        noise: `(measurements,)` variances.
    """
    shared = observed @ prior
    gain = np.linalg.solve(shared @ observed.T + np.diag(noise), shared).T
    return np.asarray(gain @ values, np.float64), np.asarray(prior - gain @ shared, np.float64)


def _noise_sd(measurement: Measurement) -> float:
    single = measurement.spread or SINGLE_RUN_SD
    return max(LEAST_SD, single / math.sqrt(measurement.runs))
