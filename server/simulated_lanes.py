"""The lanes of a simulated machine, and the parts of batches that run on them.

As on the real one (`room`, `lanes`, `gate`): a batch is shared out by images, its parts begin in
the order in which they came, and the next batch may be chosen once a lane has nothing to do. The
weights change only while nothing runs, so a batch at another degree waits for the one before it.
A machine with a single lane computes one batch after the other.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from server.meters import Running
from server.pending import PendingRequest
from server.simulated_machine import BatchTimer, Machine
from server.simulated_time import SimulatedClock, Timetable
from server.stats import BatchStats


@dataclass(slots=True, eq=False)
class SimulatedBatch:
    """A batch that is being computed, or was.

    Attributes:
        requests: one image each.
        r: its degree.
        limited: that was set by the requests' own `max_r`.
        started_at: when it was handed over.
        still_waiting: requests that were left in the queue then.
        running: what the scheduler keeps of it.
        merge_s: what changing the weights for it took.
        partial: it had no work for one of the lanes, and was not alone.
        compute_s: how long its longest part took.
        busy_s: how long its largest parts took, in the mean.
        open_parts: of it that are not done.
    """

    requests: list[PendingRequest]
    r: int
    limited: bool
    started_at: float
    still_waiting: int
    running: Running
    merge_s: float = 0.0
    partial: bool = False
    compute_s: float = 0.0
    busy_s: float = 0.0
    open_parts: int = 0

    def stats(self, now: float) -> BatchStats:
        """Return what a server would tell of it, now that it is over."""
        waited_s = now - self.started_at - self.merge_s - self.compute_s
        return BatchStats(
            self.r,
            len(self.requests),
            self.merge_s,
            self.compute_s,
            self.started_at,
            self.limited,
            handover_s=waited_s,
            overlap_s=waited_s + self.compute_s - self.busy_s,
            partial=self.partial,
        )


@dataclass(slots=True, eq=False)
class _Part:
    batch: SimulatedBatch
    images: int
    lanes: int
    weight: float
    began_at: float = 0.0
    ends_at: float = 0.0


class SimulatedLanes:
    """Runs batches, and tells whenever a lane is free again.

    Args:
        machine: how long batches really take, and on how many lanes.
        seed: of the machine's noise.
        clock: the simulation's.
        live_r: the degree that the weights have at first.

    Attributes:
        switches: how often the weights went to another degree.
    """

    def __init__(
        self, machine: Machine, seed: tuple[int, int], clock: SimulatedClock, live_r: int
    ) -> None:
        self.switches = 0
        self._machine = machine
        self._timer = BatchTimer(machine, seed)
        self._clock = clock
        self._live_r = live_r
        self._switched_at = 0.0
        self._waiting: deque[_Part] = deque()
        self._running: list[_Part] = []
        self._busy_s = 0.0

    def open(self, timetable: Timetable, on_part: Callable[[SimulatedBatch], None]) -> None:
        """Take part in a simulation.

        Args:
            timetable: of its events.
            on_part: told of a batch whenever a part of it is over.
        """
        self._timetable, self._on_part = timetable, on_part

    @property
    def room(self) -> bool:
        """Whether another batch may be chosen: a lane has nothing to do, now or soon."""
        return self._taken < self._machine.lanes

    @property
    def empty(self) -> bool:
        """Whether nothing runs."""
        return not self._running and not self._waiting

    @property
    def busy_s(self) -> float:
        """For how long it has computed, all in all, as a share of its lanes."""
        now = self._clock.now
        ongoing_s = sum((now - part.began_at) * part.lanes for part in self._running)
        return (self._busy_s + ongoing_s) / self._machine.lanes

    def disturb(self, seconds: float) -> None:
        """Make what runs end so much later."""
        for part in self._running:
            part.ends_at += seconds

    def begin(self, batch: SimulatedBatch) -> None:
        """Share a batch out; its parts run as soon as they can."""
        count, lanes = len(batch.requests), self._machine.lanes
        if count == 1 and self.empty:
            parts = [_Part(batch, 1, lanes, 1.0)]
        else:
            batch.partial = count < lanes
            sizes = self._machine.shares(count)
            weight = 1 / sizes.count(sizes[0])
            parts = [_Part(batch, n, 1, weight if n == sizes[0] else 0.0) for n in sizes]
        batch.open_parts = len(parts)
        self._waiting += parts
        self._start()

    @property
    def _taken(self) -> int:
        return sum(part.lanes for part in (*self._running, *self._waiting))

    def _start(self) -> None:
        """Let parts begin for which there is a lane, in order."""
        while self._waiting:
            part, now = self._waiting[0], self._clock.now
            if part.batch.r != self._live_r:
                if self._running:
                    return
                self._live_r = part.batch.r
                self.switches += 1
                part.batch.merge_s = self._machine.switch_s
                self._switched_at = now + self._machine.switch_s
            if sum(other.lanes for other in self._running) + part.lanes > self._machine.lanes:
                return
            self._running.append(self._waiting.popleft())
            part.began_at = max(now, self._switched_at)
            r, size = part.batch.r, part.images
            if part.lanes < self._machine.lanes:
                size = self._machine.part_size(r, size)
            part.ends_at = part.began_at + self._timer.seconds(r, size, part.began_at)
            self._timetable.at(part.ends_at, partial(self._end, part))

    def _end(self, part: _Part) -> None:
        """End a part, or wait on if requests that came meanwhile have made it longer."""
        now, batch = self._clock.now, part.batch
        if now < part.ends_at:
            self._timetable.at(part.ends_at, partial(self._end, part))
            return
        self._running.remove(part)
        self._busy_s += (now - part.began_at) * part.lanes
        batch.compute_s = max(batch.compute_s, now - part.began_at)
        batch.busy_s += part.weight * (now - part.began_at)
        batch.open_parts -= 1
        self._start()
        self._on_part(batch)
