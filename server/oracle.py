"""How well could anybody have served these arrivals, had they known them all? An upper bound.

The bound is that of an easier problem, into which every real schedule (batched, not interrupted,
in any order, at any degrees) can be translated without losing an answer. Hence no schedule does
better than the easier problem's optimum, which `work_filling` finds exactly.

**The easier problem.** One machine works on images singly, may interrupt them, and may serve
fractions. Image `i` can be worked on from `release_i` (when it joins the queue) until `due_i`
(when its batch must end for the answer to be in time). Serving it at degree `r` takes `work_i(r)`
seconds and is worth the accuracy expected at `r`; mixtures of degrees are allowed.

**Why every real schedule translates** (images answered too late are left out, which only frees
time; "batch" below means one with at least one image that is in time, and `b` counts those):

1. A batch of `b` such images at `r` keeps its machine busy for at least `latency(r, b)`; give each
   of them an equal part of that time. All of it lies in all their windows: the batch began after
   the last of them had joined, and ended before the first was due. So each image receives
   `latency(r, b) / b` seconds inside its own window, and no moment is given twice.
2. The images of one batch had joined at its start, and none was due before its end, so with a
   common SLO they came within `SLO − overheads − latency(r, b)` of each other. `work_i(r)` is the
   least `latency(r, b) / b` over those `b` for which `i` has that much company. A degree that is
   too slow even alone is out.
3. Less work than there is room for is no harm, so `work_i(r)` fits too.
4. N servers with their queues are no better than one machine N times as fast, and neither are N
   lanes that share out batches: each part of a batch is such a batch on its lane. A single image
   that gets all lanes takes the time of all of them.

**Interference.** Where each arrival `k` lengthens the batch that is running by `δ`, an image that
is served is charged `δ` of extra work from its arrival on, unless the next arrival follows within
`δ`; in return each batch is believed `δ` shorter. That translates too. Either `k` met a running
batch: then the batch's last `δ` seconds per such arrival are spent on it. Or the machine was
idle, and remained so until the next arrival (at least `δ` of idle time), or until a batch began:
one such arrival a batch, which is what the batch's own `δ` pays for. As the extra work starts
before the image has joined, releases are then the arrivals themselves.

A schedule's own slow-downs, switches and failed guesses only cost it time, so the bound holds
with them. It does not hold draw by draw where batches are randomly *faster* than the profile.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from server.stats import NO_LIMIT, FloatArray, IntArray
from server.work_filling import Filling, Offer, WorkWindows

FloatMatrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]

SERVE_ALL = 1e6
"""A bonus beside which no accuracy counts."""
SEARCH_STEPS = 60
COMPANY_STEP = 1.01
"""Images whose work differs by less than this factor are taken together, at the least of it."""
TINY_S = 1e-9


@dataclass(frozen=True, slots=True)
class OracleMachine:
    """What the machine can do, all in seconds.

    Attributes:
        batch_seconds: per degree, the durations of batches of 1, 2, … images.
        accuracy: per degree, the expected accuracy (0 to 1); degrees without one are not used.
        servers: how many such machines there are.
        before_queue_s: from an image's arrival until it joins the queue.
        after_batch_s: from the end of a batch until its answers are at the client.
        interference_s: how much an arrival lengthens the batch that is running.
        lanes: between how many each machine shares out a batch; see `Machine.lanes`.
    """

    batch_seconds: Mapping[int, Sequence[float]]
    accuracy: Mapping[int, float]
    servers: int = 1
    before_queue_s: float = 0.0
    after_batch_s: float = 0.0
    interference_s: float = 0.0
    lanes: int = 1


@dataclass(slots=True)
class OfflineBound:
    """What no schedule of these arrivals can surpass.

    Made by `offline_bound`; every answer is computed when first asked for, and kept.
    """

    offered: int
    _windows: WorkWindows | None
    _offers: Sequence[Sequence[Offer]]
    _known: dict[float, Filling] = field(default_factory=dict)

    def attainment(self) -> float:
        """Return the highest possible share of the offered images answered within the SLO."""
        return self._fill(SERVE_ALL).served / self.offered

    def correct_share(self) -> float:
        """Return the highest possible on-time-and-correct ÷ offered."""
        return self._fill(0.0).value / self.offered

    def accuracy_at(self, attainment: float) -> float:
        """Return the highest possible mean accuracy of exactly that share answered in time.

        A share above the highest possible one counts as that one. NaN where nothing is served.

        The best value at a given number served is the lower envelope of lines, one per bonus
        `λ`: value(served) ≤ max over schedules of (value + λ · served) − λ · served. The search
        goes to the crossing of two known lines until no schedule lies above it; whichever bonus
        it ends at, the line is a bound (weak duality).
        """
        most = self._fill(SERVE_ALL)
        wanted = min(attainment * self.offered, most.served)
        if wanted <= 0:
            return math.nan
        low, high = Filling(0.0, 0.0), most
        bound = most.value if wanted >= most.served else math.inf
        for _ in range(SEARCH_STEPS):
            if high.served - low.served <= TINY_S * self.offered:
                break
            bonus = (low.value - high.value) / (high.served - low.served)
            found = self._fill(bonus)
            line = found.value + bonus * found.served
            bound = min(bound, line - bonus * wanted)
            if line <= low.value + bonus * low.served + TINY_S * self.offered:
                break
            low, high = (found, high) if found.served <= wanted else (low, found)
        return bound / wanted

    def _fill(self, bonus: float) -> Filling:
        if self._windows is None:
            return Filling(0.0, 0.0)
        if bonus not in self._known:
            self._known[bonus] = self._windows.fill(self._offers, bonus)
        return self._known[bonus]


def offline_bound(
    arrivals_s: Sequence[float],
    machine: OracleMachine,
    slo_s: float,
    max_r: Sequence[int | None] | None = None,
) -> OfflineBound:
    """Bound what any schedule can make of these arrivals.

    Args:
        arrivals_s: when each image is sent; any order.
        machine: what serves them.
        slo_s: the latency promised, from the arrival to the answer at the client.
        max_r: the highest degree that each accepts, in the order of `arrivals_s`; None: any.

    Raises:
        ValueError: no arrivals, a time that is not finite, or lengths that do not fit.
    """
    arrival_s = np.asarray(arrivals_s, np.float64)
    if not len(arrival_s) or not np.all(np.isfinite(arrival_s)):
        raise ValueError("expected at least one arrival, and only finite times")
    limits = np.full(len(arrival_s), NO_LIMIT, np.int64)
    if max_r is not None:
        if len(max_r) != len(arrival_s):
            raise ValueError(f"expected {len(arrival_s)} values of max_r, got {len(max_r)}")
        limits = np.array([NO_LIMIT if r is None else r for r in max_r], np.int64)
    order = np.argsort(arrival_s, kind="stable")
    return _bound(arrival_s[order], limits[order], machine, slo_s)


def _bound(
    arrival_s: FloatArray, limits: IntArray, machine: OracleMachine, slo_s: float
) -> OfflineBound:
    degrees = sorted(machine.batch_seconds.keys() & machine.accuracy.keys())
    parts = {r: _parts(machine.batch_seconds[r], machine.lanes) for r in degrees}
    budget_s = slo_s - machine.before_queue_s - machine.after_batch_s
    degrees = [r for r in degrees if parts[r].latency_s[0] <= budget_s]
    if not degrees:
        return OfflineBound(len(arrival_s), None, ())
    charge_s = min(machine.interference_s, min(parts[r].latency_s[0] for r in degrees) / 2)
    columns = [_work_s(arrival_s, parts[r], budget_s, charge_s) for r in degrees]
    work_s = np.stack(columns, axis=1)
    work_s[limits[:, None] < np.array(degrees)] = np.inf
    work_s += np.where(np.diff(arrival_s, append=np.inf) >= charge_s, charge_s, 0.0)[:, None]
    kind, least_s = _classes(work_s)
    accuracy = [machine.accuracy[r] for r in degrees]
    speed = machine.servers * machine.lanes
    offers = [
        [Offer(s / speed, a) for s, a in zip(row, accuracy, strict=True) if s < np.inf]
        for row in least_s.tolist()
    ]
    joined_s = arrival_s + (0.0 if charge_s else machine.before_queue_s)
    windows = WorkWindows(joined_s, arrival_s + slo_s - machine.after_batch_s, kind)
    return OfflineBound(len(arrival_s), windows, offers)


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a part of a batch, of at least 1, 2, … images, takes at least on its lane: two arrays.

    Attributes:
        latency_s: from its beginning to its end.
        busy_s: of lanes' time.
    """

    latency_s: FloatArray
    busy_s: FloatArray


