"""One server in simulated time: the batch loop around the real scheduler and controller.

What `admission` and `batcher` do on the event loop is done here by events: a request is refused or
gets a place, joins the queue when it is decoded, is taken into a batch, answered. Every decision is
the scheduler's and the controller's own.
"""

from server.controller import Controller
from server.fates import UNKNOWN, Outcome
from server.scheduler import PendingRequest, Scheduler
from server.simulated_lanes import SimulatedBatch, SimulatedLanes
from server.simulated_machine import Machine
from server.simulated_requests import Arrival, BatchRecord, Ledger
from server.simulated_time import SimulatedClock, Timetable

LOOK_EVERY_S = 0.25
"""How often the controller is asked without a batch, as on a real server."""


class SimulatedServer:
    """A server that takes part in one simulation.

    Args:
        scheduler: keeps the queue and chooses batches, with `controller` as its dial.
        controller: has `clock` as its clock.
        machine: how long batches really take.
        clock: the simulation's.
        r_source: the degree that the weights have at first.
        max_batch_size: a queue that fills it is not waited for any longer.
        max_queue_delay_s: how long to wait for a fuller batch when the machine was idle.
        seed: of the machine's noise.
        number: of this server in its farm.

    Attributes:
        clock: as given.
        controller: as given.
        outstanding: requests taken in and not answered yet.
    """

    def __init__(
        self,
        scheduler: Scheduler[PendingRequest],
        controller: Controller,
        machine: Machine,
        clock: SimulatedClock,
        *,
        r_source: int = 0,
        max_batch_size: int = 32,
        max_queue_delay_s: float = 0.0,
        seed: int = 0,
        number: int = 0,
    ) -> None:
        self.clock = clock
        self.outstanding = 0
        self._scheduler = scheduler
        self.controller = controller
        self._machine = machine
        self._lanes = SimulatedLanes(machine, (seed, number), clock, r_source)
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._number = number
        self._closed = False
        self._gathering = False
        self._gathered = 0

    def open(self, timetable: Timetable, ledger: Ledger) -> None:
        """Take part in a simulation."""
        self._timetable, self._ledger = timetable, ledger
        self._lanes.open(timetable, self._part_done)
        timetable.at(self.clock.now + LOOK_EVERY_S, self._look)

    def close(self) -> None:
        """Take no more part in it: nothing is outstanding, and nothing will come any more."""
        self._closed = True

    @property
    def switches(self) -> int:
        """How often the weights went to another degree."""
        return self._lanes.switches

    @property
    def busy_s(self) -> float:
        """For how long it has computed, all in all."""
        return self._lanes.busy_s

    def _look(self) -> None:
        """Let the degree come back down when there are no batches that would ask for it."""
        if self._closed or self._ledger.complete:
            return
        now = self.clock.now
        self.controller.decide(self._scheduler.load(now))
        self._timetable.at(now + LOOK_EVERY_S, self._look)

    # A request: at the door, in the queue.

    def arrive(self, index: int, arrival: Arrival) -> None:
        """Take a request in, or refuse it."""
        now, scheduler = self.clock.now, self._scheduler
        self._lanes.disturb(self._machine.overhead.interference_s)
        deadline = None if arrival.deadline_s is None else now + arrival.deadline_s
        scheduler.note_arrival(now, 1)
        refusal = scheduler.refusal(
            now,
            1,
            priority=arrival.priority,
            deadline=deadline,
            max_r=arrival.max_r,
            received_at=now,
        )
        if refusal is not None:
            self._ledger.close(index, now, "expired" if refusal.why == "hopeless" else "shed")
            return
        self.outstanding += 1
        scheduler.hold(1, arrival.priority)
        joins_at = now + self._machine.overhead.before_queue_s
        request = PendingRequest(index, joins_at, now, deadline, arrival.max_r, arrival.priority)
        if deadline is not None:
            self._timetable.at(deadline, lambda: self._expire(request))
        self._timetable.at(joins_at, lambda: self._join(request))

    def _join(self, request: PendingRequest) -> None:
        if not self._ledger.is_open(request.id):  # its deadline passed while it was decoded
            self._scheduler.hold(-1, request.priority)
            return
        self._scheduler.admit(request)
        self._scheduler.hold(-1, request.priority)
        if not self._lanes.room:
            return
        full = len(self._scheduler) >= self._max_batch_size
        if full or not self._max_queue_delay_s or not self._lanes.empty:
            self._serve_next()
        elif not self._gathering:
            self._gathering = True
            self._gathered += 1
            mine = self._gathered
            self._timetable.at(self.clock.now + self._max_queue_delay_s, lambda: self._wake(mine))

    def _wake(self, gathering: int) -> None:
        """End a wait for a fuller batch, unless it has ended already."""
        if self._gathering and self._gathered == gathering:
            self._serve_next()

    def _expire(self, request: PendingRequest) -> None:
        """Answer at the deadline, wherever the request is by then."""
        if self._ledger.is_open(request.id):
            self._scheduler.withdraw(request)
            self._give_up(request, "expired")

    def _give_up(self, request: PendingRequest, outcome: Outcome) -> None:
        self.outstanding -= 1
        self._ledger.close(request.id, self.clock.now, outcome)

    # A batch: chosen, computed, answered.

    def _serve_next(self) -> None:
        """Begin batches while somebody waits and a lane has nothing to do."""
        now = self.clock.now
        self._gathering = False
        while len(self._scheduler) and self._lanes.room:
            selection = self._scheduler.next_batch(now)
            for request in selection.expired:
                self._give_up(request, "expired")
            for request in selection.shed:
                self._give_up(request, "shed")
            if selection.batch:
                self._begin(selection.batch, selection.r, selection.r != selection.wanted_r)

    def _begin(self, requests: list[PendingRequest], r: int, limited: bool) -> None:
        now = self.clock.now
        running = self._scheduler.batch_started(now, len(requests), r)
        waiting = len(self._scheduler)
        self._lanes.begin(SimulatedBatch(requests, r, limited, now, waiting, running))

    def _part_done(self, batch: SimulatedBatch) -> None:
        """Answer the batch if that was the last of it, and see who is next."""
        if not batch.open_parts:
            self._end(batch)
        self._serve_next()

    def _end(self, batch: SimulatedBatch) -> None:
        now, size = self.clock.now, len(batch.requests)
        stats = batch.stats(now)
        self._scheduler.batch_ended(stats, batch.running)
        self.controller.observe_batch(stats)
        self._ledger.batches.append(
            BatchRecord(batch.started_at, now, self._number, batch.r, size, batch.still_waiting)
        )
        for request in batch.requests:
            if self._ledger.is_open(request.id):  # else its deadline passed meanwhile
                self._answer(request, batch.r, size)

    def _answer(self, request: PendingRequest, r: int, size: int) -> None:
        now = self.clock.now
        self._scheduler.answered(now, request)
        self.outstanding -= 1
        self._ledger.close(
            request.id,
            now + self._machine.overhead.after_batch_s,
            "ok",
            r=r,
            correct=self._machine.accuracy.get(r, UNKNOWN),
            batch_size=size,
        )
