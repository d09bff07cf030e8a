"""The default policy: the lowest degree that meets the demand, raised at once, lowered with care.

Two questions decide whether a degree suffices. *Can it serve who waits?* Every waiting image,
taken in order of service, must be done `margin` before it is due (`demand.in_time`). *Can it serve
who will come?* The waiting images and those that the arrival rate foretells for the next
`HORIZON_S` must be done `margin` before the last of those is due:

    queue + rate · horizon ≤ throughput(r) · (horizon + SLO − margin)

**The margin** is room for what nobody foresees, and grows with the load: with `fill`, the images
that wait or are decoded over those that the lowest degree serves within the SLO,

    margin = SLO · max(MARGIN + spread, STEEPNESS · (fill − CALM + spread))

and `spread` is by how much batch durations miss what is believed of them (0.05 on a quiet machine,
0.25 where clients and neighbours share the processors): what cannot be foretold needs more room.
Who waits has to leave that share of a batch besides.

A queue that is short gets shorter by itself more often than not, so compressing for its sake is
mostly in vain; one that has grown is the sign of a burst, and bursts go on. So the degree stays low
for longer than any constant margin would let it, and then rises steeply: with the throughput of
r=16 at 1.8 times that of r=0 and a spread of 0.05, from the lowest to the highest between a fill of
0.61 and of 0.73. That is the form that the optimal control of a queue with a choice of speeds has
(Crabill 1972, George and Harrison 2001: the speed rises with the queue).

Raising is immediate. Lowering is damped: a lower degree must carry the arrivals of the last
seconds itself, with some room and next to no queue, and have done so for `dwell_s`. The gap between
the two rules is the hysteresis that lets a constant load settle. Remembering what was needed costs
more than it wins: what a burst needed says little of what comes after it, and raising again takes
but one batch.
"""

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from server.demand import in_time
from server.policy import Decision, nearest
from server.stats import LoadSnapshot
from tocom_core.operating_point import OperatingPoint

Levels = tuple[OperatingPoint, ...]
Suffices = Callable[[OperatingPoint], bool]

NEARLY = 0.7
"""In overload the highest level is taken that is believed to have so much of the best throughput.

A degree that was visited only in a bad moment is believed to be slow, and would never be again.
"""


