"""Which waiting requests form the next batch, at which degree, and who cannot be served in time.

All of the queue's state and rules are here, synchronous and without a clock of their own: times are
arguments. The batcher drives it on the event loop, the simulator under a simulated clock.

**Order.** Earliest due first within a priority. A request is due at its deadline, or one SLO after
it has come in; several images of one request get the time that they take on top. Each lower
priority counts as `priority_step_s` later. Nobody starves: without a deadline no due time further
away than `PATIENCE_S` counts, and who names a far one is served before it is over. The order of two
requests never changes, which is why the queue can be kept sorted.

**Degree.** The controller's decision, or the fastest one that the request's own `max_r` allows. The
batch takes the degree of the first in order and, in order, those with the same degree, up to the
efficient size, as long as all in it stay in time and no one else gets late through it; under
overload it is at least as large as it takes to keep pace with the arrivals.

**Too late.** What would miss its due time even if it were served alone and at once costs no more
compute: it has expired (it named a deadline) or is shed. When the fastest degree cannot serve all
that wait in time, those that would miss are shed now, so that the others go in efficient batches:
the last in order, hence the lowest priority, first, but before them requests whose own `max_r`
makes them cost more. At the door the same reckoning refuses what would not be reached. What
is next must be in time even if batches take longer than believed, who is further back goes only if
late even if they take less (`demand.excess`).
"""

import logging
import math
from collections.abc import Sequence
from typing import Generic, TypeVar

import numpy as np

from server.demand import excess, in_time, paced
from server.dial import Dial
from server.due_queue import DueQueue
from server.meters import LoadMeter, Running
from server.pending import PendingRequest, Refusal, Selection
from server.policy import Decision
from server.reach import Reach
from server.stats import Backlog, BatchStats, IntArray, LoadSnapshot
from tocom_core.operating_point import OperatingPoint

__all__ = ["PendingRequest", "Refusal", "Scheduler", "Selection"]

logger = logging.getLogger(__name__)

PATIENCE_S, MIN_PRIORITY_STEP_S, LAST_CALL_S = 10.0, 1.0, 1.0
"""`LAST_CALL_S`: so long before its deadline a patient request stands before all others."""
PROBE_AFTER_S = 1.0
"""When no batch has run for so long, one request that is believed to be hopeless is tried."""
BENEFIT = 0.05
"""A request is hopeless only if it would be late by this share of what it takes."""
LEAST_DOUBT, SPREADS, MOST_DOUBT = 0.04, 2.0, 0.5
"""By which share a batch may take longer than believed: so many times what they spread."""

RequestT = TypeVar("RequestT", bound=PendingRequest)


