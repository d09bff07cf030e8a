"""A fake machine under the real scheduler: arrivals in, degrees and latencies out, no real time."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise

from server.policy import Decision, Policy
from server.scheduler import PendingRequest, Scheduler
from server.stats import BatchStats, LoadSnapshot
from tests.server.fakes import FakeTable
from tests.server.situations import SLO_S
from tocom_core.operating_point import OperatingPoint

IDLE_LOOK_S = 0.25
"""So often a policy decides while no request waits."""


@dataclass
class PolicyDial:
    """Asks a policy, as the controller does in `auto` without bounds."""

    policy: Policy
    table: FakeTable
    slo_s: float
    r: int = 0

    def levels(self) -> tuple[OperatingPoint, ...]:
        """Return all levels."""
        return self.table.points()

    def keeping(self) -> tuple[OperatingPoint, ...]:
        """Return all levels; there is no floor."""
        return self.table.points()

    def decide(self, load: LoadSnapshot) -> Decision:
        """Ask, and remember the answer."""
        load = replace(load, slo_s=self.slo_s, levels=self.table.points())
        decision = self.policy.decide(load, self.r)
        self.r = decision.r
        return decision


@dataclass
class ClosedLoop:
    """One machine that computes one batch at a time, and what came out of it.

    Args:
        policy: decides the degree.
        levels: what is believed of the machine.
        batch_s: how long it really takes for a degree and a size; unset: as believed.
        slo_s: the promised latency.
        queue_size: most images that wait.
    """

    policy: Policy
    levels: tuple[OperatingPoint, ...]
    batch_s: Callable[[int, int], float] | None = None
    slo_s: float = SLO_S
    queue_size: int = 256
    now: float = 0.0
    degrees: list[tuple[float, int]] = field(default_factory=list)
    latencies: list[tuple[float, float]] = field(default_factory=list)  # of when it arrived
    batches: list[tuple[int, int]] = field(default_factory=list)  # degree and size
    offered: int = 0

    def __post_init__(self) -> None:
        """Start with an empty queue at the lowest level."""
        table = FakeTable(self.levels)
        self._dial = PolicyDial(self.policy, table, self.slo_s, self.levels[0].r)
        self._scheduler: Scheduler[PendingRequest] = Scheduler(
            self._dial,
            max_batch_size=len(self.levels[0].batch_seconds),
            queue_size=self.queue_size,
            slo_s=self.slo_s,
        )
        self._speeds = {level.r: level for level in self.levels}

    @property
    def r(self) -> int:
        """The degree that was decided last."""
        return self._dial.r

    def run_steady(self, images_per_s: float, seconds: float) -> None:
        """Serve arrivals at equal distances for a while; none at all for a rate of 0."""
        count = math.ceil(images_per_s * seconds)
        start = self.now  # the generator runs while the time goes on
        self.run((start + i / images_per_s for i in range(count)), start + seconds)

    def run(self, arrivals: Iterable[float], end: float) -> None:
        """Serve these arrivals, in order, until the time `end` is over."""
        coming = _Arrivals(iter(arrivals))
        while self.now < end:
            self._admit(coming)
            selection = self._scheduler.next_batch(self.now)
            self.degrees.append((self.now, self._dial.r))
            if selection.batch:
                self._compute(selection.batch, selection.r, coming)
            else:
                self.now = min(self.now + IDLE_LOOK_S, max(coming.next, self.now), end)

    def _admit(self, coming: "_Arrivals", until: float | None = None) -> None:
        """Let everybody in who arrived by now, each at its own time."""
        until = self.now if until is None else until
        while coming.next <= until:
            at = coming.take()
            self.offered += 1
            self._scheduler.note_arrival(at, 1)
            if self._scheduler.refusal(at, 1) is None:
                self._scheduler.admit(PendingRequest(self.offered, at, at))

    def _compute(self, batch: list[PendingRequest], r: int, coming: "_Arrivals") -> None:
        size, started_at = len(batch), self.now
        took_s = self.batch_s(r, size) if self.batch_s else self._speeds[r].batch_s(size)
        self._scheduler.batch_started(started_at, size, r)
        self._admit(coming, started_at + took_s)
        self.now = started_at + took_s
        self._scheduler.batch_ended(BatchStats(r, size, 0.0, took_s, started_at))
        self.batches.append((r, size))
        for request in batch:
            self._scheduler.answered(self.now, request)
            self.latencies.append((request.received_at, self.now - request.received_at))

    def attainment(self, since: float = 0.0) -> float:
        """Return the share of what was offered that was answered within the SLO.

        With `since` only the answered ones that arrived later count.
        """
        good = [at for at, took_s in self.latencies if took_s <= self.slo_s and at >= since]
        if since:
            return len(good) / sum(at >= since for at, _ in self.latencies)
        return len(good) / self.offered

    def switches(self, since: float, until: float = math.inf) -> int:
        """Count the changes of degree within a time."""
        inside = [r for at, r in self.degrees if since <= at <= until]
        return sum(a != b for a, b in pairwise(inside))

    def degrees_within(self, since: float, until: float = math.inf) -> set[int]:
        """Return the degrees that were decided within a time."""
        return {r for at, r in self.degrees if since <= at <= until}


class _Arrivals:
    """An iterator that can be looked at."""

    def __init__(self, times: Iterator[float]) -> None:
        self._times = times
        self.next = next(times, math.inf)

    def take(self) -> float:
        """Return the next arrival and move on."""
        at, self.next = self.next, next(self._times, math.inf)
        return at
