"""Additive increase, multiplicative decrease: Clipper's rule for batches, and for accuracy too.

**The paper.** Clipper (Crankshaw et al., NSDI 2017, section 4.3.1) looks for the largest batch that
keeps a latency objective by feedback alone: the limit grows by a fixed amount until a batch takes
longer than the objective, and is then cut by 10 %. The small cut fits what it adapts to, since a
model's speed hardly changes. Clipper has one model and cannot get faster.

**Ours** dials two limits by the same scheme:

- *Batch size*, as in the paper: a full batch that takes at most half the SLO at the chosen degree
  (an image may have to wait for one batch and ride the next) lets the limit grow by 1; while it
  would take longer, the limit is cut to 0.9 of what it was. Late answers are no reason for smaller
  batches: under overload these would serve less and make more of them late.
- *Accuracy*: how many levels the degree lies below the top one. It grows by one level for each
  `dwell_s` without a miss, and a miss halves it, as in TCP (Chiu and Jain 1989), since load, unlike
  a model's speed, may double at once. A miss is an answer that came late, a request that was shed
  or expired, or one that is foreseen: a waiting image that would be late if the queue were served
  at the present degree.

What answers tell belongs to the time before the last cut until an SLO has passed, so only foreseen
misses count until then. Plain AIMD finds out the hard way, again and again, that the next lower
degree is too slow; this one does not step down to a degree that it believes slower than the
arrivals, with some head-room, nor while recent answers took almost the whole SLO. So a constant
load comes to rest unless durations are misjudged; then it is the saw-tooth that AIMD is known for.
"""

import math

from server.demand import in_time
from server.policy import Decision, nearest
from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint


class AimdPolicy:
    """Give up half of the accuracy that is left on a miss; win it back level by level.

    Args:
        dwell_s: how long there must be no miss before the degree falls by one level.

    Raises:
        ValueError: `dwell_s` is negative.
    """

    BATCH_CUT = 0.9
    ACCURACY_CUT = 0.5
    HEADROOM = 1.15
    """Room that a lower degree must have over the arrival rate."""
    NEAR = 0.9
    """Share of the SLO above which recent answers are too slow to go lower."""

    def __init__(self, *, dwell_s: float = 1.0) -> None:
        if not dwell_s >= 0:
            raise ValueError(f"dwell_s={dwell_s} must not be negative")
        self._dwell_s = dwell_s
        self._limit = 1.0  # of the batch
        self._late: int | None = None  # by the last snapshot
        self._good_since: float | None = None  # no miss and no step since
        self._cut_at = -math.inf

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Count the misses since the last decision; see the module for the rule."""
        levels = tuple(level for level in load.levels if level.pays) or load.levels
        degrees = [level.r for level in levels]
        place = degrees.index(nearest(current_r, levels))
        if self._missed(load, levels, place):
            place, reason = self._cut(load, levels, place)
        else:
            place, reason = self._grow(load, levels, place)
        return Decision(degrees[place], reason, self._batch_limit(load, levels[place]))

    def _missed(self, load: LoadSnapshot, levels: tuple[OperatingPoint, ...], place: int) -> bool:
        """Whether someone was late since the last decision, or will be at the present degree."""
        late = self._late is not None and load.late > self._late
        self._late = load.late
        if late and load.now - self._cut_at >= load.slo_s:
            return True
        return not in_time(levels[place], levels, load.backlog)

    def _cut(
        self, load: LoadSnapshot, levels: tuple[OperatingPoint, ...], place: int
    ) -> tuple[int, str]:
        self._good_since = load.now
        top = len(levels) - 1
        if place == top:
            return place, "saturated"
        self._cut_at = load.now
        return top - math.floor(self.ACCURACY_CUT * (top - place)), "miss"

    def _grow(
        self, load: LoadSnapshot, levels: tuple[OperatingPoint, ...], place: int
    ) -> tuple[int, str]:
        if self._good_since is None:
            self._good_since = load.now
        rested = load.now - self._good_since >= self._dwell_s
        if not (rested and place and self._would_do(load, levels, place - 1)):
            return place, "steady"
        self._good_since = load.now
        return place - 1, "no-miss"

    def _would_do(self, load: LoadSnapshot, levels: tuple[OperatingPoint, ...], place: int) -> bool:
        """Whether a lower degree is not known to be too slow for what waits and what comes."""
        near = load.recent_latency_s is not None and (
            load.recent_latency_s > self.NEAR * load.slo_s
        )
        rate = max(load.arrival_rate, load.steady_rate)
        carries = levels[place].images_per_s >= self.HEADROOM * rate
        return carries and not near and in_time(levels[place], levels, load.backlog)

    def _batch_limit(self, load: LoadSnapshot, level: OperatingPoint) -> int:
        """Return the limit for the next batch, and grow it if that batch will be full."""
        largest = len(level.batch_seconds)
        self._limit = min(self._limit, float(largest))
        while self._limit > 1 and level.batch_s(int(self._limit)) > load.slo_s / 2:
            self._limit = max(1.0, self.BATCH_CUT * self._limit)
        limit = int(self._limit)
        if load.queue_length >= limit:
            self._limit = min(limit + 1.0, float(largest))
        return limit
