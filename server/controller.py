"""Who decides the degree: the policy, or an operator's pin.

The controller stands between the load and the batcher. It holds the mode, the bounds and the
table of levels, asks the policy, and answers `next_r` before each batch. The wiring also calls
`next_r` a few times a second, so that the degree comes back down without traffic. Everything
runs on the event loop; there are no locks.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from server.clock import Clock
from server.errors import BadParameter
from server.levels import LevelTable
from server.policy import Policy
from server.stats import BatchStats, LoadSnapshot, SwitchStats, notify
from tocom_core.operating_point import OperatingPoint

logger = logging.getLogger(__name__)

Mode = Literal["auto", "pinned"]


@dataclass(frozen=True, slots=True)
class DegreeChange:
    """The controller's last change of mind; `age_s` seconds ago."""

    r_from: int
    r_to: int
    reason: str
    age_s: float


@dataclass(frozen=True, slots=True)
class ControllerStatus:
    """What `GET /compression` shows.

    `r` is the degree that the next batch will have, save for requests with a lower `max_r` of
    their own; `allowed` are the degrees that the policy may choose from at present.
    """

    mode: Mode
    r: int
    r_source: int
    min_r: int
    max_r: int
    pinned_ttl_s: float | None
    last_change: DegreeChange | None
    levels: tuple[OperatingPoint, ...]
    allowed: tuple[int, ...]


