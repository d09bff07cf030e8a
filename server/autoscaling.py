"""How many replicas there should be: the rule of Kubernetes' autoscaler, as a function.

The autoscaler looks at its signal every so often (15 s) and wants

    ceil(replicas × mean of the signal ÷ target)

unless the ratio is within a tolerance (10 %) of 1. Replicas that tell nothing yet are reckoned with
so that the change is the smaller: where more are wanted they count as idle, and where fewer are
wanted those that should tell something count as just at the target. Then two brakes: of what was
wanted within a stabilisation window (down: 300 s, up: none) the least change is taken, and a limit
on how much may be changed within a period (up: 4 replicas or 100 % within 15 s, whichever is more;
down: 100 %). The numbers in brackets are Kubernetes' defaults, and ours.

Source: Kubernetes documentation, *Horizontal Pod Autoscaling*, sections "Algorithm details" and
"Configurable scaling behavior" (autoscaling/v2). Time is an argument; nothing here knows a clock,
a server or a cluster.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

TOLERANCE = 0.1
_ROUNDING = 1e-9
"""0.3 / 0.1 is a little more than 3 in floating point, and no reason for a fourth replica."""


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most so much change within the last `period_s`.

    Attributes:
        kind: `replicas`, or `percent` of those that there were at the period's start.
        value: how many.
        period_s: seconds.
    """

    kind: Literal["replicas", "percent"]
    value: float
    period_s: float

    def change(self, replicas: int) -> int:
        """Return how many of so many may come or go; parts of one count whole."""
        share = self.value if self.kind == "replicas" else replicas * self.value / 100
        return math.ceil(share - _ROUNDING)


@dataclass(frozen=True, slots=True)
class ScalingRules:
    """What an autoscaler is told.

    Attributes:
        target: the mean of the signal that there should be.
        min_replicas: never fewer.
        max_replicas: never more.
        tolerance: a ratio of signal and target that is no further from 1 changes nothing.
        up_window_s: of what was wanted in so long the least is taken, where more is wanted.
        down_window_s: of what was wanted in so long the most is taken, where fewer are wanted.
        up_limits: the one that allows most counts; none means no limit.
        down_limits: likewise.

    Raises:
        ValueError: a target that is not positive, or limits the wrong way round.
    """

    target: float
    min_replicas: int = 1
    max_replicas: int = 10
    tolerance: float = TOLERANCE
    up_window_s: float = 0.0
    down_window_s: float = 300.0
    up_limits: tuple[RateLimit, ...] = (
        RateLimit("replicas", 4, 15),
        RateLimit("percent", 100, 15),
    )
    down_limits: tuple[RateLimit, ...] = (RateLimit("percent", 100, 15),)

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 < self.target < math.inf:
            raise ValueError(f"target={self.target:g}: expected more than 0")
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ValueError(
                f"min_replicas={self.min_replicas}, max_replicas={self.max_replicas}: expected at "
                "least 1 and no more than the most"
            )


@dataclass(frozen=True, slots=True)
class Readings:
    """What the signal says of the replicas that are there.

    Attributes:
        values: of those that tell something.
        missing: how many should tell something and do not.
        unready: how many are not expected to: they start still.
    """

    values: Sequence[float]
    missing: int = 0
    unready: int = 0


def wanted_replicas(current: int, readings: Readings, rules: ScalingRules) -> int:
    """Return how many replicas the signal asks for, before any brake.

    Args:
        current: how many were asked for so far.
        readings: of these.
        rules: target and tolerance.
    """
    count, total = len(readings.values), math.fsum(readings.values)
    if not count:
        return current
    first = ratio = total / count / rules.target
    if first > 1:
        count += readings.missing + readings.unready
    elif first < 1:
        count += readings.missing
        total += readings.missing * rules.target
    if count > len(readings.values):
        ratio = total / count / rules.target
    turned = (first - 1) * (ratio - 1) < 0
    if turned or abs(ratio - 1) <= rules.tolerance + _ROUNDING:
        return current
    wanted = math.ceil(ratio * count - _ROUNDING)
    return max(current, wanted) if ratio > 1 else min(current, wanted)


class Autoscaler:
    """Decides every so often how many replicas there should be.

    Args:
        rules: what it is told.
    """

    def __init__(self, rules: ScalingRules) -> None:
        self.rules = rules
        self._wanted: deque[tuple[float, int]] = deque()
        self._changes: deque[tuple[float, int]] = deque()

    def decide(self, now: float, current: int, readings: Readings) -> int:
        """Return how many there should be from now on.

        Args:
            now: seconds; never less than the last time.
            current: how many were asked for so far, those that start included.
            readings: of these.
        """
        rules = self.rules
        self._forget(now)
        self._wanted.append((now, wanted_replicas(current, readings, rules)))
        steady = self._stabilised(now, current)
        if steady > current:
            steady = min(steady, self._most(now, current))
        elif steady < current:
            steady = max(steady, self._fewest(now, current))
        chosen = min(max(steady, rules.min_replicas), rules.max_replicas)
        if chosen != current:
            self._changes.append((now, chosen - current))
        return chosen

    def _stabilised(self, now: float, current: int) -> int:
        """Move no further from where it is than everything wanted within the window asks for."""
        floor = min(self._within(now, self.rules.up_window_s))
        ceiling = max(self._within(now, self.rules.down_window_s))
        return min(max(current, floor), ceiling)

    def _within(self, now: float, window_s: float) -> list[int]:
        """Return what was wanted of late; what is wanted now is always among it."""
        return [wanted for at, wanted in self._wanted if at == now or at > now - window_s]

    def _most(self, now: float, current: int) -> int:
        """Return how many the limits on growth allow."""
        limits = self.rules.up_limits
        ends = [self._limit(now, current, limit, 1) for limit in limits]
        return max(ends, default=self.rules.max_replicas)

    def _fewest(self, now: float, current: int) -> int:
        """Return down to how many the limits on shrinking allow."""
        limits = self.rules.down_limits
        ends = [self._limit(now, current, limit, -1) for limit in limits]
        return min(ends, default=self.rules.min_replicas)

    def _limit(self, now: float, current: int, limit: RateLimit, sign: int) -> int:
        """Return the end of the change that one limit allows, counted from its period's start."""
        changes = [change for at, change in self._changes if at > now - limit.period_s]
        begun = current - sum(change for change in changes if change * sign > 0)
        return begun + sign * limit.change(begun)

    def _forget(self, now: float) -> None:
        """Let go of what no window reaches any more."""
        rules = self.rules
        window_s = max(rules.up_window_s, rules.down_window_s)
        periods_s = [limit.period_s for limit in (*rules.up_limits, *rules.down_limits)]
        for kept, reach_s in ((self._wanted, window_s), (self._changes, max(periods_s, default=0))):
            while kept and kept[0][0] <= now - reach_s:
                kept.popleft()
