"""How long batches take, learned from each one: a machine's speed, and what is special to a cell.

Believed is `law × exp(speed + correction(r, b))`: one `speed` for the whole machine, which a
neighbour or heat changes, and the correction field of `latency_fit`, where "cell" is a degree and
batch size. A Kalman filter learns both at once, with their full covariance. So a surprise goes to
whatever was least sure: *a jump right after a switch is the degree's doing* (its cells were not
tried live so far), *a drift while staying is the machine's* (its cells were), and what was
attributed wrongly is taken back everywhere once another degree tells more.

Two additions to the textbook. A residual counts as at most twice or half of what was expected (or
three standard deviations where less is known), so that outliers move little. And where the mean of
recent residuals is more than chance, the machine is suspected to have changed since that began: the
covariance grows along what such a change would have done to the state, wrongly blamed cells
included. So steady noise is averaged over tens of batches, yet a machine that is suddenly half as
fast is believed to be so within about five.

Sources: R. E. Kalman, *A New Approach to Linear Filtering and Prediction Problems* (1960); A. S.
Willsky, H. L. Jones, *A Generalized Likelihood Ratio Approach to the Detection and Estimation of
Jumps in Linear Systems* (1976), from which the second addition takes its direction.
"""

import math

import numpy as np

from tocom_core.latency_fit import Array, LatencyFit, durations

MAX_STEP = math.log(2)
"""One batch counts as at most twice or half of what was expected."""
SPEED_SD = 0.05
"""How far the machine may have changed since it was measured, before the first batch."""
DOUBT_SD = 0.15
"""How far a degree may be off from what was measured in idle time, before its first live batch."""
ABSENCE_WANDER, ABSENCE_MOST = 3e-5, 0.05**2
"""Variance that a degree gains with each batch at other degrees, and at most, until it is back."""
DOUBT_SHARED = 0.75
"""Share of a degree's doubt that all its batch sizes have in common."""
CELL_WANDER = 1e-6
"""Variance that a cell gains with each of its batches: it never stops learning."""
SPEED_WANDER = 0.005
"""Variance that the speed gains with each batch, as a share of one batch's noise."""
DRIFT_WEIGHT = 0.25
"""Of the newest residual in the mean of recent ones."""
DRIFT_DEADZONE = 0.64
"""A squared mean residual below this share of the noise's variance is chance."""
DRIFT_MOST = 3.0
"""Most variance that a change adds, as a share of all other: three quarters of a step count."""
SPREAD_WEIGHT = 0.05
"""Of the newest squared residual in `spread` and the noise: they look back on some 20 batches."""
LEAST_NOISE, MOST_NOISE = 0.02**2, 0.2**2
"""Bounds on the variance of a batch's noise that the filter works with."""


