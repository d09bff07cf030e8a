"""Queue thresholds with hysteresis: what production systems do, made as good as it gets.

One number stands for the load: how long the waiting images would take from arrival to answer at a
given degree. Above an upper mark the degree rises, at once and as far as needed; once a lower
degree would have stayed below a lower mark for a while, it falls, one level at a time. The policy
knows of queue, rate and the operator's SLO, but not of the single requests' deadlines.
"""

import math

from server.policy import Decision, fastest, nearest
from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint


class ThresholdPolicy:
    """Raise at once and as far as needed; lower one level at a time after a calm while.

    With a predicted latency above `high × SLO` (or recent answers above the SLO) the degree rises
    to the first level that brings the prediction below that mark *and* carries the arrival rate
    with some head-room; with the queue half full it rises to the fastest, for accuracy costs less
    than refusals. It falls by one level once the next lower one would have kept the waiting time
    under `low × SLO` and carried the arrivals with more head-room, for `dwell_s` without a break;
    further levels follow each quarter of that while calm lasts.

    The gap between the two head-rooms is the hysteresis: a constant load ends at one level. If
    a lower level turns out too slow all the same (its throughput was believed too high), the
    next try waits twice as long, up to `PATIENCE` dwell times.

    Args:
        high: share of the SLO above which the degree rises.
        low: share of the SLO below which load counts as calm.
        dwell_s: how long it must be calm before the first level is given back.

    Raises:
        ValueError: the marks leave no gap, or `dwell_s` is negative.
    """

    RAISE_HEADROOM = 1.15
    LOWER_HEADROOM = 1.3
    QUEUE_SHARE = 0.5
    RELAPSE_DWELLS = 5
    PATIENCE = 4
    LATENCY_PAUSE_S = 2.0

    def __init__(self, *, high: float = 0.7, low: float = 0.35, dwell_s: float = 1.0) -> None:
        if not 0 < low < high <= 1:
            raise ValueError(f"expected 0 < low < high <= 1, got low={low}, high={high}")
        if not dwell_s >= 0:
            raise ValueError(f"dwell_s={dwell_s} must not be negative")
        self._high = high
        self._low = low
        self._dwell_s = dwell_s
        self._hold_s = dwell_s
        self._calm_since: float | None = None
        self._raised_at = -math.inf
        self._lowered_at = -math.inf
        self._last_r: int | None = None

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Compare the predicted latency with the marks; see the class for the rule."""
        if current_r != self._last_r:
            # Someone else set the degree (a pin, new bounds): what was calm before says nothing.
            self._calm_since = None
        levels = tuple(level for level in load.levels if level.pays) or load.levels
        here = nearest(current_r, levels)
        current = next(level for level in levels if level.r == here)
        reason = self._overload(load, current)
        if reason is not None:
            decision = self._raise(load, levels, current, reason)
        else:
            decision = self._lower_if_calm(load, levels, current)
        self._last_r = decision.r
        return decision

    def _overload(self, load: LoadSnapshot, current: OperatingPoint) -> str | None:
        """Name what is wrong at the current level, if anything."""
        if self._nearly_full(load) or self._too_slow(load, current):
            return "queue-rising"
        # Answers lag behind the cure: give the last raise time to show in them.
        settled = load.now - self._raised_at >= self.LATENCY_PAUSE_S
        return "latency" if _answers_late(load) and settled else None

    def _raise(
        self,
        load: LoadSnapshot,
        levels: tuple[OperatingPoint, ...],
        current: OperatingPoint,
        reason: str,
    ) -> Decision:
        self._calm_since = None
        higher = [level for level in levels if level.r > current.r]
        enough = (level for level in higher if self._suffices(load, level))
        chosen = next(enough, None) or fastest([current, *higher])
        if chosen is current:
            return Decision(current.r, "saturated")
        if load.now - self._lowered_at < self.RELAPSE_DWELLS * self._dwell_s:
            self._hold_s = min(2 * self._hold_s, self.PATIENCE * self._dwell_s)
        else:
            self._hold_s = self._dwell_s
        self._raised_at = load.now
        return Decision(chosen.r, reason)

    def _nearly_full(self, load: LoadSnapshot) -> bool:
        return load.queue_size is not None and (
            load.queue_length + load.decoding >= self.QUEUE_SHARE * load.queue_size
        )

    def _too_slow(self, load: LoadSnapshot, level: OperatingPoint) -> bool:
        return predicted_latency_s(load, level) > self._high * load.slo_s

    def _suffices(self, load: LoadSnapshot, level: OperatingPoint) -> bool:
        return (
            not self._nearly_full(load)
            and not self._too_slow(load, level)
            and level.images_per_s >= self.RAISE_HEADROOM * load.arrival_rate
        )

    def _lower_if_calm(
        self, load: LoadSnapshot, levels: tuple[OperatingPoint, ...], current: OperatingPoint
    ) -> Decision:
        lower = [level for level in levels if level.r < current.r]
        if not lower or not self._calm(load, lower[-1]):
            self._calm_since = None
            return Decision(current.r, "steady")
        if self._calm_since is None:
            self._calm_since = load.now
        if load.now - self._calm_since < self._hold_s:
            return Decision(current.r, "steady")
        # The calm goes on counting, less a quarter of a dwell time until the next step.
        self._calm_since = load.now - self._hold_s + self._dwell_s / 4
        self._lowered_at = load.now
        return Decision(lower[-1].r, "load-falling")

    def _calm(self, load: LoadSnapshot, lower: OperatingPoint) -> bool:
        """Whether the next lower level would do with ease.

        The image whose turn it is counts as served, not as a queue: on a slow machine a single
        one may take more than the calm share of the SLO. It must not take so long at the lower
        level, though, that it alone would raise the degree again.
        """
        behind = max(0, load.queue_length + load.decoding - 1)
        wait_s = max(load.oldest_wait_s, lower.clear_s(behind))
        return (
            wait_s < self._low * load.slo_s
            and lower.batch_s(1) <= self._high * load.slo_s
            and lower.images_per_s >= self.LOWER_HEADROOM * load.steady_rate
            and not _answers_late(load)
        )


def predicted_latency_s(load: LoadSnapshot, level: OperatingPoint) -> float:
    """Estimate the longest time from arrival to answer of the waiting images at this level.

    The oldest of them rides in the next batch, and the newest waits until all are served.
    """
    coming = load.queue_length + load.decoding
    if not coming:
        return 0.0
    first_s = level.batch_s(min(coming, level.batch_size))
    return max(load.oldest_wait_s + first_s, level.clear_s(coming))


def _answers_late(load: LoadSnapshot) -> bool:
    return load.recent_latency_s is not None and load.recent_latency_s > load.slo_s