class Scheduler(Generic[RequestT]):
    """The queue, and the choice of the next batch.

    Args:
        dial: decides the degree.
        max_batch_size: most images in a batch.
        queue_size: most images that wait or are being decoded.
        slo_s: when a request without a deadline is due, after it has come in.
        shed_late: whether what cannot be in time is given up; else it is served late.
    """

    def __init__(
        self,
        dial: Dial,
        *,
        max_batch_size: int,
        queue_size: int,
        slo_s: float,
        shed_late: bool = True,
    ) -> None:
        self._dial = dial
        self._max_batch_size = max_batch_size
        self._queue_size = queue_size
        self._slo_s = slo_s
        self._shed_late = shed_late
        self._priority_step_s = max(MIN_PRIORITY_STEP_S, 2 * slo_s)
        self._queue: DueQueue[RequestT] = DueQueue()
        self._held = [0, 0, 0]
        self._reached: Reach | None = None
        self._meter = LoadMeter(dial.table.devices)
        self._least_batch = 1
        self._decision = Decision(dial.levels()[0].r, "start")

    def __len__(self) -> int:
        """Return how many requests wait."""
        return len(self._queue)

    @property
    def held(self) -> int:
        """Places that are held for images being decoded."""
        return sum(self._held)

    @property
    def taken(self) -> int:
        """Places that are held or in which somebody waits."""
        return self.held + len(self._queue)

    def take_over(self, before: "Scheduler[RequestT]") -> None:
        """Go on with the load that the scheduler of another model has seen."""
        self._meter.take_over(before._meter)

    # The way of a request: arrival, refusal or held places, admission, withdrawal.

    def note_arrival(self, now: float, places: int) -> None:
        """Count offered images, admitted or not."""
        self._meter.arrived(now, places)

    def refusal(
        self,
        now: float,
        places: int,
        *,
        priority: int = 1,
        deadline: float | None = None,
        max_r: int | None = None,
        received_at: float | None = None,
    ) -> Refusal | None:
        """Say whether so many images of one request are refused, and why; None: welcome."""
        if self.taken + places > self._queue_size:
            return Refusal("full", self.drain_s(now))
        received_at = now if received_at is None else received_at
        reach = self._reach()
        due = self._due(reach, received_at, (deadline, max_r, places - 1))
        left_s = due - now
        itself_s = reach.clear_s(places, max_r)
        if deadline is not None and itself_s * (1 - BENEFIT) > left_s and not self._may_probe(now):
            return Refusal("hopeless", 0.0)
        ahead = sum(self._held[: priority + 1])
        ahead += self._queue.ahead_of(self._key(received_at, due, priority, deadline))
        if not self._shed_late or not (ahead or self._meter.busy):
            return None  # whatever it takes, it is not the load's doing
        done_s = self._meter.share_s(now) + reach.clear_s(ahead) + itself_s
        late = done_s * (1 - self._doubt) > left_s
        return Refusal("late", self.drain_s(now)) if late else None

    def make_room(self, places: int, priority: int) -> list[RequestT]:
        """Take the last in order out of a full queue, if they have a lower priority.

        Returns:
            As many as are in the way of `places` more, to be shed; nobody if that is not enough.
        """
        surplus = self.taken + places - self._queue_size
        if surplus <= 0 or surplus > len(self._queue):
            return []
        count = len(self._queue)
        if any(item.priority <= priority for item in self._queue.items[count - surplus :]):
            return []
        self._meter.lost(surplus)
        return self._queue.take(np.arange(count - surplus, count))

    def hold(self, places: int, priority: int = 1) -> None:
        """Keep places for images that are being decoded; negative gives them back."""
        self._held[priority] += places

    def admit(self, request: RequestT) -> None:
        """Let a request join the queue, in a place that was held."""
        wishes = request.deadline, request.max_r, request.companions
        reach = self._reach()
        request.due = self._due(reach, request.received_at, wishes)
        alone_s = reach.alone_one_s(request.max_r)
        if request.deadline is None and request.due - request.arrived_at < alone_s:
            # Decoding took the time that it had: that is not the load's doing either.
            request.due = self._due(reach, request.arrived_at, wishes)
        self._queue.add(request, self._key_of(request), request.due, request.max_r)

    def withdraw(self, request: RequestT) -> bool:
        """Forget a waiting request; False if it does not wait."""
        return self._queue.remove(request, self._key_of(request))

    # The way of a batch: chosen, started, finished.

    def next_batch(self, now: float) -> Selection[RequestT]:
        """Choose the next batch, and take it and whoever is too late out of the queue.

        If the one before it still runs in part, times are reckoned from when that should be over.
        """
        self._least_batch = 1
        now += self._meter.residual_s(now)
        load = self.load(now)
        if late := self._take_hopeless(load):
            load = self.load(now)
        decision = self._decide(load)
        reach = self._reach()
        if self._shed_late and len(self._queue):
            late += self._take_infeasible(load, reach)
        expired = [request for request in late if request.deadline is not None]
        shed = [request for request in late if request.deadline is None] if expired else late
        retry_s = self.drain_s(now) if shed else 0.0
        self._meter.lost(len(late))
        if not len(self._queue):
            return Selection([], decision.r, decision.r, expired, shed, retry_s)
        r, places = self._choose(load, decision, reach)
        batch = self._queue.take(places)
        return Selection(batch, r, decision.r, expired, shed, retry_s)

    def batch_started(self, now: float, size: int, r: int) -> Running:
        """Note that a batch is being computed."""
        return self._meter.started(now, size, r, self._reach().level(r).batch_s(size))

    def batch_ended(self, stats: BatchStats | None = None, running: Running | None = None) -> None:
        """Note that it is over, by default the oldest one; without figures if it failed."""
        self._meter.ended(stats, running)

    def answered(self, now: float, request: RequestT) -> None:
        """Note that a request got its result."""
        self._meter.answered(now, now - request.received_at, late=now > request.due)

    def timed_out(self) -> None:
        """Note that a deadline came before its request was answered or given up."""
        self._meter.lost(1)

    def load(self, now: float) -> LoadSnapshot:
        """Return what a policy needs to know; its SLO and levels are the controller's to add."""
        queue = self._queue
        oldest = queue.items[0].arrived_at if queue.items else now
        return self._meter.snapshot(
            now,
            Backlog(queue.dues - now, queue.limits.copy(), self._meter.begin_s(now)),
            decoding=self.held,
            oldest_wait_s=max(0.0, now - oldest),
            queue_size=self._queue_size,
            spread=self._dial.table.spread,
        )

    def drain_s(self, now: float) -> float:
        """Return when all that is here now will be done, at the fastest reachable level."""
        return self._meter.share_s(now) + self._reach().clear_s(self.taken)

    def _decide(self, load: LoadSnapshot) -> Decision:
        """Ask for the degree; a fault in the answer must not stop the answers."""
        try:
            self._decision = self._dial.decide(load)
        except Exception:
            logger.exception("choosing r failed; staying at r=%d", self._decision.r)
        return self._decision

    # Too late.

    def _take_hopeless(self, load: LoadSnapshot) -> list[RequestT]:
        """Take out whose time is over, or would be even if it were served alone and at once."""
        backlog, reach = load.backlog, self._reach()
        if backlog.least_slack_s >= reach.longest_alone_s:
            return []
        hopeless = backlog.slack_s < reach.alone_s(backlog.max_r) * (1 - BENEFIT)
        if self._meter.idle_s(load.now) >= PROBE_AFTER_S:
            hopeless[0] = False  # an untested belief is no reason not to try
        hopeless |= backlog.slack_s <= 0
        if not self._shed_late:
            hopeless &= [request.deadline is not None for request in self._queue]
        return self._queue.take(np.flatnonzero(hopeless))

    def _take_infeasible(self, load: LoadSnapshot, reach: Reach) -> list[RequestT]:
        """Take out who would miss although the fastest level serves nothing but this queue."""
        backlog = load.backlog
        if in_time(reach.fastest, reach.below, backlog):
            return []
        if self._meter.idle_s(load.now) >= PROBE_AFTER_S:
            return []
        if any(in_time(level, reach.below, backlog) for level in reach.quick(len(backlog))):
            return []  # a small batch may be quicker at a lower level
        level = paced(reach.fastest, max(load.arrival_rate, load.steady_rate))
        self._least_batch, items = level.batch_size, self._queue.items
        gone = excess(backlog, level, reach.below, lambda at: items[at].priority, self._doubt)
        return self._queue.take(gone)

    # The batch.

    def _choose(self, load: LoadSnapshot, decision: Decision, reach: Reach) -> tuple[int, IntArray]:
        """Return the degree and the places of the next batch."""
        limits = self._queue.limits
        now, r, most = load.now, decision.r, self._max_batch_size
        if load.backlog.least_max_r >= r:
            alike = np.arange(min(len(limits), most))
        else:
            degrees = reach.degrees(limits, r)
            r = int(degrees[0])
            alike = np.flatnonzero(degrees == r)
        level = reach.level(r)
        alike = alike[: min(most, decision.max_batch or level.batch_size)]
        done_by = math.inf if r == decision.r else self._others_done_by(now, decision.r, reach)
        dues = self._queue.dues[alike].tolist()
        return r, alike[: self._how_many(now, level, dues, done_by)]

    def _others_done_by(self, now: float, wanted_r: int, reach: Reach) -> float:
        """Return when a batch of limited requests must be done so that no other gets late."""
        others = np.flatnonzero(self._queue.limits >= wanted_r)
        if not len(others):
            return math.inf
        level = reach.level(wanted_r)
        size = min(len(others), level.batch_size)
        due = float(self._queue.dues[others[:size]].min())
        latest = due - level.batch_s(size)
        return latest if latest > now else math.inf  # late anyway: do not stop for it

    def _how_many(
        self, now: float, level: OperatingPoint, dues: Sequence[float], done_by: float
    ) -> int:
        """Count the first of these that a batch takes and stays short enough for all in it."""
        alone_at, longer = now + level.batch_s(1), 1 + self._doubt
        for size, due in enumerate(dues, 1):
            if due >= alone_at:
                done_by = min(done_by, now + (due - now) / longer)
            if size > self._least_batch and now + level.batch_s(size) > done_by:
                return size - 1
        return len(dues)

    # Reckoning.

    @property
    def _doubt(self) -> float:
        """By which share a batch may take longer, or less, than believed."""
        return min(max(LEAST_DOUBT, SPREADS * self._dial.table.spread), MOST_DOUBT)

    def _due(
        self, reach: Reach, received_at: float, wishes: tuple[float | None, int | None, int]
    ) -> float:
        deadline, max_r, companions = wishes
        if deadline is not None:
            return deadline
        if reach.alone_one_s(max_r) > self._slo_s:
            return math.inf
        return received_at + self._slo_s + reach.clear_s(companions, max_r)

    def _key_of(self, request: RequestT) -> float:
        return self._key(request.received_at, request.due, request.priority, request.deadline)

    def _key(self, received_at: float, due: float, priority: int, deadline: float | None) -> float:
        later_s = priority * self._priority_step_s
        patience_until = received_at + PATIENCE_S
        if deadline is not None:  # who allows more time waits longer, but is served within it
            patience_until = max(patience_until, deadline - later_s - LAST_CALL_S)
        return min(due, patience_until) + later_s

    def _may_probe(self, now: float) -> bool:
        """Whether to try what is believed hopeless: nothing has tested the belief for a while."""
        return not self.taken and not self._meter.busy and self._meter.idle_s(now) >= PROBE_AFTER_S

    def _reach(self) -> Reach:
        known = self._dial.table.points(), self._dial.levels(), self._dial.keeping()
        if self._reached is None or not self._reached.current(*known):
            self._reached = Reach(*known)
        return self._reached