class Controller:
    """Mode, pins, bounds and the present degree.

    Args:
        policy: decides in mode `auto`.
        levels: what is known of each degree; refreshed by `observe_batch`.
        r_source: the degree of the checkpoint; where the controller rests without load.
        clock: seconds, monotonic.
        slo_s: the latency to keep.
        max_r: the policy never goes above it; None means the highest level.
        min_accuracy: the policy avoids levels whose expected accuracy is known and lower.
        on_switch: called for each change of the live weights.

    Raises:
        BadParameter: bounds or accuracy floor leave no level.
    """

    def __init__(
        self,
        policy: Policy,
        levels: LevelTable,
        r_source: int,
        clock: Clock,
        *,
        slo_s: float,
        max_r: int | None = None,
        min_accuracy: float | None = None,
        on_switch: Sequence[Callable[[SwitchStats], None]] = (),
    ) -> None:
        self._policy = policy
        self._levels = levels
        self._r_source = r_source
        self._clock = clock
        self._slo_s = slo_s
        self._min_accuracy = min_accuracy
        self._on_switch = on_switch
        lowest, highest = levels.degrees[0], levels.degrees[-1]
        self._max_r = highest if max_r is None else max_r
        self._min_r = min(max(r_source, lowest), self._max_r)
        self._check_bounds(self._min_r, self._max_r)
        self._pinned = False
        self._pinned_until: float | None = None
        self._r = self._allowed()[0].r
        self._reason = "start"
        self._last_change: DegreeChange | None = None
        self._changed_at = 0.0
        self._last_batch: BatchStats | None = None

    def next_r(self, load: LoadSnapshot) -> int:
        """Return the degree for the next batch under this load."""
        self._end_pin_if_due()
        if not self._pinned:
            levels = self._allowed()
            here = _nearest(self._r, levels)
            load = replace(load, slo_s=self._slo_s, levels=levels)
            decision = self._policy.decide(load, here)
            self._move(decision.r, decision.reason)
        return self._r

    def pin(self, r: int, ttl_s: float | None = None) -> None:
        """Hold the degree at `r`, for `ttl_s` seconds or until `auto`.

        It is the operator's word: neither the bounds nor the accuracy floor apply.

        Raises:
            BadParameter: the model has no such degree, or the time is not positive.
        """
        self._check_degree(r)
        if ttl_s is not None and not 0 < ttl_s < float("inf"):
            raise BadParameter(f"ttl_s={ttl_s} must be a positive number of seconds")
        self._pinned = True
        self._pinned_until = None if ttl_s is None else self._clock() + ttl_s
        self._move(r, "pinned")

    def auto(self) -> None:
        """Hand the degree back to the policy, which starts from where it is."""
        self._release("auto")

    def bound(self, min_r: int | None = None, max_r: int | None = None) -> None:
        """Bound what the policy may choose; None leaves that bound as it is.

        Raises:
            BadParameter: not a degree of the model, the wrong way round, or no level is left
                above the accuracy floor.
        """
        low = self._min_r if min_r is None else min_r
        high = self._max_r if max_r is None else max_r
        self._check_bounds(low, high)
        self._min_r, self._max_r = low, high
        if not self._pinned:
            self._move(_nearest(self._r, self._allowed()), "bounds")

    def observe_batch(self, batch: BatchStats) -> None:
        """Learn from a batch: its throughput, and whether the live weights were switched."""
        self._levels.observe(batch)
        before, self._last_batch = self._last_batch, batch
        r_before = self._r_source if before is None else before.r
        if batch.r == r_before:
            return
        limited = batch.limited or (before is not None and before.limited)
        reason = "request-limit" if limited else self._reason
        switch = SwitchStats(r_before, batch.r, reason, batch.merge_s, batch.started_at)
        notify(self._on_switch, switch)

    def estimate_batch_s(self, r: int, size: int) -> float:
        """Estimate the seconds that a batch takes; 0 while nothing is known."""
        return self._levels.batch_s(r, size)

    def status(self) -> ControllerStatus:
        """Return the present state; a pin whose time is over is already gone from it."""
        self._end_pin_if_due()
        now = self._clock()
        change = self._last_change
        return ControllerStatus(
            mode="pinned" if self._pinned else "auto",
            r=self._r,
            r_source=self._r_source,
            min_r=self._min_r,
            max_r=self._max_r,
            pinned_ttl_s=None if self._pinned_until is None else self._pinned_until - now,
            last_change=change and replace(change, age_s=now - self._changed_at),
            levels=self._levels.points(),
            allowed=tuple(level.r for level in self._allowed()),
        )

    def _allowed(self) -> tuple[OperatingPoint, ...]:
        return self._between(self._min_r, self._max_r)

    def _between(self, low: int, high: int) -> tuple[OperatingPoint, ...]:
        """Return the levels within bounds that keep the accuracy floor."""
        return tuple(
            level
            for level in self._levels.points()
            if low <= level.r <= high and self._accurate(level)
        )

    def _accurate(self, level: OperatingPoint) -> bool:
        if self._min_accuracy is None or level.expected_accuracy is None:
            return True
        return level.expected_accuracy >= self._min_accuracy

    def _end_pin_if_due(self) -> None:
        if self._pinned_until is not None and self._clock() >= self._pinned_until:
            self._release("pin-expired")

    def _release(self, reason: str) -> None:
        self._pinned = False
        self._pinned_until = None
        self._move(_nearest(self._r, self._allowed()), reason)

    def _move(self, r: int, reason: str) -> None:
        if r == self._r:
            return
        logger.info("r %d -> %d (%s)", self._r, r, reason)
        self._last_change = DegreeChange(self._r, r, reason, age_s=0.0)
        self._changed_at = self._clock()
        self._r, self._reason = r, reason

    def _check_degree(self, r: int) -> None:
        degrees = self._levels.degrees
        if r not in degrees:
            known = f"{degrees[0]} to {degrees[-1]}"
            if len(degrees) != degrees[-1] - degrees[0] + 1:
                known = ", ".join(map(str, degrees))
            raise BadParameter(f"r={r} is no degree of this model; it has {known}")

    def _check_bounds(self, low: int, high: int) -> None:
        lowest, highest = self._levels.degrees[0], self._levels.degrees[-1]
        for name, value in (("min_r", low), ("max_r", high)):
            if not lowest <= value <= highest:
                raise BadParameter(f"{name}={value} must lie from {lowest} to {highest}")
        if low > high:
            raise BadParameter(f"min_r={low} lies above max_r={high}; set both or swap them")
        if not self._between(low, high):
            raise BadParameter(
                f"no degree from {low} to {high} is expected to reach the accuracy floor "
                f"min_accuracy={self._min_accuracy}; lower the floor or widen the bounds"
            )


def _nearest(r: int, levels: Sequence[OperatingPoint]) -> int:
    """Return the allowed degree closest to `r`, the lower one of two."""
    return min((level.r for level in levels), key=lambda degree: (abs(degree - r), degree))
