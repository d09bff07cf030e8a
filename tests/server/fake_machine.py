"""A machine whose true latencies are known, for what learns them from noisy batches."""

import itertools
from collections.abc import Iterable

import numpy as np

from server.stats import BatchStats
from tocom_core.latency_profile import LatencyProfile, Measurement

DEGREES = range(17)
WORK = {r: 1 - 0.0315 * r for r in DEGREES}
SIZES = (1, 2, 4, 8, 16, 32)
EVERYTHING = tuple(itertools.product(DEGREES, SIZES))
WARM_UP = ((0, 1), (16, 8))


class FakeMachine:
    """True latencies × noise.

    Attributes:
        slowness: factor on all durations, such as a neighbour's.
        odd: factors on single degrees.

    Args:
        noise: standard deviation of log(duration).
        seed: of the noise.
        batch_cost_s: what a batch costs besides its images.
        merging_s: what merging adds to a batch.
    """

    def __init__(
        self,
        noise: float = 0.0,
        seed: int = 0,
        *,
        batch_cost_s: float = 0.002,
        merging_s: float = 0.001,
    ) -> None:
        self.slowness = 1.0
        self.odd: dict[int, float] = {}
        self._noise = noise
        self._random = np.random.default_rng(seed)
        self._batch_cost_s = batch_cost_s
        self._merging_s = merging_s

    def batch_s(self, r: int, size: int) -> float:
        """Return what a batch truly takes on average."""
        cost = self._batch_cost_s + 0.027 * size * WORK[r] + self._merging_s * (r > 0)
        return cost * self.slowness * self.odd.get(r, 1.0)

    def run(self, r: int, size: int) -> BatchStats:
        """Run a batch."""
        noise = float(np.exp(self._random.normal(0, self._noise)))
        return BatchStats(r, size, 0.0, self.batch_s(r, size) * noise, 0.0)

    def profile(self, cells: Iterable[tuple[int, int]] = EVERYTHING) -> LatencyProfile:
        """Measure these cells well."""
        measured = [Measurement(r, b, self.batch_s(r, b), 0.03, 5) for r, b in cells]
        return LatencyProfile({"name": "fake"}, {"name": "vit"}, WORK, measured)
