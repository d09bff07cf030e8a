"""What each degree delivers on this machine, kept honest while the server runs.

The estimate is a product: `images/s at r = machine speed x relative throughput of r`. Warm-up
or arithmetic gives the first values; live batches refine them by one rule: *a jump right after
a switch is the degree's doing, a drift while staying is the machine's*. So a noisy neighbour
slows all degrees alike, those not visited included, and a degree whose ratio was guessed wrong
is corrected when it is first used, without touching the others.

Only full batches count: a batch of one says nothing about saturated throughput. Full means at
least three quarters of what `max_batch_size` and the time budget of a batch allow; a queue
that grows fills batches, so estimates are fresh whenever they matter.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from server.stats import BatchStats
from tocom_core.operating_point import OperatingPoint

FULL_SHARE = 0.75
SWITCH_BATCHES = 4
"""So many full batches after a switch teach the ratio, later ones the machine's speed."""
RATIO_WEIGHT = 0.4
SPEED_WEIGHT = 0.15
MAX_STEP = math.log(2)
"""One batch counts as at most twice or half of what was expected: outliers move little."""


class LevelTable:
    """The degrees of the served model and their believed throughput.

    Args:
        points: one per degree; any order, no degree twice.
        max_batch_size: most images in one batch.
        max_batch_s: longest time one batch should take; infinity means no such bound.
    """

    def __init__(
        self,
        points: Sequence[OperatingPoint],
        *,
        max_batch_size: int = 32,
        max_batch_s: float = math.inf,
    ) -> None:
        self._points = {p.r: p for p in sorted(points, key=lambda p: p.r)}
        if not points or len(self._points) != len(points):
            raise ValueError(f"expected distinct degrees, got {[p.r for p in points]}")
        self._max_batch_size = max_batch_size
        self._max_batch_s = max_batch_s
        self._speed = self._initial_speed()
        self._ratio = {r: self._initial_ratio(p) for r, p in self._points.items()}
        self._last_r: int | None = None
        self._batches_here = 0

    @property
    def degrees(self) -> tuple[int, ...]:
        """All degrees, ascending."""
        return tuple(self._points)

    def _initial_speed(self) -> float | None:
        """Return images/s per unit of relative throughput, from the first measured degree."""
        for point in self._points.values():
            if point.images_per_s is not None:
                return point.images_per_s / point.relative_throughput
        return None

    def _initial_ratio(self, point: OperatingPoint) -> float:
        if self._speed is None or point.images_per_s is None:
            return point.relative_throughput
        return point.images_per_s / self._speed

    def points(self) -> tuple[OperatingPoint, ...]:
        """Return the present estimates, ascending in r, relative to the lowest degree."""
        lowest = self._ratio[self.degrees[0]]
        anchor = self._points[self.degrees[0]].relative_throughput
        return tuple(
            replace(
                point,
                relative_throughput=self._ratio[r] / lowest * anchor,
                images_per_s=self.images_per_s(r),
            )
            for r, point in self._points.items()
        )

    def images_per_s(self, r: int) -> float | None:
        """Return the believed saturated throughput at `r`; None before the first batch.

        A degree between two levels (a request's own `max_r`) counts as the next lower one.
        """
        if self._speed is None:
            return None
        if r in self._ratio:
            return self._speed * self._ratio[r]
        below = [degree for degree in self._points if degree <= r]
        return self._speed * self._ratio[below[-1] if below else self.degrees[0]]

    def batch_s(self, r: int, size: int) -> float:
        """Estimate the seconds that a batch takes; 0 while nothing is known."""
        rate = self.images_per_s(r)
        return 0.0 if rate is None else size / rate

    def observe(self, batch: BatchStats) -> None:
        """Learn from a live batch, if it is full enough to say something."""
        if batch.r not in self._points or batch.compute_s <= 0:
            return
        if batch.r != self._last_r:
            # The very first degree has nothing to be compared with: all is the machine's speed.
            self._batches_here = 0 if self._last_r is not None else SWITCH_BATCHES
            self._last_r = batch.r
        rate = batch.size / batch.compute_s
        if self._speed is None:
            self._speed = rate / self._ratio[batch.r]
        if batch.size >= FULL_SHARE * self._full_size(batch.r):
            self._learn(batch.r, rate)

    def _learn(self, r: int, rate: float) -> None:
        expected = self.images_per_s(r) or rate
        step = max(-MAX_STEP, min(MAX_STEP, math.log(rate / expected)))
        if self._batches_here < SWITCH_BATCHES:
            self._ratio[r] *= math.exp(RATIO_WEIGHT * step)
        else:
            self._speed = expected / self._ratio[r] * math.exp(SPEED_WEIGHT * step)
        self._batches_here += 1
        self._points[r] = replace(self._points[r], measured=True)

    def _full_size(self, r: int) -> int:
        """Return how many images a full batch holds at `r`."""
        rate = self.images_per_s(r)
        if rate is None or math.isinf(self._max_batch_s):
            return self._max_batch_size
        return max(1, min(self._max_batch_size, math.ceil(rate * self._max_batch_s)))