def _parts(batch_seconds: Sequence[float], lanes: int) -> _Parts:
    """Return what parts take on the lanes of a machine with these batches."""
    seconds = np.array(batch_seconds, np.float64)
    images = np.arange(1, -(-len(seconds) // lanes) + 1)
    latency_s = seconds[np.minimum(images * lanes, len(seconds)) - 1]
    busy_s = latency_s.copy()
    latency_s[0] = min(latency_s[0], seconds[0])
    busy_s[0] = min(busy_s[0], lanes * seconds[0])
    return _Parts(_least_from(latency_s), _least_from(busy_s))


def _least_from(values: FloatArray) -> FloatArray:
    """Return the least of each value and those after it; rising whatever was measured."""
    return np.minimum.accumulate(values[::-1])[::-1]


def _work_s(arrival_s: FloatArray, parts: _Parts, budget_s: float, credit_s: float) -> FloatArray:
    """Return the least work of each image at one degree, by the company that it can have."""
    work_s = np.full(len(arrival_s), np.inf)
    takes = zip(parts.latency_s.tolist(), parts.busy_s.tolist(), strict=True)
    for size, (latency_s, busy_s) in enumerate(takes, 1):
        if latency_s > budget_s or size > len(arrival_s):
            break
        within = arrival_s[size - 1 :] - arrival_s[: len(arrival_s) - size + 1]
        first_of_company = within <= budget_s - latency_s + TINY_S
        covering = np.concatenate(([0], np.cumsum(first_of_company), np.zeros(size - 1, np.int64)))
        covering[len(first_of_company) + 1 :] = covering[len(first_of_company)]
        reach_back = np.maximum(np.arange(len(arrival_s)) - size + 1, 0)
        company = covering[1:] > covering[reach_back]
        share_s = (busy_s - credit_s) / size
        work_s[company] = np.minimum(work_s[company], share_s)
    return work_s


def _classes(work_s: FloatMatrix) -> tuple[IntArray, FloatMatrix]:
    """Group images whose work is much the same, so that a pass serves many.

    Returns:
        The class of each image, and `(classes, degrees)` the least work of each class. Images
        that accept different degrees are never in one class.
    """
    usable = np.isfinite(work_s)
    mine = np.where(usable, work_s, 0.0).sum(axis=1)
    best = np.where(usable, work_s.min(axis=0), 0.0).sum(axis=1)
    ratio = np.divide(mine, best, out=np.ones_like(mine), where=best > 0)
    steps = np.floor(np.log(ratio) / math.log(COMPANY_STEP) + TINY_S)
    key = np.column_stack([steps, usable.sum(axis=1)])
    _, kind = np.unique(key, axis=0, return_inverse=True)
    kind = kind.reshape(-1)
    least_s = np.array([work_s[kind == k].min(axis=0) for k in range(kind.max() + 1)])
    return kind, least_s