class DemandPolicy:
    """The lowest degree that serves the waiting and the expected images in time.

    Args:
        dwell_s: for how long a lower degree must have sufficed before it is taken.
    """

    HORIZON_S = 0.5
    """As far as the arrival rate of the last moments is trusted."""
    LOWER_SHARE = 0.3
    """Share of the SLO that the queue may fill for a lower degree to count as sufficient."""
    LOWER_ROOM = 0.05
    """Share of the arrival rate that a lower degree must have to spare; more where batch durations
    spread more, for that is how far its believed throughput may be off."""
    MARGIN = 0.05
    """Share of the SLO that is always kept back, for the way out and for what comes between."""
    CALM = 0.43
    """Up to this fill nothing is kept back for a burst."""
    STEEPNESS = 1.7
    """How fast what is kept back grows with the fill."""
    MOST = 0.8
    """Share of the SLO that is kept back at most; a batch takes the rest."""

    def __init__(self, *, dwell_s: float = 0.0) -> None:
        if not dwell_s >= 0:
            raise ValueError(f"dwell_s={dwell_s} must not be negative")
        self._dwell_s = dwell_s
        self._started_at: float | None = None
        self._needed: deque[tuple[float, int]] = deque()  # falling degrees: a sliding maximum
        self._place = 0  # among the candidates of the last decision

    def decide(self, load: LoadSnapshot, current_r: int) -> Decision:
        """Compare demand and throughput of the levels; see the module for the rule."""
        levels = tuple([level for level in load.levels if level.pays]) or load.levels
        here = nearest(current_r, levels)
        hurried = self._hurried(load)
        enough = self._enough(load, levels, hurried)
        if enough is None:
            self._remember(load.now, levels[-1].r)
            return self._hurry(load, levels, here)
        faster = [level for level in levels if level.r >= enough.r]
        needed = self._roomy(load, faster, hurried)
        self._remember(load.now, needed.r)
        if enough.r > here:
            return Decision(enough.r, "demand-rising")
        floor = self._needed[0][1]
        if floor < here and load.now - (self._started_at or 0.0) >= self._dwell_s:
            return Decision(nearest(floor, levels), "demand-falling")
        return Decision(here, "steady")

    def _hurry(self, load: LoadSnapshot, levels: Levels, here: int) -> Decision:
        """Take the level that is done first: none leaves as much time as there should be."""
        level = _quickest(load, levels)
        if level.r == here:
            return Decision(here, "steady")
        rising = in_time(level, levels, load.backlog)
        return Decision(level.r, "demand-rising" if rising else "overload")

    def _enough(self, load: LoadSnapshot, levels: Levels, hurried: int) -> OperatingPoint | None:
        """Return the first level that serves who waits and who will come; None if none does."""
        coming = hurried + load.arrival_rate * self.HORIZON_S
        margin_s = self._margin_s(load, hurried, levels[0])
        until_s = self.HORIZON_S + load.slo_s - margin_s
        candidates = [level for level in levels if level.images_per_s * until_s >= coming]

        def suffices(level: OperatingPoint) -> bool:
            doubt_s = load.spread * level.batch_seconds[level.batch_size - 1]
            return in_time(level, levels, load.backlog, margin_s + doubt_s)

        self._place = first_sufficient(candidates, suffices, self._place)
        return candidates[self._place] if self._place < len(candidates) else None

    def _hurried(self, load: LoadSnapshot) -> int:
        """Count the images that must be done before those that come until the horizon."""
        soon_s = self.HORIZON_S + load.slo_s
        return int(np.count_nonzero(load.backlog.slack_s <= soon_s)) + load.decoding

    def _margin_s(self, load: LoadSnapshot, images: int, lowest: OperatingPoint) -> float:
        """Return how long before they are due the waiting images shall be done."""
        fill = images / (lowest.images_per_s * load.slo_s)
        least, burst = self.MARGIN + load.spread, fill - self.CALM + load.spread
        share = max(least, self.STEEPNESS * burst)
        return min(share, self.MOST) * load.slo_s + load.switch_s

    def _roomy(
        self, load: LoadSnapshot, levels: Sequence[OperatingPoint], hurried: int
    ) -> OperatingPoint:
        """Return the first level that suffices with room, or the last one."""
        rate = (1 + max(self.LOWER_ROOM, load.spread)) * load.steady_rate
        time_s = self.LOWER_SHARE * load.slo_s
        for level in levels:
            speed = level.images_per_s
            # One batch is no queue: it is what comes while the one before it is computed.
            if speed >= rate and speed * time_s >= hurried - level.batch_size:
                return level
        return levels[-1]

    def _remember(self, now: float, r: int) -> None:
        """Note which degree was needed, and forget what is older than the dwell time."""
        if self._started_at is None:
            self._started_at = now
        while self._needed and self._needed[-1][1] <= r:
            self._needed.pop()
        self._needed.append((now, r))
        while self._needed[0][0] < now - self._dwell_s:
            self._needed.popleft()


def first_sufficient(levels: Sequence[OperatingPoint], suffices: Suffices, hint: int) -> int:
    """Return the place of the first level that suffices; their number if none does.

    Faster levels finish sooner, so bisection finds it. Under steady load it is the one of the last
    decision: that place and its neighbour are tried first.
    """
    low, high, tried = 0, len(levels), 0
    while low < high:
        place = min(max(low, hint), high - 1) if tried < 2 else (low + high) // 2
        tried += 1
        if suffices(levels[place]):
            high, hint = place, place - 1
        else:
            low, hint = place + 1, place + 1
    return low


def _quickest(load: LoadSnapshot, levels: Levels) -> OperatingPoint:
    """Return the level at which the queue is done first.

    With a queue of at least a batch it is the highest one that is nearly as fast as the fastest:
    it has the least work, so if it does not come first then by a wrong belief, which only a visit
    can mend.
    """
    count = max(1, load.queue_length)

    first = min(levels, key=lambda level: level.clear_s(count))
    if load.queue_length and count < first.batch_size:
        return first
    nearly = [level for level in levels if level.images_per_s >= NEARLY * first.images_per_s]
    return nearly[-1]
