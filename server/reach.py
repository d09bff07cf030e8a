"""What can be reached at present: how fast a request with some limit could be served at best.

The scheduler asks this for every waiting request before every batch, while the answer changes only
with the table of levels, the bounds or a pin. So it is worked out once per change, as arrays that
are indexed by the request's own `max_r`.
"""

import numpy as np

from server.stats import FloatArray, IntArray
from tocom_core.operating_point import OperatingPoint

Levels = tuple[OperatingPoint, ...]


class Reach:
    """The best that can be done for a request, by the highest degree it accepts.

    Args:
        levels: all levels of the model, ascending.
        reachable: those that may be chosen now: within bounds, or the pinned one.
        keeping: those that keep the accuracy floor, for requests that accept less than any
            reachable one.

    Attributes:
        fastest: the reachable level with the highest throughput.
        longest_alone_s: how long one request takes by itself, whatever it accepts.
        below: all levels up to it; a request's limit may lie under every reachable one.
    """

    def __init__(self, levels: Levels, reachable: Levels, keeping: Levels) -> None:
        self.levels = levels
        self.reachable = reachable
        self.keeping = keeping
        self.fastest = max(reachable, key=lambda level: (level.images_per_s, -level.r))
        self.below = tuple(level for level in levels if level.r <= self.fastest.r)
        self._top = levels[-1].r
        self._by_degree = [levels[0]] * (self._top + 1)
        for level in levels:
            self._by_degree[level.r :] = [level] * (self._top + 1 - level.r)
        self._degrees = np.empty(self._top + 1, np.int64)
        self._alone = np.empty(self._top + 1)
        self._fill_in(keeping, 0)
        self._fill_in(reachable, reachable[0].r)
        self._best_s = np.min([level.batch_seconds for level in reachable], axis=0)
        self.longest_alone_s = float(self._alone.max())

    def current(self, levels: Levels, reachable: Levels, keeping: Levels) -> bool:
        """Whether this was made from the same levels."""
        return (self.levels, self.reachable, self.keeping) == (levels, reachable, keeping)

    def alone_s(self, limits: IntArray) -> FloatArray:
        """Return how long each request takes by itself, at the quickest level it accepts."""
        found: FloatArray = self._alone.take(limits, mode="clip")
        return found

    def alone_one_s(self, max_r: int | None) -> float:
        """Return the same for one request."""
        return float(self._alone[self._top if max_r is None else min(max_r, self._top)])

    def degrees(self, limits: IntArray, wanted_r: int) -> IntArray:
        """Return the degree at which each is served while the controller wants `wanted_r`."""
        own = self._degrees.take(limits, mode="clip")
        served: IntArray = np.where(limits >= wanted_r, wanted_r, own)
        return served

    def level(self, r: int) -> OperatingPoint:
        """Return what is known of `r`; between two levels the lower one."""
        return self._by_degree[min(max(r, 0), self._top)]

    def clear_s(self, count: int, max_r: int | None = None) -> float:
        """Return the seconds that so many images take at the best, with this limit."""
        if not count:
            return 0.0
        level = self.fastest
        if max_r is not None and max_r < level.r:
            level = self.level(int(self._degrees[max_r]))
        elif count <= len(self._best_s):
            return float(self._best_s[count - 1])
        return level.clear_s(count)

    def quick(self, count: int) -> Levels:
        """Return the level at which so few images are done first, if it is not the fastest one."""
        if count > self.fastest.batch_size:
            return ()
        best = min(self.reachable, key=lambda level: level.batch_s(count))
        return () if best is self.fastest else (best,)

    def _fill_in(self, levels: Levels, start: int) -> None:
        """Note the best of these levels for every limit from `start` on.

        Limits below the first reachable level keep what is noted of those that keep the floor.
        """
        best, alone_s = levels[0], levels[0].batch_s(1)
        for level in levels:
            if level.images_per_s > best.images_per_s:
                best = level
            alone_s = min(alone_s, level.batch_s(1))
            first = start if level is levels[0] else level.r
            self._degrees[first:] = best.r
            self._alone[first:] = alone_s