class LatencyBelief:
    """The joint belief over the machine's speed and all cells.

    One update takes about 20 µs for 17 degrees and 6 knots of batch size; it grows with the square
    of their product.

    Args:
        fit: where to start.
        spread: standard deviation of log(duration) to start with.
    """

    def __init__(self, fit: LatencyFit, spread: float) -> None:
        self._fit = fit
        self._knots = len(fit.grid.sizes)
        self._log_law = np.log(fit.law_s)
        self._cell_wander = CELL_WANDER * fit.grid.size_kernel
        cells = len(fit.field)
        # State 0 is the speed, the others are the field's cells.
        self._mean = np.concatenate([[0.0], fit.field])
        self._covariance = np.zeros((cells + 1, cells + 1))
        self._covariance[0, 0] = SPEED_SD**2
        self._covariance[1:, 1:] = fit.covariance
        self._spread_squared = spread**2
        self._noise = min(max(spread**2, LEAST_NOISE), MOST_NOISE)
        self._drift = 0.0
        # Had the speed just changed by 1, the state would now be off by this much.
        self._missed = np.zeros(cells + 1)
        self._batches = 0
        self._last_batch_of: dict[int, int] = {}

    @property
    def spread(self) -> float:
        """Standard deviation of the recent live batches' clipped log(measured / believed)."""
        return math.sqrt(self._spread_squared)

    @property
    def state(self) -> Array:
        """`(1 + cells,)`: log speed factor and corrections; never changed in place."""
        return self._mean

    def seconds(self) -> Array:
        """`(degrees, sizes)` believed seconds of a batch of 1, 2, … images, never falling."""
        corrections = self._mean[1:] + self._mean[0]
        return durations(self._fit.law_s, corrections, self._fit.grid)

    def learn_live(self, row: int, size: int, seconds: float) -> None:
        """Learn from a batch that was served, at the degree of this row of the grid."""
        self._doubt(row)
        self._batches += 1
        self._last_batch_of[row] = self._batches
        residual = self._learn(row, size, seconds)
        self._spread_squared += SPREAD_WEIGHT * (residual**2 - self._spread_squared)

    def learn_idle(self, row: int, size: int, seconds: float) -> None:
        """Learn from a forward that ran while no request waited."""
        self._learn(row, size, seconds)

    def _learn(self, row: int, size: int, seconds: float) -> float:
        """Update speed, field and their covariance; return the clipped residual."""
        cells = self._cells(row)
        weights = self._fit.grid.weights[size - 1]
        covariance = self._covariance
        covariance[0, 0] += SPEED_WANDER * self._noise
        shared = covariance[:, 0] + covariance[:, cells] @ weights
        doubt = max(0.0, float(shared[0] + shared[cells] @ weights))
        total = doubt + self._noise
        if (changed := self._suspected_change(total)) > 0:
            covariance += changed * np.outer(self._missed, self._missed)
            seen = float(self._missed[0] + weights @ self._missed[cells])
            shared += changed * seen * self._missed
            total += changed * seen**2

        expected = self._log_law[row, size - 1] + self._mean[0] + weights @ self._mean[cells]
        surprise = math.log(seconds) - float(expected)
        gain = shared / total
        self._mean = self._mean + gain * _clip(surprise, max(MAX_STEP, 3 * math.sqrt(total)))
        covariance -= np.outer(gain, shared)
        covariance[cells, cells] += self._cell_wander
        self._missed -= gain * (self._missed[0] + weights @ self._missed[cells])

        residual = _clip(surprise, MAX_STEP)
        self._note(residual, math.sqrt(doubt))
        return residual

    def _suspected_change(self, usual: float) -> float:
        """By how much the machine seems to have changed lately: a variance."""
        suspected = self._drift**2 - DRIFT_DEADZONE * self._noise
        if suspected <= 0:
            self._missed = np.zeros_like(self._mean)
            self._missed[0] = 1.0
        return min(suspected, DRIFT_MOST * usual)

    def _note(self, residual: float, explained: float) -> None:
        """Follow the mean residual and the noise.

        A surprise of the size that a doubtful estimate explains is no sign of a machine that
        changed, and one that does change must not pass for noise.
        """
        telling = math.copysign(max(0.0, abs(residual) - explained), residual)
        self._drift += DRIFT_WEIGHT * (telling - self._drift)
        usual = _clip(residual, 3 * math.sqrt(self._noise))
        self._noise += SPREAD_WEIGHT * (usual**2 - self._noise)
        self._noise = min(max(self._noise, LEAST_NOISE), MOST_NOISE)

    def _cells(self, row: int) -> slice:
        return slice(1 + row * self._knots, 1 + (row + 1) * self._knots)

    def _doubt(self, row: int) -> None:
        """Make a degree less certain that was not served just now, or not at all so far."""
        last = self._last_batch_of.get(row)
        if last == self._batches or not self._batches:
            return  # the very first degree has nothing to be compared with
        absence = ABSENCE_WANDER * (self._batches - (last or 0))
        variance = DOUBT_SD**2 if last is None else min(absence, ABSENCE_MOST)
        kernel = DOUBT_SHARED + (1 - DOUBT_SHARED) * self._fit.grid.size_kernel
        cells = self._cells(row)
        self._covariance[cells, cells] += variance * kernel


def _clip(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)
