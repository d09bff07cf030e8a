"""Which degree the next batch should have: a decision from a snapshot, with no side effects.

A policy knows the load and the levels it may choose from, and nothing of weights, queues or
HTTP; it keeps at most a memory of its own earlier decisions. Whoever wants another behaviour
writes another `Policy`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint

WORTHWHILE = 1.01
"""A degree counts as faster than a lower one from this factor on."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A degree and why: a stable slug such as `queue-rising` or `steady`."""

    r: int
    reason: str


class Policy(Protocol):
    """Decides before each batch, and a few times a second while there is none."""

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Choose one of `load.levels`, which is never empty and holds `current_r`."""
        ...


class StaticPolicy:
    """Always the same degree, or the nearest one that is allowed."""

    def __init__(self, r: int) -> None:
        self._r = r

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Return the fixed degree, whatever the load."""
        nearest = min(load.levels, key=lambda level: (abs(level.r - self._r), level.r))
        return Decision(nearest.r, "static")


class ThresholdPolicy:
    """Raise at once and as far as needed; lower one level at a time after a calm while.

    The predicted wait at a level is `oldest wait + queue / throughput(level)`. Above
    `high x SLO` (or with recent answers above the SLO) the degree rises to the first level that
    drains the queue below that mark *and* carries the arrival rate with some head-room; with
    the queue half full it rises to the fastest, for accuracy costs less than refusals. It falls
    by one level once the next lower one would have kept the prediction under `low x SLO` and
    carried the arrivals with more head-room, for `dwell_s` without a break; further levels
    follow each quarter of that while calm lasts.

    The gap between the two head-rooms is the hysteresis: a constant load ends at one level. If
    a lower level turns out too slow all the same (its throughput was believed too high), the
    next try waits twice as long, up to `PATIENCE` dwell times.

    Args:
        high: share of the SLO above which the degree rises.
        low: share of the SLO below which load counts as calm.
        dwell_s: how long it must be calm before the first level is given back.
    """

    RAISE_HEADROOM = 1.15
    LOWER_HEADROOM = 1.3
    QUEUE_SHARE = 0.5
    RELAPSE_DWELLS = 5
    PATIENCE = 4
    LATENCY_PAUSE_S = 2.0

    def __init__(self, *, high: float = 0.7, low: float = 0.35, dwell_s: float = 2.0) -> None:
        if not 0 < low < high <= 1:
            raise ValueError(f"expected 0 < low < high <= 1, got low={low}, high={high}")
        self._high = high
        self._low = low
        self._dwell_s = dwell_s
        self._hold_s = dwell_s
        self._calm_since: float | None = None
        self._raised_at = -float("inf")
        self._lowered_at = -float("inf")
        self._last_r: int | None = None

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Compare the predicted wait with the SLO; see the class for the rule."""
        if current_r != self._last_r:
            # Someone else set the degree (a pin, new bounds): what was calm before says nothing.
            self._calm_since = None
        current = next(level for level in load.levels if level.r == current_r)
        reason = self._overload(load, current)
        if reason is not None:
            decision = self._raise(load, current, reason)
        else:
            decision = self._lower_if_calm(load, current)
        self._last_r = decision.r
        return decision

    def _overload(self, load: LoadSnapshot, current: OperatingPoint) -> str | None:
        """Name what is wrong at the current level, if anything."""
        if load.queue_length and predicted_wait_s(load, current) > self._high * load.slo_s:
            return "queue-rising"
        if self._nearly_full(load):
            return "queue-rising"
        # Answers lag behind the cure: give the last raise time to show in them.
        settled = load.now - self._raised_at >= self.LATENCY_PAUSE_S
        late = load.recent_latency_s is not None and load.recent_latency_s > load.slo_s
        return "latency" if late and settled else None

    def _raise(self, load: LoadSnapshot, current: OperatingPoint, reason: str) -> Decision:
        self._calm_since = None
        faster = frontier(load.levels, above=current)
        if not faster:
            return Decision(current.r, "saturated")
        if load.now - self._lowered_at < self.RELAPSE_DWELLS * self._dwell_s:
            self._hold_s = min(2 * self._hold_s, self.PATIENCE * self._dwell_s)
        else:
            self._hold_s = self._dwell_s
        self._raised_at = load.now
        enough = (level for level in faster if self._suffices(load, level))
        return Decision(next(enough, faster[-1]).r, reason)

    def _nearly_full(self, load: LoadSnapshot) -> bool:
        return bool(load.queue_size) and (
            load.queue_length >= self.QUEUE_SHARE * (load.queue_size or 0)
        )

    def _suffices(self, load: LoadSnapshot, level: OperatingPoint) -> bool:
        return (
            not self._nearly_full(load)
            and predicted_wait_s(load, level) <= self._high * load.slo_s
            and carries(level, self.RAISE_HEADROOM * load.arrival_rate)
        )

    def _lower_if_calm(self, load: LoadSnapshot, current: OperatingPoint) -> Decision:
        lower = [level for level in frontier(load.levels) if level.r < current.r]
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
        late = load.recent_latency_s is not None and load.recent_latency_s > load.slo_s
        behind = replace(load, queue_length=max(0, load.queue_length - 1))
        calm = predicted_wait_s(behind, lower) < self._low * load.slo_s
        alone = replace(load, queue_length=1, oldest_wait_s=0.0)
        stays = predicted_wait_s(alone, lower) <= self._high * load.slo_s
        carried = carries(lower, self.LOWER_HEADROOM * load.arrival_rate)
        return calm and stays and carried and not late


def predicted_wait_s(load: LoadSnapshot, level: OperatingPoint) -> float:
    """Estimate how long the queue's last image will have waited when `level` has served it."""
    if not level.images_per_s:
        return load.oldest_wait_s
    return load.oldest_wait_s + load.queue_length / level.images_per_s


def carries(level: OperatingPoint, images_per_s: float) -> bool:
    """Whether the level serves that rate; an unmeasured level is taken at its word."""
    return level.images_per_s is None or level.images_per_s >= images_per_s


def frontier(
    levels: Sequence[OperatingPoint], above: OperatingPoint | None = None
) -> list[OperatingPoint]:
    """Return the levels that are faster than every lower one, ascending.

    More compression is worth its accuracy only if it brings speed. At batch 1 a small `r` can
    be slower than none; such a level is never chosen. With `above`, only levels that are higher
    and faster than that one count.
    """
    chosen: list[OperatingPoint] = []
    fastest = 0.0 if above is None else above.relative_throughput * WORTHWHILE
    for level in levels:
        if above is not None and level.r <= above.r:
            continue
        if level.relative_throughput >= fastest:
            chosen.append(level)
            fastest = level.relative_throughput * WORTHWHILE
    return chosen
